# SPDX-License-Identifier: Apache-2.0
"""From a hub id, a local folder or a config to a transformers model and how its images are made."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)

# Models whose position embedding is of one size, `image_size` of their config.
_ONE_SIZE = ("dpt", "eomt", "eomt_dinov3")
# Models that drop what exceeds a whole number of patches, so that their map would not cover it. In
# transformers 4 these too know one size only.
_WHOLE_PATCHES = ("beit", "data2vec-vision")


def load_parts(
    name: str = "",
    *,
    revision: str = "main",
    pretrained: bool = True,
    config: dict | None = None,
    num_classes: int | None = None,
    new_head: bool = False,
    image_format: str = "RGB",
    image_size: tuple[int, ...] = (),
    size_divisibility: int = 0,
    class_names: list[str] | None = None,
) -> dict:
    """Arguments of `HuggingFaceSegmentor`, for a model from the hub, a folder or a config.

    Weights are read from safetensors files, or by torch's weights-only loader; code of a hub
    repository is never run.

    Args:
        name: hub id, or a folder with config.json, weights and preprocessor_config.json.
        revision: branch, tag or commit on the hub.
        pretrained: load the weights; else they are random, and the head has `num_classes`.
        config: entries that replace those of config.json; without `name`, "model_type" and all
            that differs from transformers' defaults.
        num_classes: K that the model must have; None takes the model's.
        new_head: tensors that the pretrained weights lack, or have for another number of classes,
            start from random numbers. False: they are an error.
        image_format: "RGB" or "BGR", the order of the images' channels.
        image_size: (height, width) that images are resized to; () takes the model's own where it
            knows one size only.
        size_divisibility: 0 takes the image processor's, or the model's patches.
        class_names: of the data set, in the order of its ids; None leaves the model's order.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no such model, another class count, or weights that are missing.
    """
    transformers = _transformers()
    config = _config(transformers, name, revision, config or {})
    universal = is_universal(config)
    pretrained = pretrained and bool(name)
    if getattr(config, "use_auxiliary_head", False):  # its output would not be read
        config.use_auxiliary_head = False
    if num_classes is not None and (new_head or not pretrained):
        if config.num_labels != num_classes:
            config.num_labels = num_classes
    elif num_classes not in (None, config.num_labels):
        raise ValueError(
            f"MODEL.HUGGING_FACE.NAME {name!r} predicts {config.num_labels} classes but "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}"
        )
    if universal:
        kind = transformers.AutoModelForUniversalSegmentation
    else:
        kind = transformers.AutoModelForSemanticSegmentation
    if pretrained:
        model, anew = _pretrained(kind, name, revision, config, new_head)
    else:
        model, anew = kind.from_config(config, trust_remote_code=False), ()

    parts = {"model": model.float().eval(), "flip_channels": image_format == "BGR"}
    parts["started_anew"] = anew
    if name:
        parts.update(_processing(transformers, name, revision, image_format))
    one_size = config.model_type in _ONE_SIZE
    if config.model_type in _WHOLE_PATCHES:
        one_size = transformers.__version__.startswith("4.")
        parts["size_divisibility"] = config.patch_size
    if size_divisibility:
        parts["size_divisibility"] = size_divisibility
    if image_size or one_size:
        parts["image_size"] = tuple(image_size) or _pair(config.image_size)
    if config.model_type == "oneformer":
        parts["task_inputs"] = _task_tokens(transformers, name, revision, config.task_seq_len)
    names = [config.id2label[i] for i in range(config.num_labels)]
    parts["class_order"] = _class_order(names, class_names)
    return parts


def is_universal(config) -> bool:
    """Whether a transformers config is of a model of queries.

    Raises:
        ValueError: it is of no segmentation model that this project knows how to read.
    """
    from transformers.models.auto import modeling_auto as auto

    if config.model_type in auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES:
        return False
    universal = dict(auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES)
    for other in ("detr", "videomt"):  # masks of another kind; video
        universal.pop(other, None)
    if config.model_type in universal:
        return True
    known = sorted([*auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, *universal])
    raise ValueError(
        f"MODEL.HUGGING_FACE: model type {config.model_type!r} is no segmentation model that "
        f"transformers builds for this. Known: {', '.join(known)}"
    )


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "HuggingFaceSegmentor needs `pip install transformers`; or choose another "
            "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE"
        ) from error
    return transformers


def _config(transformers, name: str, revision: str, entries: dict):
    if name:
        try:
            return transformers.AutoConfig.from_pretrained(
                name, revision=revision, trust_remote_code=False, **entries
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"MODEL.HUGGING_FACE.NAME {name!r} (REVISION {revision!r}) has no config that "
                f"can be read, neither as a folder nor on the hub: {error}"
            ) from error
    if "model_type" not in entries:
        raise ValueError(
            "MODEL.HUGGING_FACE.NAME is '' and CONFIG has no 'model_type': name a hub id or a "
            "folder, or describe the model in CONFIG"
        )
    return transformers.AutoConfig.for_model(**entries)


def _pretrained(kind, name: str, revision: str, config, new_head: bool):
    """A model with its weights, and the names of tensors that it has none for; see `load_parts` for
    `new_head`."""
    model, loading = kind.from_pretrained(
        name,
        revision=revision,
        config=config,
        trust_remote_code=False,
        weights_only=True,
        ignore_mismatched_sizes=new_head,
        output_loading_info=True,
    )
    lacking = sorted(loading["missing_keys"]) + sorted(str(k) for k in loading["mismatched_keys"])
    if lacking:
        text = f"{name} lacks {len(lacking)} tensors of {type(model).__name__}: "
        text += f"{', '.join(lacking[:4])}{' ...' if len(lacking) > 4 else ''}"
        if not new_head:
            raise ValueError(
                f"{text}. A frozen base cannot start them anew: train it by itself first "
                "(MODEL.META_ARCHITECTURE HuggingFaceSegmentor) and set "
                "MODEL.SPARSE_REFINE.BASE.WEIGHTS, with MODEL.HUGGING_FACE.PRETRAINED False"
            )
        logger.warning(f"{text}. They start from random numbers")
    return model, tuple(lacking)


def _processing(transformers, name: str, revision: str, image_format: str) -> dict:
    """Mean and std on 0..255, size divisibility and channel order, as the image processor has them;
    {} where there is none."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        logger.warning(
            f"MODEL.HUGGING_FACE.NAME {name!r} has no image processor, MODEL.PIXEL_MEAN and "
            f"PIXEL_STD hold: {error}"
        )
        return {}
    factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if getattr(processor, "do_normalize", False):
        mean, std = _triple(processor.image_mean), _triple(processor.image_std)
    parts = {
        "pixel_mean": tuple(value / factor for value in mean),
        "pixel_std": tuple(value / factor for value in std),
    }
    # those are RGB's; `Segmentor` normalises in the images' order and flips afterwards
    if image_format == "BGR":
        parts = {key: value[::-1] for key, value in parts.items()}
    wants_bgr = bool(getattr(processor, "do_flip_channel_order", False))
    parts["flip_channels"] = wants_bgr != (image_format == "BGR")
    parts["size_divisibility"] = int(getattr(processor, "size_divisor", None) or 1)
    logger.info(f"{name}: {type(processor).__name__}'s {parts}")
    return parts


