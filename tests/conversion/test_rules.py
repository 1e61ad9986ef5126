# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from sparse_refine.conversion import Drop, Rule, compare, convert

RULES = (
    Drop(r"extra\..+", "not needed"),
    Rule(r"layer(\d)\.(weight|bias)", r"layers.\1.\2"),
    Rule(r"both", ("first", "second"), lambda x: x.chunk(2)),
    Rule(r"layer(\d)\..+", r"never"),  # the first rule that matches counts
)


def test_names_groups_splits_and_drops():
    state = {
        "layer3.weight": torch.arange(6.0).view(2, 3),
        "both": torch.arange(4.0),
        "extra.x": torch.ones(1),
        "unknown": torch.ones(2),
        "a.layer3.weight": torch.ones(3),  # rules speak of whole names
    }
    converted, report = convert(state, RULES)
    assert list(converted) == ["layers.3.weight", "first", "second"]
    assert torch.equal(converted["layers.3.weight"], state["layer3.weight"])
    assert converted["second"].tolist() == [2.0, 3.0]
    assert report.matched == [
        ("layer3.weight", ("layers.3.weight",)),
        ("both", ("first", "second")),
    ]
    assert report.dropped == [("extra.x", "not needed")]
    assert report.left_over == ["unknown", "a.layer3.weight"] and not report.complete


def test_a_name_that_two_tensors_take():
    rules = (Rule(r"[ab]", "same"),)
    with pytest.raises(ValueError, match=r"b becomes \['same'\]"):
        convert({"a": torch.ones(1), "b": torch.ones(1)}, rules)


def test_a_tensor_that_a_transform_does_not_expect():
    rules = (Rule("a", "b", lambda x: (x.unflatten(0, (3, 3)),)),)
    with pytest.raises(ValueError, match=r"a of shape \(8,\) is not what the rule 'a' expects"):
        convert({"a": torch.ones(8)}, rules)


@pytest.mark.parametrize(
    "targets, transform",
    [
        (("b", "c"), None),
        (("b", "c"), lambda x: (x,)),
        ("b", lambda x: x.chunk(2)),
        ("b", lambda x: ()),
    ],
)
def test_as_many_tensors_as_names(targets, transform):
    """Else one would be lost without a word."""
    with pytest.raises(ValueError, match=r"a of shape \(8,\).*it made \d tensors for \d names"):
        convert({"a": torch.ones(8)}, (Rule("a", targets, transform),))


def test_against_a_model():
    converted, report = convert({"layer1.weight": torch.ones(2), "both": torch.ones(2)}, RULES)
    assert report.complete
    model = {
        "layers.1.weight": torch.ones(3),
        "first": torch.ones(1),
        "absent": torch.ones(1),
        "norm.num_batches_tracked": torch.tensor(0),
    }
    compare(report, converted, model)
    assert report.missing == ["absent"] and report.unexpected == ["second"]
    assert report.shapes == ["layers.1.weight: (2,) in the file, (3,) in the model"]
    assert not report.complete
    text = report.summary()
    for part in ("matched 2", "absent", "second", "(2,) in the file"):
        assert part in text


def test_nothing_matched_is_not_complete():
    assert not convert({}, RULES)[1].complete


def test_a_summary_names_a_few_of_many():
    _, report = convert({f"unknown{i}": torch.ones(1) for i in range(20)}, RULES)
    text = report.summary(limit=3)
    assert "20 (unknown0, unknown1, unknown2 and 17 more)" in text
