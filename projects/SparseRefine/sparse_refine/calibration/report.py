# SPDX-License-Identifier: Apache-2.0
"""A calibration as a table, a plot and a yaml."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from detectron2.config import CfgNode
from tabulate import tabulate

from ..config import load_config
from ..storage.files import write_whole
from .curve import Point
from .histogram import UncertaintyHistogram
from .kinds import Kind

METHOD = "MODEL.SPARSE_REFINE."


def table(points: Sequence[Point], chosen: Point, key: str) -> str:
    """A row a point; accuracies where there are labels, seconds where a refiner was run."""
    columns = {
        key: lambda point: "-" if point.setting is None else f"{point.setting:g}",
        "selected": lambda point: f"{100 * point.fraction:.2f} %",
        "s/image": lambda point: f"{point.seconds:.3f}",
        "mIoU": lambda point: f"{point.miou:.2f}",
        "boundary IoU": lambda point: f"{point.boundary_iou:.2f}",
        "errors inside": lambda point: f"{100 * point.errors_found:.1f} %",
    }
    known = {"s/image": chosen.seconds, "mIoU": chosen.miou, "boundary IoU": chosen.boundary_iou}
    known["errors inside"] = chosen.errors_found
    columns = {name: show for name, show in columns.items() if known.get(name, 0) is not None}
    return tabulate(
        [
            [*(show(point) for show in columns.values()), "<- chosen" if point is chosen else ""]
            for point in points
        ],
        headers=[*columns, ""],
        tablefmt="github",
        disable_numparse=True,
        colalign=("right",) * len(columns) + ("left",),
    )


def draw(
    path: Path,
    title: str,
    points: Sequence[Point],
    chosen: Point,
    histogram: UncertaintyHistogram,
) -> None:
    """Against the share of selected pixels: gains in accuracy, seconds, and the coarse errors in
    the selection, or without labels the uncertainty above which that share lies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    selected = [100 * point.fraction for point in points]
    panels = []
    if chosen.miou is not None:
        ious = {"mIoU": [point.miou for point in points]}
        ious["boundary IoU"] = [point.boundary_iou for point in points]
        panels.append(("gain over the coarse prediction, points", _gains(ious)))
    if chosen.seconds is not None:
        panels.append(("seconds an image", {"": [point.seconds for point in points]}))
    count = len(panels) + 1
    figure, axes = plt.subplots(
        1, count, figsize=(4.8 * count, 4.2), layout="constrained", squeeze=False
    )
    axes = axes[0]
    for axis, (name, lines) in zip(axes, panels):
        for label, values in lines.items():
            axis.plot(selected, values, marker="o", markersize=4, label=label)
        axis.set_ylabel(name)
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        if len(lines) > 1:
            axis.legend(frameon=False)
    shares, limit = 100 * histogram.shares(), 1.05 * max(*selected, 1)
    if chosen.errors_found is not None:
        axes[-1].plot(shares, 100 * histogram.errors_found(), label="most uncertain first")
        axes[-1].plot([0, 100], [0, 100], color="0.6", ls=":", label="at random")
        axes[-1].set_ylabel("coarse errors inside, %")
        axes[-1].legend(frameon=False, loc="lower right")
    else:
        seen = shares[:-1] <= limit
        axes[-1].plot(shares[:-1][seen], histogram.edges[::-1][seen])
        axes[-1].set_yscale("log")
        axes[-1].set_ylabel("uncertainty above which they lie")
    for axis in axes:
        axis.axvline(100 * chosen.fraction, color="tab:red", lw=1)
        axis.set_xlabel("selected pixels, %")
        axis.set_xlim(0, limit)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=110))
    plt.close(figure)


def _gains(lines: dict[str, list[float]]) -> dict[str, np.ndarray]:
    return {
        f"{name} (coarse: {values[0]:.1f})": np.array(values) - values[0]
        for name, values in lines.items()
    }


def changed_keys(config_file: str, kind: Kind, setting: float, temperature: float) -> dict:
    """{key: value} of what a calibration changes in a config."""
    wanted = {
        METHOD + "BASE.TEMPERATURE": temperature,
        METHOD + "SELECTOR.NAME": kind.selector.__name__,
        METHOD + f"SELECTOR.{kind.key}": setting,
    }
    if kind.key == "FRACTION":
        wanted[METHOD + "SELECTOR.COUNT"] = -1  # a number of pixels goes before a share
    cfg = load_config(config_file)
    return {key: value for key, value in wanted.items() if _get(cfg, key) != value}


def write_leaf(path: Path, config_file: str, about: Sequence[str], changes: dict) -> None:
    """A yaml at `path` that is `config_file` but for `changes`. It is read once before it is there.

    Args:
        about: lines of the comment on top.
    """
    tree: dict = {"_BASE_": _base(path, config_file)}
    for key, value in changes.items():
        *nodes, name = key.split(".")
        place = tree
        for node in nodes:
            place = place.setdefault(node, {})
        place[name] = value
    text = "".join(f"# {line}\n" for line in about) + yaml.safe_dump(tree, sort_keys=False)

    def write(temporary: str) -> None:
        Path(temporary).write_text(text)
        cfg = load_config(temporary)
        wrong = [key for key, value in changes.items() if _get(cfg, key) != value]
        if wrong:
            raise ValueError(f"{path} would not set {', '.join(wrong)}")

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)


def _base(path: Path, config_file: str) -> str:
    """`config_file` as seen from the folder of `path`, both without links."""
    here, there = path.resolve().parent, Path(config_file).resolve()
    return Path(os.path.relpath(there, here)).as_posix()


def _get(cfg: CfgNode, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
