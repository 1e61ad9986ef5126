#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Holds the pages (README, CONTRIBUTING, the project's, docs/) against the code: `make docs-check`.

    python tools/docs_check.py [--keep FOLDER] [PAGE ...]

Links, paths, messages and the key reference are looked up; every command, every Python and yaml
block is run, in a copy of the checkout with small pictures of its own (documents/workspace.py).
What is not run says why, in a comment in front of it (documents/pages.py), and is listed at the
end. PAGE is a part of a page's name; without any, all pages are checked.
"""

import argparse
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import config_reference
from documents.pages import all_pages
from documents.references import (
    broken_links,
    message_templates,
    missing_paths,
    repository_files,
    unknown_messages,
)
from documents.running import BlockError, Outcome, run_page
from documents.workspace import make_workspace


def look_up(pages) -> list[str]:
    """Faults that need no running."""
    files, templates = repository_files(), message_templates()
    examples = {name for page in pages for b in page.blocks for name in b.directive("file")}
    faults = []
    for page in pages:
        faults += broken_links(page) + missing_paths(page, files, examples)
        faults += unknown_messages(page, templates)
    try:
        text = config_reference.PAGE.read_text()
        if config_reference.updated(text) != text:
            faults.append("docs/configuration.md is out of date: run tools/config_reference.py")
    except ValueError as error:
        faults.append(str(error))
    return faults


def tell(outcome: Outcome) -> None:
    print(f"{outcome.block.place:44} {outcome.status:12} {outcome.seconds:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    parser.add_argument("--keep", type=Path, help="run in this empty folder, and leave it")
    args = parser.parse_args()
    pages = [p for p in all_pages() if not args.pages or any(part in p.name for part in args.pages)]
    if not pages:
        sys.exit(f"no page has a name with {' or '.join(args.pages)}")
    faults = look_up(pages)
    print(f"{len(pages)} pages, {sum(len(page.links()) for page in pages)} links", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it started ends too
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="docs_check_") as temporary:
        for page in pages:
            folder = (args.keep or Path(temporary)) / page.name.replace("/", "_")
            folder.mkdir(parents=True)
            try:
                workspace = make_workspace(folder, copy=True)
                outcomes += run_page(page, workspace, shell=True, report=tell)
            except (BlockError, ValueError) as error:
                print(f"{page.name}: stopped at a fault", flush=True)
                faults.append(str(error))
    counts, reasons = Counter(), []
    for outcome in outcomes:
        block = outcome.block
        if block.language == "sh":
            counts["commands", outcome.status] += len(block.commands())
        else:
            counts[f"{block.language} blocks", outcome.status] += 1
        if outcome.status == "not run":
            reasons.append(f"{block.place}: {block.reason_not_to_run}")
    for (what, status), number in sorted(counts.items()):
        print(f"{number:4} {what} {status}")
    print(*(f"  not run: {reason}" for reason in reasons), sep="\n")
    if faults:
        sys.exit("\n".join(["", *faults, f"{len(faults)} faults"]))
    print("all is well")


if __name__ == "__main__":
    main()
