# SPDX-License-Identifier: Apache-2.0
"""One clock for all that is timed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sparse_refine
from sparse_refine.evaluation import timing
from sparse_refine.evaluation.timing import ForwardTimer, clock, median_and_spread, once, speedup

CPU = torch.device("cpu")
PACKAGE = Path(sparse_refine.__file__).parent


@pytest.fixture
def ticks(monkeypatch):
    """The clock stands at 0, 1, 3, 6, 10 ... when it is read."""
    state = {"now": 0, "step": 0}

    def perf_counter() -> float:
        state["now"] += state["step"]
        state["step"] += 1
        return float(state["now"])

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=perf_counter))


def test_all_read_the_same_clock(ticks):
    assert clock() == 0 and clock(CPU) == 1
    assert once(lambda: "result", CPU) == (6 - 3, "result")
    model = nn.Linear(2, 2)
    with ForwardTimer(model) as timer:
        model(torch.zeros(1, 2))
    assert timer.seconds == [15 - 10]


def test_nothing_else_reads_a_clock_or_waits_for_a_gpu():
    """But for the camera, whose frames have to keep up with the wall clock, and sparse/, which
    imports nothing of evaluation."""
    found = {
        path.name
        for folder in (PACKAGE, PACKAGE.parent / "tools", PACKAGE.parent / "demo")
        for path in folder.rglob("*.py")
        if path.parent != PACKAGE / "sparse"
        and any(word in path.read_text() for word in ("perf_counter", "cuda.synchronize"))
    }
    assert found == {"timing.py", "video.py"}


def test_every_gpu_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    gpus = [torch.device("cuda", index) for index in range(2)]
    clock(CPU, *gpus)
    assert waited == gpus


def test_median_spread_and_speedup():
    assert median_and_spread([3.0, 1.0, 2.0]) == (2.0, (1.0, 3.0))
    assert median_and_spread(iter([1.0, 2.0])) == (1.5, (1.0, 2.0))
    # round by round: 2, 8 and 3
    assert speedup([4.0, 8.0, 6.0], [2.0, 1.0, 2.0]) == 3.0
