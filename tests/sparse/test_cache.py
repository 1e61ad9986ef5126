# SPDX-License-Identifier: Apache-2.0
"""What is known of the processor's caches."""

import pytest
import torch

from sparse_refine.sparse import cache


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A made-up machine: writes its cache files, and returns what `l2_bytes` makes of them."""

    def read(*caches: tuple[str, str, str]) -> int:
        for number, values in enumerate(caches):
            folder = tmp_path / f"index{number}"
            folder.mkdir()
            for name, value in zip(("level", "type", "size"), values):
                (folder / name).write_text(value + "\n")
        monkeypatch.setattr(cache, "Path", lambda _: tmp_path)
        cache.l2_bytes.cache_clear()
        return cache.l2_bytes()

    yield read
    cache.l2_bytes.cache_clear()


def test_reads_the_second_level(machine):
    assert machine(("1", "Data", "48K"), ("2", "Unified", "1280K"), ("3", "Unified", "32M")) == (
        1280 << 10
    )


def test_megabytes(machine):
    assert machine(("2", "Unified", "2M")) == 2 << 20


@pytest.mark.parametrize(
    "caches", [(), (("1", "Data", "32K"),), (("2", "Instruction", "64K"),), (("2", "Unified", ""),)]
)
def test_unknown_is_a_mebibyte(machine, caches):
    assert machine(*caches) == 1 << 20


def test_a_chunk_fills_the_caches_of_all_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert cache.chunk_bytes("cpu") == 4 * cache.l2_bytes()
    assert cache.chunk_bytes("cuda") == 1 << 27
