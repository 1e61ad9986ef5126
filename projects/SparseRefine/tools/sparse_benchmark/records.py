# SPDX-License-Identifier: Apache-2.0
"""Rounds of runs, their records, and tables of them, for `benchmark_sparse.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from tabulate import tabulate

from sparse_refine.evaluation.peak_memory import peak_bytes
from sparse_refine.evaluation.timing import median_and_spread, once, take_turns
from sparse_refine.storage.files import write_text

MIN_ROUNDS = 3
QUICK = 0.5  # seconds: a faster call is warmed up twice
# of outputs, as shares of the largest value
AGREEMENT, TF32_AGREEMENT, HALF_AGREEMENT = 1e-4, 5e-3, 5e-2
PEERS = ("minkowski", "spconv", "spconv-fp16", "dense")
HALF = ("bf16", "fp16")


@dataclass(frozen=True)
class Run:
    """One engine in one case.

    `build()` gives (call, read): the call to be timed, and a function that brings its output to the
    order of the sites, or None where there is nothing to compare. `flops`: operations of the pass,
    None where they are not counted. `mask`: (H,W) bool.
    """

    section: str
    op: str
    engine: str
    channels: int
    levels: int
    train: bool
    flops: int | None
    mask: np.ndarray
    build: Callable


class Recorder:
    """Times runs and keeps all records in the file `path`.

    Args:
        path: JSON; its folder exists.
        repeats, budget: of `take_turns`.
        machine: goes into every record.
    """

    def __init__(self, path: Path, device: torch.device, repeats: int, budget: float, machine: str):
        self.path, self.device, self.machine = path, device, machine
        self.repeats, self.budget = repeats, budget
        self.records: list[dict] = []

    def take(self, runs: list[Run], compare: bool = True) -> list[dict]:
        """The runs' records, timed in turns; with `compare` each output is held against the first.
        Written after every case: what was measured survives if a later one fails."""
        calls, first, peaks, differences, reference = {}, [], [], [], None
        for place, run in enumerate(runs):
            call, read = run.build()
            calls[place] = call
            peak, (seconds, output) = peak_bytes(partial(once, call, self.device), self.device)
            first.append(seconds)
            peaks.append(None if run.engine.startswith("matmul") else peak)
            difference = None
            if compare and read is not None:
                output = read(output).float()
                reference = output if reference is None else reference
                scale = reference.abs().max().clamp(min=1e-12)
                difference = float((output - reference).abs().max() / scale)
            differences.append(difference)
            del output
            if seconds < QUICK:
                call()
        # Nothing is prepared in training: where calls are long, the first ones are a round too.
        counted = runs[0].train and sum(first) > self.budget and self.repeats > 1
        rounds = take_turns(
            calls, self.device, self.repeats - counted, MIN_ROUNDS - counted, self.budget
        )
        if counted:
            rounds = {place: [first[place], *rounds[place]] for place in rounds}
        records = [
            self._record(run, rounds[place], peaks[place], differences[place])
            for place, run in enumerate(runs)
        ]
        _share_of_roofline(records)
        self.records += records
        write_text(self.path, json.dumps(self.records, indent=1) + "\n")
        return records

    def _record(self, run: Run, seconds: list[float], peak, difference) -> dict:
        median, spread = median_and_spread(seconds)
        return {
            "op": run.op,
            "engine": run.engine,
            "channels": run.channels,
            "sites": int(run.mask.sum()),
            "seconds": median,
            "gflops": None if run.flops is None else run.flops / median / 1e9,
            "roofline_share": None,
            "peak_mb": None if peak is None else peak / 1e6,
            "pass": "train" if run.train else "forward",
            "section": run.section,
            "levels": run.levels,
            "megapixels": run.mask.size / 1e6,
            "density": float(run.mask.mean()),
            "spread": list(spread),
            "repeats": len(seconds),
            "difference": difference,
            "machine": self.machine,
        }


def _share_of_roofline(records: list[dict]) -> None:
    rates = {record["engine"]: record["gflops"] for record in records}
    for record in records:
        roofline = rates.get("matmul-bf16" if record["engine"].endswith(HALF) else "matmul")
        if roofline is not None and record["gflops"] is not None:
            record["roofline_share"] = record["gflops"] / roofline


def case_table(records: list[dict]) -> str:
    """One case, a row an engine; "x minkowski" is how often the row's time fits into its time."""
    seconds = {record["engine"]: record["seconds"] for record in records}
    rows = []
    for record in records:
        row = {"engine": record["engine"], **_figures(record)}
        for peer in PEERS:
            if peer in seconds:
                row[f"x {peer}"] = f"{seconds[peer] / record['seconds']:.2f}"
        rows.append(row)
    odd = [
        f"! {r['engine']} differs from {records[0]['engine']} by {r['difference']:.1e}"
        for r in records
        if (r["difference"] or 0) > _agreement(r)
    ]
    return "\n".join([_table(rows), *odd])


