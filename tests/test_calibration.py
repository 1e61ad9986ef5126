# SPDX-License-Identifier: Apache-2.0
"""Temperature, thresholds, curve and goals by hand; tools/calibrate.py on tiny data."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image

from sparse_refine import SparseRefine
from sparse_refine.calibration import curve, goals, report
from sparse_refine.calibration.curve import Point
from sparse_refine.calibration.histogram import UncertaintyHistogram
from sparse_refine.calibration.images import Images, dicts_of_folder
from sparse_refine.calibration.kinds import KINDS
from sparse_refine.calibration.temperature import PixelSample, fit_temperature
from sparse_refine.commands.calibrate import main
from sparse_refine.config import load_config
from sparse_refine.evaluation.evaluator import SparseRefineEvaluator
from sparse_refine.sites import View
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

METHOD = "MODEL.SPARSE_REFINE."


# ---- temperature ---------------------------------------------------------------------------------


def test_temperature_by_hand():
    """Two classes, logits 4 apart, right in 3 of 4 pixels: sigmoid(4 / T) = 3/4, T = 4 / ln 3."""
    logits = torch.tensor([[2.0, -2.0]]).repeat(4, 1)
    fit = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert fit.temperature == pytest.approx(4 / math.log(3), rel=1e-6)
    assert fit.after == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    assert fit.before == pytest.approx((4 * math.log(1 + math.exp(-4)) + 4) / 4)


def test_temperature_is_found_again():
    """Labels drawn from the probabilities at temperature 3."""
    logits = torch.randn(20_000, 5) * 4
    labels = (logits / 3).softmax(1).multinomial(1)[:, 0]
    assert fit_temperature(logits, labels).temperature == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 0, 0, 0], "beyond 0.05: the base is always right"),
        ([1, 1, 1, 0], "beyond 20: the base is no help"),
        ([], "no pixel has a label"),
    ],
)
def test_temperatures_that_do_not_exist(labels, message):
    logits = torch.tensor([[2.0, -2.0]]).repeat(len(labels), 1)
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, torch.tensor(labels, dtype=torch.int64))


def test_sampled_pixels_have_the_label_at_their_centre():
    truth = torch.tensor([[0, 1, 2, 2, 0, 1], [9, 1, 2, 2, 0, 1], [1, 9, 0, 0, 2, 9]])  # 9: ignored
    logits = torch.arange(4.0).view(1, 1, 4) + torch.arange(3.0).view(3, 1, 1) * 10  # (3,1,4)
    sample = PixelSample(1, ignore=9)
    sample.add(logits, truth)
    found = {int(row[0]): int(label) for row, label in zip(sample._logits[0], sample._labels[0])}
    assert found == {0: 9, 1: 2, 2: 2, 3: 1} or found == {1: 2, 2: 2, 3: 1}
    few = PixelSample(2, ignore=9, pixels=4)  # two an image
    few.add(logits, truth)
    assert len(few._labels[0]) == 2


# ---- histogram -----------------------------------------------------------------------------------


def test_histogram_by_hand():
    """Four low pixels over 3 x 3: they stand for 4, 2, 2 and 1 (second row and column twice)."""
    histogram = UncertaintyHistogram(math.log(3))
    wrong = np.zeros((3, 3), dtype=bool)
    wrong[1, 1:] = wrong[0, 0] = True
    histogram.add(np.array([[0.9, 0.2], [0.0, 0.5]]), (3, 3), wrong)
    # at 0.3: those with 0.5 and 0.9, 4 + 1 of 9 pixels, with all three errors
    for fraction, low, high, share, found in (
        (0.6, 0.2, 0.5, 5 / 9, 1.0),
        (0.2, 0.5, 0.9, 1 / 9, 1 / 3),
        (0.9, 0.0, 0.2, 7 / 9, 1.0),
        (0.05, 0.9, 1.1, 0.0, 0.0),
    ):
        threshold = histogram.threshold(fraction)
        assert low <= threshold < high
        index = int((histogram.edges[::-1] == threshold).argmax())
        assert histogram.shares()[index] == pytest.approx(share)
        assert histogram.errors_found()[index] == pytest.approx(found)
    assert histogram.shares()[-1] == histogram.errors_found()[-1] == 1


def test_histogram_without_labels():
    histogram = UncertaintyHistogram(1.0)
    histogram.add(np.array([[0.5]]), (2, 2), None)
    assert histogram.errors_found() is None and histogram.shares()[-1] == 1


@pytest.mark.parametrize("name", ["EntropySelector", "MarginSelector"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.8])
def test_thresholds_select_the_share(name, fraction):
    """Over images of several sizes, by the selectors themselves."""
    kind, histogram, images = KINDS[name], UncertaintyHistogram(KINDS[name].highest(5)), []
    for height, width in ((40, 60), (31, 47), (64, 20)):
        logits = torch.randn(5, height, width) * 3
        size = (2 * height, 2 * width + 1)
        histogram.add(kind.score(logits).numpy(), size, None)
        images.append((logits, View(0, 0, *size, size)))
    selector = kind.build(kind.to_setting(histogram, fraction))
    selected = sum(len(selector(logits, view)) for logits, view in images)
    pixels = sum(view.height * view.width for _, view in images)
    assert selected / pixels == pytest.approx(fraction, rel=0.02)


# ---- goals ---------------------------------------------------------------------------------------

POINTS = [
    Point(None, 0.0, 1.0, 60.0),
    Point(0.1, 0.1, 2.0, 68.0),
    Point(0.2, 0.2, 1.9, 69.0),  # noise: cheaper than the one before
    Point(0.4, 0.4, 4.0, 70.0),
]


@pytest.mark.parametrize(
    "seconds, fraction", [(1.5, 0.05), (2.0, 0.2), (3.0, 0.3), (9.0, 0.4), (1.0, 0.0)]
)
def test_fraction_for_seconds(seconds, fraction):
    assert goals.fraction_for_seconds(POINTS, seconds) == pytest.approx(fraction)


@pytest.mark.parametrize("keep, fraction", [(0.4, 0.05), (0.8, 0.1), (0.85, 0.15), (1.0, 0.4)])
def test_fraction_for_accuracy(keep, fraction):
    assert goals.fraction_for_accuracy(POINTS, keep) == pytest.approx(fraction)


def test_goals_out_of_reach():
    with pytest.raises(ValueError, match="nothing refined an image takes 1 seconds.*is 0.5"):
        goals.fraction_for_seconds(POINTS, 0.5)
    with pytest.raises(ValueError, match="gains nothing here: mIoU 60.00 without it.*59.00"):
        goals.fraction_for_accuracy([POINTS[0], Point(0.1, 0.1, 2.0, 59.0)], 0.9)
    with pytest.raises(ValueError, match="needs labels"):
        goals.fraction_for_accuracy([Point(None, 0.0, 1.0)], 0.9)


# ---- curve ---------------------------------------------------------------------------------------


def test_a_curve_is_what_the_evaluator_measures(make_cfg, tiny_dataset):
    name = tiny_dataset()
    cfg = make_cfg(METHOD + "SELECTOR.NAME", "BudgetSelector")
    model = SparseRefine(cfg).eval()
    own, images = model.selector, Images(cfg, DatasetCatalog.get(name))
    measuring = curve.Curve(model, images.source(""), KINDS["BudgetSelector"], 3, 5)
    nothing, tenth, all_of_it = measuring.measure([0.1, 1.0])
    assert model.selector is own and "forward" not in vars(model.coarse)

    evaluator = SparseRefineEvaluator(name, boundary_distance=5, distributed=False)
    model.selector = KINDS["BudgetSelector"].build(0.1)
    evaluator.reset()
    with torch.inference_mode():
        for item, _ in images.source("")():
            evaluator.process([item], model([item]))
    expected = evaluator.evaluate()["sparse_refine"]
    assert tenth.miou == pytest.approx(expected["mIoU"])
    assert tenth.boundary_iou == pytest.approx(expected["BoundaryIoU"])
    assert tenth.fraction == pytest.approx(expected["selected_fraction"])
    assert nothing.miou == pytest.approx(expected["coarse/mIoU"])
    assert (nothing.fraction, nothing.errors_found, nothing.setting) == (0, 0, None)
    assert (all_of_it.fraction, all_of_it.errors_found) == (1, 1)
    # errors among the selected pixels, over all: from the evaluator's accuracies
    inside = (1 - expected["selected/coarse/pACC"] / 100) * tenth.fraction
    assert tenth.errors_found == pytest.approx(inside / (1 - expected["coarse/pACC"] / 100))
    assert min(nothing.seconds, tenth.seconds) > 0


def test_the_base_runs_once_an_image_and_its_seconds_count(make_cfg, tiny_dataset):
    cfg = make_cfg()
    model = SparseRefine(cfg).eval()
    images = Images(cfg, DatasetCatalog.get(tiny_dataset(count=2)))
    forward, base = model.coarse.base.forward, model.coarse.base
    base.forward = lambda inputs: time.sleep(0.2) or forward(inputs)
    measuring = curve.Curve(model, images.source(""), KINDS["EntropySelector"], 3, 5)
    points = measuring.measure([0.2, 0.5, 1.0])
    assert len(base.calls) == 3  # two, and the first once more beforehand
    assert all(point.seconds > 0.2 for point in points)


def test_points_of_a_base_alone_agree_with_those_that_are_measured(make_cfg, tiny_dataset):
    cfg = make_cfg()
    model = SparseRefine(cfg).eval()
    source = Images(cfg, DatasetCatalog.get(tiny_dataset())).source("")
    for name in ("EntropySelector", "BudgetSelector"):
        kind = KINDS[name]
        histogram = curve.count_uncertainty(model, source, kind, 3)
        points = curve.points_of_base(histogram, kind, [0.05, 0.3])
        measured = curve.Curve(model, source, kind, 3, 5).measure([p.setting for p in points])[1:]
        for base, found in zip(points, measured):
            assert base.seconds is None and base.miou is None
            assert base.fraction == pytest.approx(found.fraction, abs=0.005)
            if name == "EntropySelector":  # a budget is of each image, the base's curve of all
                assert base.errors_found == pytest.approx(found.errors_found, abs=0.02)


def test_limit_takes_images_from_all_over(make_cfg):
    dicts = [{"file_name": str(index)} for index in range(10)]
    chosen = Images(make_cfg(), dicts, limit=4).dicts
    assert [item["file_name"] for item in chosen] == ["0", "2", "5", "7"]
    assert len(Images(make_cfg(), dicts, limit=20)) == 10


def test_labels_that_do_not_fit_are_named(make_cfg, tiny_dataset):
    for size, value, message in (
        ((40, 56), 7, "0.png: label 7"),
        ((40, 50), 0, "0.png: labels of 50"),
    ):
        (record,) = DatasetCatalog.get(tiny_dataset(count=1))
        Image.fromarray(np.full(size, value, np.uint8)).save(record["sem_seg_file_name"])
        with pytest.raises(ValueError, match=message):
            list(Images(make_cfg(), [record]).source("")())


def test_a_folder_is_paired_and_its_labels_understood(make_cfg, tiny_dataset):
    records = DatasetCatalog.get(tiny_dataset(count=2))
    images, labels = (Path(records[0][key]).parent for key in ("file_name", "sem_seg_file_name"))
    before = DatasetCatalog.list()
    assert dicts_of_folder(make_cfg(), images, labels) == records
    from_one = dicts_of_folder(make_cfg("DATASETS.REDUCE_ZERO_LABEL", True), images, labels)
    assert from_one[0]["sem_seg_file_name"] == f"reduce_zero_label://{labels / '0.png'}"
    assert DatasetCatalog.list() == before
    for options, message in (
        (("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 1), "ignore_label 1 is the id of class 'class 1'"),
        (
            ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254, "DATASETS.REDUCE_ZERO_LABEL", True),
            "need ignore_label 255 .* ignore_label 254 and 3 classes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dicts_of_folder(make_cfg(*options), images, labels)


# ---- the tool ------------------------------------------------------------------------------------


@pytest.fixture
def tool(make_cfg, tiny_dataset, tmp_path, monkeypatch):
    """run(*arguments) -> (config of the yaml it wrote, the yaml as it stands), for a tiny model."""
    name = tiny_dataset(count=3)
    cfg = make_cfg("DATASETS.TEST", (name,))
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "tiny.yaml"
    config.write_text(cfg.dump())
    model = Trainer.build_model(cfg)
    save_weights(model.state_dict(), str(tmp_path / "whole.safetensors"))
    save_weights(model.coarse.base.state_dict(), str(tmp_path / "base.safetensors"))
    folder = Path(DatasetCatalog.get(name)[0]["file_name"]).parents[1]

    def run(*arguments, data="dataset", weights=True):
        given = {
            "dataset": ["--dataset", name],
            "images": ["--images", folder / "images"],
            "labels": ["--images", folder / "images", "--labels", folder / "labels"],
        }[data]
        output = tmp_path / "out" / "calibration"
        main(
            [
                *("--config-file", str(config), "--output", str(output), "--quiet"),
                *(["--weights", str(tmp_path / "whole.safetensors")] if weights else []),
                *map(str, given),
                *arguments,
            ]
        )
        assert (output / "curve.png").stat().st_size > 10_000
        leaf = output / "calibrated.yaml"
        return load_config(str(leaf)), yaml.safe_load(leaf.read_text())

    return run


def test_a_fraction_becomes_a_threshold(tool, capsys):
    cfg, leaf = tool("--fraction", "0.15", "--fractions", "0.05", "0.3")
    assert leaf["_BASE_"] == "../../configs/tiny.yaml"
    threshold = leaf["MODEL"]["SPARSE_REFINE"]["SELECTOR"].pop("THRESHOLD")
    assert leaf == {"_BASE_": leaf["_BASE_"], "MODEL": {"SPARSE_REFINE": {"SELECTOR": {}}}}
    assert threshold == cfg.MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD
    assert cfg.MODEL.SPARSE_REFINE.EXTRACTOR.CHANNELS == [4, 8]  # the config's own
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 6 and "errors inside" in rows[0]  # with the head: nothing, 5, 15, 30 %
    (chosen,) = (row for row in rows if "<- chosen" in row)
    cells = [cell.strip() for cell in chosen.split("|")]
    assert float(cells[1]) == threshold and 0.12 < float(cells[2].split()[0]) / 100 <= 0.151


def test_seconds_and_a_budget(tool, tmp_path, capsys):
    leaf = tmp_path / "out" / "calibration" / "calibrated.yaml"
    leaf.parent.mkdir(parents=True)
    leaf.write_text("somebody's")
    with pytest.raises(SystemExit):
        tool("--seconds", "60")
    assert "exists: choose another --output" in capsys.readouterr().err
    assert leaf.read_text() == "somebody's"
    cfg, leaf = tool(
        *("--seconds", "60", "--selector", "BudgetSelector", "--fractions", "0.1", "0.25"),
        "--force",
    )
    assert leaf["MODEL"]["SPARSE_REFINE"]["SELECTOR"] == {
        "NAME": "BudgetSelector",
        "FRACTION": 0.25,
    }
    assert SparseRefine(cfg).selector.fraction == 0.25


def test_kept_accuracy_of_a_labelled_folder(tool, capsys):
    try:
        cfg, _ = tool("--keep-accuracy", "0.9", "--fractions", "0.1", "0.5", data="labels")
    except SystemExit:  # of random weights: they may gain nothing, and then it is said
        assert "refinement gains nothing here: mIoU" in capsys.readouterr().err
    else:
        assert 0 < cfg.MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD < math.log(3)


def test_images_without_labels(tool, capsys):
    tool("--fraction", "0.1", "--fractions", "0.1", data="images")
    out = capsys.readouterr().out
    assert "s/image" in out and "mIoU" not in out and "errors inside" not in out


def test_temperature_of_a_base_without_refiner(tool, tmp_path, capsys):
    options = ["MODEL.SPARSE_REFINE.BASE.WEIGHTS", str(tmp_path / "base.safetensors")]
    cfg, leaf = tool(
        *("--fraction", "0.1", "--base-only", "--fit-temperature"), *options, weights=False
    )
    temperature = cfg.MODEL.SPARSE_REFINE.BASE.TEMPERATURE
    assert leaf["MODEL"]["SPARSE_REFINE"]["BASE"] == {"TEMPERATURE": temperature} != 1.0
    assert f"temperature {temperature:.4g}" in capsys.readouterr().out
    assert "s/image" not in capsys.readouterr().out
    comment = (tmp_path / "out" / "calibration" / "calibrated.yaml").read_text().splitlines()[:4]
    assert "BASE.WEIGHTS" in comment[2] and all(line.startswith("# ") for line in comment[:3])


@pytest.mark.parametrize(
    "arguments, data, message",
    [
        (["--fraction", "1.5"], "dataset", "--fraction is 1.5: above 0, up to 1"),
        (["--seconds", "-1"], "dataset", "--seconds is -1: above 0"),
        (["--fraction", "0.1", "--fractions", "0"], "dataset", "--fractions 0: shares"),
        (["--keep-accuracy", "0.9"], "images", "--keep-accuracy needs labels"),
        (["--fraction", "0.1", "--fit-temperature"], "images", "--fit-temperature needs labels"),
        (["--seconds", "1e-9", "--fractions", "0.1"], "dataset", "the goal is 1e-09"),
        (["--fraction", "0.1", "--base-only"], "dataset", "--weights are a refiner's"),
        (
            ["--fraction", "0.1", "MODEL.META_ARCHITECTURE", "TinyBase", "MODEL.WEIGHTS", "{base}"],
            "dataset",
            "'TinyBase', which refines nothing",
        ),
        (["--fraction", "0.1", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"], "dataset", "4"),
    ],
)
def test_what_cannot_be(tool, tmp_path, capsys, arguments, data, message):
    given = [text.format(base=tmp_path / "base.safetensors") for text in arguments]
    with pytest.raises(SystemExit) as stopped:
        tool(*given, data=data)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_count_of_pixels_gives_way_to_a_share(tmp_path, make_cfg):
    config = tmp_path / "a.yaml"
    config.write_text(make_cfg(METHOD + "SELECTOR.COUNT", 500).dump())
    changes = report.changed_keys(str(config), KINDS["BudgetSelector"], 0.1, 1.0)
    assert changes == {METHOD + "SELECTOR.NAME": "BudgetSelector", METHOD + "SELECTOR.COUNT": -1}
