# SPDX-License-Identifier: Apache-2.0
"""Rounds of the arms of `benchmark.py`, their records, and the table of them."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Callable

import torch
from tabulate import tabulate
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.evaluation.counting import multiply_adds
from sparse_refine.evaluation.peak_memory import peak_bytes
from sparse_refine.evaluation.stages import STAGES, StageTimer
from sparse_refine.evaluation.timing import median_and_spread, once, speedup, take_turns
from sparse_refine.resampling import low_size

from .arms import dense_labels, refiner_multiply_adds

LONG = 2.0  # seconds; where every call takes that long, nothing in the first one is warm-up


def measure(
    models: dict[str, SparseRefine],
    size: tuple[int, int],
    precisions: list[str],
    repeats: int,
    batch: int = 1,
) -> list[dict]:
    """A record for each precision and preset. `models` have one coarse pass in common. Calls are
    of `batch` images, seconds and multiply-adds of one."""
    coarse = next(iter(models.values())).coarse
    device = next(iter(models.values())).device
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, device=device)
    inputs = [{"image": image, "height": size[0], "width": size[1]} for image in images]
    counts = {
        "dense_full": multiply_adds(coarse.base, size),
        "coarse": multiply_adds(coarse.base, low_size(size, coarse.scale)),
    }
    records = []
    for precision in precisions:
        timers = {preset: StageTimer(model) for preset, model in models.items()}
        calls = {
            "dense_full": partial(dense_labels, coarse.base, inputs),
            "coarse": partial(coarse, inputs),
            **{preset: partial(timer, inputs) for preset, timer in timers.items()},
        }
        calls = {name: in_precision(call, precision, device) for name, call in calls.items()}
        first, peaks, sites = {}, {}, {}
        for name, call in calls.items():
            peaks[name], (first[name], output) = peak_bytes(partial(once, call, device), device)
            if name in models:
                sites[name] = output[0]["refinement"].sites
            del output
        counted = repeats > 1 and min(first.values()) > LONG
        rounds = take_turns(calls, device, repeats - counted, min_rounds=repeats, turn=0.0)
        if counted:
            rounds = {name: [first[name], *rounds[name]] for name in calls}
        rounds = {name: [s / batch for s in seconds] for name, seconds in rounds.items()}
        dense = {
            "dense_full": _arm(coarse.base, rounds, peaks, "dense_full", counts["dense_full"]),
            "coarse": _arm(coarse.base, rounds, peaks, "coarse", counts["coarse"]),
        }
        for preset, model in models.items():
            own = refiner_multiply_adds(model, sites[preset], size)
            arm = _arm(model, rounds, peaks, preset, own and own + counts["coarse"])
            stages = [
                {stage: seconds / batch for stage, seconds in call.items()}
                for call in timers[preset].seconds()[-repeats:]
            ]
            arm["stages"] = median_stages(stages, rounds[preset])
            records.append(
                {
                    "precision": precision,
                    "preset": preset,
                    "arms": {**dense, "sparse_refine": arm},
                    "speedup": speedup(rounds["dense_full"], rounds[preset]),
                    "selected_fraction": len(sites[preset]) / (size[0] * size[1]),
                }
            )
    return records


def median_stages(stages: list[dict[str, float]], totals: list[float]) -> dict[str, float]:
    """Stages, and "other", of the call of median total, or the means of the two in the middle: so
    that their sum is the median."""
    order = sorted(range(len(totals)), key=totals.__getitem__)
    middle = order[(len(order) - 1) // 2 : len(order) // 2 + 1]
    result = {stage: statistics.fmean(stages[i][stage] for i in middle) for stage in STAGES}
    result["other"] = statistics.fmean(totals[i] for i in middle) - sum(result.values())
    return result


def table(records: list[dict]) -> str:
    """A row an arm and preset; the arms that presets share stand once for each precision."""
    rows, seen = [], set()
    for record in records:
        full = record["arms"]["dense_full"]
        for name, arm in record["arms"].items():
            sparse = name == "sparse_refine"
            key = (record["precision"], record["preset"] if sparse else name)
            if key in seen:
                continue
            seen.add(key)
            low, high = arm["spread"]
            faster = record["speedup"] if sparse else full["seconds"] / arm["seconds"]
            rows.append(
                {
                    "precision": record["precision"],
                    "arm": f"{name}/{record['preset']}" if sparse else name,
                    "seconds": f"{arm['seconds']:.3f}",
                    "min .. max": f"{low:.3f} .. {high:.3f}",
                    "x faster": f"{faster:.2f}",
                    "GMACs": "" if arm["gmacs"] is None else f"{arm['gmacs']:.1f}",
                    "parameters": f"{arm['parameters'] / 1e6:.1f} M",
                    "peak MB": "" if arm["peak_mb"] is None else f"{arm['peak_mb']:.0f}",
                    "selected": f"{record['selected_fraction']:.1%}" if sparse else "",
                    **{stage: f"{value:.3f}" for stage, value in arm.get("stages", {}).items()},
                }
            )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[row.get(column, "") for column in columns] for row in rows]
    align = ["left" if column in ("precision", "arm") else "right" for column in columns]
    return tabulate(cells, columns, colalign=align, disable_numparse=True)


def _arm(module: nn.Module, rounds, peaks, name: str, count: int | None) -> dict:
    median, spread = median_and_spread(rounds[name])
    return {
        "seconds": median,
        "gmacs": None if count is None else count / 1e9,
        "peak_mb": None if peaks[name] is None else peaks[name] / 1e6,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "spread": list(spread),
    }


def in_precision(call: Callable, precision: str, device: torch.device) -> Callable:
    def inference():
        with torch.no_grad():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                return call()

    return inference
