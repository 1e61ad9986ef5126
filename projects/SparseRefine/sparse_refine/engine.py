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
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset, print_csv_format
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from .build import base_has_weights
from .checkpoint import BestCheckpointer, SafeCheckpointer, state_digest
from .config import add_sparse_refine_config
from .data import build_test_loader, build_train_loader, register_folders
from .evaluation import EVALUATOR_TYPES, build_evaluators, check_packages
from .importing import import_projects, named_projects
from .modeling.token_merging import apply_configured

logger = logging.getLogger(__name__)


class CPUAutocastTrainer(SimpleTrainer):
    """SOLVER.AMP on the CPU: bfloat16, which needs no loss scaling (Detectron2's wants CUDA)."""

    def run_step(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            super().run_step()


class SelectionPrinter(EventWriter):
    """A log line beside CommonMetricPrinter's, which prints losses only: what share of the pixels
    is selected, and the accuracy of the three predictions there (means of 20 iterations)."""

    def __init__(self):
        self._written = None

    def write(self) -> None:
        storage = get_event_storage()
        _, iteration = storage.latest().get("selected/fraction", (None, None))
        if iteration == self._written:  # a dense model, or nothing new at the end
            return
        self._written = iteration
        values = [
            f"{name}: {history.avg(20):.4f}"
            for name, history in storage.histories().items()
            if name.startswith("selected/")
        ]
        logger.info(f"iter: {iteration}  {'  '.join(values)}")


class Trainer(DefaultTrainer):
    """Trains and evaluates dense models and SparseRefine from one config.

    Beyond DefaultTrainer: runs on CPUs too, in several processes and in mixed precision; data of a
    resumed run go on where they stopped; checkpoints are written whole or not at all, and the best
    one is kept.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)  # DefaultTrainer.__init__ wraps CPU modules in a way DDP refuses
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        check_datasets(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
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
            required=_frozen(cfg),
            supplied=_frozen(cfg) if base_has_weights(cfg) else (),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As in DefaultTrainer.

        Raises:
            ValueError: nothing has weights for the frozen base, see `base_has_weights`.
        """
        from_scratch = not self.cfg.MODEL.WEIGHTS and not (
            resume and self.checkpointer.has_checkpoint()
        )
        if from_scratch and _frozen(self.cfg) and not base_has_weights(self.cfg):
            raise ValueError(
                "MODEL.SPARSE_REFINE.BASE.WEIGHTS and MODEL.WEIGHTS are both '': the frozen base "
                "would keep random weights. Set BASE.WEIGHTS to the base's own checkpoint"
            )
        super().resume_or_load(resume)
        stream = self._trainer.data_loader.batch_sampler.sampler
        stream.start = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH

    def build_hooks(self) -> list:
        ret = super().build_hooks()
        metric = self.cfg.SOLVER.BEST_CHECKPOINT_METRIC
        if metric and self.cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process():
            # after the evaluation, before the writers
            index = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook)) + 1
            hook = BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric)
            ret.insert(index, hook)
        return ret

    def build_writers(self) -> list[EventWriter]:
        return [*super().build_writers(), SelectionPrinter()]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = super().build_model(cfg)
        if cfg.MODEL.META_ARCHITECTURE != "SparseRefine":  # its base has had it
            model = apply_configured(model, cfg)
        if cfg.MODEL.CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)
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
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has nothing to train here "
                "(MODEL.SPARSE_REFINE.EXTRACTOR.NAME PretrainedExtractor is frozen): evaluate it, "
                "with --eval-only"
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
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        return build_evaluators(cfg, dataset_name)[1]

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, *, resume: bool = False) -> OrderedDict:
        """Evaluate on every set of cfg.DATASETS.TEST; one set's results stand alone, several are
        keyed by the set's name, as in DefaultTrainer. `resume`: see `evaluation.build_evaluators`.
        """
        check_datasets(cfg)
        if comm.get_world_size() > 1:  # running statistics differ where NORM is not SyncBN
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        weights = getattr(model, "module", model).state_dict()  # the same inside of DDP
        tag = state_digest(weights, _inference_settings(cfg))
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            ours, evaluators = build_evaluators(cfg, name, resume=resume, tag=tag)
            ours.watch(model)
            loader = build_test_loader(cfg, name, keep=ours.remaining)
            results[name] = inference_on_dataset(model, loader, evaluators) or {}
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        if len(results) == 1:
            return next(iter(results.values()))
        return results


