# SPDX-License-Identifier: Apache-2.0
"""Panoptic maps and instances of a base, from its size to the full one."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances

from sparse_refine.results import full_size_outputs


def test_panoptic_map_by_hand():
    ids = torch.tensor([[1, 2, 0]], dtype=torch.int32)
    segments = [
        {"id": 1, "isthing": True, "category_id": 4},
        {"id": 2, "isthing": False, "category_id": 7, "area": 1},
    ]
    output = full_size_outputs({"panoptic_seg": (ids, segments)}, (1, 3), (2, 6))
    full, infos = output["panoptic_seg"]
    assert full.tolist() == [[1, 1, 2, 2, 0, 0]] * 2 and full.dtype == torch.int32
    assert infos == [segments[0], {**segments[1], "area": 4}]
    assert segments[1]["area"] == 1  # the base's own are not touched


def test_a_segment_that_a_smaller_map_loses():
    ids = torch.tensor([[2, 1, 1, 1]])  # the centres of two pixels lie in the second and fourth
    segments = [{"id": 1, "category_id": 4}, {"id": 2, "category_id": 7, "area": 1}]
    output = full_size_outputs({"panoptic_seg": (ids, segments)}, (1, 4), (1, 2))
    assert output["panoptic_seg"][0].tolist() == [[1, 1]]
    assert output["panoptic_seg"][1] == segments[:1]


def test_a_size_that_is_no_multiple():
    ids = torch.arange(6).view(2, 3)
    full, none = full_size_outputs({"panoptic_seg": (ids, None)}, (2, 3), (3, 5))["panoptic_seg"]
    assert full.tolist() == [[0, 0, 1, 2, 2], [3, 3, 4, 5, 5], [3, 3, 4, 5, 5]] and none is None


def test_instances_by_hand():
    masks = torch.tensor([[[True, False]], [[False, True]]])
    instances = Instances((1, 2))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0]]))
    instances.pred_masks = masks
    instances.gt_masks = BitMasks(masks)
    instances.scores = torch.tensor([0.5, 0.25])
    instances.pred_keypoints = torch.tensor([[[1.0, 0.5, 0.9]], [[2.0, 1.0, 0.8]]])
    result = full_size_outputs({"instances": instances}, (1, 2), (3, 8))["instances"]
    assert result.image_size == (3, 8)
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 4, 3], [4, 0, 8, 3]]
    assert result.pred_masks[0].tolist() == [[True] * 4 + [False] * 4] * 3
    assert torch.equal(result.gt_masks.tensor, result.pred_masks)
    assert torch.equal(result.scores, instances.scores)
    assert result.pred_keypoints[:, 0, :2].tolist() == [[4, 1.5], [8, 3]]
    assert instances.pred_boxes.tensor.max() == 2 and instances.pred_keypoints.max() == 2


def test_none_found():
    instances = Instances((4, 4))
    instances.pred_boxes = Boxes(torch.zeros(0, 4))
    instances.pred_masks = torch.zeros(0, 4, 4, dtype=torch.bool)
    result = full_size_outputs({"instances": instances}, (4, 4), (8, 8))["instances"]
    assert len(result) == 0 and result.pred_masks.shape == (0, 8, 8)


def test_what_is_unknown_and_what_fits_pass_as_they_are():
    panoptic = (torch.ones(2, 2), [])
    output = {"sem_seg": torch.ones(3, 2, 2), "other": "some", "panoptic_seg": panoptic}
    assert full_size_outputs(output, (2, 2), (2, 2)) == {"other": "some", "panoptic_seg": panoptic}
    assert full_size_outputs({"panoptic_seg": "text"}, (2, 2), (4, 4)) == {"panoptic_seg": "text"}
