# SPDX-License-Identifier: Apache-2.0
"""Whether the training sets have something to learn in them: a few files are read beforehand."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..data import read_image, read_labels
from ..data.decoding import bits_of, opened
from ..data.depth import dark_images

logger = logging.getLogger(__name__)

_LABEL_MAPS = 24  # of a training set are looked at
_IMAGES = 8  # by their headers; of more than 8 bits a channel, which are slow to read, the pixels


def check_something_to_learn(cfg: CfgNode) -> None:
    """Look at a few label maps of the training sets.

    Raises:
        ValueError: one class, or labels that hold one class at most, of all there are. Where only a
            part of many label maps was looked at, a warning.
    """
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if classes == 1:
        raise ValueError(
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 1: with a single class every pixel is right and "
            "there is nothing to learn. Of an object and its background make two classes"
        )
    files = _files(cfg, "sem_seg_file_name")
    step = max(1, len(files) // _LABEL_MAPS)
    values = _values(files[::step])
    ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if not files or len(values - {ignore}) > 1:
        return
    found = " and ".join(map(str, sorted(values)))
    hint = ""
    if values == {0, 255} and ignore == 255:
        hint = (
            ". Masks of 0 and 255? Then 255 is a class, not the ignore value: write them as 0 and "
            "1, or set MODEL.SEM_SEG_HEAD.IGNORE_VALUE to another value"
        )
    message = (
        f"the labels of {', '.join(cfg.DATASETS.TRAIN)} hold {found} alone, where {ignore} is no "
        f"class: there is nothing to learn{hint}. `python -m sparse_refine check` shows what is in "
        "each file"
    )
    if step == 1:
        raise ValueError(message)
    logger.warning(f"{len(files[::step])} of {len(files)} label maps were looked at: {message}")


def _values(files: Iterable[str]) -> set[int]:
    values: set[int] = set()
    for file in files:
        values |= set(np.unique(read_labels(file)).tolist())
        if len(values) > 2:  # two classes at least
            break
    return values


def warn_of_dark_images(cfg: CfgNode) -> None:
    """Look at a few images of the training sets, and say in the checker's words where those of more
    than 8 bits a channel have no value near white.

    Raises:
        OSError, ValueError: an image that cannot be read, see `read_image`.
    """
    files = _files(cfg, "file_name")
    files = files[:: max(1, -(-len(files) // _IMAGES))]
    with dark_images() as dark:
        for file in files:
            with opened(file) as (stream, image):
                bits = bits_of(stream, image)
            if bits > 8:
                read_image(file)
    if dark:
        logger.warning(
            f"{len(dark)} of {len(files)} images of {', '.join(cfg.DATASETS.TRAIN)} that were "
            f"looked at are dark. {next(iter(dark.values()))}"
        )


def _files(cfg: CfgNode, key: str) -> list[str]:
    """What the dicts of all training sets have under `key`."""
    records = (record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name))
    return [record[key] for record in records if key in record]
