# SPDX-License-Identifier: Apache-2.0
"""No program writes its output over a file that it reads, whatever the path looks like."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.commands import calibrate, check, convert, train
from sparse_refine.config import load_config
from sparse_refine.storage.weights import save_weights

TOOLS = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "tools"
NAME = "decode_head.conv_seg.weight"
SPELLINGS = ["same", "relative", "link", "linked folder"]


@pytest.fixture
def folder(tmp_path, monkeypatch, make_cfg, tiny_dataset):
    """x.safetensors, c.yaml, and the data set of `set.txt`, beside links to both files and to the
    folder itself; programs run in it."""
    monkeypatch.syspath_prepend(TOOLS)
    name = tiny_dataset(count=2)
    (tmp_path / "data").symlink_to(tmp_path / name)
    save_weights({NAME: torch.ones(3, 8, 1, 1)}, tmp_path / "x.safetensors")
    (tmp_path / "c.yaml").write_text(make_cfg("DATASETS.TEST", (name,)).dump())
    (tmp_path / "calibrated.yaml").write_text("_BASE_: c.yaml\n")
    Image.fromarray(np.ones((48, 64), np.uint8)).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spelled(path: Path, how: str) -> Path:
    """Another path to the same file."""
    if how == "relative":
        return Path(os.path.relpath(path.parent), "..", path.parent.name, path.name)
    if how == "link":
        link = path.with_name(f"link_to_{path.name}")
        link.symlink_to(path)
        return link
    if how == "linked folder":
        link = path.parent.with_name(f"{path.parent.name}_too")
        link.unlink(missing_ok=True)
        link.symlink_to(path.parent)
        return link / path.name
    return path


def tool(name: str):
    return importlib.import_module(name).main


# program -> (what is written over, its arguments with that path as {out})
CASES = {
    "convert": (
        "x.safetensors",
        lambda: convert.main,
        "--format mmseg-hrnet --input x.safetensors --output {out}",
    ),
    "export_weights": ("x.safetensors", lambda: tool("export_weights"), "x.safetensors {out}"),
    "check, a label map": (
        "data/labels/0.png",
        lambda: check.main,
        "--images data/images --labels data/labels --workers 1 --json {out}",
    ),
    "check, an image": (
        "data/images/1.png",
        lambda: check.main,
        "--images data/images --labels data/labels --workers 1 --json {out}",
    ),
    "check, a yaml": (
        "c.yaml",
        lambda: check.main,
        "--config-file c.yaml --workers 1 --json {out}",
    ),
    "compare, weights": (
        "x.safetensors",
        lambda: tool("compare"),
        "--arm a c.yaml x.safetensors --output out --figure {out}",
    ),
    "compare, a base's yaml": (
        "c.yaml",
        lambda: tool("compare"),
        "--arm a calibrated.yaml x.safetensors --output out --figure {out}",
    ),
    "benchmark": (
        "mask.png",
        lambda: tool("benchmark"),
        "--config-file c.yaml --height 48 --width 64 --sites mask.png --json {out}",
    ),
    "benchmark_token_merging": (
        "c.yaml",
        lambda: tool("benchmark_token_merging"),
        "--config-file c.yaml --height 48 --width 64 --json {out}",
    ),
    "benchmark_sparse": (
        "mask.png",
        lambda: tool("benchmark_sparse"),
        "--masks mask.png --json {out} --only size",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("case", CASES)
def test_an_output_that_is_an_input(folder, capsys, case, spelling):
    name, program, arguments = CASES[case]
    path = folder / name
    before, out = path.read_bytes(), spelled(path, spelling)
    with pytest.raises(SystemExit) as end:
        program()(arguments.format(out=out).split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and "is one of the inputs: choose another output" in said
    assert path.read_bytes() == before


@pytest.mark.parametrize("program", [train.train, train.evaluate])
def test_training_over_its_own_config(folder, capsys, quiet_logs, monkeypatch, program):
    """Detectron2 writes OUTPUT_DIR/config.yaml: over a yaml of that name, or one below it."""
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", str)  # asks compilers
    own = "_BASE_: ../c.yaml  # by hand\nOUTPUT_DIR: run\nMODEL: {META_ARCHITECTURE: TinyBase}\n"
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(own)
    (folder / "leaf.yaml").write_text("_BASE_: run/config.yaml\nSEED: 7\n")
    for path in ("run/config.yaml", "leaf.yaml"):
        with pytest.raises(SystemExit) as end:
            program(["--config-file", path])
        assert end.value.code == 2 and "is one of the inputs" in capsys.readouterr().err
    assert (folder / "run" / "config.yaml").read_text() == own


def test_a_config_of_an_earlier_run_may_be_given_again(folder, monkeypatch):
    """As Detectron2 has written it, with every key."""
    (folder / "run").mkdir()
    cfg = load_config("c.yaml", ["OUTPUT_DIR", "run"])
    (folder / "run" / "config.yaml").write_text(cfg.dump())
    train.check_config_is_kept("run/config.yaml", cfg)
    train.check_config_is_kept("c.yaml", cfg)


def test_calibrating_a_yaml_into_itself(folder, capsys):
    """Its own path, and that of a yaml that it stands on: either would become its own base."""
    (folder / "leaf.yaml").write_text("_BASE_: calibrated.yaml\n")
    for name in ("calibrated.yaml", "leaf.yaml"):
        with pytest.raises(SystemExit):
            calibrate.main(
                ["--config-file", name, "--images", "data/images", "--fraction", "0.1"]
                + ["--output", ".", "--force"]
            )
        assert "calibrated.yaml is one of the inputs" in capsys.readouterr().err
    assert (folder / "calibrated.yaml").read_text() == "_BASE_: c.yaml\n"


def test_calibrating_into_the_images(folder, capsys):
    """A curve.png among them would be the next run's image; one that is there is not replaced."""
    start = ["--config-file", "c.yaml", "--images", "data/images", "--fraction", "0.1"]
    with pytest.raises(SystemExit):
        calibrate.main([*start, "--output", "data/images", "--force"])
    assert "holds the images or labels" in capsys.readouterr().err
    os.makedirs("mine")
    Path("mine/curve.png").write_text("a picture")
    with pytest.raises(SystemExit):
        calibrate.main([*start, "--output", "mine"])
    assert "curve.png exists" in capsys.readouterr().err


def test_a_report_over_its_own_weights(folder, capsys):
    """A folder of an earlier report is replaced as a whole: with what was put into it."""
    pytest.importorskip("matplotlib")
    marker = importlib.import_module("visual_report.report").MARKER
    (folder / "report" / "deep").mkdir(parents=True)
    (folder / "report" / marker).touch()
    weights = (folder / "x.safetensors").rename(folder / "report" / "deep" / "x.safetensors")
    with pytest.raises(SystemExit):
        tool("visualize")(
            ["--config-file", "c.yaml", "--weights", str(weights), "--output", "report"]
        )
    assert "x.safetensors in it is one of the inputs" in capsys.readouterr().err
    assert weights.is_file()
