# SPDX-License-Identifier: Apache-2.0
"""Other outputs of a base (panoptic maps, instances), brought to full size.

The base could make them at full size itself if it were told the full "height" and "width", but then
Mask2Former, for one, would interpolate each of its hundred masks to full size (0.8 GB at
1024x2048), and `sem_seg` with them. Repeating the pixels of the finished map costs next to
nothing, and is what the coarse prediction stands for anyway.
"""

from __future__ import annotations

import torch
from detectron2.structures import BitMasks, Boxes, Instances

from .coarse import repeat_nearest


def full_size_outputs(output: dict, low: tuple[int, int], size: tuple[int, int]) -> dict:
    """The outputs of one image but for `sem_seg`, from (h,w) = `low` to (H,W) = `size`.

    "panoptic_seg" (map (h,w), segments) becomes (map (H,W), segments), with areas in pixels of the
    new map where segments have one, and without segments that have no pixel in it; `Instances` get
    their boxes and keypoints scaled and their masks (N,h,w) repeated. What is neither passes as it
    is.
    """
    results = {key: value for key, value in output.items() if key != "sem_seg"}
    if low == size:
        return results
    for key, value in results.items():
        if key == "panoptic_seg" and isinstance(value, tuple):
            results[key] = _panoptic(*value, size)
        elif isinstance(value, Instances):
            results[key] = _instances(value, low, size)
    return results


def _panoptic(ids: torch.Tensor, segments: list[dict] | None, size) -> tuple:
    ids = repeat_nearest(ids, size)
    if segments is None:
        return ids, None
    areas = [int((ids == segment["id"]).sum()) for segment in segments]
    return ids, [
        {**segment, "area": area} if "area" in segment else segment
        for segment, area in zip(segments, areas)
        if area  # a smaller map loses the smallest, and PQ is not counted for one without pixels
    ]


def _instances(instances: Instances, low, size) -> Instances:
    scale_y, scale_x = size[0] / low[0], size[1] / low[1]
    results = Instances(size)
    for name, value in instances.get_fields().items():
        if isinstance(value, Boxes):
            value = value.clone()
            value.scale(scale_x, scale_y)
            value.clip(size)
        elif isinstance(value, BitMasks):
            value = BitMasks(repeat_nearest(value.tensor, size))
        elif name == "pred_keypoints":  # (N,k,3): x, y, score
            value = value.clone()
            value[..., 0] *= scale_x
            value[..., 1] *= scale_y
        elif isinstance(value, torch.Tensor) and tuple(value.shape[1:]) == tuple(low):
            value = repeat_nearest(value, size)  # masks
        results.set(name, value)
    return results
