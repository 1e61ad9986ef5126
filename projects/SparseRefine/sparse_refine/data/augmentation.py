# SPDX-License-Identifier: Apache-2.0
"""Augmentation of training images: where a crop lies, its colours, and the seed of both."""

from __future__ import annotations

import random
from contextlib import contextmanager

import numpy as np
from detectron2.projects.point_rend import ColorAugSSDTransform

from ..resampling import nearest_index

_TRIES = 10  # crops that are drawn before one is taken as it is


def draw_crop(
    labels: np.ndarray,
    full: tuple[int, int],
    size: tuple[int, int],
    ignore_label: int,
    max_area: float,
) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """A window (top, left, height, width) of the image resized to `full`, and its labels.

    The labels (H,W) are read at the window's pixel centres: they are never resized as a whole.

    Args:
        size: (height, width) of the crop; a side that does not fit is cut to `full`.
        max_area: a crop is drawn anew while one class covers more than this share 0..1 of its
            labelled pixels, at most ten times.
    """
    height, width = min(size[0], full[0]), min(size[1], full[1])  # small images are not padded
    for _ in range(_TRIES):
        top = np.random.randint(full[0] - height + 1)
        left = np.random.randint(full[1] - width + 1)
        rows, columns = (
            nearest_index(new, old)[start : start + length].numpy()
            for new, old, start, length in zip(full, labels.shape, (top, left), (height, width))
        )
        target = labels[rows][:, columns]  # (height, width)
        if max_area >= 1:
            break
        # as the paper's recipe: ignored pixels are no class, and a crop of them alone is drawn anew
        counts = np.unique(target[target != ignore_label], return_counts=True)[1]
        if len(counts) > 1 and counts.max() < counts.sum() * max_area:
            break
    return (top, left, height, width), target


def recolor(transform: ColorAugSSDTransform, images: list[np.ndarray]) -> list[np.ndarray]:
    """One draw of a pixelwise colour transform on images (H,W,3) uint8 of different sizes: crop and
    context have to change alike."""
    sizes = np.cumsum([image.shape[0] * image.shape[1] for image in images])[:-1]
    pixels = np.concatenate([image.reshape(-1, 1, 3) for image in images])  # (all pixels, 1, 3)
    parts = np.split(transform.apply_image(pixels), sizes)
    return [part.reshape(image.shape) for part, image in zip(parts, images)]


@contextmanager
def seeded(seed: int | None):
    """Python's and numpy's generators at `seed` inside the block, and as they were after it.

    Detectron2's and fvcore's transforms draw from them; a seed for each sample makes augmentation
    the same for any number of workers or processes and after a resume.
    """
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
