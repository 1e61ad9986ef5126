# SPDX-License-Identifier: Apache-2.0
"""Detectron2's own models as bases: PanopticFPN's outputs, PointRend's and DeepLab's traps."""

from pathlib import Path

import pytest
import torch

from sparse_refine.config import load_config
from sparse_refine.resampling import downsample
from sparse_refine.training.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "configs"
# fmt: off
TINY = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.DEPTH", 50,
    "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.SPARSE_REFINE.EXTRACTOR.PRESET", "custom",
    "MODEL.SPARSE_REFINE.EXTRACTOR.CHANNELS", [4, 8],
    "MODEL.SPARSE_REFINE.EXTRACTOR.BACKEND", "torch",
]
# fmt: on


def model_of(name, *options):
    return Trainer.build_model(load_config(str(CONFIGS / name), [*TINY, *options])).eval()


def image_of(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def test_panoptic_fpn_gives_all_its_outputs_at_full_size():
    model = model_of(
        "coco_stuff/panoptic_fpn_r50.yaml",
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
        *("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 1),
        *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0),
    )
    image = image_of(150, 202)
    with torch.inference_mode():
        (output,) = model([{"image": image, "height": 300, "width": 404}])
        small = downsample(image, (75, 101))
        (alone,) = model.coarse.base([{"image": small, "height": 75, "width": 101}])
    assert output["sem_seg"].shape == (54, 300, 404)

    instances, theirs = output["instances"], alone["instances"]
    assert instances.pred_masks.shape == (len(theirs), 300, 404) and len(theirs) > 0
    assert instances.image_size == (300, 404)
    assert torch.allclose(instances.pred_boxes.tensor, theirs.pred_boxes.tensor * 4, atol=0.01)
    assert torch.equal(instances.pred_masks[:, 2::4, 2::4], theirs.pred_masks)
    assert torch.equal(instances.pred_classes, theirs.pred_classes)

    ids, segments = output["panoptic_seg"]
    assert torch.equal(ids[2::4, 2::4], alone["panoptic_seg"][0]) and ids.shape == (300, 404)
    stuff = [segment for segment in segments if not segment["isthing"]]
    assert stuff and all(s["area"] == int((ids == s["id"]).sum()) for s in stuff)


def test_pointrend_covers_the_image():
    """With one step fewer Detectron2 answers for the top left corner alone (its issue 3693)."""
    name = "cityscapes/pointrend_r101.yaml"
    model = model_of(name, "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 64)
    head = model.coarse.base.sem_seg_head
    with torch.inference_mode():
        features = model.coarse.base.backbone(torch.zeros(1, 3, 64, 96))
        assert head(features)[0].shape == (1, 19, 64, 96)
    with pytest.raises(ValueError, match="SUBDIVISION_STEPS is 1 and .*COMMON_STRIDE 4"):
        model_of(name, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 1)


@pytest.mark.parametrize("size", [(150, 202), (64, 64)])
def test_deeplab_takes_images_of_any_size(size):
    """Its head pools over the whole image, not in windows of the refiner's training crop."""
    model = model_of("cityscapes/deeplab_v3plus_r103.yaml", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 32)
    with torch.inference_mode():
        (output,) = model([{"image": image_of(*size)}])
    assert output["sem_seg"].shape == (19, *size)
