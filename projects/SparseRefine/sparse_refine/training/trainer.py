# SPDX-License-Identifier: Apache-2.0
"""The trainer: Detectron2's DefaultTrainer with what this project adds to it."""

from __future__ import annotations

import functools
import logging
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch.nn.parallel import DistributedDataParallel

from ..base import supplied_weights
from ..data import build_test_loader, build_train_loader, register_folders
from ..data.loader import ShuffledStream
from ..evaluation import SparseRefineEvaluator, build_evaluators, own_evaluator
from ..evaluation.checks import check_datasets
from ..modeling.building import build_model
from ..storage.checkpointer import SafeCheckpointer
from ..storage.weights import state_digest
from .checks import (
    check_best_metric,
    check_loader_keys,
    check_not_overwritten,
    check_something_to_learn,
    check_test_keys,
    check_training,
)
from .hooks import BestCheckpointer, CPUAutocastTrainer, SelectionPrinter
from .resuming import kept_solver_keys, seed_iteration, warn_of_changed_solver

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
            type(self)._is_own, ("build_train_loader", "build_evaluator")
        )
        register_folders(cfg)  # another config of this process may have given the names since
        check_training(cfg, own_loader)
        check_datasets(cfg, training=own_loader, evaluation=own_evaluators)
        check_best_metric(cfg, own_evaluators)
        if cfg.DATASETS.TEST and type(self)._is_own("test"):
            check_test_keys(cfg)
        if own_loader:
            check_loader_keys(cfg)
            check_something_to_learn(cfg)
        model = self.build_model(cfg)
        self._frozen = getattr(model, "frozen", ())
        self._supplied = supplied_weights(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        on_gpu = next(model.parameters()).is_cuda
        options = {} if on_gpu else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **options)
        if not cfg.SOLVER.AMP.ENABLED:
            kind = SimpleTrainer
        else:
            kind = AMPTrainer if on_gpu else CPUAutocastTrainer
            # of Detectron2's code, and printed at every iteration
            warnings.filterwarnings("ignore", r"`torch\.cuda\.amp", FutureWarning, "detectron2")
        self._trainer = kind(model, loader, optimizer)
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
        stream = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        if isinstance(stream, ShuffledStream):
            stream.start = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH
        elif self.start_iter:
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
        super().load_state_dict(state_dict)
        warn_of_changed_solver(self.cfg, state_dict.get("solver", {}))
        if self.cfg.SEED < 0:  # drawn: the run's own goes on
            self._seed = state_dict.get("seed", self._seed)

    @classmethod
    def _is_own(cls, method: str) -> bool:
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
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has nothing to train here: "
                "all of its parameters are frozen. Evaluate it, with --eval-only"
            )
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            lr_factor_func=lambda name: (
                cfg.SOLVER.BACKBONE_MULTIPLIER if "backbone" in name else 1.0
            ),
        )
        if cfg.SOLVER.OPTIMIZER == "ADAMW":
            optimizer = functools.partial(torch.optim.AdamW, lr=cfg.SOLVER.BASE_LR)
        elif cfg.SOLVER.OPTIMIZER == "SGD":
            optimizer = functools.partial(
                torch.optim.SGD,
                lr=cfg.SOLVER.BASE_LR,
                momentum=cfg.SOLVER.MOMENTUM,
                nesterov=cfg.SOLVER.NESTEROV,
            )
        else:
            raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}: one of 'ADAMW', 'SGD'")
        return maybe_add_gradient_clipping(cfg, optimizer(params))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluators(cfg, dataset_name)

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
        check_test_keys(cfg)
        register_folders(cfg)
        own_evaluators = evaluators is None and cls._is_own("build_evaluator")
        check_datasets(cfg, training=False, evaluation=own_evaluators)
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
        tag = state_digest(plain.state_dict(), _inference_settings(cfg))
        results = OrderedDict()
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            ours = own_evaluator(evaluator)
            if ours is not None:
                ours.belongs_to(tag, resume)
                ours.watch(model)
            if resume:
                evaluator = _only(ours, name)
            if resume and cls._is_own("build_test_loader"):
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


def _only(ours: SparseRefineEvaluator | None, name: str) -> SparseRefineEvaluator:
    if ours is None:
        raise ValueError(
            f"--resume of an evaluation goes on from the records of SparseRefineEvaluator, and the "
            f"evaluators of {name!r} have none: leave --resume out"
        )
    return ours


def _inference_settings(cfg: CfgNode) -> str:
    """All keys that a prediction depends on, but for files that weights come from."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.SPARSE_REFINE
    cfg.MODEL.WEIGHTS = node.BASE.WEIGHTS = node.EXTRACTOR.WEIGHTS = ""
    node.COARSE_CACHE = ""
    return f"{cfg.INPUT.SCALE} {cfg.INPUT.FORMAT} {cfg.MODEL.dump()}"
