# SPDX-License-Identifier: Apache-2.0
"""Wall seconds of calls: one clock, and what is measured by it.

`once` and `take_turns` time calls, `ForwardTimer` the calls that others make of a module.
`torch.utils.benchmark.Timer` pins PyTorch to one thread, measures one statement at a time and drops
what it returns; here models take turns on all threads and their outputs are compared.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Callable

import torch
from torch import nn


def synchronize(*devices: torch.device) -> None:
    """Wait until the GPUs among `devices` have done all queued work."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def clock(*devices: torch.device) -> float:
    """Seconds from an arbitrary start, read when the work queued on `devices` is done."""
    synchronize(*devices)
    return time.perf_counter()


def once(call: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Wall seconds of one call, and what it returned, which is freed after the clock is read."""
    start = clock(device)
    result = call()
    return clock(device) - start, result


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int = 9,
    min_rounds: int = 3,
    budget: float = 8.0,
    turn: float = 0.05,
) -> dict[str, list[float]]:
    """Seconds of each call, in rounds of one turn each: what else the machine does meets all alike.

    Args:
        calls: by name; each has been called before, so that nothing here is warm-up.
        repeats: rounds, at most.
        min_rounds: rounds that are made whatever they take, if `repeats` allows.
        budget: seconds after which no further round begins.
        turn: seconds; a call that is faster is repeated in its turn until they are over. On a GPU
            such calls follow one another without waiting: a single one is mostly its launch.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start = clock()
    for made in range(repeats):
        if made >= min_rounds and clock() - start > budget:
            break
        for name, call in calls.items():  # one turn each
            spent = once(call, device)[0]
            # waiting after each call would let the queue run empty, which no user does
            if device.type == "cuda" and spent < turn:
                count = min(1000, int(turn / spent) + 1)
                spent = once(functools.partial(_in_a_row, call, count), device)[0]
                seconds[name].append(spent / count)
                continue
            seconds[name].append(spent)
            while spent < turn:
                seconds[name].append(once(call, device)[0])
                spent += seconds[name][-1]
    return seconds


def _in_a_row(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def median_and_spread(seconds: Iterable[float]) -> tuple[float, tuple[float, float]]:
    """Median, (minimum, maximum)."""
    seconds = list(seconds)
    return statistics.median(seconds), (min(seconds), max(seconds))


def speedup(reference: Iterable[float], seconds: Iterable[float]) -> float:
    """How often `seconds` fit into `reference`: the median over rounds, which both are made in. A
    slow round slows both, so that it is steadier than the ratio of the medians."""
    return statistics.median(one / other for one, other in zip(reference, seconds))


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

    Raises:
        TypeError: it is not a module.
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
        self._start = self._clock()

    def _after(self, module: nn.Module, args: tuple, output) -> None:
        self.seconds.append(self._clock() - self._start)

    def _clock(self) -> float:
        return clock(*{parameter.device for parameter in self.model.parameters()})
