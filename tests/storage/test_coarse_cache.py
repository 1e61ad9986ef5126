# SPDX-License-Identifier: Apache-2.0
"""Coarse logits on disk: the base is called once an image, and stale logits are never read."""

import os

import pytest
import torch
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.coarse import CoarsePass
from sparse_refine.storage.coarse_cache import CoarseCache


class CountingBase(nn.Module):
    """Logits of a 1x1 convolution; counts the images that it saw."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.images = 0

    def forward(self, inputs):
        self.images += len(inputs)
        return [{"sem_seg": self.conv(item["image"][None].float())[0]} for item in inputs]


@pytest.fixture
def item(tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"only its size and time matter here")
    context = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    return {
        "file_name": str(file),
        "image": torch.zeros(3, 5, 5, dtype=torch.uint8),
        "context": context,
        "context_flip": False,
        "crop": (1, 2, 8, 12),
    }


@pytest.fixture
def make(tmp_path):
    """make(base, settings) -> a coarse pass in training with its cache in one folder."""

    def make(base, settings="0.5 logits"):
        cache = CoarseCache(str(tmp_path / "cache"), settings)
        return CoarsePass(base=base, num_classes=4, scale=0.5, cache=cache).train()

    return make


def logits_of(module, *items):
    return [output.logits for output in module(list(items))]


def test_the_second_time_the_base_is_not_called(make, item):
    base = CountingBase()
    module = make(base)
    (first,) = logits_of(module, item)
    (second,) = logits_of(module, item)
    assert base.images == 1
    expected = base.conv(item["context"][None].float())[0]
    assert torch.allclose(first, expected, rtol=2e-3) and second.dtype == torch.float32
    # not nearly: or else an interrupted run, resumed, would see other numbers than an unbroken one
    assert torch.equal(first, second)
    (third,) = logits_of(make(base), item)  # the next run
    assert base.images == 1 and torch.equal(first, third)


def test_logits_beyond_half_precision(make, item):
    base = CountingBase()
    with torch.no_grad():
        base.conv.bias += torch.tensor([1e6, -1e6, 0.0, 70000.0])
    module = make(base)
    (first,), (second,) = logits_of(module, item), logits_of(module, item)
    assert base.images == 1 and first.isfinite().all() and torch.equal(first, second)
    assert torch.equal(first.argmax(0), torch.zeros(4, 6))


def test_only_the_missing_images_of_a_batch_are_computed(make, item, tmp_path):
    base = CountingBase()
    module = make(base)
    (first,) = logits_of(module, item)
    (tmp_path / "other.jpg").write_bytes(b"another")
    context = torch.randint(0, 256, (3, 5, 5), dtype=torch.uint8)
    other = {**item, "file_name": str(tmp_path / "other.jpg"), "context": context}
    new, again = logits_of(module, other, item)
    assert base.images == 2 and torch.equal(again, first)
    assert torch.allclose(new, base.conv(context[None].float())[0], rtol=2e-3)


def test_images_of_one_name_in_two_folders(make, item, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "photo.jpg").write_bytes(b"only its size and time matter here")
    os.utime(tmp_path / "b" / "photo.jpg", ns=(os.stat(item["file_name"]).st_mtime_ns,) * 2)
    base = CountingBase()
    module = make(base)
    logits_of(module, item)
    logits_of(module, {**item, "file_name": str(tmp_path / "b" / "photo.jpg")})
    assert base.images == 2


def test_flip_is_applied_to_cached_logits(make, item):
    base = CountingBase()
    module = make(base)
    (flipped_first,) = logits_of(module, {**item, "context_flip": True})
    (plain,) = logits_of(module, item)
    (flipped,) = logits_of(module, {**item, "context_flip": True})
    assert base.images == 1
    assert torch.equal(flipped, plain.flip(2)) and torch.equal(flipped_first, flipped)
    assert not torch.equal(flipped, plain)


def test_inference_neither_reads_nor_writes(make, item, tmp_path):
    base = CountingBase()
    module = make(base).eval()
    logits_of(module, {"image": item["image"]})  # no file name either
    logits_of(module, item)
    assert base.images == 2 and not (tmp_path / "cache").exists()


def test_other_weights_are_other_logits(make, item):
    base = CountingBase()
    (first,) = logits_of(make(base), item)
    with torch.no_grad():
        base.conv.bias[1] += 1e-3
    (second,) = logits_of(make(base), item)
    assert base.images == 2 and not torch.equal(first, second)


def test_other_settings_are_other_logits(make, item):
    base = CountingBase()
    logits_of(make(base), item)
    logits_of(make(base, "0.25 logits"), item)
    assert base.images == 2


def test_a_changed_image_is_computed_anew(make, item):
    base = CountingBase()
    module = make(base)
    logits_of(module, item)
    os.utime(item["file_name"], ns=(1, 1))
    logits_of(module, item)
    assert base.images == 2


def test_an_interrupted_write_leaves_no_logits(make, item, monkeypatch):
    base = CountingBase()
    module = make(base)

    def interrupted(tensors, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("sparse_refine.storage.weights.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        logits_of(module, item)
    monkeypatch.undo()
    logits_of(module, item)
    assert base.images == 2


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.SPARSE_REFINE.BASE.SCALE", 0.25),
        ("MODEL.SPARSE_REFINE.BASE.SCORE_TYPE", "scores"),
        ("MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ("INPUT.FORMAT", "BGR"),
    ],
)
def test_what_the_base_sees_is_part_of_the_key(make_cfg, tmp_path, item, key, value):
    """Another scale, score type or normalisation: the base has to be asked again."""
    options = ("MODEL.SPARSE_REFINE.COARSE_CACHE", str(tmp_path / "cache"))
    seen = []
    for cfg in (make_cfg(*options), make_cfg(*options), make_cfg(*options, key, value)):
        torch.manual_seed(0)
        model = SparseRefine(cfg).train()
        model([{**item, "sem_seg": torch.zeros(5, 5, dtype=torch.int64)}])
        seen.append(len(model.coarse.base.calls))
    assert seen == [1, 0, 1]


def test_temperature_is_no_part_of_the_key(make_cfg, tmp_path, item):
    """Logits are divided when they are read: a new temperature is applied without a new pass."""
    options = ("MODEL.SPARSE_REFINE.COARSE_CACHE", str(tmp_path / "cache"))
    seen, logits = [], []
    for temperature in (1.0, 4.0):
        torch.manual_seed(0)
        cfg = make_cfg(*options, "MODEL.SPARSE_REFINE.BASE.TEMPERATURE", temperature)
        coarse = SparseRefine(cfg).train().coarse
        logits.append(logits_of(coarse, item)[0])
        seen.append(len(coarse.base.calls))
    assert seen == [1, 0]
    assert torch.equal(logits[1], logits[0] / 4)
