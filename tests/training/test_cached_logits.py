# SPDX-License-Identifier: Apache-2.0
"""Training on cached coarse logits."""

import itertools

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from sparse_refine import SparseRefine
from sparse_refine.data import build_train_loader
from sparse_refine.training.trainer import Trainer

from .runs import METHOD, base_weights


@pytest.mark.slow
def test_epochs_after_the_first_skip_the_base(run, make_cfg, tmp_path, monkeypatch):
    tiny_base = META_ARCH_REGISTRY.get("TinyBase")
    forward, images = tiny_base.forward, []

    def counted(self, inputs):
        images.extend(inputs)
        return forward(self, inputs)

    monkeypatch.setattr(tiny_base, "forward", counted)
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_, **__: {}))
    options = ["INPUT.RESIZE_RANGE", [1.0, 1.0], METHOD + "COARSE_CACHE", str(tmp_path / "cache")]
    options += ["SOLVER.IMS_PER_BATCH", 5, "SOLVER.MAX_ITER", 4]
    run("a", *options)
    assert len(images) == 5  # four epochs of five images
    run("b", *options)
    assert len(images) == 5
    other = base_weights(make_cfg(), tmp_path, seed=4)
    run("c", *options, METHOD + "BASE.WEIGHTS", other)
    assert len(images) == 10
    with pytest.raises(ValueError, match=r"COARSE_CACHE.*INPUT.RESIZE_RANGE.*\[0.5, 2.0\]"):
        run("d", *options, "INPUT.RESIZE_RANGE", [0.5, 2.0])


def test_cached_logits_are_those_of_the_same_crops(tiny_dataset, make_cfg, tmp_path):
    """Flipped ones included, in the first epoch and after; the cache rounds to half precision."""
    name = tiny_dataset()
    options = ["DATASETS.TRAIN", (name,), "INPUT.RESIZE_RANGE", [1.0, 1.0]]
    options += [METHOD + "SELECTOR.THRESHOLD", 0.0]  # rounding must not change what is selected
    cached = [METHOD + "COARSE_CACHE", str(tmp_path / "cache")]
    runs, flipped = [], []
    for cfg in (make_cfg(*options), make_cfg(*options, *cached)):
        torch.manual_seed(0)
        model = SparseRefine(cfg).train()
        with torch.no_grad():  # a base that sees the same in a mirror
            kernel = model.coarse.base.conv.weight
            kernel[..., (0, 2)] = 0
        losses = []
        for items in itertools.islice(build_train_loader(cfg), 8):
            losses.append(sum(model(items).values()).item())
            flipped += [item["context_flip"] for item in items]
        runs.append(losses)
    assert 3 < sum(flipped) < 13
    assert runs[1] == pytest.approx(runs[0], rel=2e-3)
    assert max(runs[0]) > 1.02 * min(runs[0])  # they would tell
