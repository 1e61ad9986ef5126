# SPDX-License-Identifier: Apache-2.0
"""Configuration: the keys of the method, and how a config is made of a yaml.

Keys of data stand in data/keys.py, those of a family of bases beside its code in modeling/.
Detectron2's own keys keep their meaning. `MODEL.SEM_SEG_HEAD.NUM_CLASSES` is the number of classes
K of the base and of the refiner, `MODEL.SEM_SEG_HEAD.IGNORE_VALUE` the label that is no class,
`MODEL.PIXEL_MEAN` / `PIXEL_STD` / `INPUT.FORMAT` hold for both as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.config import CfgNode as CN

from .data import register_folders
from .data.keys import add_data_config
from .modeling import add_modeling_config, trust
from .modeling.importing import import_projects, named_projects


def add_sparse_refine_config(cfg: CN) -> None:
    """Declare the keys of this project in `cfg`, in place."""
    add_projects_config(cfg)
    add_data_config(cfg)
    add_solver_config(cfg)
    add_modeling_config(cfg)
    add_method_config(cfg)
    # ---- of Detectron2, with another default ---------------------------------------------------
    # Shorter side that DefaultPredictor and Detectron2's own mapper resize an image to; 0 leaves it
    # as it is, which is what SparseRefine refines.
    cfg.INPUT.MIN_SIZE_TEST = 0


def add_projects_config(cfg: CN) -> None:
    """Declare PROJECTS in `cfg`, in place."""
    # ---- other projects ------------------------------------------------------------------------
    # Detectron2 projects that the yaml's keys belong to, imported before they are read: "module",
    # or "module:function" where function(cfg) declares keys: "mask2former:add_maskformer2_config",
    # "detectron2.projects.deeplab:add_deeplab_config"; with --trust-code any other, as a file of
    # your own: "my_models.py:add_my_config".
    cfg.PROJECTS = []


def add_solver_config(cfg: CN) -> None:
    """Declare this project's keys under SOLVER and TEST in `cfg`, in place."""
    # ---- optimisation --------------------------------------------------------------------------
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # ADAMW or SGD
    # Factor on BASE_LR for parameters under a module called `backbone` (pretrained weights), >= 0.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Metric that decides which checkpoint is kept as model_best.pth ("" keeps none); higher is
    # better. With two or more test sets prefix it by the data set's name, as Detectron2 does.
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = "sparse_refine/mIoU"

    # ---- evaluation ----------------------------------------------------------------------------
    # Width of the band along the edges in which boundary IoU is counted, in pixels, >= 1.
    cfg.TEST.BOUNDARY_DISTANCE = 5


