# SPDX-License-Identifier: Apache-2.0
"""The wall time of a model's forward calls, measured from outside by hooks."""

from __future__ import annotations

import time

import torch
from torch import nn


class ForwardTimer:
    """Measures every call of a module, from its first pre-hook to its last hook.

        with ForwardTimer(model) as timer:
            model(inputs)
        timer.seconds  # [0.153]

    On a CUDA device all queued work is waited for before and after each call, so the time is the
    model's own, and so a timer must not stay on a model that trains. The first calls carry warm-up
    (memory pools, choice of convolution algorithms): a median is the steadier summary.

    Args:
        model: called as a whole; calls of its parts alone are not seen.
    """

    def __init__(self, model: nn.Module):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
        self.model = model
        self.seconds: list[float] = []
        self._handles = []
        self._start = 0.0

    def __enter__(self) -> ForwardTimer:
        self.install()
        return self

    def __exit__(self, *exc) -> None:
        self.remove()

    def install(self) -> None:
        """Begin to measure. Does nothing where it measures already."""
        if not self._handles:
            self._handles = [
                self.model.register_forward_pre_hook(self._before),
                self.model.register_forward_hook(self._after),
            ]

    def remove(self) -> None:
        """Take the hooks off; the seconds stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, module: nn.Module, args: tuple) -> None:
        self._synchronize()
        self._start = time.perf_counter()

    def _after(self, module: nn.Module, args: tuple, output) -> None:
        self._synchronize()
        self.seconds.append(time.perf_counter() - self._start)

    def _synchronize(self) -> None:
        for device in {p.device for p in self.model.parameters() if p.is_cuda}:
            torch.cuda.synchronize(device)
