# SPDX-License-Identifier: Apache-2.0
"""Size of the processor's L2 cache, and with it of the chunks that are computed at once."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

_UNKNOWN = 1 << 20  # most server and desktop cores have an L2 cache of 1 to 2 MB
_GPU = 1 << 27  # enough rows to fill a large one


@functools.cache
def l2_bytes() -> int:
    """Size of a core's L2 cache in bytes, as Linux tells; 1 MiB where it does not."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if level == "2" and kind != "Instruction" and size[:-1].isdigit():
            return int(size[:-1]) << {"K": 10, "M": 20}.get(size[-1], 0)
    return _UNKNOWN


def chunk_bytes(device: str) -> int:
    """Bytes of gathered features that are multiplied at once on "cpu", "cuda" ...: on a CPU what
    the L2 caches of all threads hold together."""
    return l2_bytes() * torch.get_num_threads() if device == "cpu" else _GPU
