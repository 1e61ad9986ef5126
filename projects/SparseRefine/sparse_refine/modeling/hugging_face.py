# SPDX-License-Identifier: Apache-2.0
"""Segmentation models of Hugging Face's `transformers` behind Detectron2's contract.

Semantic models (SegFormer, UPerNet, DPT, BEiT, Data2Vec, MobileViT, MobileNetV2 ...) give logits;
universal ones (Mask2Former, MaskFormer, OneFormer, EoMT) give queries, each with a class and a
mask, from which scores are made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from .folded_head import fold_head
from .hugging_face_loading import is_universal, load_parts
from .module_segmentor import plain
from .segmentor import Segmentor

_QUERIES = 16  # masks interpolated at once: a hundred at 512x1024 take 210 MB


def add_hugging_face_config(cfg: CfgNode) -> None:
    """Declare MODEL.HUGGING_FACE in `cfg`, in place."""
    # ---- models of Hugging Face's transformers ---------------------------------------------------
    cfg.MODEL.HUGGING_FACE = CfgNode()
    cfg.MODEL.HUGGING_FACE.NAME = ""  # hub id, or a folder as `save_pretrained` writes it
    cfg.MODEL.HUGGING_FACE.REVISION = "main"  # branch, tag or commit on the hub
    # Load NAME's weights. False: its architecture alone, with NUM_CLASSES classes, for weights that
    # come from elsewhere (BASE.WEIGHTS, MODEL.WEIGHTS).
    cfg.MODEL.HUGGING_FACE.PRETRAINED = True
    # Entries that replace those of NAME's config.json. Without NAME they are the whole model:
    # {model_type: segformer, depths: [3, 6, 40, 3], ...}.
    cfg.MODEL.HUGGING_FACE.CONFIG = CfgNode(new_allowed=True)
    # [height, width] that images are resized to, for models that know one size only; [] takes it
    # from the model where that is so (DPT, EoMT), else images stay as they are.
    cfg.MODEL.HUGGING_FACE.IMAGE_SIZE = []
    # Images are padded to a multiple of it, >= 0; 0 takes the image processor's.
    cfg.MODEL.HUGGING_FACE.SIZE_DIVISIBILITY = 0

    # SegFormer: layers of its head in another order, in evaluation; logits are the same but for
    # rounding. The head, a third of B5's time on a CPU, then takes a twentieth of its own.
    cfg.MODEL.HUGGING_FACE.FOLD_HEAD = False


@META_ARCH_REGISTRY.register()
class HuggingFaceSegmentor(Segmentor):
    """Any `AutoModelForSemanticSegmentation` or `AutoModelForUniversalSegmentation`.

    `sem_seg` is (K,H,W): logits of a semantic model; of a universal one, scores, the sum over
    queries of softmax(class), without "no object", times sigmoid(mask). Logits stay at the model's
    own stride until the one interpolation to the size that is asked for; masks are interpolated
    before their sigmoid, as in Mask2Former.

    The model's image processor decides: its mean, std, value range and channel order hold,
    MODEL.PIXEL_MEAN and PIXEL_STD of the config then only serve the refiner. Images may be RGB or
    BGR (INPUT.FORMAT), they are turned to what the model wants. Where the model and the data set
    name the same classes in another order, the outputs take the data set's.

    Parameters are called `model.<name in transformers>`; transformers 5 renamed some, so that a
    checkpoint of the whole is for the version that wrote it. Semantic models train by themselves.

    Args:
        model: the transformers model.
        image_size: (height, width) that images are resized to, for models that know one size only.
        task_inputs: (1,T) int64, OneFormer's tokens of "the task is semantic".
        class_order: the output's channel for each class of the data set.
        started_anew: names of its tensors that have no weights yet, see contract.py.
        options: of `Segmentor`; `score_type` follows from the model.

    Raises:
        ValueError: a transformers model that is not for segmentation.
    """

    # a checkpoint of the transformers model alone serves as a base's weights
    weights_prefix = "model."

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: tuple[int, int] | None = None,
        task_inputs: torch.Tensor | None = None,
        class_order: list[int] | None = None,
        started_anew: tuple[str, ...] = (),
        **options,
    ):
        self.universal = is_universal(model.config)
        super().__init__(score_type="scores" if self.universal else "logits", **options)
        self.model = model
        self.image_size = image_size
        self.started_anew = started_anew
        self.class_names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        if class_order is not None:
            self.class_names = [self.class_names[i] for i in class_order]
            class_order = torch.tensor(class_order)
        self.register_buffer("class_order", class_order, False)
        self.register_buffer("task_inputs", task_inputs, False)

    @classmethod
    def comes_with_weights(cls, cfg: CfgNode) -> bool:
        """Whether those of HUGGING_FACE.NAME are loaded, see contract.py."""
        return bool(cfg.MODEL.HUGGING_FACE.NAME and cfg.MODEL.HUGGING_FACE.PRETRAINED)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.HUGGING_FACE
        # trained or loaded by itself, it may have a new head
        dense = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE) is cls
        parts = load_parts(
            node.NAME,
            revision=node.REVISION,
            pretrained=node.PRETRAINED,
            config=plain(node.CONFIG),
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            new_head=dense,
            image_format=cfg.INPUT.FORMAT,
            image_size=tuple(node.IMAGE_SIZE),
            size_divisibility=node.SIZE_DIVISIBILITY,
            class_names=_data_classes(cfg),
        )
        if node.FOLD_HEAD:
            fold_head(parts["model"])
        return {
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            **parts,
        }

    @classmethod
    def from_pretrained(cls, name: str, **options) -> HuggingFaceSegmentor:
        """Built without a yaml: `name` is a hub id or a folder, `options` are of `load_parts`.

        Raises:
            ImportError, ValueError: as `load_parts`.
        """
        return cls(**load_parts(name, **options))

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        size = images.shape[-2:]
        if self.image_size is not None:
            images = F.interpolate(
                images, size=self.image_size, mode="bilinear", align_corners=False, antialias=True
            )
        extra = {}
        if self.task_inputs is not None:
            extra["task_inputs"] = self.task_inputs.expand(len(images), -1)
        output = self.model(pixel_values=images, **extra)
        if self.universal:
            scores = query_scores(output.class_queries_logits, output.masks_queries_logits, size)
        else:
            scores = output.logits
        return scores if self.class_order is None else scores[:, self.class_order]


def query_scores(classes: torch.Tensor, masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Class logits (B,Q,K+1) and mask logits (B,Q,h,w) of queries -> scores (B,K,H,W) >= 0.

    The sum over queries of softmax(class) * sigmoid(mask), without the last class, "no object"
    (Mask2Former, Cheng et al., arXiv 2112.01527).
    """
    classes = classes.softmax(-1)[..., :-1]
    total = 0
    for share, part in zip(classes.split(_QUERIES, 1), masks.split(_QUERIES, 1)):
        if part.shape[-2:] != size:
            part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        total = total + torch.einsum("bqc,bqhw->bchw", share, part.sigmoid())  # (B,K,H,W)
    return total


def _data_classes(cfg: CfgNode) -> list[str] | None:
    """Class names of the data set, in the order of its ids, where they are known."""
    if cfg.DATASETS.CLASS_NAMES:
        return list(cfg.DATASETS.CLASS_NAMES)
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        return MetadataCatalog.get(name).get("stuff_classes", None)
    return None