def _agreement(record: dict) -> float:
    if record["engine"].endswith(HALF):
        return HALF_AGREEMENT
    return AGREEMENT if record["machine"].startswith("device cpu") else TF32_AGREEMENT


def growth_table(records: list[dict]) -> str:
    """One operation at several numbers of sites; then how far from a straight line it is."""
    dense = {
        record["sites"]: record["seconds"] for record in records if record["engine"] == "dense"
    }
    rows = []
    for record in records:
        row = {
            "op": record["op"],
            "engine": record["engine"],
            "megapixels": f"{record['megapixels']:.1f}",
            "density": f"{record['density']:.1%}",
            "sites": record["sites"],
            **_figures(record),
            "ns a site": f"{1e9 * record['seconds'] / record['sites']:.0f}",
        }
        if record["sites"] in dense and record["op"] == "conv3x3":
            row["x dense"] = f"{dense[record['sites']] / record['seconds']:.2f}"
        rows.append(row)
    lines = [_table(rows)]
    for op in dict.fromkeys(record["op"] for record in records):
        points = [r for r in records if r["op"] == op and r["engine"] != "dense"]
        sites, seconds = (np.array([r[key] for r in points]) for key in ("sites", "seconds"))
        if len(points) > 2:
            start, slope, deviation = straight_line(sites, seconds)
            lines.append(
                f"{op}: {1e3 * start:.2f} ms + {1e9 * slope:.1f} ns a site; largest deviation from "
                f"that line {deviation:.1%}"
            )
    return "\n".join(lines)


def straight_line(sites: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """Start a, slope b, and the largest |seconds / (a + b sites) - 1|.

    The line is that of least squares of the deviations as shares of the seconds: the few sites
    count as much as the many.
    """
    matrix = np.stack([1 / seconds, sites / seconds], axis=1)
    (start, slope), *_ = np.linalg.lstsq(matrix, np.ones(len(seconds)), rcond=None)
    return start, slope, float(np.abs(seconds / (start + slope * sites) - 1).max())


def _figures(record: dict) -> dict[str, str]:
    low, high = record["spread"]
    return {
        "seconds": f"{record['seconds']:.4f}",
        "min .. max": f"{low:.4f} .. {high:.4f}",
        "runs": record["repeats"],
        "GFLOP/s": _number(record["gflops"], ".1f"),
        "of roofline": _number(record["roofline_share"], ".0%"),
        "peak MB": _number(record["peak_mb"], ".0f"),
        "difference": _number(record["difference"], ".1e"),
    }


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(rows: list[dict]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    columns = [column for column in columns if any(row.get(column, "") != "" for row in rows)]
    align = ["left" if column in ("op", "engine") else "right" for column in columns]
    table = [[row.get(column, "") for column in columns] for row in rows]
    return tabulate(table, columns, colalign=align, disable_numparse=True)
