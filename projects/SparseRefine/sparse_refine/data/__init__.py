# SPDX-License-Identifier: Apache-2.0
"""Datasets, reading and the mapper. Importing this registers the built-in datasets."""

from .datasets import register_builtin
from .label_checks import check_labels, check_same_size
from .loader import build_test_loader, build_train_loader
from .mapper import SegmentationMapper
from .reading import read_image, read_labels
from .registration import register_folders, register_image_label_folder
from .synthetic_field import register_synthetic_field

__all__ = [
    "SegmentationMapper",
    "build_test_loader",
    "build_train_loader",
    "check_labels",
    "check_same_size",
    "read_image",
    "read_labels",
    "register_builtin",
    "register_folders",
    "register_image_label_folder",
    "register_synthetic_field",
]

register_builtin()
