# SPDX-License-Identifier: Apache-2.0
"""The trainer: Detectron2's DefaultTrainer with what this project adds to it."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch.nn.parallel import DistributedDataParallel

from ..base import supplied_weights
from ..data import build_test_loader, build_train_loader, register_folders
from ..evaluation import build_evaluators, own_evaluator
from ..evaluation.checks import check_datasets
from ..modeling.building import build_model
from ..storage.checkpointer import SafeCheckpointer
from .checks import (
    check_best_metric,
    check_loader_keys,
    check_not_overwritten,
    check_test_keys,
    check_training,
)
from .data_checks import check_something_to_learn, warn_of_dark_images
from .hooks import BestCheckpointer, SelectionPrinter, loop_class
from .optimizer import build_optimizer
from .resuming import (
    kept_solver_keys,
    place_stream,
    prediction_tag,
    seed_iteration,
    seed_of_run,
    warn_of_changed_solver,
    with_records,
)
from .schedule import build_lr_scheduler

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates dense models and SparseRefine from one config.

    Beyond DefaultTrainer: runs on CPUs too, in several processes and in mixed precision; data of a
    resumed run go on where they stopped; checkpoints are written whole or not at all, and the best
    one is kept.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)  # DefaultTrainer.__init__ wraps CPU modules in a way DDP refuses
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        own_loader, own_evaluators = map(
            type(self).is_own, ("build_train_loader", "build_evaluator")
        )
        register_folders(cfg)  # another config of this process may have given the names since
        check_training(cfg, own_loader)
        check_datasets(cfg, training=own_loader, evaluation=own_evaluators)
        check_best_metric(cfg, own_evaluators)
        if cfg.DATASETS.TEST and type(self).is_own("test"):
            check_test_keys(cfg)
        if own_loader:
            check_loader_keys(cfg)
            check_something_to_learn(cfg)
            warn_of_dark_images(cfg)
        model = self.build_model(cfg)
        self._frozen = getattr(model, "frozen", ())
        self._supplied = supplied_weights(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._seed = seed_of_run(cfg, loader)
        on_gpu = next(model.parameters()).is_cuda
        options = {} if on_gpu else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **options)
        self._trainer = loop_class(cfg, on_gpu)(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_pickle=cfg.MODEL.ALLOW_PICKLE,
            required=self._frozen,
            supplied=self._supplied if self._frozen else (),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As in DefaultTrainer.

        Raises:
            ValueError: nothing has weights for the frozen base, see `supplied_weights`.
        """
        from_scratch = not self.cfg.MODEL.WEIGHTS and not (
            resume and self.checkpointer.has_checkpoint()
        )
        if from_scratch and self._frozen and not self._supplied:
            raise ValueError(
                "MODEL.SPARSE_REFINE.BASE.WEIGHTS and MODEL.WEIGHTS are both '': the frozen base "
                "would keep random weights. Set BASE.WEIGHTS to the base's own checkpoint"
            )
        if not (resume and self.checkpointer.has_checkpoint()):
            check_not_overwritten(self.cfg, "MODEL.WEIGHTS", self.cfg.MODEL.WEIGHTS)
        super().resume_or_load(resume)
        loader = self._trainer.data_loader
        start = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH
        if not place_stream(loader, start, self._seed) and self.start_iter:
            logger.warning(
                f"build_train_loader of {type(self).__name__} returns a {type(loader).__name__}, "
                "which begins anew: this run goes on with other data than an unbroken one"
            )

    def build_hooks(self) -> list:
        ret = super().build_hooks()
        metric = self.cfg.SOLVER.BEST_CHECKPOINT_METRIC
        if metric and self.cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process():
            # after the evaluation, before the writers
            index = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook)) + 1
            hook = BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric)
            ret.insert(index, hook)
        return ret

    def before_step(self) -> None:
        # made first: a DataLoader draws a random number when its iterator is made, which would
        # shift those of a run's first iteration, and of a resumed one's
        self._trainer._data_loader_iter  # noqa: B018
        # dropout and its kin: resumed runs equal unbroken ones
        seed_iteration(self._seed, self.iter)
        super().before_step()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "solver": kept_solver_keys(self.cfg), "seed": self._seed}

    def load_state_dict(self, state_dict: dict) -> None:
        warn_of_changed_solver(self.cfg, state_dict.get("solver", {}))  # or refuse, before it loads
        super().load_state_dict(state_dict)
        if self.cfg.SEED < 0:  # drawn: the run's own goes on
            self._seed = state_dict.get("seed", self._seed)

    @classmethod
    def is_own(cls, method: str) -> bool:
        """Whether a classmethod is this class's, not one that a subclass put in its place."""
        return getattr(cls, method).__func__ is getattr(Trainer, method).__func__

    def build_writers(self) -> list[EventWriter]:
        return [*super().build_writers(), SelectionPrinter()]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = build_model(cfg)
        logger.info(f"Model:\n{model}")
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluators(cfg, dataset_name)

    @classmethod
    def check_evaluation(cls, cfg: CfgNode, own_evaluators: bool = True) -> None:
        """What is wrong with an evaluation before its model is built; `test` looks too.

        Args:
            own_evaluators: whether those of `build_evaluator` are used.

        Raises:
            ValueError, KeyError, ImportError, RuntimeError: see `check_datasets`.
        """
        check_test_keys(cfg)
        register_folders(cfg)
        own_evaluators = own_evaluators and cls.is_own("build_evaluator")
        check_datasets(cfg, training=False, evaluation=own_evaluators)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
        *,
        resume: bool = False,
    ) -> OrderedDict:
        """Evaluate on every set of cfg.DATASETS.TEST; one set's results stand alone, several are
        keyed by the set's name, as in DefaultTrainer.

        Args:
            evaluators: one for each set, in place of `build_evaluator`'s.
            resume: go on from the records of an interrupted evaluation. Only this project's
                evaluator can do that, so the others stay out.

        Raises:
            ValueError: another number of evaluators, or none that can resume.
        """
        cls.check_evaluation(cfg, own_evaluators=evaluators is None)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(cfg.DATASETS.TEST):
            raise ValueError(
                f"{len(evaluators)} evaluators for {len(cfg.DATASETS.TEST)} sets of DATASETS.TEST"
            )
        if comm.get_world_size() > 1:  # running statistics differ where NORM is not SyncBN
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        plain = model.module if isinstance(model, DistributedDataParallel) else model
        tag = prediction_tag(cfg, plain)
        results = OrderedDict()
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            ours = own_evaluator(evaluator)
            if ours is not None:
                ours.belongs_to(tag, resume)
                ours.watch(model)
            if resume:
                evaluator = with_records(ours, name)
            if resume and cls.is_own("build_test_loader"):
                loader = build_test_loader(cfg, name, keep=ours.remaining)
            else:  # a loader of a subclass gives all images; an image that comes again counts once
                loader = cls.build_test_loader(cfg, name)
            results[name] = inference_on_dataset(model, loader, evaluator) or {}
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        if len(results) == 1:
            return next(iter(results.values()))
        return results
