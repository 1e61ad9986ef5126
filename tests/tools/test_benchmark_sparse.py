# SPDX-License-Identifier: Apache-2.0
"""tools/benchmark_sparse.py on a small mask: its records, that its engines agree, its errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.evaluation.peak_memory import peak_bytes
from sparse_refine.evaluation.timing import median_and_spread, take_turns

KEYS = {
    "op",
    "engine",
    "channels",
    "sites",
    "seconds",
    "gflops",
    "roofline_share",
    "peak_mb",
    "pass",
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads_put_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the tool sets it


@pytest.fixture
def mask(tmp_path, tool) -> Path:
    path = tmp_path / "mask.png"
    Image.fromarray(tool("sparse_benchmark.masks").synthetic_mask(64, 96)).save(path)
    return path


@pytest.fixture
def run(tmp_path, tool, mask):
    """run(*options) -> records."""

    def main(*options: str) -> list[dict]:
        out = tmp_path / "out.json"
        base = ["--masks", str(mask), "--json", str(out), "--threads", "1", "--repeats", "1"]
        tool("benchmark_sparse").main([*base, *options])
        return json.loads(out.read_text())

    return main


def test_single_convolutions_agree_on_every_engine(run, tool, capsys):
    sizes = ["--channels", "8", "--strided-channels", "4", "--train-channels", "8"]
    records = run("--only", "conv", *sizes)
    assert all(set(record) >= KEYS for record in records)
    assert all(record["seconds"] > 0 for record in records)

    output = capsys.readouterr().out
    engines = {e for e in tool("sparse_benchmark.peers").ENGINES if f"left out: {e}:" not in output}
    assert engines >= {"torch-fp32", "torch-bf16", "dense", "matmul", "matmul-bf16"}
    cases = [("conv3x3", "forward"), ("conv3x3", "train"), ("down", "forward"), ("up", "forward")]
    for case in cases:
        of_case = {r["engine"]: r for r in records if (r["op"], r["pass"]) == case}
        assert set(of_case) == engines, case
        for engine, record in of_case.items():
            # spconv 2.3.8 loses parts of sums where another thread writes the same row, and its
            # number of threads is settled by whoever loaded OpenMP first in this process
            if not engine.startswith(("matmul", "spconv")):
                limit = 0.02 if engine.endswith("bf16") else 1e-4
                assert record["difference"] < limit, (case, engine)
                assert (record["difference"] > 1e-4) == engine.endswith("bf16"), (case, engine)
        assert of_case["matmul"]["roofline_share"] == 1
    assert {r["op"] for r in records} == {"maps", "conv3x3", "down", "up"}
    warnings = [line for line in output.splitlines() if line.startswith("!")]
    assert all(line.startswith("! spconv") for line in warnings)


def test_operations_are_counted_by_hand(run, tool, mask):
    sites = np.asarray(Image.open(mask)) != 0
    engines = ["--engines", "torch-fp32", "matmul"]
    records = run("--only", "conv", "--channels", "8", "--strided-channels", "4", *engines)
    forward = {(r["op"], r["engine"]): r for r in records if r["pass"] == "forward"}
    for engine in ("torch-fp32", "matmul"):
        record = forward["conv3x3", engine]
        assert record["sites"] == sites.sum()
        expected = 2 * 9 * 8 * 8 * sites.sum()
        assert record["gflops"] * record["seconds"] * 1e9 == pytest.approx(expected)

    # "reach": coarse sites whose window 2 o .. 2 o + 2 meets a site, none beyond the last site
    rows, columns = (axis.max() for axis in sites.nonzero())
    windows = [
        sites[2 * y : 2 * y + 3, 2 * x : 2 * x + 3].any()
        for y in range((rows - 2) // 2 + 1)
        for x in range((columns - 2) // 2 + 1)
    ]
    for op in ("down", "up"):
        record = forward[op, "torch-fp32"]
        expected = 2 * 9 * 4 * 8 * sum(windows)
        assert record["channels"] == 4
        assert record["gflops"] * record["seconds"] * 1e9 == pytest.approx(expected)


@pytest.mark.slow
def test_unets_and_growth(run, capsys):
    engines = ["--engines", "torch-fp32", "minkowski", "dense", "matmul"]
    records = run("--only", "unet", "density", "size", "--unets", "small", *engines)
    unets = [r for r in records if r["section"] == "unet"]
    assert {r["pass"] for r in unets} == {"forward", "train"}
    assert all((r["difference"] or 0) < 1e-4 for r in unets)
    torch_unet = next(r for r in unets if r["engine"] == "torch-fp32")
    assert torch_unet["op"] == "unet-small" and torch_unet["levels"] == 4

    shares = [r["density"] for r in records if r["section"] == "density" and r["op"] == "conv3x3"]
    assert shares == pytest.approx([0.01, 0.05, 0.12, 0.3, 1, 1], abs=1e-3)  # dense at the end
    tiles = [r for r in records if r["section"] == "size" and r["op"] == "conv3x3"]
    assert [r["sites"] // tiles[0]["sites"] for r in tiles] == [1, 4, 16]
    assert capsys.readouterr().out.count("largest deviation from that line") == 4


def test_products_of_a_unet_are_those_of_its_layers(tool):
    from sparse_refine.sparse import SparseUNet

    cases, sections = tool("sparse_benchmark.cases"), tool("sparse_benchmark.sections")
    pyramid = sections.pyramid_of(np.ones((8, 8), bool), CPU, 2, "floor")
    shapes = cases.unet_products(SparseUNet(3, (4, 8), 1), pyramid)
    fine, coarse = 64, 16
    expected = [(fine, 27, 4)] + 2 * [(fine, 36, 4)] + 2 * [(coarse, 72, 8)]
    expected += [(coarse, 36, 8), (coarse, 72, 4), (fine, 72, 4), (fine, 36, 4), (fine, 8, 4)]
    assert sorted(shapes) == sorted(expected)


def test_masks_that_cannot_be_used(tmp_path, tool, capsys):
    files = {name: tmp_path / f"{name}.png" for name in ("text", "color", "empty", "small")}
    files["text"].write_text("no image")
    Image.fromarray(np.ones((16, 16, 3), np.uint8)).save(files["color"])
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(files["empty"])
    Image.fromarray(np.ones((4, 16), np.uint8)).save(files["small"])
    files["absent"] = tmp_path / "absent.png"
    (tmp_path / "folder").mkdir()
    files["folder"] = tmp_path / "folder"
    words = {
        "text": "cannot be read",
        "color": "(16, 16, 3)",
        "empty": "all 256 pixels are 0",
        "small": "(4, 16)",
        "absent": "cannot be read",
        "folder": "without an image",
    }
    for name, path in files.items():
        out = tmp_path / "out.json"
        with pytest.raises(SystemExit):
            tool("benchmark_sparse").main(["--masks", str(path), "--json", str(out)])
        error = capsys.readouterr().err
        assert str(path) in error and words[name] in error, name
        assert not out.exists()


def test_missing_engine_is_left_out_with_one_line(run, tool, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "spconv", None)
    monkeypatch.setitem(__import__("sys").modules, "spconv.pytorch", None)
    records = run("--only", "conv", "--channels", "4", "--strided-channels", "4", "--engines",
                  "torch-fp32", "spconv")  # fmt: skip
    assert {record["engine"] for record in records} == {"torch-fp32"}
    assert capsys.readouterr().out.count("left out: spconv: spconv is not installed") == 1


def test_densities_grow_and_shrink_a_real_shape(tool):
    masks = tool("sparse_benchmark.masks")
    mask = masks.synthetic_mask(128, 128)
    assert mask.mean() == pytest.approx(0.12, abs=1e-3)
    less, more = masks.at_density(mask, 0.05), masks.at_density(mask, 0.3)
    assert not (less & ~mask).any() and not (mask & ~more).any()
    assert masks.at_density(mask, 1.0).all()
    assert masks.neighbours_present(np.ones((3, 3), bool)) == pytest.approx((25 + 20 + 4) / 81)


def test_straight_line_deviation(tool):
    records = tool("sparse_benchmark.records")
    sites = np.array([1.0, 2.0, 4.0])
    assert records.straight_line(sites, 3 + 2 * sites) == pytest.approx((3, 2, 0))
    assert records.straight_line(sites, np.array([5.0, 7.0, 12.0]))[2] > 0.01


def test_calls_take_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = take_turns(calls, CPU, repeats=2, turn=0)
    assert order == ["a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert len(take_turns(calls, CPU, repeats=9, min_rounds=3, budget=0, turn=0)["a"]) == 3
    assert median_and_spread([3.0, 1.0, 2.0]) == (2.0, (1.0, 3.0))


def test_peak_memory_counts_what_a_call_holds_for_a_moment():
    def call():
        return float(torch.ones(16 << 20).sum())  # 64 MiB, freed

    peak, result = peak_bytes(call, CPU)
    if peak is None:
        pytest.skip("this system does not tell the peak of a process's memory")
    assert result == 16 << 20
    assert 60 << 20 < peak < 90 << 20
    assert peak_bytes(lambda: None, CPU)[0] < 8 << 20
