# SPDX-License-Identifier: Apache-2.0
"""Keys: declared, through yaml and back, misspelt."""

import pytest
import yaml
from detectron2.config import get_cfg

from sparse_refine import add_sparse_refine_config
from sparse_refine.config import load_config

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


def test_yaml_round_trip(tmp_path, make_cfg):
    cfg = make_cfg(
        METHOD + "SELECTOR.COUNT", 1234,
        METHOD + "EXTRACTOR.FEATURES", ["rgb", "entropy"],
        METHOD + "BASE.SCORE_TYPE", "scores",
        METHOD + "COARSE_CACHE", "somewhere",
        "INPUT.RESIZE_RANGE", [1.0, 1.0],
    )  # fmt: skip
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