def add_method_config(cfg: CN) -> None:
    """Declare MODEL.SPARSE_REFINE in `cfg`, in place."""
    # ---- the method ----------------------------------------------------------------------------
    cfg.MODEL.SPARSE_REFINE = node = CN()
    # What inference returns: "logits", sem_seg (K,H,W) for any Detectron2 evaluator, or "labels",
    # (H,W) without ever holding K x H x W, for large images.
    node.OUTPUT = "logits"
    # How coarse logits get to full resolution: "nearest" (the paper) or "bilinear".
    node.COARSE_INTERPOLATION = "nearest"
    # Training: folder that keeps the frozen base's coarse logits between epochs ("" for none). The
    # base then sees images without augmentation, and INPUT.RESIZE_RANGE must be [1.0, 1.0].
    node.COARSE_CACHE = ""

    # The frozen model that is refined.
    node.BASE = CN()
    node.BASE.META_ARCHITECTURE = "SemanticSegmentor"  # a name in Detectron2's META_ARCH_REGISTRY
    # Its own checkpoint: .pth, .safetensors, or .pkl with MODEL.ALLOW_PICKLE. "" leaves it to
    # MODEL.WEIGHTS, a checkpoint of the whole model.
    node.BASE.WEIGHTS = ""
    # Only entries that begin with this are read from that file, and it is taken off their names.
    node.BASE.WEIGHTS_PREFIX = ""
    # Without WEIGHTS: how `train` trains it first, at SCALE: keys of the whole config that differ
    # from the refiner's, as {SOLVER: {MAX_ITER: 1500}}; {} for a base that has been trained.
    node.BASE.TRAINING = CN(new_allowed=True)
    node.BASE.SCALE = 0.5  # low resolution over full resolution, a side, 0 < scale <= 1
    # What its sem_seg holds: "logits"; "probabilities"; or "scores", non-negative numbers that need
    # not sum to 1 (Mask2Former).
    node.BASE.SCORE_TYPE = "logits"
    # Its logits are divided by it, > 0: above 1 for a base that is surer than it is right. Labels
    # stay, entropies change, and with them what a threshold means; a budget hardly notices. The
    # refiner reads the coarse probabilities: train it with the value. tools/calibrate.py fits it.
    node.BASE.TEMPERATURE = 1.0

    # Which pixels are refined.
    node.SELECTOR = CN()
    # EntropySelector and MarginSelector (a threshold), BudgetSelector (a share or number of pixels,
    # by entropy), MarginBudgetSelector, RandomBudgetSelector.
    node.SELECTOR.NAME = "EntropySelector"
    # EntropySelector: entropy in nats, 0..ln K, above which a pixel is refined. MarginSelector:
    # difference of the two largest probabilities, 0..1, below which it is.
    node.SELECTOR.THRESHOLD = 0.3
    # The budgets: the share 0..1 of an image's pixels to refine, the most uncertain first; or,
    # where COUNT is not -1, their number (an image that has fewer gives all).
    node.SELECTOR.FRACTION = 0.1
    node.SELECTOR.COUNT = -1
    # Training with a budget: the share is drawn from [low, high] for each image, so that one
    # refiner serves them all; [] takes FRACTION or COUNT.
    node.SELECTOR.TRAIN_FRACTIONS = []

    # The sparse network that looks at them.
    node.EXTRACTOR = CN()
    # SparseUNetExtractor (the paper's), or PretrainedExtractor: a dense network that is evaluated
    # at the selected pixels alone. Keys of the one mean nothing to the other, but for PRECISION.
    node.EXTRACTOR.NAME = "SparseUNetExtractor"
    # PretrainedExtractor: its checkpoint, a model trained at full resolution. "" takes the base's
    # weights or, where MODEL below is not {}, those that the backbone comes with.
    node.EXTRACTOR.WEIGHTS = ""
    # PretrainedExtractor: {} for the base's architecture, whose feature maps it then reads. Else a
    # network of its own, beside any base: the keys under MODEL that differ from the base's, as
    # {META_ARCHITECTURE: SemanticSegmentor, BACKBONE: {NAME: ...}, ...}.
    node.EXTRACTOR.MODEL = CN(new_allowed=True)
    # PretrainedExtractor, without WEIGHTS: how `train` trains its network first, densely at full
    # resolution; as BASE.TRAINING. It starts from the base where MODEL is {}.
    node.EXTRACTOR.TRAINING = CN(new_allowed=True)
    # PretrainedExtractor: what is trained of it at the selected pixels: "none", "norms" (their
    # factors and offsets), "head" (the sem_seg_head), or "all". Statistics of norms stay.
    node.EXTRACTOR.TRAINED = "none"
    # PretrainedExtractor: feature maps of a larger stride than this in pixels are the small image's
    # everywhere: at 8 or 4 it costs less and recognises by the small image's features; 0 computes
    # all of them at the selected pixels. Train it with the value.
    node.EXTRACTOR.DEEPEST_STRIDE = 0
    # What it reads at a pixel, any of: "rgb" (3, normalised by the PIXEL_MEAN and PIXEL_STD below),
    # "probabilities" (K, coarse), "entropy" (1, coarse, over ln K), "position" (2, -1..1).
    node.EXTRACTOR.FEATURES = ["rgb"]
    # Three numbers each, on the images' value range and channel order; [] for MODEL.PIXEL_MEAN and
    # PIXEL_STD. Refiners converted from the paper's release need [103.53, 116.28, 123.675] and
    # [57.375, 57.12, 58.395] (conversion/refiner.py says why).
    node.EXTRACTOR.PIXEL_MEAN = []
    node.EXTRACTOR.PIXEL_STD = []
    node.EXTRACTOR.PRESET = "base"  # paper, base, small, or custom: CHANNELS and BLOCKS below
    node.EXTRACTOR.CHANNELS = [32, 64, 128, 256]  # a level, full resolution first (custom only)
    node.EXTRACTOR.BLOCKS = 1  # residual blocks a level, down and up (custom only)
    # Side in pixels, >= 1, of the squares that the UNet's finest level works on. 1: pixels, as in
    # the paper. 2: a quarter of the sites, each with four pixels' features and classified at once:
    # far cheaper where the selector picks blocks of pixels, which it does below BASE.SCALE 0.5.
    node.EXTRACTOR.PATCH = 1
    # The refined logits are the coarse ones plus the network's output, which starts at zero:
    # training starts at the coarse prediction's accuracy. False: they are the output (the paper's).
    node.EXTRACTOR.RESIDUAL = False
    node.EXTRACTOR.NORM = "BN"  # BN, or SyncBN: statistics over all processes
    # Where a stride-2 convolution puts its output: "floor" (MinkowskiEngine's way, fewest sites) or
    # "reach" (the paper's release; needed for refiners trained with it).
    node.EXTRACTOR.DOWNSAMPLE_SITES = "floor"
    # Sparse engine: "torch", "minkowski", or "auto": minkowski on a CUDA device where it is
    # installed, else torch. Weights do not depend on it.
    node.EXTRACTOR.BACKEND = "auto"
    # What the extractor computes in, in training as well: "float32"; "bfloat16", half the time and
    # the memory on processors that multiply it (the minkowski engine stays in float32); or "auto":
    # as autocast says around the model, else float32.
    node.EXTRACTOR.PRECISION = "auto"

    # How both predictions become one.
    node.ENSEMBLER = CN()
    # GatedEnsembler, EntropyEnsembler (the surer of the two) or RefinedEnsembler (the refined one).
    node.ENSEMBLER.NAME = "GatedEnsembler"
    node.ENSEMBLER.HIDDEN = 64  # width of the gate and of the head after it (GatedEnsembler)

    # Losses, on selected pixels with a valid label. A weight of 0 leaves a term out.
    node.LOSS = CN()
    node.LOSS.REFINED_WEIGHT = 1.0  # cross-entropy of the refined logits
    node.LOSS.FUSED_WEIGHT = 1.0  # cross-entropy of the fused logits
    node.LOSS.DICE_WEIGHT = 0.0  # soft Dice of the fused probabilities
    # Divergence of the refined distribution from the teacher's (TEACHER), also where a pixel has no
    # label.
    node.LOSS.DISTILLATION_WEIGHT = 0.0

    # A dense model that sees the full-resolution crop in training, and what the refiner learns from
    # it (Hinton et al. 2015, arXiv 1503.02531). It is in no checkpoint.
    node.TEACHER = CN()
    node.TEACHER.WEIGHTS = ""  # its checkpoint; "" takes EXTRACTOR's WEIGHTS and MODEL
    node.TEACHER.MODEL = CN(new_allowed=True)  # as EXTRACTOR.MODEL, for a checkpoint of its own


