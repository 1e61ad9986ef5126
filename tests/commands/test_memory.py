# SPDX-License-Identifier: Apache-2.0
"""Freed memory that is kept."""

import platform
import subprocess
import sys

import pytest

from sparse_refine.commands import memory

# Page faults of the second of two rounds of 64 MB blocks, in a process of its own.
PROGRAM = """
import resource, runpy, sys, torch
if sys.argv[1] == "keep":
    runpy.run_path(sys.argv[2])["keep_freed_memory"]()
def blocks():
    for _ in range(8):
        torch.ones(1 << 24)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks()
before = faults()
blocks()
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_blocks_are_used_again():
    counts = [
        int(
            subprocess.check_output(
                [sys.executable, "-c", PROGRAM, word, memory.__file__], text=True
            )
        )
        for word in ("keep", "return")
    ]
    # with pages of 4 KB: 8 x 16384 without; larger pages make fewer
    assert counts[0] < 0.1 * counts[1]


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("asked the C library"))
    memory.keep_freed_memory()
