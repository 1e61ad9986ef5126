# SPDX-License-Identifier: Apache-2.0
"""The Markdown pages, read by markdown-it-py: code blocks, links, code spans, headings, tables.

A comment in front of a code block, which readers do not see, says how the block is checked:

    <!-- check file: my/own.yaml -->          it is the content of that file, for the blocks below
    <!-- check never: it downloads 6 GB -->   it is not run, for this reason
    <!-- check
    before: mkdir -p my                       a command that is run first
    replace: PHOTO.JPG => photo.jpg           in the text that is run
    append: SOLVER.MAX_ITER 2                 to the block's last command
    -->

`before` and `replace` may be given more than once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin

ROOT = Path(__file__).resolve().parents[2]
DIRECTIVES = ("file", "never", "before", "replace", "append")
LANGUAGES = ("sh", "python", "yaml")  # what is checked

# As GitHub shows a page: CommonMark, tables, and headings that can be linked to.
_MARKDOWN = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=6)
_DIRECTIVE = re.compile(r"<!--\s*check\s(.*?)-->", re.DOTALL)
_HTML_LINK = re.compile(r"""\b(?:src|href)=["']([^"']+)""")


@dataclass(frozen=True)
class Block:
    """A fenced code block. `line` is that of its first line of code; `directives` its comment's."""

    page: Page
    line: int
    language: str
    text: str
    directives: tuple[tuple[str, str], ...]

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    def directive(self, name: str) -> list[str]:
        return [value for key, value in self.directives if key == name]

    @property
    def reason_not_to_run(self) -> str:
        return " ".join(self.directive("never"))

    def text_to_run(self) -> str:
        """The block as it is run: `before`, then the text with `replace` and `append`.

        Raises:
            ValueError: a replacement that is not "OLD => NEW", or whose OLD is not there.
        """
        text = self.text
        for replacement in self.directive("replace"):
            old, arrow, new = (part.strip() for part in replacement.partition("=>"))
            if not arrow or not old or old not in text:
                raise ValueError(f"{self.place}: replace {replacement!r}: it is not in the block")
            text = text.replace(old, new)
        for words in self.directive("append"):
            text = f"{text.rstrip()} {words}"
        return "\n".join([*self.directive("before"), text])

    @property
    def in_small(self) -> bool:
        return bool(self.directive("replace") or self.directive("append"))

    def commands(self) -> list[str]:
        """The logical lines of a shell block, without comments."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [
            line.strip()
            for line in joined.splitlines()
            if line.strip() and not line.strip().startswith("#")
        ]


class Page:
    """A page of the repository, `name` relative to its root.

    Raises:
        ValueError: a code block that nothing ends, or a comment that says how to check and is
            misspelt or in front of no code block.
    """

    def __init__(self, path: Path, root: Path = ROOT):
        self.path = path
        self.name = path.relative_to(root).as_posix()
        self._tokens = _MARKDOWN.parse(path.read_text(encoding="utf-8"))
        self.blocks = list(self._read_blocks())

    def links(self) -> list[tuple[int, str]]:
        """(line, target) of every link and picture."""
        found = []
        for line, token in self._running_text():
            if token.type in ("html_block", "html_inline"):
                found += [(line, target) for target in _HTML_LINK.findall(token.content)]
            elif token.type in ("link_open", "image"):
                target = token.attrGet("href") or token.attrGet("src") or ""
                found.append((line, unquote(str(target))))
        return found

    def code_spans(self) -> list[tuple[int, str]]:
        """(line, text) of every piece of code in running text."""
        return [(n, t.content.strip()) for n, t in self._running_text() if t.type == "code_inline"]

    def anchors(self) -> set[str]:
        """What a link's #part may be: the headings as GitHub names them."""
        return {str(token.attrGet("id")) for token in self._tokens if token.type == "heading_open"}

    def first_cells(self, header: str) -> list[tuple[int, list[Token]]]:
        """(line, parts) of the first cells of the rows of tables whose first column has that
        header, in whatever case."""
        found, wanted = [], False
        for before, opening, cell in zip(self._tokens, self._tokens[1:], self._tokens[2:]):
            if before.type != "tr_open":
                continue
            if opening.type == "th_open":
                wanted = cell.content.lower() == header.lower()
            elif wanted:
                found.append((cell.map[0] + 1, cell.children))
        return found

    def _running_text(self) -> Iterator[tuple[int, Token]]:
        """(line, part) of all that is no code block. A part's line is the one it begins on, or
        earlier where code before it in the same paragraph is broken over two lines."""
        for token in self._tokens:
            if token.type == "html_block":
                yield token.map[0] + 1, token
            elif token.type == "inline":
                line = token.map[0] + 1
                for part in token.children:
                    yield line, part
                    line += part.type in ("softbreak", "hardbreak")

    def _read_blocks(self) -> Iterator[Block]:
        directives, place = (), ""
        for token in [*self._tokens, Token("end", "", 0)]:
            if token.type == "html_block":
                match = _DIRECTIVE.match(token.content.strip())
                if match is not None:
                    place = f"{self.name}:{token.map[0] + 1}"
                    directives += _read_directives(match[1], place)
            elif token.type == "fence":
                first, end = token.map
                if token.content.count("\n") != end - first - 2:
                    raise ValueError(f"{self.name}:{first + 2}: a code block that nothing ends")
                language = token.info.split()[0] if token.info.strip() else ""
                yield Block(self, first + 2, language, token.content, directives)
                directives = ()
            elif directives:
                raise ValueError(f"{place}: it says how a code block is checked, and none follows")
            elif any(_DIRECTIVE.match(part.content) for part in token.children or ()):
                place = f"{self.name}:{token.map[0] + 1}"
                raise ValueError(f"{place}: a comment with checks stands within a line of text")


def _read_directives(text: str, place: str) -> tuple[tuple[str, str], ...]:
    found = []
    for line in text.strip().splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or key not in DIRECTIVES or not value:
            raise ValueError(
                f"{place}: {line.strip()!r} says nothing of how the block is checked: "
                f"NAME: VALUE, with one of {DIRECTIVES}"
            )
        found.append((key, value))
    return tuple(found)


def all_pages(root: Path = ROOT) -> list[Page]:
    """Those at the root but for the history in CHANGELOG.md, the project's page and docs/."""
    paths = [
        *sorted(path for path in root.glob("*.md") if path.name != "CHANGELOG.md"),
        root / "projects" / "SparseRefine" / "README.md",
        *sorted((root / "docs").glob("*.md")),
    ]
    return [Page(path, root) for path in paths]
