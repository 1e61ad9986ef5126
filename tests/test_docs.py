# SPDX-License-Identifier: Apache-2.0
"""The pages against the code, and what finds their faults.

`make docs-check` runs their commands as well; here are the parts that take seconds.
"""

from __future__ import annotations

import importlib
import re
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "CONTRIBUTING.md",
    "README.md",
    "projects/SparseRefine/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]


@pytest.fixture
def tool(monkeypatch):
    """load(module) of tools/."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


@pytest.fixture
def page(tool, tmp_path):
    """make(text) -> a page that holds it, in a repository of its own."""

    def make(text: str):
        path = tmp_path / "docs" / "page.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return tool("documents.pages").Page(path, tmp_path)

    return make


# ---- the pages -----------------------------------------------------------------------------------


def test_all_pages_are_here(tool):
    assert [page.name for page in tool("documents.pages").all_pages()] == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_links_paths_and_messages(tool, name):
    pages, references = tool("documents.pages"), tool("documents.references")
    page = pages.Page(ROOT / name)
    files = references.repository_files()
    examples = {file for p in pages.all_pages() for b in p.blocks for file in b.directive("file")}
    assert not references.broken_links(page)
    assert not references.missing_paths(page, files, examples)
    assert not references.unknown_messages(page, references.message_templates())


@pytest.mark.parametrize("name", PAGES)
def test_python_and_yaml_blocks_run(tool, name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tool("documents.workspace").make_workspace(tmp_path, copy=False)
    tool("documents.running").run_page(tool("documents.pages").Page(ROOT / name), folder, False)


def test_every_page_is_within_reach_of_the_readme(tool):
    page = tool("documents.pages").Page
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        seen.add(path.relative_to(ROOT).as_posix())
        targets = {target.partition("#")[0] for _, target in page(path).links()}
        paths = [(path.parent / target).resolve() for target in targets if ":" not in target]
        paths = [p / "README.md" if p.is_dir() else p for p in paths]  # as GitHub shows a folder
        todo += [p for p in paths if p.suffix == ".md" and p.is_file()
                 and p.relative_to(ROOT).as_posix() not in seen]  # fmt: skip
    assert set(PAGES) <= seen


def test_twenty_messages_are_explained(tool):
    quoted = tool("documents.references").quoted_messages
    assert sum(len(quoted(page)) for page in tool("documents.pages").all_pages()) >= 20


def test_every_shipped_model_is_named(tool):
    from sparse_refine.inference import model_zoo

    page = tool("documents.pages").Page(ROOT / "projects" / "SparseRefine" / "README.md")
    assert set(model_zoo.names()) <= {span for _, span in page.code_spans()}


def test_blocks_have_a_language_that_is_checked(tool):
    pages = tool("documents.pages")
    unchecked = {b.language for p in pages.all_pages() for b in p.blocks} - {*pages.LANGUAGES, ""}
    assert unchecked <= {"bibtex"}


# ---- what finds faults ---------------------------------------------------------------------------


def test_broken_links_and_anchors_are_found(tool, page):
    text = (
        "# One `x.py`\n[a](#one-xpy) [b](#two)\n[c](no.md) [d](page.md#three) [e](https://e.org)\n"
    )
    faults = tool("documents.references").broken_links(page(text), page(text).path.parents[1])
    assert [fault.split(": ")[1] for fault in faults] == [
        "docs/page.md has no heading #two",
        "no no.md",
        "page.md has no heading #three",
    ]


def test_missing_paths_are_found(tool, page):
    here = ["sub/here.py", "here.py:Name", "city/one"]
    gone = ["gone.py", "docs/gone", "city/two"]
    others = ["C.yaml", "output/x.yaml", "a = b.py", "no/model"]
    text = " ".join(f"`{span}`" for span in here + gone + others)
    files = ["src/sub/here.py", "project/configs/city/one.yaml"]
    faults = tool("documents.references").missing_paths(page(text), files)
    assert re.findall("`(.+?)`", " ".join(faults)) == gone


def test_messages_that_nobody_says_are_found(tool, page):
    references = tool("documents.references")
    rows = ["data set ... has ... classes but", "data set ... never says so", "short"]
    table = "\n".join(["| message | what |", "|---|---|", *(f"| `{row}` | x |" for row in rows)])
    other = "| name | what |\n|---|---|\n| `no message at all` | x |\n"
    found = page(f"# P\n\n{table}\n| pip: `of another program` | x |\n\n{other}")
    templates = ["data set \0 has \0 classes but NUM_CLASSES is \0", "short"]
    faults = references.unknown_messages(found, templates)
    assert [fault.split("says ", 1)[1] for fault in faults] == [repr(row) for row in rows[1:]]


BLOCKS = """
1. text

   <!-- check
   before: mkdir x
   replace: BIG => small
   append: K 2
   -->
   ```sh
   run BIG \\
     more
   ```