def load_config(path: str, opts: Sequence = ()) -> CfgNode:
    """A frozen config: Detectron2's defaults, this project's, the yaml at `path`, KEY VALUE pairs.

    The yaml's PROJECTS are imported; the rest is as `with_options` has it.

    Raises:
        KeyError: a key that is not declared, with its name.
        ValueError: a value of another type than the key's, or a key without a value.
    """
    cfg = get_cfg()
    import_projects(cfg, named_projects(path, opts))
    add_sparse_refine_config(cfg)
    cfg.merge_from_file(path)
    return with_options(cfg, opts)


def with_options(cfg: CfgNode, opts: Sequence = ()) -> CfgNode:
    """A frozen copy of a config with KEY VALUE pairs, ready for a model to be built of it.

    MODEL.DEVICE becomes "cpu" where there is no CUDA device; folders of DATASETS.FOLDERS are
    registered.

    Raises:
        KeyError, ValueError: as `load_config`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    try:
        cfg.merge_from_list(list(opts))
    except AssertionError as error:  # how yacs says it of pairs, where it raises for a yaml
        if len(opts) % 2:
            raise ValueError(f"{list(opts)}: pairs, but one KEY has no VALUE") from error
        message = str(error).replace("Non-existent key", "Non-existent config key")
        raise KeyError(f"{message}, in {list(opts)}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    register_folders(cfg)
    return cfg


def load_model(cfg: CfgNode) -> torch.nn.Module:
    """The config's model with MODEL.WEIGHTS, in eval mode.

    MODEL.WEIGHTS must hold every tensor of it, but for the frozen ones (the base's, and a
    PretrainedExtractor's) where these have weights already, see `base_has_weights`; it may be ""
    where they are all.

    Raises:
        FileNotFoundError, ValueError: see `SafeCheckpointer`; or MODEL.WEIGHTS is "".
    """
    supplied = _frozen(cfg) if base_has_weights(cfg) else ()
    model = Trainer.build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        checkpointer = SafeCheckpointer(
            model, allow_pickle=cfg.MODEL.ALLOW_PICKLE, required=("",), supplied=supplied
        )
        checkpointer.load(cfg.MODEL.WEIGHTS)
    elif not all(name.startswith(supplied) for name in model.state_dict()):
        raise ValueError("MODEL.WEIGHTS is '': name the checkpoint to evaluate")
    return model.eval()


def _frozen(cfg: CfgNode) -> tuple[str, ...]:
    """Prefixes of the names of weights that training leaves as they are."""
    if cfg.MODEL.META_ARCHITECTURE != "SparseRefine":
        return ()
    if cfg.MODEL.SPARSE_REFINE.EXTRACTOR.NAME == "PretrainedExtractor":
        return ("coarse.base.", "extractor.model.")
    return ("coarse.base.",)


def _inference_settings(cfg: CfgNode) -> str:
    """All keys that a prediction depends on, but for files that weights come from."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.SPARSE_REFINE
    cfg.MODEL.WEIGHTS = node.BASE.WEIGHTS = node.EXTRACTOR.WEIGHTS = ""
    node.COARSE_CACHE = ""
    return f"{cfg.INPUT.SCALE} {cfg.INPUT.FORMAT} {cfg.MODEL.dump()}"


def check_datasets(cfg: CfgNode) -> None:
    """Hold every data set of the config against its class count and ignore value, and what is
    needed to evaluate, before work: not after hours of training.

    Raises:
        KeyError: a name that is not registered.
        ImportError: a test set needs a package for its evaluation that is not there.
        ValueError: class counts or ignore values differ, with both numbers; a test set of another
            task; an impossible TEST.BOUNDARY_DISTANCE.
    """
    if cfg.TEST.BOUNDARY_DISTANCE < 1:
        raise ValueError(
            f"TEST.BOUNDARY_DISTANCE is {cfg.TEST.BOUNDARY_DISTANCE}: a width in pixels, at least 1"
        )
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog:
            raise KeyError(
                f"DATASETS: {name!r} is not registered. Known: {', '.join(DatasetCatalog.list())}"
            )
        metadata = MetadataCatalog.get(name)
        classes = len(metadata.get("stuff_classes", ()))
        if classes != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            raise ValueError(
                f"data set {name!r} has {classes} classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
                f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}"
            )
        kind = metadata.get("evaluator_type", None)
        if name in cfg.DATASETS.TEST and kind not in EVALUATOR_TYPES:
            raise ValueError(
                f"data set {name!r} has evaluator_type {kind!r}: this project evaluates semantic "
                f"segmentation, {EVALUATOR_TYPES}"
            )
        if name in cfg.DATASETS.TEST:
            check_packages(name)
        ignore = metadata.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
        if ignore != cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE:
            raise ValueError(
                f"data set {name!r} ignores label {ignore} but MODEL.SEM_SEG_HEAD.IGNORE_VALUE is "
                f"{cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}"
            )
