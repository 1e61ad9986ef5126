# SPDX-License-Identifier: Apache-2.0
"""Runs the code blocks of a page, in their order, in a workspace."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .pages import Block, Page
from .workspace import environment

LIMIT = 900  # seconds for the commands of one block


class BlockError(Exception):
    """A block that failed, with where it stands and what it said."""


@dataclass(frozen=True)
class Outcome:
    """What became of a block: "run", "run in small", "file" or "not run", and the seconds."""

    block: Block
    status: str
    seconds: float = 0.0


def run_page(
    page: Page,
    folder: Path,
    shell: bool,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run a page's blocks. Commands only where `shell`; the workspace then has to be a copy.
    `report` is called with each outcome at once.

    Raises:
        BlockError: the first block that fails.
    """
    outcomes = []
    with _inside(folder), _registries_as_before():
        for block in page.blocks:
            start = time.monotonic()
            status = _run(block, folder, shell)
            if status:
                outcomes.append(Outcome(block, status, time.monotonic() - start))
                report(outcomes[-1])
    return outcomes


def _run(block: Block, folder: Path, shell: bool) -> str:
    for name in block.directive("file"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    if block.reason_not_to_run:
        return "not run"
    if block.language == "yaml":
        load_yaml(block, folder)
    elif block.language == "python" and block.directive("file"):
        compile(block.text, block.place, "exec")  # it runs where a later block imports it
        return "file"
    elif block.language == "python":
        run_python(block)
    elif block.language == "sh" and shell:
        run_commands(block, folder)
    else:
        return ""
    return "run in small" if block.in_small else "run"


def run_commands(block: Block, folder: Path) -> str:
    """A shell block, by bash, which stops at the first command that fails. Returns its output."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", block.text_to_run()],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=said,  # a file: what runs on in the background would hold a pipe open
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise BlockError(f"{block.place}: not done after {LIMIT} s\n{block.text}") from None
        finally:  # with what it has started in the background
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        output = said.read()
    if status != 0:
        raise BlockError(
            f"{block.place}: exit status {status}\n{block.text_to_run()}\n{output[-4000:]}"
        )
    return output


def run_python(block: Block) -> str:
    """A block by itself, in a namespace of its own. Returns what it printed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text_to_run(), block.place, "exec"), {"__name__": "__main__"})
    except Exception as error:
        raise BlockError(f"{block.place}: {type(error).__name__}: {error}\n{block.text}") from error
    return printed.getvalue()


def load_yaml(block: Block, folder: Path):
    """A config: every key known, every value of the right type. Returns it."""
    from sparse_refine.config import load_config

    names = block.directive("file")
    path = folder / (names[0] if names else f".block_{block.line}.yaml")
    path.write_text(block.text_to_run())
    try:
        return load_config(str(path), trust_code=True)  # the page's own files
    except Exception as error:
        raise BlockError(f"{block.place}: {type(error).__name__}: {error}\n{block.text}") from error


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Paths of the examples are relative to a clone's root."""
    before, path = os.getcwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


@contextlib.contextmanager
def _registries_as_before() -> Iterator[None]:
    """What a page registers, another page may register too."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

    from sparse_refine.ensembler import ENSEMBLER_REGISTRY
    from sparse_refine.extractors import EXTRACTOR_REGISTRY
    from sparse_refine.selector import SELECTOR_REGISTRY

    registries = (
        *(BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY),
        *(ENSEMBLER_REGISTRY, EXTRACTOR_REGISTRY, SELECTOR_REGISTRY),
    )
    before = [dict(registry._obj_map) for registry in registries]
    names = set(DatasetCatalog.list())
    modules = set(sys.modules)
    try:
        yield
    finally:
        for registry, known in zip(registries, before):
            registry._obj_map.clear()
            registry._obj_map.update(known)
        for name in set(DatasetCatalog.list()) - names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        for name in set(sys.modules) - modules:
            if name.startswith("sparse_refine_user_"):  # importing.py: files of a reader's own
                del sys.modules[name]
