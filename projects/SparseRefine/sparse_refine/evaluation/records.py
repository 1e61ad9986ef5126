# SPDX-License-Identifier: Apache-2.0
"""What is kept of each evaluated image, on disk as one JSON line, so that an evaluation can go on.

A folder holds `records_rank{r}.jsonl` of every process r that wrote there. A file's first line is a
header that says what its records belong to; a record is a dict with a unique "file_name". A process
that was stopped in the middle of a line leaves a torn last line: readers skip it, and the next
writer cuts it off.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

_PATTERN = "records_rank*.jsonl"


def pack(counts: np.ndarray) -> dict[str, list[int]]:
    """Non-negative counts as the flat positions and values of the non-zero ones.

    A confusion matrix of 150 classes has 22500 entries, of which one image fills a few hundred.
    """
    at = np.flatnonzero(counts)
    return {"at": at.tolist(), "n": counts.ravel()[at].tolist()}


def add_packed(total: np.ndarray, packed: dict[str, list[int]]) -> None:
    """Add packed counts onto a contiguous array, in place."""
    total.reshape(-1)[packed["at"]] += np.asarray(packed["n"], dtype=total.dtype)


class RecordWriter:
    """Appends records to one process's file; each is flushed, so only the last can be torn.

    Args:
        folder: made where it is missing.
        rank: number of the process.
        header: JSON dict, written at the top of a new file.
    """

    def __init__(self, folder: str | Path, rank: int, header: dict[str, Any]):
        path = Path(folder) / f"records_rank{rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path) if path.exists() else []
        self._file = open(path, "r+b" if lines else "wb")  # noqa: SIM115 (closed by `close`)
        if lines:
            self._file.seek(sum(len(line) for line in lines))
            self._file.truncate()
        else:
            self.append(header)

    def append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_records(folder: str | Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of all processes, by "file_name"; empty where there are none.

    Raises:
        ValueError: a file's header differs, naming the entry and both values, or a line other than
            the last cannot be read.
    """
    records = {}
    for path in sorted(Path(folder).glob(_PATTERN)):
        lines = _whole_lines(path)
        if not lines:
            continue
        _check_header(path, json.loads(lines[0]), header)
        for line in lines[1:]:
            record = json.loads(line)
            records.setdefault(record["file_name"], record)
    return records


def remove_records(folder: str | Path) -> None:
    """Delete the records of all processes."""
    for path in Path(folder).glob(_PATTERN):
        path.unlink()


def _whole_lines(path: Path) -> list[bytes]:
    """A file's lines, without a torn last one."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        try:
            whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if whole:
            continue
        if number + 1 < len(lines):
            raise ValueError(f"{path}: line {number + 1} of {len(lines)} is no record")
        logging.getLogger(__name__).warning(f"{path}: last line is torn, its image is done again")
        return lines[:-1]
    return lines


def _check_header(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in expected:
        if found.get(key) != expected[key]:
            whose = "other weights or another configuration" if key == "tag" else f"another {key}"
            raise ValueError(
                f"{path}: the records belong to {whose}: {key} is {found.get(key)!r} there and "
                f"{expected[key]!r} here. Evaluate into another folder, or without resuming."
            )