```python
x = '''
<!-- check never: a -->
'''
```
<!-- check never: it asks the network -->
```sh
fetch
```
"""


def test_blocks_with_their_directives(page):
    shell, python, never = page(BLOCKS).blocks
    assert (shell.line, shell.text) == (10, "run BIG \\\n  more\n")
    assert shell.text_to_run() == "mkdir x\nrun small \\\n  more K 2"
    assert shell.in_small and shell.commands() == ["run BIG more"]
    assert python.directives == () and never.reason_not_to_run == "it asks the network"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<!-- check nevr: x -->\n```sh\na\n```\n", "nevr"),
        ("<!-- check never: -->\n```sh\na\n```\n", "never:"),
        ("<!-- check never: x -->\nText.\n```sh\na\n```\n", "none follows"),
        ("Text <!-- check never: x -->\n```sh\na\n```\n", "within a line of text"),
        ("```sh\na\n", "nothing ends"),
    ],
)
def test_pages_that_cannot_be_read(page, text, match):
    with pytest.raises(ValueError, match=match):
        page(text)


def test_a_replacement_that_fits_nothing_is_a_fault(page):
    (block,) = page("<!-- check replace: b => c -->\n```sh\na\n```\n").blocks
    with pytest.raises(ValueError, match="not in the block"):
        block.text_to_run()


@pytest.mark.parametrize(
    ("block", "match"),
    [
        ("```python\nassert False, 'no'\n```", "AssertionError: no"),
        ("```yaml\nMODEL: {NO_SUCH_KEY: 1}\n```", "NO_SUCH_KEY"),
        ("```sh\nfalse | true\n```", "exit status 1"),
        ("```sh\necho said; exit 3\n```", "exit status 3(.|\n)*said"),
    ],
)
def test_blocks_that_fail_are_faults(tool, page, tmp_path, block, match):
    running = tool("documents.running")
    (tmp_path / "work").mkdir()
    with pytest.raises(running.BlockError, match=match):
        running.run_page(page(f"{block}\n"), tmp_path / "work", shell=True)


def test_what_runs_on_in_the_background_is_ended(tool, page, tmp_path):
    (tmp_path / "work").mkdir()
    text = "```sh\n(sleep 100; touch late) & echo $! > pid\n```\n"
    tool("documents.running").run_page(page(text), tmp_path / "work", shell=True)
    pid = int((tmp_path / "work" / "pid").read_text())
    status = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} runs on")


def test_blocks_run_in_the_workspace_and_leave_registries_as_they_were(tool, page, tmp_path):
    from sparse_refine.selector import SELECTOR_REGISTRY

    text = (
        "<!-- check file: my/a.py -->\n```python\nimport no_such_module\n```\n"
        "```python\nfrom pathlib import Path\nPath('made.txt').touch()\n"
        "from sparse_refine.selector import SELECTOR_REGISTRY\n"
        "SELECTOR_REGISTRY._do_register('OfAPage', object)\n```\n"
        "```sh\ntest -f made.txt && test -f my/a.py && touch here.txt\n```\n"
        "<!-- check never: a reason -->\n```sh\nexit 1\n```\n"
    )
    (tmp_path / "work").mkdir()
    before = Path.cwd()
    outcomes = tool("documents.running").run_page(page(text), tmp_path / "work", shell=True)
    assert [outcome.status for outcome in outcomes] == ["file", "run", "run", "not run"]
    assert (tmp_path / "work" / "here.txt").exists() and Path.cwd() == before
    assert "OfAPage" not in SELECTOR_REGISTRY
