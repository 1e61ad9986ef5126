# SPDX-License-Identifier: Apache-2.0
"""The Markdown pages and what is checked in them: code blocks, links, headings, paths, messages.

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
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECTIVES = ("file", "never", "before", "replace", "append")
LANGUAGES = ("sh", "python", "yaml")  # what is checked; the others are pictures in letters

_FENCE = re.compile(r"^([ >]*)(`{3,})\s*([\w+-]*)\s*$")
_DIRECTIVE = re.compile(r"<!--\s*check\s(.*?)-->", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_HEADING = re.compile(r"^(#{1,6}) +(.+?) *$")


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
    """A page of the repository, `name` relative to its root."""

    def __init__(self, path: Path, root: Path = ROOT):
        self.path = path
        self.name = path.relative_to(root).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.blocks: list[Block] = []
        self._prose: list[str] = []  # lines outside of code blocks, "" for those inside
        self._read()

    def links(self) -> list[tuple[int, str]]:
        """(line, target) of every link and picture."""
        return [
            (number, match[1])
            for number, line in enumerate(self._prose, 1)
            for match in _LINK.finditer(line)
        ]

    def code_spans(self) -> list[tuple[int, str]]:
        """(line, text) of every piece of code in running text."""
        return [
            (number, match[2].strip())
            for number, line in enumerate(self._prose, 1)
            for match in _CODE.finditer(line)
        ]

    def anchors(self) -> set[str]:
        """What a link's #part may be: the headings as GitHub names them."""
        found: dict[str, int] = {}
        anchors = set()
        for line in self._prose:
            match = _HEADING.match(line)
            if match is None:
                continue
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[2])
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            again = found.get(slug, 0)
            found[slug] = again + 1
            anchors.add(f"{slug}-{again}" if again else slug)
        return anchors

    def section(self, title: str) -> list[tuple[int, str]]:
        """(line number, line) of what stands below a heading, up to the next of its depth."""
        depth, lines = 0, []
        for number, line in enumerate(self._prose, 1):
            match = _HEADING.match(line)
            if depth and match is not None and len(match[1]) <= depth:
                break
            if depth:
                lines.append((number, line))
            elif match is not None and match[2] == title:
                depth = len(match[1])
        return lines

    def _read(self) -> None:
        lines = self.text.splitlines()
        fence = None  # (indentation, marks, language, first line of code)
        directives: tuple[tuple[str, str], ...] = ()
        starts = {
            self.text[: match.end()].count("\n") + 1: self._directives(match)
            for match in _DIRECTIVE.finditer(self.text)
        }
        hidden = self._lines_of_comments()
        for number, line in enumerate(lines, 1):
            match = _FENCE.match(line)
            if fence is None:
                directives = starts.get(number, directives)
                if match is not None and match[3]:
                    fence = (match[1], match[2], match[3], number + 1)
                    self._prose.append("")
                elif match is not None:
                    fence = (match[1], match[2], "", number + 1)
                    self._prose.append("")
                else:
                    if line.strip() and number not in hidden:
                        directives = ()
                    self._prose.append("" if number in hidden else line)
                continue
            self._prose.append("")
            if match is not None and match[2] == fence[1] and not match[3]:
                code = "\n".join(lines[fence[3] - 1 : number - 1])
                self.blocks.append(
                    Block(self, fence[3], fence[2], textwrap.dedent(code) + "\n", directives)
                )
                fence, directives = None, ()
        if fence is not None:
            raise ValueError(f"{self.name}:{fence[3]}: a code block that nothing ends")

    def _lines_of_comments(self) -> set[int]:
        hidden = set()
        for match in _COMMENT.finditer(self.text):
            first = self.text[: match.start()].count("\n") + 1
            hidden.update(range(first, first + match[0].count("\n") + 1))
        return hidden

    def _directives(self, match: re.Match) -> tuple[tuple[str, str], ...]:
        found = []
        for line in match[1].strip().splitlines():
            key, colon, value = line.partition(":")
            if not colon or key.strip() not in DIRECTIVES or not value.strip():
                number = self.text[: match.start()].count("\n") + 1
                raise ValueError(
                    f"{self.name}:{number}: {line.strip()!r} says nothing of how the block is "
                    f"checked: NAME: VALUE, with one of {DIRECTIVES}"
                )
            found.append((key.strip(), value.strip()))
        return tuple(found)


def all_pages(root: Path = ROOT) -> list[Page]:
    """The README, the project's page and docs/."""
    paths = [
        root / "README.md",
        root / "projects" / "SparseRefine" / "README.md",
        *sorted((root / "docs").glob("*.md")),
    ]
    return [Page(path, root) for path in paths]
