# SPDX-License-Identifier: Apache-2.0
"""Job after job, with progress; what fails is kept for the end and does not stop the rest."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..data import read_image
from ..data.reading import read_size
from ..storage.weights import state_digest
from .journal import Journal
from .outputs import Job, write_outputs
from .predictor import SparseRefinePredictor
from .video import Pictures, count_frames, predict_video

# What a file of a user, or too little memory for it, can raise.
INPUT_ERRORS = (OSError, ValueError, TypeError, RuntimeError, MemoryError, cv2.error)
# Of the disk: every later input would fail alike.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Report:
    """What became of the inputs: `failed` has each one's path and reason."""

    done: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    stopped: str = ""  # why the rest was not tried
    interrupted: bool = False


@dataclass(frozen=True)
class Run:
    """Predicts and writes for one input after the other.

    Args:
        predictor: of any model.
        alpha: weight of the class colours in overlays.
        max_pixels: images with more are refused, by what their header says.
        max_frames: of a video, None for all.
        show: called with the pictures of each frame of a video.
    """

    predictor: SparseRefinePredictor
    alpha: float
    max_pixels: float
    max_frames: int | None = None
    show: Callable[[dict[str, np.ndarray]], None] | None = None

    def all(self, jobs: Sequence[Job], journal: Journal) -> Report:
        """Do them in order. Ctrl-C ends it between whole files."""
        report = Report()
        frames = [self._frames(job) for job in jobs]
        with tqdm(total=sum(frames), unit="image", smoothing=0.1) as bar:
            for job, count in zip(jobs, frames):
                end = bar.n + count
                bar.set_postfix_str(job.source.name, refresh=False)
                try:
                    for output in job.outputs.values():
                        output.parent.mkdir(parents=True, exist_ok=True)
                    journal.write(job, done=False)
                    self._one(job, bar)
                    journal.write(job, done=True)
                    report.done += 1
                except KeyboardInterrupt:
                    report.stopped, report.interrupted = "stopped", True
                    break
                except INPUT_ERRORS as error:
                    reason = str(error) or type(error).__name__
                    report.failed.append((job.source, reason))
                    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                        report.stopped = f"stopped: {reason}"
                        break
                bar.update(end - bar.n)
        return report

    def _frames(self, job: Job) -> int:
        count = count_frames(job.source) if job.is_video else 1
        return min(count, self.max_frames) if self.max_frames and job.is_video else count

    def _one(self, job: Job, bar: tqdm) -> None:
        if job.is_video:
            pictures = Pictures(job.outputs, self.predictor, self.alpha)

            def on_frame(made: dict[str, np.ndarray]) -> None:
                bar.update()
                if self.show is not None:
                    self.show(made)

            predict_video(job, pictures, on_frame, self.max_frames)
            return
        height, width = read_size(str(job.source))
        if height * width > self.max_pixels:
            raise ValueError(
                f"{job.source}: {width} x {height} are {height * width / 1e6:.1f} megapixels, and "
                f"--max-megapixels is {self.max_pixels / 1e6:g}"
            )
        image = read_image(str(job.source))
        output = self.predictor(image)
        write_outputs(job.outputs, image, output, self.predictor, self.alpha)


def settings_digest(predictor: SparseRefinePredictor, *others) -> str:
    """Changes with the model's weights, its config, and `others`."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    # where weights are read from and results go says nothing about what they are
    cfg.MODEL.WEIGHTS = cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS = cfg.OUTPUT_DIR = ""
    return state_digest(predictor.model.state_dict(), f"{cfg.dump()} {others}")
