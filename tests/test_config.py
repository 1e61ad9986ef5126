# SPDX-License-Identifier: Apache-2.0
"""Keys: through yaml and back, and stopped at build time where they are impossible."""

import re

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from safetensors.torch import save_file

from sparse_refine import SparseRefine, add_sparse_refine_config
from sparse_refine.base import build_base
from sparse_refine.config import load_config
from sparse_refine.data import SegmentationMapper
from sparse_refine.training.trainer import Trainer

METHOD = "MODEL.SPARSE_REFINE."


def own_keys():
    """Dotted names of the keys that this project declares."""

    def leaves(node, prefix=""):
        for key, value in node.items():
            if hasattr(value, "items"):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    cfg = get_cfg()
    before = set(leaves(cfg))
    add_sparse_refine_config(cfg)
    return sorted(set(leaves(cfg)) - before)


def fresh_cfg():
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    return cfg


# ---- declaration ---------------------------------------------------------------------------------


def test_keys_of_the_method_are_all_under_one_node():
    method = [key for key in own_keys() if key.startswith(METHOD)]
    assert len(method) > 15
    assert "INPUT.SCALE" in own_keys() and "TEST.BOUNDARY_DISTANCE" in own_keys()


def test_defaults_are_the_papers():
    cfg = fresh_cfg()
    node = cfg.MODEL.SPARSE_REFINE
    assert (node.SELECTOR.NAME, node.SELECTOR.THRESHOLD) == ("EntropySelector", 0.3)
    assert (node.BASE.SCALE, node.COARSE_INTERPOLATION) == (0.5, "nearest")
    assert (node.ENSEMBLER.NAME, node.ENSEMBLER.HIDDEN) == ("GatedEnsembler", 64)
    assert node.EXTRACTOR.FEATURES == ["rgb"] and cfg.INPUT.RESIZE_RANGE == [0.5, 2.0]


# ---- yaml ----------------------------------------------------------------------------------------


def test_yaml_round_trip(tmp_path, make_cfg):
    cfg = make_cfg(
        # fmt: off
        METHOD + "SELECTOR.COUNT",
        1234,
        METHOD + "EXTRACTOR.FEATURES",
        ["rgb", "entropy"],
        METHOD + "BASE.SCORE_TYPE",
        "scores",
        METHOD + "COARSE_CACHE",
        "somewhere",
        "INPUT.RESIZE_RANGE",
        [1.0, 1.0],
        # fmt: on
    )
    text = cfg.dump()
    assert "!!python" not in text
    file = tmp_path / "config.yaml"
    file.write_text(text)
    read = fresh_cfg()
    read.merge_from_file(str(file))
    assert yaml.safe_load(read.dump()) == yaml.safe_load(text)  # text repeats by yaml's anchors
    assert read.MODEL.SPARSE_REFINE == cfg.MODEL.SPARSE_REFINE


def test_every_value_that_is_not_the_default_survives_yaml(tmp_path):
    """Each key by itself, so that none is left out or renamed on the way."""
    changed = fresh_cfg()
    for key in own_keys():
        node = changed
        for part in key.split(".")[:-1]:
            node = node[part]
        last = key.split(".")[-1]
        value = node[last]
        if isinstance(value, bool):
            node[last] = not value
        elif isinstance(value, (int, float)):
            node[last] = value + 1
        elif isinstance(value, str):
            node[last] = value + "x"
        else:
            node[last] = value + value[:1]
    file = tmp_path / "config.yaml"
    file.write_text(changed.dump())
    read = fresh_cfg()
    read.merge_from_file(str(file))
    assert yaml.safe_load(read.dump()) == yaml.safe_load(changed.dump())
    assert read.MODEL.SPARSE_REFINE == changed.MODEL.SPARSE_REFINE


@pytest.mark.parametrize("key", [METHOD + "SELECTER.NAME", METHOD + "BASE.SCALES", "INPUT.SCALES"])
def test_misspelt_keys(make_cfg, tmp_path, key):
    with pytest.raises(
        (KeyError, AssertionError), match=key.split(".")[-1 if "BASE" in key else -2]
    ):
        make_cfg(key, 1.0)
    *nodes, last = key.split(".")
    lines = [f"{'  ' * depth}{node}:" for depth, node in enumerate(nodes)]
    file = tmp_path / "config.yaml"
    file.write_text("\n".join([*lines, f"{'  ' * len(nodes)}{last}: 1.0\n"]))
    wrong = next(part for part in key.split(".") if part in ("SELECTER", "SCALES"))
    with pytest.raises(KeyError, match=wrong):
        fresh_cfg().merge_from_file(str(file))


