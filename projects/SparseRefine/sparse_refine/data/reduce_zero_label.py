# SPDX-License-Identifier: Apache-2.0
"""Label maps that count classes from 1 and keep 0 for "no class", as ADE20K's do.

Such a file is named `reduce_zero_label://PATH`. Whoever opens that name through Detectron2's
PathManager (this project's reader and mapper, Detectron2's own, its SemSegEvaluator) gets a PNG
with 0 turned into 255, which is ignored, and every other value less one. Nothing is written to
disk, and no reader can forget the shift: the name does not open without it.
"""

from __future__ import annotations

import io

import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image

from .reading import read_labels

PREFIX = "reduce_zero_label://"


class ReduceZeroLabelHandler(PathHandler):
    """Opens `reduce_zero_label://PATH` for reading, where PATH is a file of 8-bit labels.

    Raises:
        ValueError: a mode other than "rb", or labels of 16 bits, of which 255 may be a class.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        if mode != "rb":
            raise ValueError(f'{path}: opens with mode "rb" only, not {mode!r}')
        file_name = path[len(PREFIX) :]
        labels = read_labels(file_name)
        if labels.dtype != np.uint8:
            raise ValueError(
                f"{file_name}: labels that count from 1 are expected in 8 bits, these are "
                f"{labels.dtype}"
            )
        file = io.BytesIO()
        Image.fromarray(labels - 1).save(file, format="PNG", compress_level=1)  # 0 wraps to 255
        file.seek(0)
        return file

    def _exists(self, path: str, **kwargs) -> bool:
        return PathManager.exists(path[len(PREFIX) :])

    def _isfile(self, path: str, **kwargs) -> bool:
        return PathManager.isfile(path[len(PREFIX) :])


PathManager.register_handler(ReduceZeroLabelHandler(), allow_override=True)
