# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Callable


def write_whole(path: str | Path, write: Callable[[str], None]) -> None:
    """Let `write(temporary_path)` make the file, then move it to `path` in one step.

    The temporary file lies in the same folder and has the same ending. If anything goes wrong, or
    the process is killed, what was at `path` before is untouched. A link is followed; a device or
    a pipe (/dev/null, /dev/stdout) cannot be replaced, it is written to.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        write(str(path))
        return
    path = path.resolve()
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_text(path: str | Path, text: str) -> None:
    """`write_whole` of a text in UTF-8."""
    write_whole(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def check_writable_folder(path: str | Path, name: str) -> None:
    """
    Args:
        path: of a folder that need not be there yet; `~` is the home.
        name: what says so, an option or a key, for messages.

    Raises:
        ValueError: it is no folder of this machine that can be written, or made.
    """
    if not str(path) or "://" in str(path):
        raise ValueError(f"{name} is {str(path)!r}: a folder of this machine is needed")
    full = Path(path).expanduser().absolute()
    there = next(part for part in (full, *full.parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"{name} is {str(path)!r}, and {there} is a file: choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name} is {str(path)!r}, and {there} cannot be written")


def identity(path: str | Path) -> tuple[int, int] | None:
    """What tells whether two paths are of one file, whatever links or spellings lead there; None
    where there is no file."""
    try:
        stat = os.stat(Path(path).expanduser())
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def check_not_an_input(output: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """For programs, before work.

    Args:
        inputs: files that are read; of folders those in them. None and what is not there are
            passed over.

    Raises:
        ValueError: writing `output`, a file or a folder that is replaced as a whole, would destroy
            one of them.
    """
    output = Path(output).expanduser()
    if not (output.is_file() or output.is_dir()):  # not there yet; a device or a pipe
        return
    own = identity(output)
    for path in _files(inputs):
        inside = output.is_dir() and own in map(identity, path.resolve().parents)
        if inside or own == identity(path):
            raise ValueError(
                f"{output} would be written over, and {path}{' in it' if inside else ''} is one of "
                "the inputs: choose another output"
            )


def _files(paths: Iterable[str | Path | None]) -> Iterator[Path]:
    for path in paths:
        if path is not None:
            path = Path(path).expanduser()
            yield from path.iterdir() if path.is_dir() else (path,)


def check_replaceable(path: Path, marker: str) -> None:
    """
    Args:
        marker: name of a file that `whole_folder` is used to write.

    Raises:
        ValueError: replacing `path` could lose something: it is no folder, or one with files in it
            and without `marker`, which only an earlier run writes.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is no folder; choose another name")
    if path.exists() and any(path.iterdir()) and not (path / marker).is_file():
        raise ValueError(
            f"{path} holds files that an earlier run did not write ({marker} is missing): choose "
            "another folder, or empty it"
        )


@contextlib.contextmanager
def whole_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield a new folder beside `path`, and put it in its place at the end, if all went well.

    Raises:
        ValueError: see `check_replaceable`.
    """
    check_replaceable(path, marker)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = work / "new", work / "old"
    new.mkdir()
    try:
        yield new
        check_replaceable(path, marker)  # hours may have passed
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(work)
