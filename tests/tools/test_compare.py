# SPDX-License-Identifier: Apache-2.0
"""tools/compare.py: arms that differ in a key, means over seeds, and the oracle's row."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from sparse_refine.config import load_config
from sparse_refine.data import build_test_loader
from sparse_refine.data.reading import read_labels
from sparse_refine.evaluation.comparison import IN_PROCESS, comparison_table, over_seeds
from sparse_refine.evaluation.metrics import confusion_matrix, summarize
from sparse_refine.inference.loading import load_model
from sparse_refine.storage.weights import save_weights

BUDGET = ["MODEL.SPARSE_REFINE.SELECTOR.NAME", "BudgetSelector"]


@pytest.fixture
def run(tool, monkeypatch, tmp_path, make_cfg, tiny_dataset, quiet_logs):
    """run(*arguments) -> rows of results.json. In arguments C is the config; w0 and w1 are weights
    of two seeds; `run.dataset`."""
    dataset = tiny_dataset(count=3)
    cfg = make_cfg("DATASETS.TEST", (dataset,), *BUDGET)
    (tmp_path / "C").write_text(cfg.dump())
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_weights(build_model(cfg).state_dict(), str(tmp_path / f"w{seed}.safetensors"))
    monkeypatch.chdir(tmp_path)

    def main(*arguments) -> list[dict]:
        tool("compare").main(["--output", "out", *arguments])
        return json.loads(Path("out/results.json").read_text())

    main.dataset = dataset
    return main


def test_arms_that_differ_in_a_key(run):
    key = "MODEL.SPARSE_REFINE.SELECTOR.FRACTION"
    few, many = run(
        *("--arm", "few", "C", "w0.safetensors", f"{key}=0.05"),
        *("--arm", "many", "C", "w0.safetensors", f"{key}=0.5", "SEED=3"),
        *("--", "MODEL.SPARSE_REFINE.OUTPUT", "labels"),
    )
    assert (few["arm"], many["arm"]) == ("few", "many")
    assert few["selected_fraction"] == pytest.approx(0.05, abs=1e-3)
    assert many["selected_fraction"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
def test_means_over_seeds(run, capsys):
    alone = [
        run("--arm", "a", "C", f"w{seed}.safetensors", "--", "SEED", "0")[0] for seed in (0, 1)
    ]
    (row,) = run("--seeds", "0", "1", "--arm", "a", "C", "w{seed}.safetensors")
    values = [100 * one["miou"] for one in alone]
    assert values[0] != values[1]
    assert row["seeds"] == 2 and 100 * row["miou"] == pytest.approx(sum(values) / 2)
    # of two values the sample standard deviation is their distance over the root of 2
    assert 100 * row["miou_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert f"{100 * row['miou']:.2f} ± {100 * row['miou_std']:.2f}" in capsys.readouterr().out
    assert {p.name for p in Path("out").glob("seed_*/results.json")} == {"results.json"}


def test_the_oracle_puts_the_truth_in(run):
    model, best = run("--oracle", "--arm", "a", "C", "w0.safetensors")
    assert best["arm"] == "a_oracle" and best["seconds"] is None
    assert best["selected_fraction"] == model["selected_fraction"]
    cfg = load_config("C", ["MODEL.WEIGHTS", "w0.safetensors", *IN_PROCESS])
    refiner, total = load_model(cfg), 0
    for (item,) in build_test_loader(cfg, run.dataset):
        with torch.inference_mode():
            refinement = refiner([item])[0]["refinement"]
        truth = read_labels(item["sem_seg_file_name"])
        labels = refinement.label_map("coarse").numpy().copy()
        y, x = refinement.sites.numpy().T
        known = truth[y, x] != 255
        labels[y[known], x[known]] = truth[y, x][known]
        truth = np.where(truth == 255, 3, truth)
        total = total + confusion_matrix(labels, truth, 3, 3)
    assert 100 * best["miou"] == pytest.approx(summarize(total, (np.ones(3), np.ones(3)))["mIoU"])


def test_metadata_without_an_ignore_label(run):
    """As Detectron2's pages register a data set: IGNORE_VALUE holds, for the oracle too."""
    labels = Path(f"{run.dataset}/labels/0.png")
    truth = np.array(Image.open(labels))
    truth[:9] = 77
    Image.fromarray(truth).save(labels)
    known = MetadataCatalog.get(run.dataset).as_dict()
    MetadataCatalog.remove(run.dataset)
    known = {key: known[key] for key in ("stuff_classes", "evaluator_type")}
    MetadataCatalog.get(run.dataset).set(**known)
    ignore = ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "77")
    model, best = run("--oracle", "--arm", "a", "C", "w0.safetensors", "--", *ignore)
    assert 0 < model["miou"] < best["miou"] <= 1


def test_a_data_set_that_does_not_fit_an_arm(run, capsys):
    """Every arm is held against the data set of the first, before any image."""
    first = ("--arm", "a", "C", "w0.safetensors")
    for own, message in (
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE=9", "ignores label 255 but .*IGNORE_VALUE is 9"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES=4", "has 3 classes but .*NUM_CLASSES is 4"),
    ):
        with pytest.raises(SystemExit):
            run(*first, "--arm", "b", "C", "w0.safetensors", own)
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(SystemExit):
        run(*first, "--", "DATASETS.TEST", "()")
    assert "DATASETS.TEST of C is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arm", "a", "C"], "NAME CONFIG WEIGHTS"),
        (["--arm", "a", "C", "w0.safetensors", "SEED", "1"], "come last, after --"),
        (["--arm", "a", "C", "w", "--arm", "a", "C", "w"], "--arm a is given twice"),
        (["--arm", "a", "C", "gone.pth"], "gone.pth"),
    ],
)
def test_bad_arms(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_table_of_one_seed_and_an_oracle():
    common = {"selected_fraction": 0.1, "megapixels_refined": 0.8, "precision": "float32"}
    rows = [
        {"arm": "a", "miou": 0.5, "boundary_iou": 0.25, "seconds": 2.0, **common},
        {"arm": "a_oracle", "miou": 0.75, "boundary_iou": 0.5, "seconds": None, **common},
    ]
    lines = comparison_table(rows).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("a", "50.00", "25.00", "2.000", "1.0x", "0.80", "10.0 %")
    ]
    assert [cell.strip() for cell in lines[3].split("|")[4:6]] == ["-", "-"]
    mean = over_seeds([rows])
    assert mean[0]["miou"] == 0.5 and "miou_std" not in mean[0] and mean[1]["seconds"] is None