def test_a_value_of_the_wrong_type_names_its_key(make_cfg):
    with pytest.raises(ValueError, match="MODEL.SPARSE_REFINE.BASE.SCALE"):
        make_cfg(METHOD + "BASE.SCALE", "half")


# ---- impossible values ---------------------------------------------------------------------------


def budget(key, value):
    return [METHOD + "SELECTOR.NAME", "BudgetSelector", METHOD + "SELECTOR." + key, value]


MODEL_ERRORS = [
    ([METHOD + "OUTPUT", "label"], "OUTPUT", "'label'"),
    ([METHOD + "COARSE_INTERPOLATION", "cubic"], "COARSE_INTERPOLATION", "'cubic'"),
    ([METHOD + "BASE.SCALE", 0.0], "BASE.SCALE", "0.0"),
    ([METHOD + "BASE.SCALE", 1.5], "BASE.SCALE", "1.5"),
    ([METHOD + "BASE.SCALE", -0.5], "BASE.SCALE", "-0.5"),
    ([METHOD + "BASE.SCALE", float("nan")], "BASE.SCALE", "nan"),
    ([METHOD + "BASE.SCORE_TYPE", "softmax"], "BASE.SCORE_TYPE", "'softmax'"),
    ([METHOD + "BASE.TEMPERATURE", 0.0], "BASE.TEMPERATURE", "0.0"),
    ([METHOD + "BASE.TEMPERATURE", float("nan")], "BASE.TEMPERATURE", "nan"),
    ([METHOD + "BASE.META_ARCHITECTURE", "SparseRefine"], "BASE.META_ARCHITECTURE", "itself"),
    ([METHOD + "SELECTOR.THRESHOLD", -0.1], "SELECTOR.THRESHOLD", "-0.1"),
    ([METHOD + "SELECTOR.THRESHOLD", float("nan")], "SELECTOR.THRESHOLD", "nan"),
    (
        [METHOD + "SELECTOR.NAME", "MarginSelector", METHOD + "SELECTOR.THRESHOLD", 1.5],
        "SELECTOR.THRESHOLD",
        "1.5",
    ),
    (budget("FRACTION", 1.5), "SELECTOR.FRACTION", "1.5"),
    (budget("FRACTION", -0.1), "SELECTOR.FRACTION", "-0.1"),
    (budget("COUNT", -2), "SELECTOR.COUNT", "-2"),
    ([METHOD + "EXTRACTOR.FEATURES", []], "EXTRACTOR.FEATURES", "[]"),
    ([METHOD + "EXTRACTOR.FEATURES", ["rgb", "depth"]], "EXTRACTOR.FEATURES", "'depth'"),
    ([METHOD + "EXTRACTOR.PRESET", "huge"], "EXTRACTOR.PRESET", "'huge'"),
    ([METHOD + "EXTRACTOR.CHANNELS", []], "EXTRACTOR.CHANNELS", "[]"),
    ([METHOD + "EXTRACTOR.CHANNELS", [8, 0]], "EXTRACTOR.CHANNELS", "[8, 0]"),
    ([METHOD + "EXTRACTOR.BLOCKS", 0], "BLOCKS", "0"),
    ([METHOD + "EXTRACTOR.NORM", "LN"], "EXTRACTOR.NORM", "'LN'"),
    ([METHOD + "EXTRACTOR.DOWNSAMPLE_SITES", "round"], "EXTRACTOR.DOWNSAMPLE_SITES", "'round'"),
    ([METHOD + "EXTRACTOR.BACKEND", "spconv"], "EXTRACTOR.BACKEND", "'spconv'"),
    ([METHOD + "ENSEMBLER.HIDDEN", 0], "ENSEMBLER.HIDDEN", "0"),
    ([METHOD + "LOSS.FUSED_WEIGHT", -1.0], "LOSS.FUSED_WEIGHT", "-1.0"),
    ([METHOD + "LOSS.DICE_WEIGHT", float("nan")], "LOSS.DICE_WEIGHT", "nan"),
    (
        [METHOD + "LOSS.REFINED_WEIGHT", 0.0, METHOD + "LOSS.FUSED_WEIGHT", 0.0],
        "MODEL.SPARSE_REFINE.LOSS",
        "0",
    ),
    (["MODEL.PIXEL_STD", [1.0, 0.0, 1.0]], "MODEL.PIXEL_STD", "0.0"),
    ([METHOD + "EXTRACTOR.PIXEL_STD", [1.0, 0.0, 1.0]], "EXTRACTOR.PIXEL_STD", "0.0"),
    (["MODEL.PIXEL_MEAN", [1.0]], "MODEL.PIXEL_MEAN", "[1.0]"),
]


