# SPDX-License-Identifier: Apache-2.0
"""The engine with the GPU's kernels, whatever the device."""

from __future__ import annotations

import pytest
import torch

from sparse_refine.sparse import functional as engine
from sparse_refine.sparse import kernel_map, torch_engine
from sparse_refine.sparse import layers as layers_module

from .kernels import triton_launch


@pytest.fixture
def exact():
    """Single precision, not TF32, in cuDNN."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture
def with_kernels(monkeypatch):
    """A context in which the engine uses them on any device, for all that is not double."""

    def start():
        def kernels_for(features):
            return None if features.dtype == torch.float64 else triton_launch()

        monkeypatch.setattr(engine, "kernels_for", kernels_for)
        monkeypatch.setattr(layers_module, "kernels_for", kernels_for)
        # as on a GPU
        monkeypatch.setattr(torch_engine, "best_form", lambda level, weight: "windows")
        group = kernel_map.TapGroup
        monkeypatch.setattr(
            kernel_map, "tap_group", lambda taps, table, inputs, **o: group(taps, table, **o)
        )

    return start
