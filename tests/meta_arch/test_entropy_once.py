# SPDX-License-Identifier: Apache-2.0
"""The entropy of a coarse prediction is computed once an image, whoever reads it."""

import sys

import pytest
import torch

from sparse_refine import SparseRefine, selector
from sparse_refine.selector import BudgetSelector, EntropySelector, MarginSelector

from .models import image_of


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the logits that `entropy` is called with, whatever a module calls it."""
    original, shapes = selector.entropy, []

    def counted(logits, *args, **options):
        shapes.append(tuple(logits.shape))
        return original(logits, *args, **options)

    for name, module in list(sys.modules.items()):
        if name.startswith("sparse_refine") and getattr(module, "entropy", None) is original:
            monkeypatch.setattr(module, "entropy", counted)
    return shapes


@pytest.mark.parametrize("output", ["logits", "labels"])
@pytest.mark.parametrize(
    "select", [EntropySelector(threshold=0.8), BudgetSelector(fraction=0.2)], ids=["nats", "budget"]
)
def test_selection_and_record_share_it(make_cfg, calls, select, output):
    model = SparseRefine(make_cfg("MODEL.SPARSE_REFINE.OUTPUT", output)).eval()
    model.selector = select
    with torch.inference_mode():
        first, second = model([{"image": image_of(20, 28)}, {"image": image_of(16, 40)}])
    found = [first["refinement"].entropy, second["refinement"].entropy]
    assert calls == [(3, *each.shape) for each in found]
    (again,) = model([{"image": image_of(20, 28)}])  # the next image has its own
    assert len(calls) == 3 and torch.equal(again["refinement"].entropy, found[0])


def test_a_record_alone_computes_it(make_cfg, calls):
    model = SparseRefine(make_cfg()).eval()
    model.selector = MarginSelector(threshold=0.3)
    (output,) = model([{"image": image_of(20, 28)}])
    assert output["refinement"].entropy.shape == calls[0][1:] and len(calls) == 1
