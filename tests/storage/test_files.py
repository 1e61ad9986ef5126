# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from sparse_refine.storage.files import (
    check_not_an_input,
    check_replaceable,
    check_writable_folder,
    whole_folder,
    write_text,
    write_whole,
)


def test_written_and_replaced(tmp_path):
    path = tmp_path / "result.json"
    for text in ("first", "second"):
        write_whole(path, lambda name, text=text: Path(name).write_text(text))
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("before")

    def fail(name):
        Path(name).write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["result.json"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", lambda name: Path(name).write_text("x"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "x"


def test_a_pipe_is_written_to(tmp_path):
    """As /dev/null, which must not become a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, lambda name: Path(name).write_text("x"))
    assert os.read(reader, 10) == b"x" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_texts_are_in_utf_8(tmp_path):
    write_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\n"


def test_an_output_that_is_an_input(tmp_path):
    file, folder = tmp_path / "in" / "a.txt", tmp_path / "in"
    folder.mkdir()
    file.write_text("x")
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "folder").symlink_to(folder)
    os.link(file, tmp_path / "hard.txt")
    for output in (
        *(file, tmp_path / "link", tmp_path / "folder" / "a.txt", tmp_path / "hard.txt"),
        *(str(folder / ".." / "in" / "a.txt"), folder, tmp_path),
    ):
        with pytest.raises(ValueError, match="one of the inputs"):
            check_not_an_input(output, [None, tmp_path / "gone", file])
    with pytest.raises(ValueError, match="one of the inputs"):
        check_not_an_input(file, [folder])  # of a folder the files in it
    for output in (tmp_path / "new.txt", folder / "b.txt", "/dev/null"):
        check_not_an_input(output, [file, folder, "/dev/null"])


def test_a_folder_is_put_in_place_whole(tmp_path):
    path = tmp_path / "deep" / "report"
    for text in ("first", "second"):
        with whole_folder(path, "marker") as folder:
            (folder / "marker").write_text(text)
            (folder / text).touch()
            assert not (path / text).exists()
        assert sorted(os.listdir(path)) == sorted(["marker", text])
    with pytest.raises(RuntimeError, match="in the middle"), whole_folder(path, "marker") as folder:
        (folder / "half").touch()
        raise RuntimeError("in the middle")
    assert sorted(os.listdir(path)) == ["marker", "second"]
    assert os.listdir(path.parent) == ["report"]


def test_a_folder_of_others_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    check_replaceable(tmp_path / "mine", "marker")  # empty
    check_replaceable(tmp_path / "new", "marker")
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for name, message in (
        ("mine", "marker is missing"),
        ("file", "is no folder"),
        ("link", "is no folder"),
    ):
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            check_replaceable(tmp_path / name, "marker")


def test_folders_to_write_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("runs/new/one", "~/new", tmp_path):
        check_writable_folder(folder, "KEY")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", str(tmp_path / "file" / "below"), "~/file"):
        with pytest.raises(ValueError, match=rf"KEY is '{folder}', and {tmp_path}/file is a file"):
            check_writable_folder(folder, "KEY")
    for folder in ("", "s3://bucket/run"):
        with pytest.raises(ValueError, match=rf"KEY is '{folder}': a folder of this machine"):
            check_writable_folder(folder, "KEY")
    with pytest.raises(ValueError, match="KEY is '/proc/run', and /proc cannot be written"):
        monkeypatch.setattr("os.access", lambda path, mode: str(path) != "/proc")  # root may all
        check_writable_folder("/proc/run", "KEY")
