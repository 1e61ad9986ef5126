# SPDX-License-Identifier: Apache-2.0
"""What pages point at: links, headings, files and error messages. Every fault is a line of text."""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib.util
import re
import subprocess
from pathlib import Path

from .pages import ROOT, Page

# Tables whose first column has this header quote error messages there, "..." for what varies.
MESSAGES = "message"

_FILES = (".py", ".yaml", ".md", ".sh", ".toml", ".txt", ".svg", ".safetensors")
_MODEL = re.compile(r"\w+/\w+")
_FOLDERS = ("docs/", "projects/", "tools/", "tests/", "requirements/", "configs/", "weights/")
# Not of this repository: what programs write, what is the reader's own, other projects' files.
_NOT_OURS = (
    *("output/", ".venv/", "my/", "my_", "field/", "train.txt", "test.txt", "models/"),
    *("datasets/", "cityscapesscripts/"),
)


def repository_files(root: Path = ROOT) -> list[str]:
    """Paths of what belongs to the repository, committed or not yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0 and listed.stdout:
        return sorted(name for name in listed.stdout.splitlines() if (root / name).is_file())
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.parts[0] not in (".venv", "output"))


def broken_links(page: Page, root: Path = ROOT) -> list[str]:
    """Links to what is not there; addresses of other sites are taken as they are."""
    faults = []
    for line, target in page.links():
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.path.parent / name).resolve() if name else page.path
        if not path.exists():
            faults.append(f"{page.name}:{line}: no {target}")
        elif not path.is_relative_to(root):
            faults.append(f"{page.name}:{line}: {target} is outside of the repository")
        elif anchor and path.suffix == ".md" and anchor not in Page(path, root).anchors():
            faults.append(f"{page.name}:{line}: {name or page.name} has no heading #{anchor}")
    return faults


def missing_paths(page: Page, files: list[str], examples: set[str] = frozenset()) -> list[str]:
    """Code spans that look like files of this repository and are none.

    A path may be given from the root, from the page's folder, or by its last parts
    (`sparse/unet.py`). Names of models (`cityscapes/hrnet_w48`) need a config. `examples` are files
    that the pages themselves make.
    """
    faults = []
    for line, span in page.code_spans():
        name = span.partition(":")[0].rstrip("/")
        if _MODEL.fullmatch(span) and any(f"/configs/{span.split('/')[0]}/" in f for f in files):
            name = f"configs/{span}.yaml"
        elif not _looks_like_a_path(span) or name in examples:
            continue
        beside = (page.path.parent / name).resolve()
        if beside.exists() or any(_is_tail(name, file) for file in files):
            continue
        faults.append(f"{page.name}:{line}: no file or folder `{span}`")
    return faults


def _looks_like_a_path(span: str) -> bool:
    name = span.partition(":")[0]
    if any(mark in span for mark in " $~<>()=\"'…") or "..." in span or "://" in span:
        return False
    if name.startswith(_NOT_OURS) or Path(name).stem.isupper():  # C.yaml, NAME.png
        return False
    return name.endswith(_FILES) and name not in _FILES or name.startswith(_FOLDERS)


def _is_tail(name: str, file: str) -> bool:
    """Whether `name`, of a file or a folder, is the path `file` or its last parts."""
    return fnmatch.fnmatch(f"/{file}", f"*/{name}") or fnmatch.fnmatch(f"/{file}", f"*/{name}/*")


# ---------------------------------------------------------------------------------------- messages


def quoted_messages(page: Page) -> list[tuple[int, str]]:
    """(line, message) of the page's tables of messages. A cell that begins with other text quotes
    another program (pip: `No space left on device`)."""
    return [
        (line, part.content)
        for line, parts in page.first_cells(MESSAGES)
        if parts and parts[0].type == "code_inline"
        for part in parts
        if part.type == "code_inline"
    ]


@functools.cache
def message_templates(root: Path = ROOT) -> list[str]:
    """Every string of the programs, with a NUL for each value that is put into it."""
    sources = [*(root / "projects" / "SparseRefine").rglob("*.py")]
    yacs = importlib.util.find_spec("yacs.config")  # says which key of a yaml is unknown
    sources += [Path(yacs.origin)] if yacs else []
    templates = [(root / "tools" / "setup_env.sh").read_text(encoding="utf-8")]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                templates.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                templates.append(node.value)
    return templates


def unknown_messages(page: Page, templates: list[str]) -> list[str]:
    """Quoted messages that no program can print any more."""
    return [
        f"{page.name}:{line}: no program says {message!r}"
        for line, message in quoted_messages(page)
        if not any(says(template, message) for template in templates)
    ]


def says(template: str, message: str) -> bool:
    """Whether the pieces of a message between its "..." stand in a template in that order."""
    pieces = [piece.strip() for piece in message.split("...") if piece.strip()]
    if sum(map(len, pieces)) < 12:  # anything would do
        return False
    at = 0
    for piece in pieces:
        at = template.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True
