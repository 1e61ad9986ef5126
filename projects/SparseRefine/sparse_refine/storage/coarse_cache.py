# SPDX-License-Identifier: Apache-2.0
"""Coarse logits of a frozen base on disk, so that epochs after the first skip the base.

One safetensors file an image, in half precision (Cityscapes at 512x1024 takes 20 MB an image), in
a folder named by a digest of the base's weights and of how it is run: another base, scale or score
type never reads stale logits, and a changed image file (size or time) is computed anew.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from .weights import save_weights, state_digest


class CoarseCache:
    """Reads and writes float logits (K,h,w) keyed by image file; the images are not augmented.

    Args:
        root: folder of the cache; made where it is absent.
        settings: what else the logits depend on (scale, score type), as one string.
    """

    def __init__(self, root: str, settings: str):
        self.root = Path(root)
        self.settings = settings
        self._folder: Path | None = None

    def load(self, file_name: str, base: nn.Module, device=None) -> torch.Tensor | None:
        """The logits (K,h,w) float32 kept for this image, or None."""
        if self._folder is None:  # the weights are in place only when the first image comes
            self._folder = self.root / state_digest(base.state_dict(), self.settings)
        path = self._path(file_name)
        if not path.is_file():
            return None
        return load_file(path)["logits"].float().to(device)

    def store(self, file_name: str, logits: torch.Tensor) -> torch.Tensor:
        """Keep `logits` (K,h,w), after a `load` that returned None.

        Returns what `load` will, rounded to half precision: a resumed run, which reads the file,
        sees the same logits as an unbroken one.
        """
        path = self._path(file_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights({"logits": logits}, path, half=True)
        return load_file(path)["logits"].float().to(logits.device)

    def _path(self, file_name: str) -> Path:
        stat = os.stat(file_name)
        key = f"{os.path.abspath(file_name)}|{stat.st_size}|{stat.st_mtime_ns}"
        name = f"{Path(file_name).stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        return self._folder / name
