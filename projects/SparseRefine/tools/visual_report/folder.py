# SPDX-License-Identifier: Apache-2.0
"""A folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_replaceable(path: Path, mark: str) -> None:
    """Raise ValueError unless nothing is lost when `path` is replaced: it is not there, or an empty
    folder, or a folder with the file `mark`, which only an earlier run writes."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is no folder; choose another name")
    if path.exists() and any(path.iterdir()) and not (path / mark).is_file():
        raise ValueError(
            f"{path} holds files that no report of this program is ({mark} is missing): choose "
            "another folder, or empty it"
        )


@contextlib.contextmanager
def whole_folder(path: Path, mark: str) -> Iterator[Path]:
    """Yield a new folder beside `path`, and put it in its place at the end, if all went well.

    Raises:
        ValueError: see `check_replaceable`.
    """
    check_replaceable(path, mark)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = work / "new", work / "old"
    new.mkdir()
    try:
        yield new
        check_replaceable(path, mark)  # hours may have passed
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(work)
