#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes the key tables of docs/configuration.md from the declarations in the package.

    python tools/config_reference.py            # rewrites the page's part between its two marks
    python tools/config_reference.py --check    # exit status 1 where that would change it

Nothing is imported from the package: keys, defaults and comments are read from its source, from
`add_sparse_refine_config` on through the functions that it calls (config_sources.py). A key's
meaning is the comment beside it, or the one above it; a key without either belongs to the key
right above where that one's comment names it.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from config_sources import Function

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "projects" / "SparseRefine" / "sparse_refine" / "config.py"
PAGE = ROOT / "docs" / "configuration.md"
FUNCTION = "add_sparse_refine_config"
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
BANNER = re.compile(r"-{4,} (.+?) -{4,}")
SOURCE_FILE = re.compile(r"\((modeling/[\w/]*(?:\.py)?)\)")


@dataclass
class Key:
    """`name` dotted, `default` as it stands in Python, `meaning` "" where nobody wrote it."""

    name: str
    default: str
    kind: str
    meaning: str


@dataclass
class Section:
    """Keys under one banner of the source, or under one node that has a comment of its own."""

    title: str
    depth: int
    text: str = ""
    keys: list[Key] = field(default_factory=list)


def read_declarations(path: Path = CONFIG) -> list[Section]:
    """Sections in the order of the source, which begins at `FUNCTION` in the file `path`.

    Raises:
        ValueError: a statement that declares no key, or is below no banner, with its line.
    """
    sections: list[Section] = []
    _read(Function.of(path, FUNCTION), {"cfg": ""}, sections)
    return sections


def _read(function: Function, names: dict[str, str], sections: list[Section]) -> None:
    """`names`: Python's name of a node -> its dotted one, "" the root's."""
    for statement, above in function.statements():
        banners = [i for i, text in enumerate(above) if BANNER.fullmatch(text)]
        if banners:
            sections.append(Section(BANNER.fullmatch(above[banners[-1]])[1], 2))
            above = above[banners[-1] + 1 :]
        calls = function.calls(statement)
        for other, argument in calls:
            _read(other, {other.parameter: _dotted(argument, names)}, sections)
        if calls or isinstance(statement, ast.ImportFrom):
            continue
        if not isinstance(statement, ast.Assign) or len(banners) > 1:
            raise ValueError(f"{function.place(statement)}: a key or a call is needed here")
        value = statement.value
        if isinstance(value, ast.Attribute):  # node = cfg.MODEL
            names[statement.targets[0].id] = _dotted(value, names)
            continue
        name = next(_dotted(t, names) for t in statement.targets if isinstance(t, ast.Attribute))
        names.update({t.id: name for t in statement.targets if isinstance(t, ast.Name)})
        if not sections:
            raise ValueError(
                f"{function.place(statement)}: a banner above is needed (# ---- title ----)"
            )
        text = " ".join(above)
        if _is_node(value):
            if text:
                sections.append(Section(f"`{name}`", 3, text))
            continue
        keys = sections[-1].keys
        meaning = " ".join(filter(None, [text, function.beside(statement)]))
        if not meaning and keys and re.search(rf"\b{name.rsplit('.')[-1]}\b", keys[-1].meaning):
            meaning = keys[-1].meaning
        keys.append(Key(name, _default(value), _kind(value), meaning))


def undocumented(sections: list[Section]) -> list[str]:
    return [key.name for section in sections for key in section.keys if not key.meaning]


def render(sections: list[Section]) -> str:
    lines = []
    for section in sections:
        title = SOURCE_FILE.sub(r"(`\1`)", section.title[0].upper() + section.title[1:])
        lines += [f"{'#' * section.depth} {title}", ""]
        if section.text:
            lines += [section.text, ""]
        if section.keys:
            lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
            lines += [
                f"| `{key.name}` | {key.kind} | `{key.default}` | {_cell(key.meaning)} |"
                for key in section.keys
            ]
            lines.append("")
    return "\n".join(lines)


def updated(page: str, path: Path = CONFIG) -> str:
    """The text of the page with its part between the marks written anew.

    Raises:
        ValueError: the page lacks a mark, or keys have no comment; names them.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE.name} needs one line {BEGIN} and one line {END}")
    sections = read_declarations(path)
    silent = undocumented(sections)
    if silent:
        raise ValueError(f"no comment says what {', '.join(silent)} means: write one")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{render(sections)}\n{END}{rest.split(END)[1]}"


def _dotted(target: ast.expr, names: dict[str, str]) -> str:
    parts = []
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    return ".".join([*filter(None, [names[target.id]]), *reversed(parts)])


def _is_node(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and not value.keywords


def _default(value: ast.expr) -> str:
    return "{}" if isinstance(value, ast.Call) else repr(ast.literal_eval(value)).replace("'", '"')


def _kind(value: ast.expr) -> str:
    if isinstance(value, ast.Call):  # CN(new_allowed=True)
        return "mapping"
    return type(ast.literal_eval(value)).__name__


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    page = PAGE.read_text()
    try:
        text = updated(page)
    except ValueError as error:
        sys.exit(str(error))
    if args.check:
        if text != page:
            sys.exit(f"{PAGE} is out of date: run python tools/config_reference.py")
    elif text != page:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
