# SPDX-License-Identifier: Apache-2.0
"""The one place where configuration keys are declared.

Detectron2's own keys keep their meaning. `MODEL.SEM_SEG_HEAD.NUM_CLASSES` is the number of classes
K of the base and of the refiner, `MODEL.SEM_SEG_HEAD.IGNORE_VALUE` the label that is no class,
`MODEL.PIXEL_MEAN` / `PIXEL_STD` / `INPUT.FORMAT` hold for both as well.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_sparse_refine_config(cfg: CN) -> None:
    """Declare the keys of this project in `cfg`, in place, with the paper's values as defaults."""
    # ---- other projects ------------------------------------------------------------------------
    # Detectron2 projects that the yaml's keys belong to, imported before they are read: "module",
    # or "module:function" where function(cfg) declares keys: "mask2former:add_maskformer2_config",
    # "detectron2.projects.deeplab:add_deeplab_config", "my_models.py:add_my_config".
    cfg.PROJECTS = []

    # ---- images --------------------------------------------------------------------------------
    # Share of an image's native resolution at which a DENSE model (one that is trained or evaluated
    # by itself, not wrapped) sees it, > 0. SparseRefine itself always gets the native image.
    cfg.INPUT.SCALE = 1.0
    # Training: an image is resized by a factor drawn uniformly from [low, high], both > 0. The
    # sides of the crop that follows are INPUT.CROP.SIZE, in pixels, where INPUT.CROP.ENABLED.
    cfg.INPUT.RESIZE_RANGE = [0.5, 2.0]
    # Training: a crop is drawn anew, up to ten times, while one class covers more of it than this
    # share, 0..1 (the paper's recipe: 0.75; 1.0 turns it off).
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Training: random brightness, contrast, saturation and hue as in SSD.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Training: images, with their labels, that each data worker keeps decoded in memory, >= 0. For
    # data sets of few large images (8 megapixels take 32 MB), where decoding is most of the work.
    cfg.INPUT.CACHE_IMAGES = 0

    # ---- data sets of one's own ----------------------------------------------------------------
    # Folders to register, each [name, image folder, label folder] or [..., split file], paths from
    # where the program runs. Images and label maps share names up to the extension; labels hold
    # 0..K-1 or MODEL.SEM_SEG_HEAD.IGNORE_VALUE. Use the names in DATASETS.TRAIN and TEST.
    cfg.DATASETS.FOLDERS = []
    cfg.DATASETS.CLASS_NAMES = []  # the K class names of those folders, in the order of the ids
    # Those labels hold 0 for "no class" and 1..K for the classes, as ADE20K's do (8-bit files).
    cfg.DATASETS.LABELS_FROM_ONE = False

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

    # ---- the EfficientNet-Lite0 backbone (modeling/efficientnet_lite.py) -------------------------
    cfg.MODEL.EFFICIENTNET_LITE = CN()
    # Its outputs, any of stem, res2, res3, res4, res5: strides 2, 4, 8, 16, 32.
    cfg.MODEL.EFFICIENTNET_LITE.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.EFFICIENTNET_LITE.PRETRAINED = True  # ImageNet weights, from a Python package

    # ---- backbones of timm (modeling/timm_backbone.py) ------------------------------------------
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "resnet50"  # a model of timm.list_models()
    cfg.MODEL.TIMM.PRETRAINED = False  # timm's weights, from its cache or the network
    # timm's numbers of the feature maps to return, from 0; [] for all of stride 4 and more. They
    # are called res2 (stride 4), res3 (stride 8) ...
    cfg.MODEL.TIMM.OUT_INDICES = []
    # More arguments of timm.create_model, as [name, value] pairs: [["drop_path_rate", 0.1]].
    cfg.MODEL.TIMM.OPTIONS = []

    # ---- SegNeXt's backbone (modeling/mscan.py) -------------------------------------------------
    cfg.MODEL.MSCAN = CN()
    cfg.MODEL.MSCAN.SIZE = "t"  # t, s, b or l
    cfg.MODEL.MSCAN.DROP_PATH = 0.0  # stochastic depth in training, 0..1 (the paper: 0.1, l: 0.3)
    cfg.MODEL.MSCAN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # strides 4, 8, 16, 32

    # ---- SegFormer's backbone (modeling/mix_transformer.py) -------------------------------------
    cfg.MODEL.MIX_TRANSFORMER = CN()
    cfg.MODEL.MIX_TRANSFORMER.SIZE = "b0"  # b0 .. b5
    cfg.MODEL.MIX_TRANSFORMER.DROP_PATH = 0.0  # stochastic depth, 0..1 (the paper: 0.1)
    cfg.MODEL.MIX_TRANSFORMER.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # strides 4 .. 32

    # ---- FCNHead, LightHamHead and SegFormerHead (modeling/) ------------------------------------
    # Share of the channels before the classifier that training sets to zero, 0..1.
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    cfg.MODEL.SEM_SEG_HEAD.NUM_CONVS = 1  # FCNHead: convolutions before the classifier, >= 1
    cfg.MODEL.SEM_SEG_HEAD.KERNEL_SIZE = 1  # FCNHead: their size, odd

    # ---- models of Hugging Face's transformers (modeling/hugging_face.py) ------------------------
    cfg.MODEL.HUGGING_FACE = CN()
    cfg.MODEL.HUGGING_FACE.NAME = ""  # hub id, or a folder as `save_pretrained` writes it
    cfg.MODEL.HUGGING_FACE.REVISION = "main"  # branch, tag or commit on the hub
    # Load NAME's weights. False: its architecture alone, with NUM_CLASSES classes, for weights that
    # come from elsewhere (BASE.WEIGHTS, MODEL.WEIGHTS).
    cfg.MODEL.HUGGING_FACE.PRETRAINED = True
    # Entries that replace those of NAME's config.json. Without NAME they are the whole model:
    # {model_type: segformer, depths: [3, 6, 40, 3], ...}.
    cfg.MODEL.HUGGING_FACE.CONFIG = CN(new_allowed=True)
    # [height, width] that images are resized to, for models that know one size only; [] takes it
    # from the model where that is so (DPT, EoMT), else images stay as they are.
    cfg.MODEL.HUGGING_FACE.IMAGE_SIZE = []
    # Images are padded to a multiple of it, >= 0; 0 takes the image processor's.
    cfg.MODEL.HUGGING_FACE.SIZE_DIVISIBILITY = 0

    # SegFormer: layers of its head in another order, in evaluation; logits are the same but for
    # rounding. The head, a third of B5's time on a CPU, then takes a twentieth of its own.
    cfg.MODEL.HUGGING_FACE.FOLD_HEAD = False

    # ---- plain PyTorch modules (modeling/module_segmentor.py) -----------------------------------
    cfg.MODEL.MODULE = CN()
    # What makes the module: "package.module:name" or "path/to/file.py:name", a class or a function.
    cfg.MODEL.MODULE.PATH = ""
    cfg.MODEL.MODULE.ARGS = CN(new_allowed=True)  # its keyword arguments, any mapping
    # Whether it comes with its weights: then it serves as a frozen base without BASE.WEIGHTS.
    cfg.MODEL.MODULE.PRETRAINED = False
    cfg.MODEL.MODULE.FORMAT = ""  # channel order it wants, "RGB" or "BGR"; "" takes INPUT.FORMAT
    cfg.MODEL.MODULE.SIZE_DIVISIBILITY = 1  # images are padded to a multiple of it, >= 1

    # ---- token merging, SegFormer++ (modeling/token_merging/) ------------------------------------
    # In the attention of SegFormer, PVT, ViT, DeiT and DPT of transformers and of MixTransformer,
    # in the dense model or in the base. Any checkpoint serves, and training needs nothing more.
    cfg.MODEL.TOKEN_MERGING = CN()
    # "" merges nothing. The paper's: "hq", "fast", "2x2". "hq_near" and "fast_near" compare a token
    # with the destinations of the 3 x 3 cells around it alone, which is faster.
    cfg.MODEL.TOKEN_MERGING.PRESET = ""
    # In its place, an entry for each stage: {query: MERGE, key_value: MERGE}, one of them, both or
    # {}. MERGE is {cell: [rows, columns], rate: share of the tokens that are merged, 0..1, reach:
    # cells to compare with on each side}; without a reach all of the map, without a rate the mean
    # of each cell.
    cfg.MODEL.TOKEN_MERGING.STAGES = []

    # ---- any dense model -----------------------------------------------------------------------
    # Convolution weights in torch's channels_last layout: same numbers, on most machines faster.
    cfg.MODEL.CHANNELS_LAST = False
    # Read Detectron2's .pkl checkpoints. They are Python pickles: loading one runs whatever code it
    # holds, so only for files from a source that you trust.
    cfg.MODEL.ALLOW_PICKLE = False

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

    # The sparse network that looks at them.
    node.EXTRACTOR = CN()
    # SparseUNetExtractor (the paper's), or PretrainedExtractor: a dense model of the base's
    # architecture that is evaluated at the selected pixels alone, and not trained.
    node.EXTRACTOR.NAME = "SparseUNetExtractor"
    # PretrainedExtractor: its checkpoint, a model trained at full resolution; "" takes the base's.
    # Of the keys below PRECISION alone has a meaning then.
    node.EXTRACTOR.WEIGHTS = ""
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
