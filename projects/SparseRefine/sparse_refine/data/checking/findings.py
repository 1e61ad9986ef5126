# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """`is_fault`: training or evaluation would stop there, or its numbers would be wrong. All
    others are warnings, to be looked at."""

    is_fault: bool
    meaning: str


KINDS = {
    "listing": Kind(True, "the data set cannot be listed"),
    "config": Kind(True, "the config does not fit the data set"),
    "missing": Kind(True, "a file or its partner is not there"),
    "duplicate name": Kind(True, "two files share the name up to the extension"),
    "unreadable": Kind(True, "not an image, or no permission to read it"),
    "truncated": Kind(True, "an image whose pixels are damaged or cut short"),
    "image format": Kind(True, "pixel values with no known white, or bands that are no RGB"),
    "label format": Kind(True, "not one class id a pixel: a JPEG, colours, floating point"),
    "size mismatch": Kind(True, "image and labels differ in size"),
    "out of range": Kind(True, "labels that are neither a class nor ignored"),
    "one class": Kind(True, "all pixels are one class or ignored: there is nothing to learn"),
    "in two sets": Kind(True, "an image is in two of the sets, such as training and test"),
    "empty labels": Kind(False, "every pixel is ignored"),
    "no image": Kind(False, "labels whose image is not there; nothing uses them"),
    "same image": Kind(False, "an image is in the set twice under two names"),
    "turned labels": Kind(False, "labels seem to fit the image before its EXIF turn"),
    "labels count from one": Kind(False, "labels reach the number of classes"),
    "dark image": Kind(False, "more than 8 bits a channel, and no value near white"),
}


@dataclass(frozen=True)
class Finding:
    """`kind`: a key of KINDS. `message`: names the files, says what to do. `files`: those files."""

    kind: str
    message: str
    files: tuple[str, ...] = ()

    @property
    def is_fault(self) -> bool:
        return KINDS[self.kind].is_fault
