# SPDX-License-Identifier: Apache-2.0
"""The calibrate command on tiny data."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog

from sparse_refine import SparseRefine
from sparse_refine.calibration import report
from sparse_refine.calibration.kinds import KINDS
from sparse_refine.commands.calibrate import main
from sparse_refine.config import load_config
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

METHOD = "MODEL.SPARSE_REFINE."


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_kept_accuracy_of_a_labelled_folder(tool, capsys):
    try:
        cfg, _ = tool("--keep-accuracy", "0.9", "--fractions", "0.1", "0.5", data="labels")
    except SystemExit:  # of random weights: they may gain nothing, and then it is said
        assert "refinement gains nothing here: mIoU" in capsys.readouterr().err
    else:
        assert 0 < cfg.MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD < math.log(3)


@pytest.mark.slow
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


def test_ceilings_of_a_base_without_refiner(tool, tmp_path, capsys):
    """Beside the same network at full resolution."""
    base = str(tmp_path / "base.safetensors")
    tool(
        *("--fraction", "0.1", "--base-only", "--fractions", "0.3", "--scales", "0.25"),
        *("--dense", base, "MODEL.SPARSE_REFINE.BASE.WEIGHTS", base),
        weights=False,
    )
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("|") and " / " in line]
    assert [row.split("|")[1].strip() for row in rows] == ["0.25"] * 3 + ["0.5"] * 3 + ["1"]
    assert "At scale 0.5 and 10 %" in out


@pytest.mark.parametrize(
    "arguments, data, message",
    [
        (["--fraction", "0.1", "--scales", "0.5"], "dataset", "go with --base-only and labels"),
        (["--fraction", "0.1", "--scales", "2"], "dataset", "--scales 2: low over full"),
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