def load_config(path: str, opts: Sequence = (), *, trust_code: bool = False) -> CfgNode:
    """A frozen config: Detectron2's defaults, this project's, the yaml at `path`, KEY VALUE pairs.

    The yaml's PROJECTS are imported; the rest is as `with_options` has it.

    Args:
        trust_code: consent to the code that the yaml names, see modeling/trust.py.

    Raises:
        KeyError: a key that is not declared, with its name.
        ValueError: a value of another type than the key's, or a key without a value; or code that
            needs consent.
    """
    path = os.path.expanduser(path)
    cfg = get_cfg()
    projects = named_projects(path, opts)
    if trust_code or trust.given("PROJECTS", opts):
        trust.trust(projects)
    for project in projects:
        trust.check_project(project, path)
    import_projects(cfg, projects)
    add_sparse_refine_config(cfg)
    cfg.merge_from_file(path, allow_unsafe=False)  # no Python objects
    trust.check_pickles(path, cfg.MODEL.ALLOW_PICKLE, opts, trust_code)
    trust.note_source(cfg.MODEL.MODULE.PATH, str(path))
    return with_options(cfg, opts, trust_code=trust_code)


def with_options(cfg: CfgNode, opts: Sequence = (), *, trust_code: bool = False) -> CfgNode:
    """A frozen copy of a config with KEY VALUE pairs, ready for a model to be built of it.

    MODEL.DEVICE becomes "cpu" where there is no CUDA device; folders of DATASETS.FOLDERS are
    registered. `trust_code` consents to the code that MODEL.MODULE.PATH names; a pair that sets the
    key does so too.

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
    if trust_code or trust.given("MODEL.MODULE.PATH", opts):
        trust.trust([cfg.MODEL.MODULE.PATH])
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    node = cfg.MODEL.SPARSE_REFINE
    for part, key in (
        *((cfg, "OUTPUT_DIR"), (cfg.MODEL, "WEIGHTS"), (node, "COARSE_CACHE")),
        *((node.BASE, "WEIGHTS"), (node.EXTRACTOR, "WEIGHTS"), (node.TEACHER, "WEIGHTS")),
        (cfg.MODEL.HUGGING_FACE, "NAME"),
    ):
        part[key] = os.path.expanduser(part[key])
    cfg.freeze()
    register_folders(cfg)
    return cfg
