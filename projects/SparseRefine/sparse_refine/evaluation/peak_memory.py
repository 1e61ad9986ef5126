# SPDX-License-Identifier: Apache-2.0
"""The most memory that a call holds."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
from pathlib import Path
from typing import Callable

import torch

from .timing import synchronize

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: torch.device) -> tuple[int | None, object]:
    """The most memory that a call held above what was held before it, and what it returned.

    On a GPU that of PyTorch's allocator. Else the resident memory of the whole process as Linux
    counts it, so that other libraries' allocations count too; freed memory is returned to the
    system first, or a call could use it without being noticed. None on other systems.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    _trim()
    try:
        _CLEAR.write_text("5")  # sets the peak to what is held now
        before = _status_bytes("VmRSS")
    except OSError:
        return None, call()
    result = call()
    return max(0, _status_bytes("VmHWM") - before), result


def _trim() -> None:
    trim = None
    if platform.system() == "Linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; musl has none
    if trim is not None:
        trim(0)


def _status_bytes(name: str) -> int:
    return int(re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)[1]) << 10
