# SPDX-License-Identifier: Apache-2.0
"""The border of every model of this project: Detectron2's list of dicts, checked once."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch


def check_inputs(
    batched_inputs: Sequence[dict], training: bool, num_classes: int, ignore_label: int
) -> None:
    """
    Args:
        batched_inputs: a dict an image: "image" (3,H,W) uint8 or float; in training "sem_seg" (H,W)
            of 0..K-1 or `ignore_label`, any integer type; where "image" is a crop, "context"
            (3,h,w) and "crop" (top, left, full H, full W). Else "height" and "width" of the output,
            where they are not the image's.
        num_classes: K; 0 where it is not known yet, see `check_label_values`.

    Raises:
        TypeError, ValueError: anything else; says the key, what was found, what is expected.
    """
    if not isinstance(batched_inputs, (list, tuple)):
        raise TypeError(
            f"a model takes Detectron2's list of dicts, [{{'image': (3,H,W)}}, ...], not "
            f"{_described(batched_inputs)}"
        )
    if training and not batched_inputs:
        raise ValueError("a training batch of no images: at least one is needed")
    for index, item in enumerate(batched_inputs):
        where = f"input {index}"
        if not isinstance(item, dict) or "image" not in item:
            found = f"keys {sorted(item)}" if isinstance(item, dict) else _described(item)
            raise ValueError(f"{where} has {found}: a dict with 'image' (3,H,W) is needed")
        _check_image(item["image"], f"{where}, 'image'")
        if "context" in item:
            _check_image(item["context"], f"{where}, 'context'")
        size = tuple(item["image"].shape[1:])
        if "crop" in item:
            _check_crop(item["crop"], size, where)
        if training:
            _check_labels(item, size, num_classes, ignore_label, where)
        else:
            _check_output_size(item, where)


def _described(value) -> str:
    if hasattr(value, "shape"):
        return f"{type(value).__name__} {tuple(value.shape)} of {value.dtype}"
    return type(value).__name__


def _check_image(image, where: str) -> None:
    found = f"{where} is {_described(image)}"
    if not isinstance(image, torch.Tensor):
        raise TypeError(
            f"{found}: a tensor (3,H,W) is needed; torch.from_numpy(a.transpose(2, 0, 1).copy()) "
            "makes one of an array (H,W,3)"
        )
    if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
        hint = "; .permute(2, 0, 1) turns (H,W,3) to it" if image.shape[-1:] == (3,) else ""
        raise ValueError(f"{found}: (3,H,W) with at least one pixel is needed{hint}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"{found}: uint8 or a floating point type is needed")


def _check_crop(crop, size: tuple[int, int], where: str) -> None:
    top, left, height, width = crop if len(crop) == 4 else (-1, -1, 0, 0)
    if not (0 <= top <= height - size[0] and 0 <= left <= width - size[1]):
        raise ValueError(
            f"{where}, 'crop' is {tuple(crop)}: (top, left, full height, full width) of an image "
            f"that the crop {size} lies in is needed"
        )


def _check_output_size(item: dict, where: str) -> None:
    for key in ("height", "width"):
        if key not in item:
            continue
        try:
            side = operator.index(item[key])  # a number of Python, NumPy or torch
        except (TypeError, ValueError):
            side = 0
        if side < 1 or isinstance(item[key], bool):
            raise ValueError(
                f"{where}, {key!r} is {item[key]!r}: the output's size is needed, a whole number "
                f"of pixels above 0; without {key!r} it is the image's"
            )


def _check_labels(item: dict, size, num_classes: int, ignore_label: int, where: str) -> None:
    if "sem_seg" not in item:
        raise ValueError(f"{where} has keys {sorted(item)}: training needs labels, 'sem_seg' (H,W)")
    labels = item["sem_seg"]
    found = f"{where}, 'sem_seg' is {_described(labels)}"
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        raise TypeError(f"{found}: a tensor (H,W) of integers is needed")
    if tuple(labels.shape) != size:
        raise ValueError(f"{found}, its image is {size}: labels have their image's size")
    if num_classes > 0:
        check_label_values(labels, num_classes, ignore_label, where)


def check_label_values(
    labels: torch.Tensor, num_classes: int, ignore_label: int, where: str = "a training batch"
) -> None:
    """
    Raises:
        ValueError: labels that are neither 0..K-1 nor `ignore_label`; says which.
    """
    wrong = (labels != ignore_label) & ((labels < 0) | (labels >= num_classes))
    if wrong.any():
        values = labels[wrong].unique().tolist()
        raise ValueError(
            f"{where}, 'sem_seg' holds {values[:5]}: labels are 0..{num_classes - 1} "
            f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}) or {ignore_label} for no class"
        )
