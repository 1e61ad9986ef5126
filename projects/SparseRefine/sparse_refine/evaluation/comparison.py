# SPDX-License-Identifier: Apache-2.0
"""Several models on the same images in one run, so that their seconds can be compared.

Models take turns image by image: whatever else the machine does meets all of them alike. Images
are read between the turns, in this process: workers that read ahead would slow the first model.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ..data.reading import read_labels
from ..storage.files import write_text
from .evaluator import SparseRefineEvaluator
from .metrics import remap_ignored
from .predictions import predictions_of

# for the configs that loaders are built from
IN_PROCESS = ["DATALOADER.NUM_WORKERS", 0]


@dataclass(frozen=True)
class Arm:
    """A model of a comparison, its name, and its own loader of the data set's images in order.

    `oracle`: one more row, NAME_oracle, for a SparseRefine: the truth at the pixels that it
    selected, the coarse prediction elsewhere. No refiner can do better on them.
    """

    name: str
    model: nn.Module
    loader: Iterable[list[dict]]
    oracle: bool = False


def compare(
    arms: list[Arm],
    dataset_name: str,
    output_dir: str | Path,
    boundary_distance: int,
    ignore_label: int | None = None,
) -> list[dict]:
    """Evaluate every arm on every image. `ignore_label`: as in `SparseRefineEvaluator`.

    Returns, for each arm in order, what `results.json` in `output_dir` holds too:
    {"arm", "miou", "boundary_iou", "seconds", "precision", "selected_fraction",
    "megapixels_refined"}; accuracies and the fraction as shares of 1 (a dense model refines
    nothing: 0), seconds of the forward call (None of an oracle) and megapixels an image, means over
    the data set. The first image is run once beforehand, uncounted, to warm up.

    Raises:
        ValueError: an arm with `oracle` that selects nothing, since it is a dense model.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    def evaluator_of(name: str) -> SparseRefineEvaluator:
        return SparseRefineEvaluator(
            dataset_name,
            str(output_dir / name),
            boundary_distance=boundary_distance,
            ignore_label=ignore_label,
            distributed=False,
        )

    evaluators = [evaluator_of(arm.name) for arm in arms]
    oracles = [evaluator_of(f"{arm.name}_oracle") if arm.oracle else None for arm in arms]
    progress = tqdm(zip(*(arm.loader for arm in arms)), total=len(arms[0].loader), unit="image")
    with torch.inference_mode():
        for position, batches in enumerate(progress):
            if position == 0:  # warm-up: memory pools, choice of convolution algorithms
                for arm, batch in zip(arms, batches):
                    arm.model.eval()(batch)
                for arm, evaluator, oracle in zip(arms, evaluators, oracles):
                    evaluator.watch(arm.model)
                    evaluator.reset()
                    if oracle is not None:
                        oracle.reset()
            for arm, evaluator, oracle, batch in zip(arms, evaluators, oracles, batches):
                outputs = arm.model(batch)
                evaluator.process(batch, outputs)
                if oracle is not None:
                    best = _with_truth(arm.name, batch, outputs, oracle)
                    oracle.process(batch, best)
    rows = []
    for arm, evaluator, oracle in zip(arms, evaluators, oracles):
        result = evaluator.evaluate()["sparse_refine"]
        fraction = result.get("selected_fraction", 0.0)
        selected = {
            "selected_fraction": fraction,
            "megapixels_refined": fraction * result["megapixels"],
        }
        selected["precision"] = precision_of(arm.model)
        rows.append({**_accuracies(arm.name, result), "seconds": result["seconds"], **selected})
        if oracle is not None:
            best = oracle.evaluate()["sparse_refine"]
            rows.append({**_accuracies(f"{arm.name}_oracle", best), "seconds": None, **selected})
    write_rows(output_dir / "results.json", rows)
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows as JSON, atomically."""
    write_text(path, json.dumps(rows, indent=2) + "\n")


def precision_of(model: nn.Module) -> str:
    """What a model computes in: the type of its weights, and the extractor's where it differs."""
    names = {str(p.dtype)[len("torch.") :] for p in model.parameters() if p.is_floating_point()}
    own = getattr(getattr(model, "extractor", None), "precision", "auto")
    extractor = "" if own == "auto" or {own} == names else f", extractor {own}"
    return f"{' and '.join(sorted(names))}{extractor}"


def over_seeds(runs: list[list[dict]]) -> list[dict]:
    """Rows of `compare` of several seeds, the same arms in each -> one row an arm: means, and
    "miou_std" and "boundary_iou_std", sample standard deviations (two seeds or more)."""
    rows = []
    for row in zip(*runs):
        mean = {"arm": row[0]["arm"], "seeds": len(row), "precision": row[0]["precision"]}
        for key in row[0].keys() - {"arm", "precision"}:
            values = [r[key] for r in row]
            mean[key] = None if None in values else statistics.fmean(values)
            if key in ("miou", "boundary_iou") and len(values) > 1:
                mean[f"{key}_std"] = statistics.stdev(values)
        rows.append(mean)
    return rows


def comparison_table(rows: list[dict]) -> str:
    """Rows of `compare` or `over_seeds` for people: percent, and times faster than the slowest."""
    slowest = max(row["seconds"] for row in rows if row["seconds"] is not None)
    return tabulate(
        [
            [
                row["arm"],
                _percent(row, "miou"),
                _percent(row, "boundary_iou"),
                *_speed(row["seconds"], slowest),
                f"{row['megapixels_refined']:.2f}",
                f"{100 * row['selected_fraction']:.1f} %",
            ]
            for row in rows
        ],
        headers=["", "mIoU", "boundary IoU", "s/image", "speed", "Mpx refined", "selected"],
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", *["right"] * 6),
    )


def _percent(row: dict, key: str) -> str:
    spread = f" ± {100 * row[f'{key}_std']:.2f}" if f"{key}_std" in row else ""
    return f"{100 * row[key]:.2f}{spread}"


def _speed(seconds: float | None, slowest: float) -> tuple[str, str]:
    return ("-", "-") if seconds is None else (f"{seconds:.3f}", f"{slowest / seconds:.1f}x")


def _accuracies(name: str, result: dict) -> dict:
    return {
        "arm": name,
        "miou": result["mIoU"] / 100,
        "boundary_iou": result["BoundaryIoU"] / 100,
    }


def _with_truth(
    name: str, batch: list[dict], outputs: list[dict], evaluator: SparseRefineEvaluator
) -> list[dict]:
    classes, results = evaluator.num_classes, []
    for item, output in zip(batch, outputs):
        truth = read_labels(item["sem_seg_file_name"])
        truth = remap_ignored(truth, classes, evaluator.ignore_label)
        maps, selected = predictions_of(output, truth.shape)
        if selected is None:
            raise ValueError(f"arm {name!r} is a dense model: an oracle needs selected pixels")
        labels, at = maps["coarse"].reshape(-1).copy(), truth.reshape(-1)[selected]  # (H*W,), (P,)
        # where the truth is ignored any label does
        labels[selected] = np.where(at < classes, at, labels[selected])
        results.append({"labels": torch.from_numpy(labels.reshape(truth.shape))})
    return results
