# SPDX-License-Identifier: Apache-2.0
"""What test_processes.py runs as a script: TASK FOLDER.

TASK: killed (SIGKILL while the second checkpoint is written), resume (what killed left), two (train
and evaluate in two processes).
"""

import json
import math
import os
import signal
import sys
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from runs import TWO, train_net

from sparse_refine.training.trainer import Trainer

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tiny import register_tiny, tiny_cfg  # in tests/, which is not on a script's path


def script_cfg(folder, *options):
    """As in the fixture `run`, for a process without fixtures."""
    name = "of_a_script"
    register_tiny(name, Path(folder, "data"))
    return tiny_cfg(
        *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "OUTPUT_DIR", str(folder)), *options
    )


def train_until_killed(folder):
    whole = torch.save

    def half(data, path):
        whole(data, path)
        if data["trainer"]["iteration"] == 3:
            with open(path, "rb+") as file:
                file.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    train_net(script_cfg(folder))


def train_in_processes(folder):
    assert comm.get_world_size() == 2
    if comm.get_rank() == 0:  # the files are there before anybody else looks
        cfg = script_cfg(folder, *TWO)
    comm.synchronize()
    if comm.get_rank() == 1:
        cfg = script_cfg(folder, *TWO)
    train_net(cfg)
    comm.synchronize()
    cfg.MODEL.WEIGHTS = str(Path(folder, "model_final.pth"))
    results = train_net(cfg, "--eval-only")
    if comm.get_rank() == 0:
        Path(folder, "evaluated.json").write_text(json.dumps(results))
    for norm in ("BN", "SyncBN"):
        lonely(cfg, Path(folder, norm), norm)


def lonely(cfg, folder, norm):
    """No pixel is selected in the second process: both finish, with the same parameters."""
    cfg.MODEL.SPARSE_REFINE.EXTRACTOR.NORM = norm
    cfg.MODEL.SPARSE_REFINE.SELECTOR.NAME = "BudgetSelector"
    cfg.MODEL.SPARSE_REFINE.SELECTOR.COUNT = 20 if comm.get_rank() == 0 else 0
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.MAX_ITER = 2
    cfg.TEST.EVAL_PERIOD = 0
    cfg.OUTPUT_DIR = str(folder)
    folder.mkdir(exist_ok=True)
    trainer = Trainer(cfg)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train()
    after = list(trainer.model.parameters())
    finite = all(math.isfinite(p.sum().item()) for p in after)
    moved = any(not torch.equal(a, b) for a, b in zip(before, after))
    # the evaluation at the end brings running statistics together, too
    same = [
        all(
            torch.equal(a, b) for a, b in zip(*comm.all_gather([t.detach().clone() for t in state]))
        )
        for state in (after, trainer.model.buffers())
    ]
    if comm.get_rank() == 0:
        Path(folder, "lonely.json").write_text(json.dumps([finite and moved, *same]))


if __name__ == "__main__":
    task, folder = sys.argv[1:]
    if task == "killed":
        train_until_killed(folder)
    elif task == "resume":
        train_net(script_cfg(folder), "--resume")
    else:
        launch(train_in_processes, 2, dist_url="auto", args=(folder,))