def test_the_refiner_may_have_its_own_mean_and_std(make_cfg):
    model = SparseRefine(make_cfg())
    own = model.extractor
    assert own.pixel_mean.tolist() == [[127.0] * 3] and own.pixel_std.tolist() == [[64.0] * 3]
    model = SparseRefine(make_cfg(METHOD + "EXTRACTOR.PIXEL_MEAN", [1.0, 2.0, 3.0]))
    assert model.extractor.pixel_mean.tolist() == [[1.0, 2.0, 3.0]]
    assert model.extractor.pixel_std.tolist() == [[64.0] * 3]


@pytest.mark.parametrize("options, key, value", MODEL_ERRORS, ids=lambda part: str(part)[-40:])
def test_impossible_values_of_the_model(make_cfg, options, key, value):
    cfg = make_cfg(*options)
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        SparseRefine(cfg)
    assert value in str(error.value)


@pytest.mark.parametrize(
    "options, key, value",
    [
        (["INPUT.RESIZE_RANGE", [2.0, 0.5]], "INPUT.RESIZE_RANGE", "[2.0, 0.5]"),
        (["INPUT.RESIZE_RANGE", [0.0, 1.0]], "INPUT.RESIZE_RANGE", "[0.0, 1.0]"),
        (["INPUT.RESIZE_RANGE", [1.0]], "INPUT.RESIZE_RANGE", "[1.0]"),
        (["INPUT.SCALE", 0.0], "INPUT.SCALE", "0.0"),
        (["INPUT.RANDOM_FLIP", "vertical"], "INPUT.RANDOM_FLIP", "'vertical'"),
        (["INPUT.FORMAT", "YUV"], "INPUT.FORMAT", "'YUV'"),
        (["INPUT.CROP.TYPE", "relative"], "INPUT.CROP.TYPE", "'relative'"),
        (["INPUT.CROP.SIZE", [0, 8]], "INPUT.CROP", "[0, 8]"),
        (["INPUT.CROP.SIZE", [8]], "INPUT.CROP", "[8]"),
        (
            ["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0],
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
            "0.0",
        ),
        (
            [METHOD + "COARSE_CACHE", "folder", "INPUT.RESIZE_RANGE", [0.5, 2.0]],
            "INPUT.RESIZE_RANGE",
            "[0.5, 2.0]",
        ),
    ],
    ids=lambda part: str(part)[-40:],
)
def test_impossible_values_of_the_data(make_cfg, options, key, value):
    cfg = make_cfg(*options)
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        SegmentationMapper(cfg, is_train=True)
    assert value in str(error.value)


def test_a_cache_without_resizing_is_fine(make_cfg):
    cfg = make_cfg(METHOD + "COARSE_CACHE", "folder", "INPUT.RESIZE_RANGE", [1.0, 1.0])
    assert SegmentationMapper(cfg, is_train=True).plain_context


def test_unknown_optimizer(make_cfg):
    cfg = make_cfg("SOLVER.OPTIMIZER", "LION")
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is 'LION': one of 'ADAMW', 'SGD'"):
        Trainer.build_optimizer(cfg, torch.nn.Linear(2, 2))


@pytest.mark.parametrize("classes", [0, -3])
def test_impossible_class_counts(make_cfg, classes):
    with pytest.raises(ValueError, match=rf"MODEL.SEM_SEG_HEAD.NUM_CLASSES.*{classes}"):
        SparseRefine(make_cfg("MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes))


@pytest.mark.parametrize(
    "key, known",
    [
        (
            "SELECTOR.NAME",
            "BudgetSelector, EntropySelector, MarginBudgetSelector, MarginSelector, "
            "RandomBudgetSelector",
        ),
        ("EXTRACTOR.NAME", "SparseUNetExtractor"),
        ("ENSEMBLER.NAME", "EntropyEnsembler, GatedEnsembler, RefinedEnsembler"),
        ("BASE.META_ARCHITECTURE", "SemanticSegmentor"),
    ],
)
def test_an_unknown_name_lists_the_known(make_cfg, key, known):
    cfg = make_cfg(METHOD + key, "Nonesuch")
    with pytest.raises(ValueError, match=re.escape(METHOD + key)) as error:
        SparseRefine(cfg)
    assert "'Nonesuch'" in str(error.value) and known in str(error.value)


# ---- the base's own weights ----------------------------------------------------------------------


@pytest.fixture
def weights(make_cfg):
    """State dict of a tiny base with numbers of its own."""
    torch.manual_seed(11)
    return build_base(make_cfg()).state_dict()


def loaded(make_cfg, file, *options):
    cfg = make_cfg(METHOD + "BASE.WEIGHTS", str(file), *options)
    return SparseRefine(cfg).coarse.base.state_dict()


def same(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], tensor) for name, tensor in expected.items()
    )


def test_base_from_a_detectron2_checkpoint(make_cfg, tmp_path, weights):
    torch.save({"model": weights, "iteration": 7}, tmp_path / "base.pth")
    assert same(loaded(make_cfg, tmp_path / "base.pth"), weights)


def test_base_from_a_bare_state_dict(make_cfg, tmp_path, weights):
    torch.save(weights, tmp_path / "base.pth")
    assert same(loaded(make_cfg, tmp_path / "base.pth"), weights)


def test_base_from_safetensors(make_cfg, tmp_path, weights):
    save_file(weights, tmp_path / "base.safetensors")
    assert same(loaded(make_cfg, tmp_path / "base.safetensors"), weights)


def test_base_from_safetensors_in_half_precision(make_cfg, tmp_path, weights):
    half = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    save_file(half, tmp_path / "base.safetensors")
    state = loaded(make_cfg, tmp_path / "base.safetensors")
    assert all(state[name].dtype == tensor.dtype for name, tensor in weights.items())
    assert torch.allclose(state["conv.weight"], weights["conv.weight"], atol=1e-3)


def test_base_by_prefix(make_cfg, tmp_path, weights):
    """A base inside a checkpoint of something larger."""
    content = {f"student.{name}": torch.zeros_like(t) for name, t in weights.items()}
    content.update({f"teacher.{name}": tensor for name, tensor in weights.items()})
    torch.save({"model": content}, tmp_path / "both.pth")
    prefix = (METHOD + "BASE.WEIGHTS_PREFIX", "teacher.")
    assert same(loaded(make_cfg, tmp_path / "both.pth", *prefix), weights)
    with pytest.raises(ValueError, match=r"conv.weight is missing.*BASE.WEIGHTS_PREFIX"):
        loaded(make_cfg, tmp_path / "both.pth")


def test_base_weights_that_are_not_there(make_cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        loaded(make_cfg, tmp_path / "nowhere.pth")


def test_base_weights_that_lack_a_tensor(make_cfg, tmp_path, weights):
    weights.pop("head.bias")
    torch.save({"model": weights}, tmp_path / "base.pth")
    with pytest.raises(
        ValueError, match=r"base\.pth does not fit .*TinyBase: head.bias is missing"
    ):
        loaded(make_cfg, tmp_path / "base.pth")


def test_base_weights_of_another_class_count(make_cfg, tmp_path, weights):
    torch.save({"model": weights}, tmp_path / "base.pth")
    with pytest.raises(ValueError) as error:
        loaded(make_cfg, tmp_path / "base.pth", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5)
    assert "head.bias is (3,) in the file and (5,) in the model" in str(error.value)
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES" in str(error.value)


@pytest.mark.parametrize(
    "opts, kind, message",
    [
        (["MODEL.SPARSE_REFINE.SCALE", 0.5], KeyError, r"Non-existent config key: MODEL\.SPARSE"),
        (["SEED", 1, "MODEL.DEVICE"], ValueError, "one KEY has no VALUE"),
        (["SEED", "many"], ValueError, "SEED"),
    ],
)
def test_bad_pairs(tmp_path, opts, kind, message):
    path = tmp_path / "c.yaml"
    path.write_text("SEED: 0\n")
    with pytest.raises(kind, match=message):
        load_config(str(path), opts)
