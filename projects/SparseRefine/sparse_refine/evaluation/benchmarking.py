# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of calls, taken so that they can be compared and found again."""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
import re
import statistics
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Callable

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def once(call: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Wall seconds of one call, and what it returned. On a GPU queued work is waited for before and
    after. The result is freed after the clock is read, not before."""
    _synchronize(device)
    start = time.perf_counter()
    result = call()
    _synchronize(device)
    return time.perf_counter() - start, result


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int = 9,
    least: int = 3,
    budget: float = 8.0,
    turn: float = 0.05,
) -> dict[str, list[float]]:
    """Seconds of each call, in rounds of one turn each: what else the machine does meets all alike.

    Args:
        calls: by name; each has been called before, so that nothing here is warm-up.
        repeats: most rounds.
        least: so many rounds are made, if `repeats` allows, whatever they take.
        budget: seconds after which no further round begins.
        turn: seconds; a call that is faster is repeated in its turn until they are over. On a GPU
            such calls follow one another without waiting: a single one is mostly its launch.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for made in range(repeats):
        if made >= least and time.perf_counter() - start > budget:
            break
        for name, call in calls.items():
            spent = once(call, device)[0]
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


def median_and_spread(seconds: list[float]) -> tuple[float, tuple[float, float]]:
    """Median, (least, largest)."""
    return statistics.median(seconds), (min(seconds), max(seconds))


def peak_bytes(call: Callable[[], object], device: torch.device) -> tuple[int | None, object]:
    """The most memory that a call held above what was held before it, and what it returned.

    On a GPU of PyTorch's allocator. Else of the whole process as Linux counts it, so that memory
    counts whoever asks for it; freed memory is given back to the system first, or a call could fill
    it unseen. None where neither can be told.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    _trim()
    try:
        _CLEAR.write_text("5")  # sets the peak to what is held now
        before = _status_bytes("VmRSS")
    except OSError:
        return None, call()
    result = call()
    return max(0, _status_bytes("VmHWM") - before), result


def describe_machine(device: torch.device, packages: tuple[str, ...] = ()) -> dict[str, str | int]:
    """Device, processor, threads, and versions of PyTorch, oneDNN and `packages` (by their names on
    PyPI; "absent" where one is not installed)."""
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "unknown")()
    onednn = re.search(r"(?:oneDNN|MKL-DNN)\D*([\d.]+)", torch.__config__.show())
    facts: dict[str, str | int] = {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cpu": f"{_processor()} ({capability})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "oneDNN": onednn[1] if onednn else "absent",
    }
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return facts


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _trim() -> None:
    trim = None
    if platform.system() == "Linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; musl has none
    if trim is not None:
        trim(0)


def _status_bytes(name: str) -> int:
    return int(re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)[1]) << 10


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
