# SPDX-License-Identifier: Apache-2.0
"""Where the time of SparseRefine's forward pass goes, measured on its parts from outside."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from .timing import clock, synchronize

STAGES = ("resize", "base", "select", "extract", "ensemble", "scatter")


class StageTimer:
    """Calls a SparseRefine and keeps the seconds of each stage of each call.

        timed = StageTimer(model)
        timed(inputs)
        timed.seconds()  # [{"resize": 0.01, "base": 0.9, ...}]

    Stages: "resize" to low resolution; "base", with its scores brought to logits; "select", with
    the coarse logits read at the sites; "extract", with gathering the pixels and making the kernel
    maps; "ensemble"; "scatter", all that makes the results, label maps included.

    On a GPU the stages are marked in its queue and nothing waits for them, so that a call takes as
    long as it takes unmeasured.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._on_gpu = model.device.type == "cuda"
        self._calls: list[list[tuple]] = []
        self._open: list[int] = []  # places in the last call of what has begun and not ended
        self._parts = (
            ("base", model.coarse, "forward"),
            ("resize", model.coarse, "context"),  # within the one before
            ("select", model, "_select"),
            ("select", model.coarse, "at_sites"),
            ("extract", model.extractor, "forward"),
            ("ensemble", model.ensembler, "forward"),
            ("scatter", model, "_results"),
        )

    def __call__(self, inputs: list[dict]):
        self._calls.append([])
        with contextlib.ExitStack() as stack:
            for stage, owner, name in self._parts:
                # the instance's attribute goes before the method of its class
                setattr(owner, name, self._timed(stage, getattr(owner, name)))
                stack.callback(delattr, owner, name)
            return self.model(inputs)

    def seconds(self) -> list[dict[str, float]]:
        """Of each call so far, all of `STAGES`; a stage does not count for the one around it."""
        synchronize(self.model.device)
        results = []
        for marks in self._calls:
            result = dict.fromkeys(STAGES, 0.0)
            for stage, around, start, end in marks:
                seconds = start.elapsed_time(end) / 1e3 if self._on_gpu else end - start
                result[stage] += seconds
                if around is not None:
                    result[marks[around][0]] -= seconds
            results.append(result)
        return results

    def _timed(self, stage: str, function):
        def call(*args, **options):
            marks = self._calls[-1]
            place, around = len(marks), self._open[-1] if self._open else None
            marks.append(())
            self._open.append(place)
            start = self._mark()
            try:
                return function(*args, **options)
            finally:
                marks[place] = (stage, around, start, self._mark())
                self._open.pop()

        return call

    def _mark(self):
        if not self._on_gpu:
            return clock()
        # a clock would wait for the queue, and the stages after it would find it empty
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
