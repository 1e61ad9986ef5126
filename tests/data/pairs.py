# SPDX-License-Identifier: Apache-2.0
"""A folder of images and labels that tests damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sparse_refine.data.checking import (
    KINDS,
    check_dataset,
    list_folder,
)

SIZE = (30, 40)


def photograph(seed: int = 0, size: tuple[int, int] = SIZE):
    """(image, labels): bright blobs of class 1 on dark ground, at random places."""
    random = np.random.default_rng(seed)
    blocks = random.random((size[0] // 5, size[1] // 5)) < 0.3
    labels = blocks.astype(np.uint8).repeat(5, 0).repeat(5, 1)
    image = 40 + 160 * labels[..., None] + random.integers(0, 20, (*size, 3))
    return image.astype(np.uint8), labels


class Folder:
    """A data set's folder with pairs named 0, 1, ...; the tests spoil it."""

    def __init__(self, root: Path, count: int = 2, first: int = 0):
        self.images, self.labels = root / "images", root / "labels"
        for folder in (self.images, self.labels):
            folder.mkdir(parents=True)
        for index in range(count):
            image, labels = photograph(first + index)
            self.put(f"{index}.png", image, labels)

    def put(self, name: str, image=None, labels=None, **options) -> None:
        if image is not None:
            Image.fromarray(image).save(self.images / name, **options)
        if labels is not None:
            Image.fromarray(labels).save((self.labels / name).with_suffix(".png"))

    def check(self, classes=2, ignore=255, split=None, workers=1):
        listing = list_folder("here", self.images, self.labels, split)
        return check_dataset(listing, classes, ignore, workers)

    def found(self, **options) -> dict[str, str]:
        """Messages by kind; one of each is expected."""
        findings = self.check(**options).findings
        kinds = [finding.kind for finding in findings]
        assert len(set(kinds)) == len(kinds), findings
        assert set(kinds) <= set(KINDS)
        return {finding.kind: finding.message for finding in findings}
