# SPDX-License-Identifier: Apache-2.0
"""The predict command on videos and cameras."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sparse_refine.inference.predictor import SparseRefinePredictor
from sparse_refine.inference.video import Pictures


@pytest.mark.slow
def test_video(run, model, tmp_path, capsys, save, video, written):
    source = video(tmp_path / "in" / "film.avi")
    save(tmp_path / "in" / "still.png")
    assert run(source.parent, "--show-why") == 0
    out = tmp_path / "out"
    assert [name for name in written(out) if "film" in name] == [
        "overlays/film.mp4",
        "panels/film.mp4",
    ]
    assert "7/7" in capsys.readouterr().err  # frames and images
    capture, made = cv2.VideoCapture(str(source)), cv2.VideoCapture(str(out / "overlays/film.mp4"))
    assert made.get(cv2.CAP_PROP_FPS) == 12.5
    _, config, _, weights = model()
    predictor = SparseRefinePredictor(config, weights)
    colors = np.array(predictor.metadata.stuff_colors)
    for index in range(6):
        frame, overlay = capture.read()[1], made.read()[1]
        labels = predictor(frame, channel_order="BGR")["labels"].numpy()
        expected = 0.5 * frame + 0.5 * colors[labels][..., ::-1]
        assert overlay.shape == frame.shape
        assert np.abs(overlay - expected).mean() < 12, index  # what the encoder loses
    assert not made.read()[0]
    capture.release()
    made.release()
    assert run(source, "--resume", "--show-why") == 0
    assert "1 of 1 are done already" in capsys.readouterr().out
    assert run(source, "--max-frames", "2", "--no-labels") == 0
    made = cv2.VideoCapture(str(out / "overlays" / "film.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    made.release()
    assert run(source, "--resume", "--no-labels") == 0  # a part of it is not all of it
    made = cv2.VideoCapture(str(out / "overlays" / "film.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    made.release()
    assert run(source, "--no-overlays") == 2  # nothing of it would be written


def test_odd_video(run, tmp_path, picture):
    """Encoders know even sizes alone: a row and a column are repeated, none is lost."""
    source = tmp_path / "odd.avi"
    frames = [picture(seed, (33, 47)) for seed in range(3)]
    file = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"FFV1"), 10, (47, 33))
    for frame in frames:
        file.write(frame)
    file.release()
    capture = cv2.VideoCapture(str(source))
    size = capture.read()[1].shape
    capture.release()
    assert run(source) == 0
    capture = cv2.VideoCapture(str(tmp_path / "out" / "overlays" / "odd.mp4"))
    found = capture.read()[1].shape
    capture.release()
    assert found == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)


def test_cut_video(run, tmp_path, capsys, video, written):
    """A film that ends long before it says is broken: nothing is written."""
    source = video(tmp_path / "film.avi", frames=40)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    assert run(source) == 1
    assert written(tmp_path / "out") == []
    assert "film.avi" in capsys.readouterr().err


def test_camera(run, tmp_path, monkeypatch, capsys, video):
    source = video(tmp_path / "film.avi", frames=4)
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda at: capture(str(source) if at == 3 else at))
    assert run("--webcam", "3", "--max-frames", "3", "--show-why") == 0
    overlay, panel = capsys.readouterr().out.split()
    made = capture(overlay)
    assert made.get(cv2.CAP_PROP_FPS) == 10
    assert 1 <= made.get(cv2.CAP_PROP_FRAME_COUNT) <= 30  # by the clock
    assert made.read()[1].shape == (48, 64, 3)
    assert Path(panel).is_file()

    # Ctrl-C is the way to end it: the video is whole
    pictures, calls = Pictures.__call__, []

    def stop_in_the_second(self, frame):
        calls.append(frame)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pictures(self, frame)

    monkeypatch.setattr(Pictures, "__call__", stop_in_the_second)
    monkeypatch.setattr("time.strftime", lambda form: "webcam3_later.mp4")
    assert run("--webcam", "3") == 0
    made = capture(str(tmp_path / "out" / "overlays" / "webcam3_later.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) >= 1

    monkeypatch.setattr(cv2, "VideoCapture", lambda at: capture(str(tmp_path / "gone.avi")))
    assert run("--webcam", "0") == 1
    assert "camera 0 gave no frame" in capsys.readouterr().err


def test_display_needs_windows(run, tmp_path, monkeypatch, capsys, video):
    def headless(name):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "namedWindow", headless)
    assert run(video(tmp_path / "film.avi", frames=2), "--display") == 2
    assert "pip install opencv-python" in capsys.readouterr().err
