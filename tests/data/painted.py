# SPDX-License-Identifier: Apache-2.0
"""Painted images whose pixels say where they come from, and a mapper for them."""

import numpy as np

from sparse_refine.data import SegmentationMapper

HEIGHT, WIDTH = 120, 200


def ramp(height=HEIGHT, width=WIDTH):
    """Red is the column, green is the row: a pixel says where it comes from."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 7)], axis=2).astype(np.uint8)


def noise(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def blocks(height=HEIGHT, width=WIDTH, side=20):
    """Labels 0, 1, 2 in squares; the last row is ignored."""
    y, x = np.mgrid[:height, :width]
    labels = ((y // side + x // side) % 3).astype(np.uint8)
    labels[-1] = 255
    return labels


def mapper(**options):
    return SegmentationMapper(
        **{"is_train": True, "num_classes": 3, "ignore_label": 255, **options}
    )
