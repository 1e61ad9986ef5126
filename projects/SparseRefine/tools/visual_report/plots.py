# SPDX-License-Identifier: Apache-2.0
"""The report's diagrams, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparse_refine.storage.files import write_whole

from .measure import Measured

BEFORE, AFTER, LIMIT, NEUTRAL = "#8a8f98", "#1f6fd6", "#2a9d5c", "#c9ced6"
MOST_CLASSES = 24  # bars of a diagram


def require_matplotlib() -> None:
    """Before hours of work: say what to install where it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the diagrams need matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")


def class_gains(path: Path, results: dict[str, float], class_names: list[str]) -> int:
    """Bars of IoU and boundary IoU before and after; returns how many classes were left out."""
    rows = [
        (name, *(results[f"{arm}{kind}-{name}"] for kind in KINDS for arm in ("coarse/", "")))
        for name in class_names
    ]
    rows = [row for row in rows if not np.isnan(row[1:]).any()]
    rows.sort(key=lambda row: row[2] - row[1])
    left_out = max(0, len(rows) - MOST_CLASSES)
    if left_out:  # the middle, where little happened
        rows = rows[: MOST_CLASSES // 2] + rows[-(MOST_CLASSES // 2) :]
    plt, figure, axes = _figure(1, 2, height=1.4 + 0.42 * len(rows), sharey=True)
    for axis, kind, start in zip(axes, KINDS, (1, 3)):
        gains = [row[start + 1] - row[start] for row in rows]
        colors = [AFTER if gain >= 0 else "#d9480f" for gain in gains]
        axis.barh(range(len(rows)), gains, color=colors, height=0.62)
        span = max(1e-6, max(map(abs, gains), default=1))
        for index, (row, gain) in enumerate(zip(rows, gains)):
            text = f"{gain:+.2f}  ({row[start]:.1f} → {row[start + 1]:.1f})"
            side = 1 if gain >= 0 else -1
            axis.annotate(
                text,
                (gain, index),
                (4 * side, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=8.5,
            )
        low, high = min(gains, default=0), max(gains, default=0)  # room for the text beside a bar
        axis.set_xlim(min(0, low - 0.75 * span * (low < 0)), max(0, high) + 0.75 * span)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_yticks(range(len(rows)), [_short(row[0]) for row in rows])
        axis.set_xlabel(f"points of {KINDS[kind]}, before → after")
        axis.set_title(KINDS[kind])
    _save(plt, figure, path)
    return left_out


KINDS = {"IoU": "IoU", "BoundaryIoU": "boundary IoU"}


def entropy_against_error(path: Path, measured: Measured) -> None:
    """Error rates by entropy, before and after; below them the number of pixels."""
    entropy = measured.entropy
    pixels = entropy.pixels
    some = pixels > 0
    centres, widths = (entropy.edges[1:] + entropy.edges[:-1]) / 2, np.diff(entropy.edges)
    plt, figure, (rates, counts) = _figure(
        2, 1, height=5.2, sharex=True, gridspec_kw={"height_ratios": [3, 1.3]}
    )
    share = np.divide(entropy.selected, pixels, out=np.zeros(len(pixels)), where=some)
    rates.bar(
        centres, 100 * share, widths, color="#e8edf5", label="share of the pixels that is refined"
    )
    for errors, color, label in (
        (entropy.coarse_errors, BEFORE, "errors of the coarse prediction"),
        (entropy.fused_errors, AFTER, "errors after refinement"),
    ):
        rates.plot(
            centres[some], 100 * errors[some] / pixels[some], "o-", color=color, label=label, ms=4
        )
    rates.set_ylabel("% of the pixels of this entropy")
    rates.set_ylim(0, 104)
    rates.legend(loc="upper left", framealpha=0.9)
    counts.bar(centres, pixels, widths * 0.9, color=NEUTRAL)
    if some.any():
        counts.set_yscale("log")
    counts.set_ylabel("pixels (log)")
    counts.set_xlabel("entropy of the coarse prediction, nats (0: sure, ln K: no idea)")
    _save(plt, figure, path)


def budgets(path: Path, measured: Measured) -> None:
    """Refined share of the pixels against mIoU, boundary IoU, and the errors it contains."""
    results, own = measured.results, 100 * measured.results["selected_fraction"]
    limits = measured.limits
    swept = [100 * row["fraction"] for row in measured.sweep]
    plt, figure, (miou, boundary, found) = _figure(1, 3, height=4.0)
    for axis, name in ((miou, "mIoU"), (boundary, "BoundaryIoU")):
        axis.axhline(results[f"coarse/{name}"], color=BEFORE, ls="--", label="coarse prediction")
        if swept:
            values = [row[name] for row in measured.sweep]
            axis.plot(swept, values, "o-", color=AFTER, ms=4, label="refined, by budget")
        axis.plot(own, results[name], "*", color=AFTER, ms=13, mec="white", label="as configured")
        axis.set_ylabel(f"{'boundary IoU' if name == 'BoundaryIoU' else name}, %")
    shares = [100 * row["fraction"] for row in limits]
    oracle = [row["oracle_mIoU"] for row in limits]
    miou.plot(shares, oracle, ":", color=LIMIT, label="limit: every refined pixel right")
    found.plot(shares, [100 * row["errors_found"] for row in limits], "-", color=LIMIT)
    found.plot(shares, shares, ":", color=NEUTRAL)
    found.annotate("chosen at random", (20, 20), (-8, 0), **_BESIDE)
    found.plot(own, 100 * measured.errors_found, "*", color=AFTER, ms=13, mec="white")
    found.set_ylabel("% of all coarse errors that are refined")
    for axis in (miou, boundary, found):
        axis.set_xscale("log")
        ticks = (0.5, 1, 2, 5, 10, 20, 50, 100)
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel("refined pixels, % (log)")
    boundary.set_xlim(*miou.get_xlim())
    figure.legend(*miou.get_legend_handles_labels(), loc="upper center", ncol=4, frameon=False)
    _save(plt, figure, path, top=0.93)


_BESIDE = {"textcoords": "offset points", "ha": "right", "color": "#8a8f98", "fontsize": 8.5}


def _short(name: str) -> str:
    """A class name as text: matplotlib reads formulas between dollar signs."""
    name = name if len(name) <= 24 else f"{name[:23]}…"
    return name.replace("$", r"\$")


def _figure(rows: int, columns: int, height: float, **options):
    from matplotlib import pyplot as plt

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    style |= {"grid.color": "#eceff3", "axes.axisbelow": True, "font.size": 9.5}
    with plt.rc_context(style):
        figure, axes = plt.subplots(rows, columns, figsize=(11, height), dpi=110, **options)
    return plt, figure, axes


def _save(plt, figure, path: Path, top: float = 1) -> None:
    figure.tight_layout(rect=(0, 0, 1, top))
    write_whole(path, lambda temporary: figure.savefig(temporary))
    plt.close(figure)
