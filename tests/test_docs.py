# SPDX-License-Identifier: Apache-2.0
"""The README, the project's page and docs/ against the code, and what finds their faults.

`make docs-check` runs their commands as well; here are the parts that take seconds.
"""

from __future__ import annotations

import importlib
import re
import time
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from sparse_refine import add_sparse_refine_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
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
        targets = (target.partition("#")[0] for _, target in page(path).links())
        paths = [(path.parent / t).resolve() for t in targets if t.endswith(".md") and ":" not in t]
        todo += [p for p in paths if p.relative_to(ROOT).as_posix() not in seen]
    assert set(PAGES) <= seen


def test_twenty_messages_are_explained(tool):
    page = tool("documents.pages").Page(ROOT / "README.md")
    assert len(tool("documents.references").quoted_messages(page)) >= 20


def test_every_shipped_model_is_named(tool):
    from sparse_refine import model_zoo

    page = tool("documents.pages").Page(ROOT / "docs" / "usage.md")
    assert set(model_zoo.names()) <= {span for _, span in page.code_spans()}


def test_blocks_have_a_language_that_is_checked(tool):
    pages = tool("documents.pages")
    unchecked = {b.language for p in pages.all_pages() for b in p.blocks} - {*pages.LANGUAGES, ""}
    assert unchecked <= {"bibtex"}


# ---- the key reference ---------------------------------------------------------------------------


def leaves(node: CfgNode, prefix: str = "") -> dict:
    found = {}
    for key, value in node.items():
        if isinstance(value, CfgNode) and (value or not value.is_new_allowed()):
            found.update(leaves(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def test_key_reference_is_up_to_date(tool):
    reference = tool("config_reference")
    text = reference.PAGE.read_text()
    assert reference.updated(text, reference.CONFIG.read_text()) == text, (
        "run python tools/config_reference.py"
    )


def test_key_reference_has_every_key_with_its_default(tool):
    reference = tool("config_reference")
    cfg = get_cfg()
    before = leaves(cfg)
    add_sparse_refine_config(cfg)
    declared = {name: value for name, value in leaves(cfg).items() if name not in before}
    keys = [k for s in reference.read_declarations(reference.CONFIG.read_text()) for k in s.keys]
    assert sorted(key.name for key in keys) == sorted(declared)
    for key in keys:
        assert eval(key.default) == declared[key.name], key.name
        assert key.meaning, key.name


DECLARATIONS = '''
def add_sparse_refine_config(cfg):
    """Doc."""
    # ---- parts ----
    # A share, 0..1,
    # of something; or COUNT.
    cfg.MODEL.SHARE = 0.5
    cfg.MODEL.COUNT = -1
    cfg.MODEL.METHOD = node = CN()
    # One part.
    node.PART = CN()
    node.PART.NAME = "a|b"  # its name
{more}'''


def test_key_reference_reads_comments(tool):
    reference = tool("config_reference")
    sections = reference.read_declarations(DECLARATIONS.format(more=""))
    keys = {key.name: key for section in sections for key in section.keys}
    assert keys["MODEL.SHARE"].meaning == "A share, 0..1, of something; or COUNT."
    assert keys["MODEL.COUNT"].meaning == keys["MODEL.SHARE"].meaning
    assert (keys["MODEL.METHOD.PART.NAME"].meaning, sections[1].text) == ("its name", "One part.")
    text = reference.render(sections)
    assert "## Parts" in text and "### `MODEL.METHOD.PART`" in text and '`"a|b"`' in text


def test_key_reference_refuses_a_key_without_a_comment(tool):
    reference = tool("config_reference")
    source = DECLARATIONS.format(more="    node.PART.SIZE = 3\n")
    page = f"{reference.BEGIN}\n{reference.END}\n"
    with pytest.raises(ValueError, match=r"MODEL\.METHOD\.PART\.SIZE"):
        reference.updated(page, source)
    with pytest.raises(ValueError, match="needs one line"):
        reference.updated("nothing", source)


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
    found = page(f"# P\n## When something goes wrong\n\n{table}\n## Next\n| `other` | x |\n")
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