def _task_tokens(transformers, name: str, revision: str, length: int) -> torch.Tensor:
    """(1,length) int64: OneFormer is told its task as text."""
    if not name:
        raise ValueError("OneFormer needs MODEL.HUGGING_FACE.NAME: its tokenizer reads the task")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        name, revision=revision, trust_remote_code=False
    )
    tokens = tokenizer(
        ["the task is semantic"],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return tokens["input_ids"]


def _class_order(names: list[str], wanted: list[str] | None) -> list[int] | None:
    """For each class of the data set the model's channel; None where the order stays."""
    if wanted is None:
        return None
    ours, theirs = ([name.strip().lower() for name in part] for part in (wanted, names))
    if ours == theirs:
        return None
    if len(set(ours)) == len(ours) and sorted(ours) == sorted(theirs):
        logger.info("The model's classes are put into the data set's order")
        return [theirs.index(name) for name in ours]
    if not all(name.startswith("label_") for name in theirs):  # transformers' placeholder
        pairs = [f"{a!r} for {b!r}" for a, b in zip(theirs, ours) if a != b]
        logger.warning(
            f"The model names its classes otherwise than the data set: {', '.join(pairs[:4])}"
            f"{' ...' if len(pairs) > 4 else ''}. Ids are taken as they are"
        )
    return None


def _triple(value) -> tuple[float, float, float]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)
