#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The main job in minutes on the built-in data set: train a refiner on a frozen base, from features
that a dense model has learned at full resolution, then compare dense low resolution, dense full
resolution and SparseRefine on the same images.

    python projects/SparseRefine/demo/synthetic_demo.py [--output output/demo] [KEY VALUE ...]

KEY VALUE pairs go to the refiner's config, e.g. SOLVER.MAX_ITER 40. Writes results.json and
figure.png.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from sparse_refine.commands.memory import keep_freed_memory
from sparse_refine.config import load_config
from sparse_refine.data import build_test_loader
from sparse_refine.evaluation.comparison import (
    IN_PROCESS,
    Arm,
    compare,
    comparison_table,
    write_rows,
)
from sparse_refine.evaluation.machine import device_name
from sparse_refine.inference.loading import load_model
from sparse_refine.training.trainer import Trainer
from sparse_refine.visualization.figure import draw

PROJECT = Path(__file__).resolve().parents[1]
CONFIGS = PROJECT / "configs" / "synthetic_field"
WEIGHTS = PROJECT / "weights" / "synthetic_field"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="folder for everything it writes")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the refiner")
    args = parser.parse_args()
    output = Path(args.output)
    (output / "train").mkdir(parents=True, exist_ok=True)
    setup_logger(str(output / "log.txt"))
    setup_logger(str(output / "log.txt"), name="sparse_refine")
    logging.getLogger("detectron2.engine.defaults").setLevel(logging.WARNING)

    low, full = (WEIGHTS / f"dense_{name}.safetensors" for name in ("low", "full"))
    refiner = load_config(
        str(CONFIGS / "sparse_refine.yaml"),
        ["MODEL.SPARSE_REFINE.BASE.WEIGHTS", str(low)]
        + ["MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS", str(full)]
        + ["OUTPUT_DIR", str(output / "train")]
        + ["DATASETS.TEST", "()"]  # the comparison below evaluates
        + args.opts,
    )
    for path in (low, full):
        if not path.is_file():
            sys.exit(f"{path} is missing: the demo runs from a complete checkout")
    seed_all_rng(refiner.SEED)
    print("1/3  Training the refiner; the base stays frozen ...", flush=True)
    trainer = Trainer(refiner)
    trainer.resume_or_load(resume=False)
    trainer.train()

    print("2/3  Three models on the same images, in turn ...", flush=True)
    dense = {
        f"dense_{name}": load_config(
            str(CONFIGS / f"dense_{name}.yaml"), ["MODEL.WEIGHTS", str(weights), *IN_PROCESS]
        )
        for name, weights in (("low", low), ("full", full))
    }
    dataset = dense["dense_low"].DATASETS.TEST[0]
    models = {name: load_model(cfg) for name, cfg in dense.items()}
    models["sparse_refine"] = trainer.model.eval()
    refiner = refiner.clone()
    refiner.defrost()
    refiner.merge_from_list(IN_PROCESS)
    configs = {**dense, "sparse_refine": refiner}
    arms = [
        Arm(name, model, build_test_loader(configs[name], dataset), oracle=name == "sparse_refine")
        for name, model in models.items()
    ]
    keep_freed_memory()
    *rows, ceiling = compare(arms, dataset, output, refiner.TEST.BOUNDARY_DISTANCE)
    write_rows(output / "results.json", rows)

    print("3/3  Drawing the figure ...", flush=True)
    draw(output / "figure.png", models["sparse_refine"], dataset, 0, refiner.INPUT.FORMAT)
    record = DatasetCatalog.get(dataset)[0]
    device = models["sparse_refine"].device
    size = f"{len(arms[0].loader)} images of {record['width']}x{record['height']}"
    print(f"\n{dataset}: {size}, {rows[-1]['precision']}, {device_name(device)}\n")
    print(comparison_table(rows))
    print(
        f"\nThe selector's ceiling, the truth at the selected pixels: mIoU "
        f"{100 * ceiling['miou']:.2f}, boundary IoU {100 * ceiling['boundary_iou']:.2f}"
    )
    print(
        f"\n{os.path.join(args.output, 'results.json')}  {os.path.join(args.output, 'figure.png')}"
    )


if __name__ == "__main__":
    main()
