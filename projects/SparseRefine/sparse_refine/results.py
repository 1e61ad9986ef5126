# SPDX-License-Identifier: Apache-2.0
"""What SparseRefine returns: the record of what it did to an image, which evaluators and pictures
read, and the base's other outputs (panoptic maps, instances) at full size.

The base could make those at full size itself if it were told the full "height" and "width". But
then Mask2Former, for one, would interpolate each of its hundred masks to full size (0.8 GB at
1024x2048), and `sem_seg` with them. Repeating the pixels of the finished map costs next to nothing.

Shapes: (H, W) full size, (h, w) low size, P selected pixels, N instances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Boxes, Instances

from .coarse import CoarseOutput
from .resampling import argmax_labels, enlarge, enlarge_labels, repeat_nearest
from .selector import entropy_map


@dataclass(frozen=True)
class Refinement:
    """One image's predictions, without any K x H x W tensor.

    `labels` (H,W) integer: the fused label map, at the size of the image that the model was given.
    `sites` (P,2) int64: (y, x) of the selected pixels, in raster order.
    `coarse`, `refined`, `fused` (P,) integer: the three predictions at the sites; everywhere else
    all three are the coarse one. `entropy` (h,w) float: of the coarse prediction, in nats.
    """

    labels: torch.Tensor
    sites: torch.Tensor
    coarse: torch.Tensor
    refined: torch.Tensor
    fused: torch.Tensor
    entropy: torch.Tensor

    @property
    def selected_fraction(self) -> float:
        """Selected pixels over all pixels, 0..1."""
        return len(self.sites) / self.labels.numel()

    def selected(self) -> torch.Tensor:
        """(H,W) bool: which pixels were refined."""
        mask = torch.zeros_like(self.labels, dtype=torch.bool)
        mask[self.sites[:, 0], self.sites[:, 1]] = True
        return mask

    def label_map(self, kind: str) -> torch.Tensor:
        """(H,W) labels with the "coarse", "refined" or "fused" prediction at the sites.

        Raises:
            ValueError: another kind.
        """
        if kind == "fused":
            return self.labels
        if kind not in ("coarse", "refined"):
            raise ValueError(f"kind is {kind!r}: one of 'coarse', 'refined', 'fused'")
        labels = self.labels.clone()
        labels[self.sites[:, 0], self.sites[:, 1]] = getattr(self, kind)
        return labels


def image_result(
    item: dict,
    out: CoarseOutput,
    yx: torch.Tensor,
    coarse: torch.Tensor,
    refined: torch.Tensor,
    fused: torch.Tensor,
    output: str,
    interpolation: str,
) -> dict:
    """What SparseRefine returns for one image, see its `forward`.

    Args:
        item: the input. out: what the base said of it.
        yx: (P,2) int64 sites. coarse, refined, fused: (P,K) logits at them.
        output: "logits" or "labels". interpolation: how coarse logits get to full size.
    """
    size = tuple(item["image"].shape[-2:])
    wanted = item.get("height", size[0]), item.get("width", size[1])
    predictions = [argmax_labels(logits.t()) for logits in (coarse, refined, fused)]  # (P,) each
    result = full_size_outputs(out.others, tuple(out.logits.shape[-2:]), wanted)
    y, x = yx.unbind(1)
    if output == "logits":
        full = enlarge(out.logits, size, interpolation)  # (K,H,W)
        full[:, y, x] = fused.t().to(full.dtype)  # autocast
        labels = argmax_labels(full)  # (H,W)
        result["sem_seg"] = sem_seg_postprocess(full, size, *wanted) if wanted != size else full
    else:
        labels = enlarge_labels(out.logits, size, interpolation)  # (H,W)
        labels[y, x] = predictions[2]
        result["labels"] = repeat_nearest(labels, wanted) if wanted != size else labels
    result["refinement"] = Refinement(labels, yx, *predictions, entropy_map(out.logits))
    return result


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
        if area  # a smaller map may lose a segment, and one without pixels has no place in PQ
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
