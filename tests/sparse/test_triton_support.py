# SPDX-License-Identifier: Apache-2.0
"""Where Triton's kernels are used, on pretended GPUs."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from sparse_refine.sparse import triton_support
from sparse_refine.sparse.precision import tf32_allowed

pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for Linux alone")


def test_not_on_a_cpu_and_not_in_double_precision():
    assert triton_support.kernels_for(torch.zeros(3, 4)) is None
    if torch.cuda.is_available():
        assert triton_support.kernels_for(torch.zeros(3, 4, device="cuda").double()) is None


@pytest.fixture
def gpu_of(monkeypatch):
    """A pretended GPU of some compute capability, of NVIDIA's or AMD's."""

    from sparse_refine.sparse import triton_launch

    def pretend(capability, hip=None, tried=lambda device: None):
        triton_support._kernels.cache_clear()
        monkeypatch.setattr(triton_launch, "try_one", tried)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)

    yield pretend
    triton_support._kernels.cache_clear()


def test_on_gpus_since_ampere(gpu_of):
    gpu_of((8, 0))
    assert triton_support._kernels(0).convolve_
    gpu_of((7, 5))
    assert triton_support._kernels(0) is None
    gpu_of((9, 4), hip="6.2")
    assert triton_support._kernels(0) is None


@pytest.mark.parametrize("found", ["none", "2.1.0", "3.2.0"])
def test_a_warning_where_triton_is_missing_or_old(gpu_of, monkeypatch, caplog, found):
    gpu_of((9, 0))
    module = None if found == "none" else SimpleNamespace(__version__=found)
    monkeypatch.setitem(sys.modules, "triton", module)
    with caplog.at_level(logging.WARNING):
        assert triton_support._kernels(0) is None and triton_support._kernels(0) is None
    assert len(caplog.records) == 1 and "triton" in caplog.text


def test_a_warning_where_triton_does_not_work(gpu_of, monkeypatch, caplog):
    def no_compiler(device):
        raise RuntimeError("Failed to find C compiler")

    gpu_of((9, 0), tried=no_compiler)
    with caplog.at_level(logging.WARNING):
        assert triton_support._kernels(0) is None and triton_support._kernels(0) is None
    assert len(caplog.records) == 1 and "RuntimeError: Failed to find C" in caplog.text
    caplog.clear()
    gpu_of((9, 0), tried=no_compiler)
    monkeypatch.setenv("SPARSE_REFINE_TRITON", "0")
    assert triton_support._kernels(0) is None and not caplog.records


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_as_convolutions_have_it(allowed):
    with torch.backends.cudnn.flags(allow_tf32=allowed):
        assert tf32_allowed() == allowed
