# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from sparse_refine.storage.files import write_whole


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
