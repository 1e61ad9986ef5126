# SPDX-License-Identifier: Apache-2.0
"""What training adds to Detectron2's loop: mixed precision on a CPU, a line on the selection, and
the memory of the best checkpoint."""

from __future__ import annotations

import logging
import os
import warnings
from types import SimpleNamespace

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer, hooks
from detectron2.utils.events import EventWriter, get_event_storage

from ..sparse.precision import warn_of_slow_bfloat16
from ..storage.checkpointer import SafeCheckpointer
from ..storage.weights import load_weights

logger = logging.getLogger(__name__)


class CPUAutocastTrainer(SimpleTrainer):
    """SOLVER.AMP on the CPU: bfloat16, which needs no loss scaling (Detectron2's wants CUDA)."""

    def run_step(self):
        warn_of_slow_bfloat16("SOLVER.AMP.ENABLED True on a CPU")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            super().run_step()


def loop_class(cfg: CfgNode, on_gpu: bool) -> type[SimpleTrainer]:
    """The training loop that SOLVER.AMP asks for."""
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer
    # of Detectron2's code, and printed at every iteration
    warnings.filterwarnings("ignore", r"`torch\.cuda\.amp", FutureWarning, "detectron2")
    return AMPTrainer if on_gpu else CPUAutocastTrainer


class SelectionPrinter(EventWriter):
    """A log line beside CommonMetricPrinter's, which prints losses only: what share of the pixels
    is selected, and the accuracy of the three predictions there (means of 20 iterations)."""

    def __init__(self):
        self._written = None
        self._warned = False

    def write(self) -> None:
        storage = get_event_storage()
        _, iteration = storage.latest().get("selected/fraction", (None, None))
        if iteration == self._written:  # a dense model, or nothing new at the end
            return
        self._written = iteration
        self._warn_of_nothing(storage.histories()["selected/fraction"].avg(20))
        values = [
            f"{name}: {history.avg(20):.4f}"
            for name, history in storage.histories().items()
            if name.startswith("selected/")
        ]
        logger.info(f"iter: {iteration}  {'  '.join(values)}")

    def _warn_of_nothing(self, fraction: float) -> None:
        """Losses are 0 then, which looks like a training that has gone well."""
        if fraction == 0 and not self._warned:
            self._warned = True
            logger.warning(
                "no pixel was selected in the last iterations: losses are 0, and nothing is "
                "trained. Look at MODEL.SPARSE_REFINE.SELECTOR: entropy is at most ln K nats (K: "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES); `python -m sparse_refine calibrate --base-only` "
                "finds a threshold"
            )


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, with a memory: after a resume a worse model does not replace the best.

    The memory is `model_best.pth` itself: the checkpoint that a run is resumed from may have been
    written before the evaluation that found the best. That one stays what `--resume` takes up.
    """

    def __init__(self, eval_period: int, checkpointer: SafeCheckpointer, metric: str):
        super().__init__(eval_period, SimpleNamespace(save=self._save), metric)
        self._saver = checkpointer
        self._path = os.path.join(checkpointer.save_dir, f"{self._file_prefix}.pth")

    def _save(self, name: str, iteration: int) -> None:
        value = self.trainer.storage.latest()[self._val_metric][0]
        self._saver.save(name, tag=False, iteration=iteration, best_metric=float(value))

    def before_train(self) -> None:
        if self.trainer.start_iter > 0 and os.path.isfile(self._path):
            best = load_weights(self._path)
            self.best_metric, self.best_iter = best.get("best_metric"), best.get("iteration")
