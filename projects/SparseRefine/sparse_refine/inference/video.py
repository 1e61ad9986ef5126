# SPDX-License-Identifier: Apache-2.0
"""Videos and cameras, frame by frame through OpenCV."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from ..storage.files import write_whole
from ..visualization.panel import refinement_panel
from .outputs import Job, overlay_of
from .predictor import SparseRefinePredictor

CODEC = "mp4v"  # MPEG-4 Part 2: what the wheels of OpenCV encode everywhere
_FALLBACK_RATE = 25.0  # of files that say none
_CAMERA_RATE = 10  # cameras say more than they give


def count_frames(path: Path) -> int:
    """What the file says, 0 where it says nothing or cannot be opened."""
    with _opened(str(path)) as capture:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))


def check_display() -> None:
    """Raise RuntimeError where OpenCV has no windows."""
    try:
        cv2.namedWindow("SparseRefine")
    except cv2.error as error:
        raise RuntimeError(
            "--display needs a screen, and an OpenCV with windows: `pip uninstall "
            "opencv-python-headless`, then `pip install opencv-python`"
        ) from error


def show(pictures: dict[str, np.ndarray]) -> None:
    """A frame in the window; KeyboardInterrupt where q or Escape was pressed in it."""
    cv2.imshow("SparseRefine", cv2.cvtColor([*pictures.values()][-1], cv2.COLOR_RGB2BGR))
    if cv2.waitKey(1) in (27, ord("q")):
        raise KeyboardInterrupt


class Pictures:
    """A frame's pictures by kind ("overlays", "panels"), (H,W,3) uint8 RGB."""

    def __init__(self, kinds, predictor: SparseRefinePredictor, alpha: float):
        self.kinds = list(kinds)
        self.predictor = predictor
        self.alpha = alpha

    def __call__(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        output = self.predictor(image)
        pictures = {}
        if "overlays" in self.kinds:
            pictures["overlays"] = overlay_of(image, output, self.predictor, self.alpha)
        if "panels" in self.kinds:
            pictures["panels"] = refinement_panel(
                image, output["refinement"], self.predictor.metadata, close_up=False
            )
        return pictures


def predict_video(
    job: Job,
    pictures: Pictures,
    on_frame: Callable[[dict[str, np.ndarray]], None],
    max_frames: int | None = None,
) -> None:
    """Write the videos of a job, at the rate of the source, each atomically.

    Args:
        on_frame: called with each frame's pictures; what it raises stops the video.
        max_frames: stop after this number, None for all.

    Raises:
        OSError: the source cannot be read, or ends long before it says; the output cannot be
            written.
    """
    with _opened(str(job.source)) as capture:
        said = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else _FALLBACK_RATE

        def write(temporaries: dict[str, str]) -> None:
            files = {kind: VideoFile(path, rate) for kind, path in temporaries.items()}
            count = 0
            for frame in _frames(capture, max_frames):
                made = pictures(frame)
                for kind, file in files.items():
                    file.write(made[kind])
                count += 1
                on_frame(made)
            if count == 0:
                raise OSError(f"{job.source}: cannot be read as a video")
            # what containers say is off by a few frames; a file cut short lacks more
            if max_frames is None and count < 0.95 * said - 2:
                raise OSError(f"{job.source}: only {count} of its {said} frames can be read")
            for file in files.values():
                file.close()

        _write_together(job.outputs, write)


def predict_camera(
    number: int,
    outputs: dict[str, Path],
    pictures: Pictures,
    on_frame: Callable[[dict[str, np.ndarray]], None],
    max_frames: int | None = None,
) -> None:
    """Write the videos of a camera until Ctrl-C, also where `on_frame` raises it, or `max_frames`.

    A camera goes on while a frame is worked at, so each picture is repeated for the time that it
    took, or left out where it took less than a frame's: the video lasts as long as what it shows.

    Raises:
        OSError: there is no such camera, or it gives no frames.
    """
    with _opened(number) as capture:
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the present, not what has queued up

        def write(temporaries: dict[str, str]) -> None:
            files = {kind: VideoFile(path, _CAMERA_RATE) for kind, path in temporaries.items()}
            start, written = time.perf_counter(), 0
            try:
                for frame in _frames(capture, max_frames):
                    made = pictures(frame)
                    due = max(1, round((time.perf_counter() - start) * _CAMERA_RATE))
                    # a second at most: where encoding is slow, repeats would call for repeats
                    repeats = min(due - written, _CAMERA_RATE)
                    written += repeats
                    for kind, file in files.items():
                        for _ in range(repeats):
                            file.write(made[kind])
                    on_frame(made)
            except KeyboardInterrupt:
                pass  # the way to end it
            if written == 0:
                raise OSError(f"camera {number} gave no frame")
            for file in files.values():
                file.close()

        _write_together(outputs, write)


class VideoFile:
    """A video at `path` that takes (H,W,3) uint8 RGB pictures of one size."""

    def __init__(self, path: str, rate: float):
        self.path = path
        self.rate = rate
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, ...] = ()
        self._count = 0

    def write(self, picture: np.ndarray) -> None:
        if self._writer is None:
            self._size = picture.shape
            # the encoder drops the last row or column of odd sides, and takes no side of one pixel
            width, height = (side + side % 2 for side in (picture.shape[1], picture.shape[0]))
            fourcc = cv2.VideoWriter_fourcc(*CODEC)
            self._writer = cv2.VideoWriter(self.path, fourcc, self.rate, (width, height))
            if not self._writer.isOpened():
                raise OSError(f"OpenCV cannot write a {CODEC} video of {width} x {height} pixels")
        if picture.shape != self._size:  # OpenCV would leave the frame out and say nothing
            raise ValueError(
                f"frame {self._count + 1} is {picture.shape[1]} x {picture.shape[0]} pixels, those "
                f"before it {self._size[1]} x {self._size[0]}"
            )
        frame = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        odd = frame.shape[0] % 2, frame.shape[1] % 2
        if any(odd):
            frame = cv2.copyMakeBorder(frame, 0, odd[0], 0, odd[1], cv2.BORDER_REPLICATE)
        self._writer.write(frame)
        self._count += 1

    def close(self) -> None:
        """Raises OSError where the file lacks what was written: OpenCV hides a full disk."""
        if self._writer is None:
            return
        self._writer.release()
        found = count_frames(Path(self.path))
        if found != self._count:
            raise OSError(f"the video holds {found} of {self._count} frames; is the disk full?")


def _write_together(paths: dict[str, Path], write: Callable[[dict[str, str]], None]) -> None:
    """`write_whole` for files that are made together: `write` gets a temporary path for each."""

    def nest(rest: list[str], temporaries: dict[str, str]) -> None:
        if not rest:
            write(temporaries)
            return
        kind = rest[0]
        write_whole(paths[kind], lambda path: nest(rest[1:], {**temporaries, kind: path}))

    nest(list(paths), {})


@contextmanager
def _opened(source: str | int) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(source)
    try:
        yield capture
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture, limit: int | None) -> Iterator[np.ndarray]:
    count = 0
    while limit is None or count < limit:
        found, frame = capture.read()
        if not found:
            return
        yield frame
        count += 1
