# SPDX-License-Identifier: Apache-2.0
"""Runs of train_net.py and what they leave. Imported by the tests and by in_processes.py."""

import importlib.util
import json
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from sparse_refine.storage.weights import load_weights, save_weights
from sparse_refine.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
METHOD = "MODEL.SPARSE_REFINE."


def base_weights(cfg, folder, seed=3):
    """A file of weights for the frozen base, always the same ones."""
    if cfg.MODEL.META_ARCHITECTURE != "SparseRefine":
        return ""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = META_ARCH_REGISTRY.get(cfg.MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE)(cfg)
    path = str(folder / f"given_base_{comm.get_rank()}.safetensors")
    save_weights(base.state_dict(), path)
    return path


def train_net(cfg, *flags):
    """main() of train_net.py with this config, from a yaml file as on the command line."""
    spec = importlib.util.spec_from_file_location(
        "train_net", ROOT / "projects" / "SparseRefine" / "train_net.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    base = cfg.MODEL.SPARSE_REFINE.BASE
    if not (cfg.MODEL.WEIGHTS or base.WEIGHTS or base.TRAINING):
        cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS = base_weights(cfg, folder)
    file = folder / f"given_{comm.get_rank()}.yaml"
    file.write_text(cfg.dump())
    return module.main(default_argument_parser().parse_args(["--config-file", str(file), *flags]))


def final(folder):
    return load_weights(str(Path(folder, "model_final.pth")))["model"]


def assert_same(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def stop_at(monkeypatch, iteration):
    """A power cut before this iteration."""

    def run_step(self):
        if self.iter == iteration:
            raise KeyboardInterrupt
        original(self)

    original = Trainer.run_step
    monkeypatch.setattr(Trainer, "run_step", run_step)


def logged_in(folder):
    """The latest value of everything in metrics.json."""
    latest = {}
    for line in Path(folder, "metrics.json").read_text().splitlines():
        latest.update(json.loads(line))
    return latest


# SGD: AdamW would blow the last bits of a gradient that is 0 up to a whole step.
TWO = [
    "SOLVER.OPTIMIZER", "SGD",
    "SOLVER.IMS_PER_BATCH", 4,
    "SOLVER.MAX_ITER", 4,
    METHOD + "EXTRACTOR.NORM", "SyncBN",
    METHOD + "SELECTOR.THRESHOLD", 0.7,
    "TEST.EVAL_PERIOD", 4,
]  # fmt: skip
