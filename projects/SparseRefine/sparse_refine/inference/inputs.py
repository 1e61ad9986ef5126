# SPDX-License-Identifier: Apache-2.0
"""From what stands on the command line to files, each with a name of its own for what is written.

Nothing here opens an image: a broken one is found when its turn comes.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.image_files import (
    image_extensions,
    list_images,
    normalized,
    pick_images,
    warn_passed_over,
)

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS


def find_inputs(arguments: Sequence[str], output: Path, recursive: bool = False) -> list[Path]:
    """The files that `arguments` name, in their order, each once. What folders and globs hold
    besides images and videos is logged.

    Args:
        arguments: files, folders (their images and videos, sorted; hidden ones are passed over) and
            globs, which shells that do not expand them hand over ("**" goes into subfolders).
        output: a folder whose files are left out where folders and globs come upon them: they are
            the program's own.
        recursive: look into subfolders of folders.

    Raises:
        FileNotFoundError: an argument names nothing.
        ValueError: a folder in `output`.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        paths = _named(argument, output.resolve(), recursive)
        if not paths and _is_within(argument, output):
            raise ValueError(
                f"{argument} is the output folder {output}, or lies in it, and what is there is "
                "taken for the program's own: choose another --output"
            )
        if not paths:
            raise FileNotFoundError(f"{argument}: no such file, and no image or video in it")
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _is_within(argument: str, output: Path) -> bool:
    path = Path(argument).expanduser().resolve()
    return path.is_dir() and (path == output.resolve() or output.resolve() in path.parents)


def _named(argument: str, output: Path, recursive: bool) -> list[Path]:
    path = Path(argument).expanduser()
    extensions = image_extensions().union(VIDEO_EXTENSIONS)
    if path.is_dir():
        found = list_images(path, extensions, recursive, without=output)
    elif path.exists():  # before globs: a file may be called a[1].jpg
        return [path]
    else:
        matches = map(Path, glob.glob(str(path), recursive=True))
        found = pick_images(matches, extensions, without=output)
    warn_passed_over(argument, found.passed_over)
    return found.files


def assign_names(paths: Sequence[Path], earlier: dict[str, str]) -> dict[Path, str]:
    """A name for each path, no two alike, not even where upper and lower case, or the two ways to
    write an accented letter, are one.

    It is the file's name without its ending. Where two inputs, of this run or of earlier ones,
    would share it, ending and folders come in: `a/x.jpg`, `b/x.jpg` become `a_x` and `b_x`, and
    `x.jpg`, `x.png` of one folder `x_jpg` and `x_png`.

    Args:
        paths: different files.
        earlier: names that inputs (resolved paths) have from earlier runs; they keep them.
    """
    taken = {_folded(name) for name in earlier.values()}
    resolved = {path: path.resolve() for path in paths}
    names = {path: earlier[str(full)] for path, full in resolved.items() if str(full) in earlier}
    groups: dict[str, list[Path]] = {}
    for path in paths:
        if path not in names:
            groups.setdefault(_folded(path.stem), []).append(path)
    for group in groups.values():
        for candidates in _candidates([resolved[path] for path in group]):
            folded = {_folded(name) for name in candidates}
            if len(folded) == len(group) and not folded & taken:
                break
        names.update(zip(group, candidates))
        taken |= folded
    return {path: names[path] for path in paths}


def _folded(name: str) -> str:
    return normalized(name).casefold()


def _candidates(group: list[Path]) -> Iterator[list[str]]:
    """Names for files that share a stem, shortest first; without end."""
    for depth in range(max(len(path.parts) for path in group)):
        for ending in (False, True):
            yield [
                "_".join(
                    [
                        *(path.parts[max(1, len(path.parts) - 1 - depth) : -1]),
                        path.stem,
                        *([path.suffix[1:]] if ending else []),
                    ]
                )
                for path in group
            ]
    number = 1
    while True:
        number += 1
        yield [f"{path.stem}_{number + index}" for index, path in enumerate(group)]
