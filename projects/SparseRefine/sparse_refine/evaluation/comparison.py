# SPDX-License-Identifier: Apache-2.0
"""Several models on the same images in one run, so that their seconds can be compared.

Models take turns image by image: whatever else the machine does meets all of them alike. Images
are read between the turns, in this process: workers that read ahead would slow the first model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ..files import write_whole
from .evaluator import SparseRefineEvaluator

# for the configs that loaders are built from
IN_PROCESS = ["DATALOADER.NUM_WORKERS", 0]


@dataclass(frozen=True)
class Arm:
    """A model of a comparison, its name, and its own loader of the data set's images in order."""

    name: str
    model: nn.Module
    loader: Iterable[list[dict]]


def compare(
    arms: list[Arm], dataset_name: str, output_dir: str | Path, boundary_distance: int
) -> list[dict]:
    """Evaluate every arm on every image.

    Returns, for each arm in order, what `results.json` in `output_dir` holds too:
    {"arm", "miou", "boundary_iou", "seconds", "selected_fraction", "megapixels_refined"};
    accuracies and the fraction as shares of 1 (a dense model refines nothing: 0), seconds of the
    forward call and megapixels an image, means over the data set. The first image is run once
    beforehand, uncounted, to warm up.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    evaluators = [
        SparseRefineEvaluator(
            dataset_name,
            str(output_dir / arm.name),
            boundary_distance=boundary_distance,
            distributed=False,
        )
        for arm in arms
    ]
    progress = tqdm(zip(*(arm.loader for arm in arms)), total=len(arms[0].loader), unit="image")
    with torch.inference_mode():
        for position, batches in enumerate(progress):
            if position == 0:
                for arm, batch in zip(arms, batches):
                    arm.model.eval()(batch)
                for arm, evaluator in zip(arms, evaluators):
                    evaluator.watch(arm.model)
                    evaluator.reset()
            for arm, evaluator, batch in zip(arms, evaluators, batches):
                evaluator.process(batch, arm.model(batch))
    rows = []
    for arm, evaluator in zip(arms, evaluators):
        result = evaluator.evaluate()["sparse_refine"]
        fraction = result.get("selected_fraction", 0.0)
        rows.append(
            {
                "arm": arm.name,
                "miou": result["mIoU"] / 100,
                "boundary_iou": result["BoundaryIoU"] / 100,
                "seconds": result["seconds"],
                "selected_fraction": fraction,
                "megapixels_refined": fraction * result["megapixels"],
            }
        )

    def write(temporary: str) -> None:
        Path(temporary).write_text(json.dumps(rows, indent=2) + "\n")

    write_whole(output_dir / "results.json", write)
    return rows


def comparison_table(rows: list[dict]) -> str:
    """The rows of `compare` for people: percent, and times faster than the slowest arm."""
    slowest = max(row["seconds"] for row in rows)
    return tabulate(
        [
            [
                row["arm"],
                100 * row["miou"],
                100 * row["boundary_iou"],
                row["seconds"],
                f"{slowest / row['seconds']:.1f}x",
                row["megapixels_refined"],
                f"{100 * row['selected_fraction']:.1f} %",
            ]
            for row in rows
        ],
        headers=["", "mIoU", "boundary IoU", "s/image", "speed", "Mpx refined", "selected"],
        floatfmt=("", ".2f", ".2f", ".3f", "", ".2f", ""),
        tablefmt="github",
    )
