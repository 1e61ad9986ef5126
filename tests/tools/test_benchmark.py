# SPDX-License-Identifier: Apache-2.0
"""tools/benchmark.py on a tiny model: its record, that the mask's pixels are those refined, its
errors, and the counting and timing that it stands on."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.evaluation.counting import multiply_adds
from sparse_refine.evaluation.stages import STAGES, StageTimer
from sparse_refine.modeling import ModuleSegmentor

SIZE = (48, 64)
SITES = 300


@pytest.fixture
def mask(tmp_path) -> Path:
    pixels = np.zeros(SIZE, np.uint8)
    pixels.flat[torch.randperm(pixels.size)[:SITES].numpy()] = 7
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(tmp_path, tool, make_cfg):
    """run(*options, size, config options) -> content of the JSON."""

    def main(*options: str, size=SIZE, config=()):
        yaml, out = tmp_path / "config.yaml", tmp_path / "out.json"
        yaml.write_text(make_cfg(*config).dump())
        height, width = map(str, size)
        start = ["--config-file", str(yaml), "--height", height, "--width", width]
        tool("benchmark").main([*start, "--json", str(out), *options])
        return json.loads(out.read_text())

    return main


def test_record(run, mask, capsys):
    record = run("--sites", str(mask), "--repeats", "3")
    assert {"config", "height", "width", "arms", "speedup", "selected_fraction"} <= set(record)
    assert (record["height"], record["width"]) == SIZE
    assert list(record["arms"]) == ["dense_full", "coarse", "sparse_refine"]
    for arm in record["arms"].values():
        assert {"seconds", "gmacs", "peak_mb"} <= set(arm)
        low, high = arm["spread"]
        assert 0 < low <= arm["seconds"] <= high
    sparse = record["arms"]["sparse_refine"]
    assert list(sparse["stages"]) == [*STAGES, "other"]
    assert sum(sparse["stages"].values()) == pytest.approx(sparse["seconds"])
    assert all(sparse["stages"][stage] > 0 for stage in STAGES)
    assert record["selected_fraction"] == pytest.approx(SITES / (SIZE[0] * SIZE[1]))
    text = capsys.readouterr().out
    assert "random weights in the base and the refiner" in text and "dense_full" in text


def test_seconds_are_those_of_one_image_of_a_batch(run, tool, mask, monkeypatch, capsys):
    """A clock that stands still but for calls: each takes six seconds, of three images."""
    records = tool("model_benchmark.records")
    seen = []

    def take_turns(calls, device, repeats, **options):
        outputs = {name: call() for name, call in calls.items()}
        seen.extend(len(output) for output in outputs.values())
        return {name: [6.0] * repeats for name in calls}

    monkeypatch.setattr(records, "take_turns", take_turns)
    record = run("--sites", str(mask), "--batch", "3", "--repeats", "2")
    assert seen == [3, 3, 3] and record["batch"] == 3
    assert {arm["seconds"] for arm in record["arms"].values()} == {2.0}
    assert sum(record["arms"]["sparse_refine"]["stages"].values()) == pytest.approx(2.0)
    assert record["selected_fraction"] == SITES / (SIZE[0] * SIZE[1])
    assert "3 images a call" in capsys.readouterr().out


def test_multiply_adds_of_the_arms(run, mask):
    arms = run("--sites", str(mask), "--repeats", "1")["arms"]
    pixels, hidden, classes = SIZE[0] * SIZE[1], 8, 3
    # TinyBase: 3x3 of 3 to 8, a norm of 8 (fvcore: two a value), 1x1 of 8 to 3
    full = pixels * (27 * hidden + 2 * hidden + hidden * classes)
    assert arms["dense_full"]["gmacs"] * 1e9 == pytest.approx(full)
    assert arms["coarse"]["gmacs"] * 1e9 == pytest.approx(full / 4)
    refiner = (arms["sparse_refine"]["gmacs"] - arms["coarse"]["gmacs"]) * 1e9
    # at full resolution at least: stem of 3 to 4, two blocks of two convolutions of 4 or 8 to 4
    assert refiner > SITES * 9 * (3 * 4 + 4 * 4 * 4)
    assert arms["sparse_refine"]["parameters"] > arms["coarse"]["parameters"]


def test_speedup_is_the_median_of_the_rounds_ratios(tool, monkeypatch, make_cfg):
    records = tool("model_benchmark.records")
    seconds = {"dense_full": [4.0, 8.0, 6.0], "coarse": [1.0] * 3, "custom": [2.0, 1.0, 2.0]}
    monkeypatch.setattr(records, "take_turns", lambda calls, *_, **__: seconds)
    monkeypatch.setattr(records, "median_stages", lambda *_: {})
    models, _ = tool("model_benchmark.arms").build_models(make_cfg(), None, None)
    (record,) = records.measure(models, SIZE, ["float32"], 3)
    assert record["speedup"] == 3.0  # of 2, 8 and 3; the ratio of the medians too
    assert record["arms"]["dense_full"]["seconds"] / record["arms"]["sparse_refine"]["seconds"] == 3


@pytest.mark.slow
def test_presets_and_precisions_share_what_they_can(run, mask):
    records = run(
        "--sites", str(mask), "--precision", "float32", "bfloat16", "--preset", "base", "small",
        "--repeats", "1", "--channels-last",
    )  # fmt: skip
    assert [(r["precision"], r["preset"]) for r in records] == [
        ("float32", "base"),
        ("float32", "small"),
        ("bfloat16", "base"),
        ("bfloat16", "small"),
    ]
    first, second = records[:2]
    assert first["arms"]["dense_full"] == second["arms"]["dense_full"]
    sizes = [r["arms"]["sparse_refine"]["parameters"] for r in records]
    assert sizes[0] == sizes[2] > sizes[1] == sizes[3]
    assert all(record["channels_last"] for record in records)


def test_models_of_several_presets_have_one_base(tool, make_cfg):
    cfg = make_cfg()
    models, random = tool("model_benchmark.arms").build_models(cfg, ["small", "base"], None)
    small, base = models.values()
    assert small.coarse is base.coarse and small.extractor is not base.extractor
    assert not small.training and not base.training and not base.extractor.training
    assert random == ["the base", "the refiner"]


@pytest.mark.parametrize("factor", [1, 2])
def test_sites_of_the_mask_are_those_refined(tool, mask, make_cfg, factor):
    arms = tool("model_benchmark.arms")
    size = (SIZE[0] * factor, SIZE[1] * factor)
    sites = arms.read_sites(str(mask), size)
    expected = np.asarray(Image.open(mask)).repeat(factor, 0).repeat(factor, 1)
    assert torch.equal(sites, torch.from_numpy(expected).nonzero())

    asked = []
    models, _ = arms.build_models(make_cfg(), None, sites)
    (model,) = models.values()
    model.selector.selector.register_forward_hook(lambda *_: asked.append(True))
    with torch.no_grad():
        output = model([{"image": torch.zeros(3, *size, dtype=torch.uint8)}])
    assert torch.equal(output[0]["refinement"].sites, sites)
    assert asked == [True]  # its time counts


@pytest.mark.slow
def test_without_a_mask_the_selector_decides(run):
    threshold = "MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD"
    assert run("--repeats", "1", threshold, "99.0")["selected_fraction"] == 0
    assert run("--repeats", "1", threshold, "0.0")["selected_fraction"] == 1


@pytest.mark.slow
def test_odd_size(run):
    assert run("--repeats", "1", size=(37, 53))["arms"]["sparse_refine"]["seconds"] > 0


def test_mask_of_another_shape_or_none(run, tmp_path, mask, capsys):
    def error(path, **options) -> str:
        with pytest.raises(SystemExit):
            run("--sites", str(path), **options)
        return capsys.readouterr().err

    message = error(mask, size=(48, 96))
    assert "48 x 64" in message and "48 x 96" in message and str(mask) in message
    text = tmp_path / "text.png"
    text.write_text("no image")
    assert "cannot be read as an image" in error(text) and str(text) in error(text)
    assert str(tmp_path / "absent.png") in error(tmp_path / "absent.png")
    empty = tmp_path / "empty.png"
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(empty)
    assert "no pixel is selected" in error(empty)


def test_what_cannot_be_timed_is_said(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(config=["MODEL.META_ARCHITECTURE", "TinyBase"])
    assert "MODEL.META_ARCHITECTURE is 'TinyBase'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--preset", "base", "--repeats", "1", "MODEL.WEIGHTS", "some.pth")
    assert "some.pth" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--json", str(tmp_path / "nowhere" / "out.json"))
    assert "nowhere" in capsys.readouterr().err


# ---- what it stands on ---------------------------------------------------------------------------


def test_stages_leave_the_model_as_it_was_and_nest(make_cfg, tool):
    models, _ = tool("model_benchmark.arms").build_models(make_cfg(), None, None)
    (model,) = models.values()
    inputs = [{"image": torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)}]
    timer = StageTimer(model)
    with torch.no_grad():
        plain, timed = model(inputs), timer(inputs)
    assert torch.equal(plain[0]["sem_seg"], timed[0]["sem_seg"])
    assert not any("forward" in vars(module) for module in model.modules())
    assert not {"_select", "_results"} & set(vars(model))
    assert not {"context", "at_sites"} & set(vars(model.coarse))

    clock = iter(range(100))
    timer = StageTimer(model)
    timer._mark = lambda: next(clock)
    with torch.no_grad():
        timer(inputs)
    (seconds,) = timer.seconds()
    # marks follow one another: one tick for each part, and base has resize's two within its three
    assert seconds == {
        "resize": 1, "base": 2, "select": 2, "extract": 1, "ensemble": 1, "scatter": 1,
    }  # fmt: skip


def test_a_failing_model_is_left_as_it_was(make_cfg, tool):
    models, _ = tool("model_benchmark.arms").build_models(make_cfg(), None, None)
    (model,) = models.values()

    def fail(*_):
        raise RuntimeError("in the middle")

    model.selector.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        StageTimer(model)([{"image": torch.zeros(3, *SIZE, dtype=torch.uint8)}])
    assert not {"_select", "_results"} & set(vars(model))
    assert not {"context", "at_sites"} & set(vars(model.coarse))


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_stages_of_the_median_call_sum_to_the_median(tool, calls):
    totals = [5.0, 1.0, 3.0][:calls]
    stages = [dict.fromkeys(STAGES, total / 10) for total in totals]
    result = tool("model_benchmark.records").median_stages(stages, totals)
    median = statistics.median(totals)
    assert sum(result.values()) == pytest.approx(median)
    assert result["base"] == pytest.approx(median / 10)


class Attention(nn.Module):
    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused

    def forward(self, images):
        x = images.flatten(2).transpose(1, 2)  # (B,N,3)
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(x, x, x)
        else:
            scores = torch.baddbmm(x.new_zeros(()), x, x.transpose(1, 2))
            y = scores.softmax(-1) @ x
        return y.transpose(1, 2).unflatten(2, images.shape[-2:])


@pytest.mark.parametrize("fused", [False, True])
def test_products_of_attention_are_counted(fused):
    base = ModuleSegmentor(Attention(fused))
    base.register_parameter("any", nn.Parameter(torch.zeros(1)))
    assert multiply_adds(base.eval(), (4, 6)) == 2 * 24 * 24 * 3


def test_wrapped_module_counts_as_it_is():
    model = SparseRefine.wrap(nn.Conv2d(3, 5, 3, padding=1, bias=False), num_classes=5)
    assert multiply_adds(model.coarse.base.eval(), (8, 10)) == 80 * 27 * 5
