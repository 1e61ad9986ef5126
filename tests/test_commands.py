# SPDX-License-Identifier: Apache-2.0
"""`python -m sparse_refine`: from a folder of photographs to predictions, command by command, in
this process; exit codes and what a wrong command line gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from safetensors.torch import load_file

from sparse_refine import __main__ as program
from sparse_refine.config import load_config
from sparse_refine.inference import model_zoo
from sparse_refine.storage.weights import load_weights

from .tiny import tiny_images

NET = """
from torch import nn


def net(classes):
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, classes, 1))
"""
YAML = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: SparseRefine
  WEIGHTS: ""
  DEVICE: cpu
  MODULE: {{PATH: "{root}/net.py:net", ARGS: {{classes: 3}}, SIZE_DIVISIBILITY: 4}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 3}}
  SPARSE_REFINE:
    BASE: {{META_ARCHITECTURE: ModuleSegmentor, WEIGHTS: "{root}/base/model_final.pth"}}
    SELECTOR: {{NAME: BudgetSelector, FRACTION: 0.2}}
    EXTRACTOR: {{PRESET: custom, CHANNELS: [4, 8]}}
DATASETS:
  FOLDERS: [["commands_data", "{root}/images", "{root}/labels"]]
  CLASS_NAMES: ["soil", "weed", "crop"]
  TRAIN: ("commands_data",)
  TEST: ("commands_data",)
INPUT:
  FORMAT: "RGB"
  RESIZE_RANGE: [1.0, 1.0]
  CROP: {{ENABLED: True, TYPE: "absolute", SIZE: [24, 32]}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 2, WARMUP_ITERS: 0}}
DATALOADER: {{NUM_WORKERS: 0}}
SEED: 1
OUTPUT_DIR: "{root}/refiner"
"""


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of `python -m sparse_refine ARGUMENTS`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sparse_refine", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = program.main()
        except SystemExit as end:
            code = end.code
        text = capsys.readouterr()
        if isinstance(code, str):  # sys.exit of a text: it is printed, and the code is 1
            return 1, text.out, text.err + code
        return code or 0, text.out, text.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """net.py, my.yaml, images and labels. What the yaml registers is taken back."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "net.py").write_text(NET)
    (folder / "my.yaml").write_text(YAML.format(root=folder))
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for index, (image, labels) in enumerate(tiny_images(count=4)):
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
    yield folder
    DatasetCatalog.remove("commands_data")
    MetadataCatalog.remove("commands_data")


@pytest.fixture(scope="module")
def trained(folder):
    """The checkpoint of a refiner on a base, both by `train`."""
    from sparse_refine.commands.train import train

    config = ["--config-file", str(folder / "my.yaml"), "--trust-code"]
    dense = ["MODEL.META_ARCHITECTURE", "ModuleSegmentor", "INPUT.SCALE", "0.5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detectron2.engine.defaults.collect_env_info", str)  # asks compilers
        assert train([*config, *dense, "OUTPUT_DIR", str(folder / "base")]) is None
        assert train(config) is None
    return folder / "refiner" / "model_final.pth"


# ---- the program ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_usage_names_every_command(run, arguments):
    code, out, err = run(*arguments)
    assert code == 0 and not err and out.startswith("usage: python -m sparse_refine COMMAND")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert listed == list(program.COMMANDS)
    assert {"train", "evaluate", "predict", "check", "calibrate", "convert"} <= set(listed)


def test_a_command_that_there_is_none_of(run):
    code, out, err = run("trian", "--config-file", "my.yaml")
    assert code == 2 and not out and "no command 'trian'" in err and "usage:" in err


@pytest.mark.parametrize("name", list(program.COMMANDS))
def test_help_of_each_command(run, name):
    code, out, err = run(name, "--help")
    assert code == 0 and not err
    assert f"sparse_refine {name}" in out.split("\n\n")[0]  # the usage line names the command


@pytest.mark.parametrize("name", ["predict", "check", "calibrate", "convert"])
def test_arguments_that_are_missing(run, name):
    code, out, err = run(name)
    assert code == 2 and not out and "usage:" in err and "Traceback" not in err


@pytest.mark.slow
def test_the_exit_code_is_handed_on():
    env = {**os.environ, "PYTHONPATH": str(Path(program.__file__).parents[1])}
    command = [sys.executable, "-m", "sparse_refine", "trian"]
    assert subprocess.run(command, env=env, capture_output=True).returncode == 2


# ---- from a folder to predictions ----------------------------------------------------------------


def test_check(run, folder, tmp_path):
    code, out, _ = run("check", "--config-file", folder / "my.yaml", "--workers", 1)
    assert code == 1 and "commands_data" in out and "DATASETS.TRAIN and in DATASETS.TEST" in out
    pair = ("--images", folder / "images", "--labels", folder / "labels", "--workers", 1)
    assert run("check", *pair, "--classes", 3)[0] == 0
    code, out, _ = run("check", *pair, "--classes", 2, "--json", tmp_path / "found.json")
    assert code == 1 and "faults" in (tmp_path / "found.json").read_text()
    code, _, err = run("check", *pair, "--classes", 0)
    assert code == 2 and "--classes 0: at least 1 is needed" in err


def test_train_and_evaluate(run, folder, trained, quiet_logs):
    assert "extractor.unet.stem.weight" in load_weights(str(trained))["model"]
    config = ("--config-file", folder / "my.yaml", "--trust-code")
    code, _, _ = run("evaluate", *config, "MODEL.WEIGHTS", trained)
    assert code == 0
    results = results_in(folder / "refiner")
    assert results["images"] == 4 and 0 <= results["sparse_refine"]["mIoU"] <= 100
    assert results["sparse_refine"]["selected_fraction"] == pytest.approx(0.2, abs=0.001)


def results_in(folder):
    return json.loads((folder / "inference" / "commands_data" / "results.json").read_text())


def test_evaluate_needs_weights(folder, trained, run, quiet_logs):
    code, _, err = run("evaluate", "--config-file", folder / "my.yaml", "--trust-code")
    assert code == 2 and "MODEL.WEIGHTS is '': name the checkpoint" in err


def test_predict(run, folder, trained, tmp_path):
    model = ("--config-file", folder / "my.yaml", "--weights", trained, "--trust-code")
    code, out, err = run("predict", *model, folder / "images", "--output", tmp_path / "out")
    assert code == 0 and "4 of 4 done" in out
    labels = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "out" / "labels").iterdir())]
    assert len(labels) == 4 and all(one.shape == (40, 56) and one.max() < 3 for one in labels)

    (tmp_path / "broken.png").write_bytes(b"no image")
    inputs = (folder / "images" / "0.png", tmp_path / "broken.png")
    code, out, err = run("predict", *model, *inputs, "--output", tmp_path / "other")
    assert code == 1 and "1 of 2 done" in out and "broken.png" in err
    code, _, err = run("predict", *model, "--budget", 2, folder / "images")
    assert code == 2 and "--budget 2" in err


def test_code_that_a_yaml_names_needs_consent(run, folder, trained, tmp_path, quiet_logs):
    (tmp_path / "net.py").write_text("raise SystemExit('it ran')")
    text = (folder / "my.yaml").read_text().replace(f"{folder}/net.py", f"{tmp_path}/net.py")
    (tmp_path / "my.yaml").write_text(text)
    model = ("--config-file", tmp_path / "my.yaml", "--weights", trained)
    code, _, err = run("predict", *model, folder / "images", "--output", tmp_path / "out")
    assert code == 2 and "net.py" in err and "--trust-code" in err and "it ran" not in err
    for command in ("train", "evaluate"):
        code, _, err = run(
            *(command, "--config-file", tmp_path / "my.yaml", "OUTPUT_DIR", tmp_path / "out"),
            *("MODEL.WEIGHTS", trained if command == "evaluate" else ""),
        )
        assert code == 2 and "Traceback" not in err and "it ran" not in err
        last = err.strip().splitlines()[-1]
        assert last.startswith(f"python -m sparse_refine {command}: error: MODEL.MODULE.PATH of ")
        assert "net.py" in last and "--trust-code" in last


def test_calibrate_writes_a_yaml_for_the_other_commands(run, folder, trained, tmp_path, quiet_logs):
    model = ("--config-file", folder / "my.yaml", "--weights", trained, "--quiet", "--trust-code")
    data = ("--dataset", "commands_data", "--fractions", 0.1, 0.3)
    code, out, err = run(
        *("calibrate", *model, *data, "--fraction", 0.05, "--output", tmp_path / "calibration")
    )
    assert code == 0, err
    leaf = tmp_path / "calibration" / "calibrated.yaml"
    assert load_config(leaf).MODEL.SPARSE_REFINE.SELECTOR.FRACTION == 0.05
    output = ("OUTPUT_DIR", tmp_path / "evaluated")
    config = ("--config-file", leaf, "--trust-code")
    assert run("evaluate", *config, "MODEL.WEIGHTS", trained, *output)[0] == 0
    results = results_in(tmp_path / "evaluated")
    assert results["sparse_refine"]["selected_fraction"] == pytest.approx(0.05, abs=0.001)
    code, _, err = run(
        *("calibrate", *model, *data, "--fraction", 0.05, "--output", tmp_path / "calibration")
    )
    assert code == 2 and "calibrated.yaml exists" in err


def test_convert(run, tmp_path):
    foreign = {"decode_head.conv_seg.weight": torch.randn(3, 8, 1, 1)}
    torch.save({"state_dict": foreign}, tmp_path / "x.pth")
    arguments = ("convert", "--format", "mmseg-hrnet", "--input", tmp_path / "x.pth")
    code, out, _ = run(*arguments, "--output", tmp_path / "y.safetensors")
    assert code == 0 and "y.safetensors: 1 tensors" in out
    (tensor,) = load_file(tmp_path / "y.safetensors").values()
    assert torch.equal(tensor, foreign["decode_head.conv_seg.weight"])
    assert run(*arguments, "--output", tmp_path / "y.pth")[0] == 2  # not .safetensors
    torch.save({"state_dict": {"something.else": torch.ones(1)}}, tmp_path / "x.pth")
    code, _, err = run(*arguments, "--output", tmp_path / "z.safetensors")
    assert code == 1 and "nothing was written" in err and not (tmp_path / "z.safetensors").exists()


def test_configs(run):
    code, out, _ = run("configs")
    assert code == 0 and (Path(out.strip()) / "Base-SparseRefine.yaml").is_file()
    code, out, _ = run("configs", "synthetic_field/sparse_refine")
    assert code == 0 and out.strip() == model_zoo.get_config_file("synthetic_field/sparse_refine")
    code, _, err = run("configs", "nonesuch")
    assert code == 2 and "the model zoo has no 'nonesuch'" in err


@pytest.mark.parametrize(
    "name, key, path",
    [
        ("sparse_refine", "BASE", "rgbweed/dense_low.safetensors"),
        ("dense_full", "MODEL", "rgbweed/dense_low.safetensors"),
    ],
)
def test_weights_of_the_zoo_are_found_from_anywhere(tmp_path, monkeypatch, name, key, path):
    """A yaml on top of one of the zoo's, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(f"_BASE_: {model_zoo.configs_folder()}/rgbweed/{name}.yaml\n")
    cfg = model_zoo.with_weights_found(load_config("my.yaml"))
    found = cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS if key == "BASE" else cfg.MODEL.WEIGHTS
    assert Path(found).is_file() and Path(found).is_absolute() and found.endswith(path)
    # a file that is there goes first, and any other path stays as it is
    given = Path("projects/SparseRefine/weights", path)
    given.parent.mkdir(parents=True)
    given.touch()
    cfg = model_zoo.with_weights_found(load_config("my.yaml"))
    found = cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS if key == "BASE" else cfg.MODEL.WEIGHTS
    assert found == str(given)
    other = load_config("my.yaml", ["MODEL.WEIGHTS", "mine.pth"])
    assert model_zoo.with_weights_found(other).MODEL.WEIGHTS == "mine.pth"
