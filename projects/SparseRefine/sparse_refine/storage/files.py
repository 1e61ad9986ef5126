# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
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
