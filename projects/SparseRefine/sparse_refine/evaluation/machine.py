# SPDX-License-Identifier: Apache-2.0
"""What was measured on: hardware, threads and versions, for the head of a table."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


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


def device_name(device: torch.device) -> str:
    """A GPU's name, or the processor's with the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, threads: {torch.get_num_threads()}"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
