# SPDX-License-Identifier: Apache-2.0
"""The images that a calibration looks at, with labels or without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from ..data import SegmentationMapper, check_labels, check_same_size, read_labels
from ..data.folders import dataset_files, load_folder
from ..data.image_files import image_extensions, warn_passed_over
from ..data.registration import check_classes
from ..evaluation.metrics import remap_ignored

# An image's input of the model, and its truth (H,W) with ignored pixels as K; None without labels.
Image = tuple[dict, "np.ndarray | None"]
Source = Callable[[], Iterable[Image]]  # gives all images anew at each call

_NAME = "images_of_calibration"


def dicts_of_folder(cfg: CfgNode, images: Path, labels: Path | None) -> list[dict]:
    """Detectron2's dicts of a folder, without "sem_seg_file_name" where `labels` is None.

    Raises:
        FileNotFoundError, ValueError: as a registered folder.
    """
    if labels is None:
        found = dataset_files(_NAME, "image", images, image_extensions())
        warn_passed_over(images, found.passed_over)
        return [{"file_name": str(file)} for file in found.files]
    head, reduce_zero_label = cfg.MODEL.SEM_SEG_HEAD, cfg.DATASETS.REDUCE_ZERO_LABEL
    class_names = [f"class {index}" for index in range(head.NUM_CLASSES)]
    check_classes(_NAME, class_names, head.IGNORE_VALUE, reduce_zero_label)
    return load_folder(_NAME, images, labels, reduce_zero_label=reduce_zero_label)


class Images:
    """Images read anew at each pass: a data set need not fit into memory.

    Args:
        dicts: Detectron2's, of all images. limit: use this number of them, evenly spaced.
        progress: show a bar for each pass.
    """

    def __init__(
        self, cfg: CfgNode, dicts: list[dict], limit: int | None = None, progress: bool = False
    ):
        count = min(limit or len(dicts), len(dicts))
        self.dicts = [dicts[index * len(dicts) // count] for index in range(count)]
        self._mapper = SegmentationMapper(cfg, is_train=False)
        self._classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self._ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        self._progress = progress

    def __len__(self) -> int:
        return len(self.dicts)

    def source(self, what: str) -> Source:
        """All images at each call, behind a bar that is called `what`.

        Iterating raises ValueError where labels do not fit their image or the classes.
        """

        def images() -> Iterable[Image]:
            for record in tqdm(self.dicts, desc=what, unit="image", disable=not self._progress):
                item = self._mapper(record)
                yield item, self._truth(record, item["image"].permute(1, 2, 0))

        return images

    def _truth(self, record: dict, image) -> np.ndarray | None:
        file = record.get("sem_seg_file_name")
        if file is None:
            return None
        labels = read_labels(file)
        check_same_size(image, labels, record["file_name"], file)
        check_labels(labels, self._classes, self._ignore, file)
        return remap_ignored(labels, self._classes, self._ignore)
