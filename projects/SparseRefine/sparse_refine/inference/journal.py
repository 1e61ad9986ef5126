# SPDX-License-Identifier: Apache-2.0
"""What the program wrote into a folder, of which inputs and with what settings, so that a run can
be resumed, and so that files of other programs are never overwritten."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..storage.files import identity
from .outputs import Job

NAME = ".sparse_refine_demo.jsonl"


class Journal:
    """One line when an input is begun and one when it is done, in a file in the output folder.

    A line holds "input" (resolved path), "stamp" (its size and time), "settings", "name",
    "outputs" (paths in the folder) and "done". A line that was cut short is passed over: its input
    is done again.

    Args:
        folder: where outputs go; it need not exist yet.
        settings: digest of all that outputs depend on besides the input.
    """

    def __init__(self, folder: Path, settings: str):
        self.folder = folder
        self.settings = settings
        self.path = folder / NAME
        self._last: dict[str, dict] = {}
        self._own: set[str] = set()
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            name, outputs, path = entry["name"], entry["outputs"], entry["input"]
            # names become parts of paths: none may lead out of the folder
            whole = name == Path(name).name and name not in ("", ".", "..")
            own = {str(output) for output in outputs}
        except (ValueError, KeyError, TypeError):
            return
        if whole:
            self._last[path] = entry
            self._own |= own

    def names(self) -> dict[str, str]:
        """Names of inputs (resolved paths) of earlier runs."""
        return {path: entry["name"] for path, entry in self._last.items()}

    def owns(self, output: Path) -> bool:
        """Whether this file comes from a run of the program."""
        return output.relative_to(self.folder).as_posix() in self._own

    def is_done(self, job: Job) -> bool:
        """Whether all outputs are there, made of this very file with these settings."""
        entry = self._last.get(str(job.source.resolve()), {})
        return (
            entry.get("done") is True
            and entry.get("settings") == self.settings
            and entry.get("stamp") == _stamp(job.source)
            and set(self._outputs(job)) <= set(entry["outputs"])
            and all(output.is_file() for output in job.outputs.values())
        )

    def write(self, job: Job, done: bool) -> None:
        """Say that a job is begun or `done`."""
        entry = {
            "input": str(job.source.resolve()),
            "stamp": _stamp(job.source),
            "settings": self.settings,
            "name": job.name,
            "outputs": self._outputs(job),
            "done": done,
        }
        with open(self.path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the last run was killed here
                    file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")

    def _outputs(self, job: Job) -> list[str]:
        return [path.relative_to(self.folder).as_posix() for path in job.outputs.values()]


def _stamp(source: Path) -> list[int]:
    stat = source.stat()
    return [stat.st_size, stat.st_mtime_ns]


def check_targets(jobs: Sequence[Job], journal: Journal, overwrite: bool) -> None:
    """Raise FileExistsError where an output is an input of the run, whatever links lead there, or,
    unless `overwrite`, a file that no run of this program wrote (labels drawn by hand, say)."""
    inputs = {identity(job.source) for job in jobs}
    foreign = []
    for job in jobs:
        for output in job.outputs.values():
            if not output.exists():
                continue
            if identity(output) in inputs:
                raise FileExistsError(
                    f"{output} would be written, and is one of the inputs: choose another --output"
                )
            if not journal.owns(output):
                foreign.append(output)
    if foreign and not overwrite:
        raise FileExistsError(
            f"{foreign[0]}{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''} exist, and "
            "this program did not write them: choose another --output, or say --overwrite"
        )
