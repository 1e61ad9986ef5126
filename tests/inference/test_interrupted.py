# SPDX-License-Identifier: Apache-2.0
"""The predict command stopped and resumed, and among broken files and other people's: nothing is
ever half written or written over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_refine.inference.video import VideoFile
from sparse_refine.storage.files import write_whole

JOURNAL = ".sparse_refine_demo.jsonl"


@pytest.mark.slow
def test_resume(run, tmp_path, capsys, save, written):
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate("abcd"):
        save(folder / f"{name}.png", seed)

    def touched(*arguments, **options) -> set[str]:
        """Outputs that a run has written."""
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
        assert run(folder, *arguments, **options) == 0
        return {
            path.relative_to(out).as_posix()
            for path in out.rglob("*.*")
            if path.stat().st_mtime_ns != times.get(path) and path.name != JOURNAL
        }

    assert touched("--resume") == set(written(out)) and len(written(out)) == 8
    assert touched("--resume") == set()
    (out / "labels" / "b.png").unlink()
    (out / "overlays" / "c.jpg").unlink()
    save(folder / "d.png", 7)  # another image of that name
    save(folder / "e.png", 8)
    capsys.readouterr()
    expected = {f"labels/{name}.png" for name in "bcde"}
    expected |= {f"overlays/{name}.jpg" for name in "bcde"}
    assert touched("--resume") == expected
    assert "1 of 5 are done already" in capsys.readouterr().out
    # what was not asked for before
    assert {f"panels/{name}.jpg" for name in "abcde"} < touched("--resume", "--show-why")
    assert touched("--resume") == set()
    # another budget, other weights: another answer
    assert len(touched("--resume", "--budget", "0.3")) == 10
    assert len(touched("--resume", options=["MODEL.SPARSE_REFINE.BASE.SCALE", 0.25])) == 10
    # a run that is no resumption does all again
    assert len(touched(options=["MODEL.SPARSE_REFINE.BASE.SCALE", 0.25])) == 10
    # killed while it wrote a line
    with open(out / JOURNAL, "a") as journal:
        journal.write('{"input": "')
    assert touched("--resume", options=["MODEL.SPARSE_REFINE.BASE.SCALE", 0.25]) == set()


def test_interrupted(run, tmp_path, monkeypatch, capsys, save, video, written):
    """Ctrl-C in the middle of a file: none is half there, and --resume goes on."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate("ab"):
        save(folder / f"{name}.png", seed)
    video(folder / "film.avi")
    save_picture, calls = Image.Image.save, []

    def stop(self, path, *arguments, **options):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save_picture(self, path, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", stop)
    assert run(folder) == 130
    assert written(out) == ["labels/a.png", "overlays/a.jpg"]
    assert "--resume goes on" in capsys.readouterr().err
    monkeypatch.undo()

    frames = VideoFile
    write = frames.write

    def stop_in_the_fourth(self, frame):
        if self._count == 3:
            raise KeyboardInterrupt
        write(self, frame)

    monkeypatch.setattr(frames, "write", stop_in_the_fourth)
    assert run(folder, "--resume", "--show-why") == 130
    assert not [name for name in written(out) if name.endswith(".mp4")]
    monkeypatch.setattr(frames, "write", write)
    assert run(folder, "--resume", "--show-why") == 0
    assert len(written(out)) == 2 * 3 + 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_killed(run, tmp_path, save, written):
    """Killed without warning while it writes: the file that is there under its name is whole."""
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "a.png", 1)
    assert run(folder) == 0
    before = {name: (out / name).read_bytes() for name in written(out)}
    save(folder / "a.png", 2)
    save(folder / "b.png", 3)
    child = os.fork()
    if child == 0:

        def die(self, path, *arguments, **options):
            Path(path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        Image.Image.save = die
        run(folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    visible = [name for name in written(out) if not Path(name).name.startswith(".")]
    assert {name: (out / name).read_bytes() for name in visible} == before
    assert run(folder, "--resume") == 0
    assert (out / "labels" / "b.png").is_file()
    assert (out / "labels" / "a.png").read_bytes() != before["labels/a.png"]


def test_full_disk_stops_the_run(run, tmp_path, monkeypatch, capsys, save, written):
    for seed, name in enumerate("abc"):
        save(tmp_path / "in" / f"{name}.png", seed)

    def full(path, write):
        if "labels" in str(path):
            raise OSError(28, "No space left on device", str(path))
        write_whole(path, write)

    monkeypatch.setattr("sparse_refine.visualization.pictures.write_whole", full)
    assert run(tmp_path / "in") == 1
    assert written(tmp_path / "out") == ["overlays/a.jpg"]
    said = capsys.readouterr().err
    assert said.count("failed: ") == 1 and "No space left" in said and "--resume" in said


def test_broken_files(run, tmp_path, capsys, save, written):
    """They are named at the end, and the others are done."""
    folder = tmp_path / "in"
    for seed, name in enumerate(("a.png", "m.png", "z.png")):
        save(folder / name, seed)
    (folder / "b_text.jpg").write_text("no image")
    (folder / "c_empty.png").touch()
    whole = save(folder / "d_cut.png", 9).read_bytes()
    (folder / "d_cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "e_film.mp4").write_bytes(b"no film" * 100)
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "f_float.tif")
    save(folder / "g_large.png", size=(30, 40))
    assert run(folder, "--max-megapixels", "0.001") == 1
    expected = [f"labels/{name}.png" for name in "amz"]
    assert written(tmp_path / "out") == expected + [f"overlays/{name}.jpg" for name in "amz"]
    said = capsys.readouterr()
    assert "3 of 9 done" in said.out
    failed = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    names = ["b_text.jpg", "c_empty.png", "d_cut.png", "e_film.mp4", "f_float.tif", "g_large.png"]
    assert len(failed) == 6
    for line, name in zip(failed, names):
        assert name in line
    assert "40 x 30" in failed[-1] and "--max-megapixels" in failed[-1]
    # once they are replaced, a resumed run does those alone
    for name in names:
        (folder / name).unlink()
    save(folder / "b_text.jpg")
    assert run(folder, "--resume", "--max-megapixels", "0.001") == 0
    assert "3 of 4 are done already" in capsys.readouterr().out


@pytest.mark.slow
def test_files_of_others_are_safe(run, tmp_path, capsys, save):
    """Labels drawn by hand, and the inputs themselves, are never written over."""
    out = tmp_path / "out"
    source = save(tmp_path / "in" / "a.png")
    hand = save(out / "labels" / "a.png", 3)
    content = hand.read_bytes()
    assert run(source) == 2
    assert "labels/a.png exist" in capsys.readouterr().err and hand.read_bytes() == content
    assert run(source, "--resume") == 2
    assert run(hand, "--overwrite", "--no-overlays") == 2  # its own output
    assert "is one of the inputs" in capsys.readouterr().err and hand.read_bytes() == content
    assert run(source, "--no-labels") == 0
    assert run(source) == 2  # the overlay is ours, the labels are not
    assert hand.read_bytes() == content
    os.link(source, out / "overlays" / "b.jpg")
    again = save(tmp_path / "in" / "b.jpg")
    assert run(again, source, "--no-labels", "--overwrite") == 2  # by another name
    assert run(source, "--overwrite") == 0
    assert hand.read_bytes() != content
    assert run(source) == 0  # now it is ours
