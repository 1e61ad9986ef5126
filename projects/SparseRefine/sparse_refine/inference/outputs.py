# SPDX-License-Identifier: Apache-2.0
"""What is written for an input, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..storage.files import write_whole
from ..visualization.panel import refinement_panel
from ..visualization.pictures import overlay, write_label_map, write_picture
from .inputs import is_video
from .predictor import SparseRefinePredictor

# Of a video only pictures are written, as videos.
OF_IMAGES = ("overlays", "labels", "probabilities", "panels")
OF_VIDEOS = ("overlays", "panels")
_STEPS = 65535


@dataclass(frozen=True)
class Job:
    """An input, its name, and the files to make of it by their kind (of `OF_IMAGES`)."""

    source: Path
    name: str
    outputs: dict[str, Path]

    @property
    def is_video(self) -> bool:
        return is_video(self.source)


def plan(names: dict[Path, str], folder: Path, kinds: Sequence[str], picture: str) -> list[Job]:
    """A job for each input: `folder`/KIND/NAME.ENDING.

    Args:
        names: of the inputs.
        kinds: those asked for.
        picture: ending of pictures, ".jpg" or ".png".

    Raises:
        ValueError: nothing would be written for a video.
    """
    endings = {"overlays": picture, "labels": ".png", "probabilities": ".npz", "panels": picture}
    jobs = []
    for source, name in names.items():
        video = is_video(source)
        outputs = {
            kind: folder / kind / f"{name}{'.mp4' if video else endings[kind]}"
            for kind in (OF_VIDEOS if video else OF_IMAGES)
            if kind in kinds
        }
        if not outputs:
            raise ValueError(f"{source}: of videos overlays and panels are written, ask for either")
        jobs.append(Job(source, name, outputs))
    return jobs


def write_outputs(
    outputs: dict[str, Path],
    image: np.ndarray,
    output: dict,
    predictor: SparseRefinePredictor,
    alpha: float,
) -> None:
    """Write what `outputs` lists for one image, each file atomically.

    Args:
        image: (H,W,3) uint8 RGB.
        output: the predictor's for it.
        alpha: weight of the class colours in the overlay, 0..1.
    """
    for kind, path in outputs.items():
        if kind == "overlays":
            write_picture(path, overlay_of(image, output, predictor, alpha))
        elif kind == "labels":
            labels = output["labels"].cpu().numpy()
            write_label_map(path, labels, predictor.metadata.stuff_colors)
        elif kind == "probabilities":
            write_probabilities(path, predictor.probabilities(output).cpu().numpy())
        else:
            write_picture(path, refinement_panel(image, output["refinement"], predictor.metadata))


def overlay_of(
    image: np.ndarray, output: dict, predictor: SparseRefinePredictor, alpha: float
) -> np.ndarray:
    """Class colours over the image, (H,W,3) uint8 RGB."""
    return overlay(image, output["labels"].cpu().numpy(), predictor.metadata.stuff_colors, alpha)


def write_probabilities(path: Path, probabilities: np.ndarray) -> None:
    """(K,H,W) floats 0..1 as compressed .npz of 16-bit integers: in three classes a third of the
    time of half precision, and finer near 1. To read it:

    np.load(path)["probabilities"] / 65535
    """
    steps = np.empty(probabilities.shape, np.uint16)
    for row, share in zip(steps, probabilities):  # a class at a time: K x H x W is large enough
        np.rint(share * _STEPS, out=row, casting="unsafe")
    write_whole(path, lambda temporary: np.savez_compressed(temporary, probabilities=steps))
