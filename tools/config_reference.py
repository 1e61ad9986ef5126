#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes the key tables of docs/configuration.md from the declarations in sparse_refine/config.py.

    python tools/config_reference.py            # rewrites the page's part between its two marks
    python tools/config_reference.py --check    # exit status 1 where that would change it

Nothing is imported from the package: keys, defaults and comments are read from its source. A key's
meaning is the comment beside it, or the one above it; a key without either belongs to the key
right above where that one's comment names it.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

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


def read_declarations(source: str) -> list[Section]:
    """Sections in the order of the source.

    Raises:
        ValueError: a statement that declares no key, or is below no banner, with its line.
    """
    comments = _comments(source)
    body = next(
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == FUNCTION
    )
    names: dict[str, str] = {"cfg": ""}  # Python's name of a node -> its dotted one
    sections: list[Section] = []
    previous_end = body[0].end_lineno
    for statement in body[1:]:
        above = [comments[i] for i in range(previous_end + 1, statement.lineno) if i in comments]
        previous_end = statement.end_lineno
        banners = [i for i, text in enumerate(above) if BANNER.fullmatch(text)]
        if banners:
            sections.append(Section(BANNER.fullmatch(above[banners[-1]])[1], 2))
            above = above[banners[-1] + 1 :]
        if not isinstance(statement, ast.Assign) or not sections or len(banners) > 1:
            raise ValueError(
                f"{CONFIG.name}, line {statement.lineno}: a key, below one banner "
                "(# ---- title ----), is needed here"
            )
        text = " ".join(above)
        for target in statement.targets:
            if isinstance(target, ast.Name):
                names[target.id] = _dotted(statement.targets[0], names)
        name = _dotted(statement.targets[0], names)
        if _is_node(statement.value):
            if text:
                sections.append(Section(f"`{name}`", 3, text))
            continue
        beside = comments.get(statement.end_lineno, "")
        keys = sections[-1].keys
        meaning = " ".join(filter(None, [text, beside]))
        if not meaning and keys and re.search(rf"\b{name.rsplit('.')[-1]}\b", keys[-1].meaning):
            meaning = keys[-1].meaning
        keys.append(Key(name, _default(statement.value), _kind(statement.value), meaning))
    return sections


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


def updated(page: str, source: str) -> str:
    """The page with its part between the marks written anew.

    Raises:
        ValueError: the page lacks a mark, or keys have no comment; names them.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE.name} needs one line {BEGIN} and one line {END}")
    sections = read_declarations(source)
    silent = undocumented(sections)
    if silent:
        raise ValueError(f"{CONFIG.name}: no comment says what {', '.join(silent)} means")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{render(sections)}\n{END}{rest.split(END)[1]}"


def _comments(source: str) -> dict[int, str]:
    """Line -> its comment, without the mark."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("#").strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


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
        text = updated(page, CONFIG.read_text())
    except ValueError as error:
        sys.exit(str(error))
    if args.check:
        if text != page:
            sys.exit(f"{PAGE} is out of date: run python tools/config_reference.py")
    elif text != page:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
