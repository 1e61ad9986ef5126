# SPDX-License-Identifier: Apache-2.0
"""What is wrong before work ends every program alike: a line that says what, exit code 2, no
traceback."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import sparse_refine
from sparse_refine.commands import train
from sparse_refine.modeling import trust

TOOLS = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "tools"
CODE = "foreign.py:Net"
YAML = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: {architecture}
  DEVICE: cpu
  WEIGHTS: ""
  MODULE: {{PATH: "{path}", PRETRAINED: True}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 3}}
  SPARSE_REFINE: {{BASE: {{META_ARCHITECTURE: ModuleSegmentor}}}}
DATASETS:
  TRAIN: ("synthetic_field_train",)
  TEST: ("synthetic_field_val",)
OUTPUT_DIR: "{root}/out"
"""
# Of the programs that load a model: their arguments around {yaml}, in a folder {root}.
PROGRAMS = {
    "train": "--config-file {yaml}",
    "evaluate": "--config-file {yaml}",
    "predict": "--config-file {yaml} {root}/photo.png --output {root}/out",
    "calibrate": "--config-file {yaml} --fraction 0.1 --images {root} --output {root}/out",
    "convert": "--config-file {yaml} --format mmseg-hrnet --input {root}/x.pth"
    " --output {root}/y.safetensors",
    "compare": "--arm a {yaml} w.pth --output {root}/out",
    "visualize": "--config-file {yaml} --output {root}/out --dataset synthetic_field_val",
    "benchmark": "--config-file {yaml} --height 32 --width 32 --json {root}/out.json",
    "benchmark_token_merging": "--config-file {yaml} --height 32 --width 32 --json {root}/out.json",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A photograph, a checkpoint that `convert` takes, and code that must not run."""
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", str)  # asks compilers
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    name = "decode_head.conv_seg.weight"
    torch.save({"state_dict": {name: torch.ones(3, 8, 1, 1)}}, tmp_path / "x.pth")
    (tmp_path / "foreign.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "dense.yaml").write_text(
        YAML.format(architecture="ModuleSegmentor", path=tmp_path / CODE, root=tmp_path)
    )
    return tmp_path


def run(name: str, arguments: str) -> int:
    """The exit code of a command or of a tool."""
    places = {"train": ("train", "train"), "evaluate": ("train", "evaluate")}
    module, function = places.get(name, (name, "main"))
    if name in ("compare", "visualize") or name.startswith("benchmark"):
        program = importlib.import_module(module)
    else:
        program = importlib.import_module(f"sparse_refine.commands.{module}")
    with pytest.raises(SystemExit) as end:
        getattr(program, function)(arguments.split())
    return end.value.code


@pytest.mark.parametrize("name", PROGRAMS)
def test_code_without_consent(folder, capsys, quiet_logs, name):
    """Named by MODEL.MODULE.PATH, which the model is built of."""
    if name in ("visualize", "calibrate", "benchmark", "benchmark_token_merging"):  # refiners'
        text = (folder / "dense.yaml").read_text()
        text = text.replace("ARCHITECTURE: ModuleSegmentor\n", "ARCHITECTURE: SparseRefine\n")
        (folder / "dense.yaml").write_text(text)
    code = run(name, PROGRAMS[name].format(yaml=folder / "dense.yaml", root=folder))
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert f"error: MODEL.MODULE.PATH of {folder}/dense.yaml names" in last
    assert "consent with --trust-code" in last


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    "text, message",
    [
        ("PROJECTS: ['nowhere.py:f']", "PROJECTS of .* names 'nowhere.py:f'"),
        ("MODEL: {NO_SUCH_KEY: 1}", "Non-existent config key: MODEL.NO_SUCH_KEY"),
        ("MODEL: [", "while parsing"),
    ],
    ids=["project", "key", "yaml"],
)
def test_a_config_that_cannot_be_read(folder, capsys, quiet_logs, name, text, message):
    (folder / "bad.yaml").write_text(text)
    code = run(name, PROGRAMS[name].format(yaml=folder / "bad.yaml", root=folder))
    said = capsys.readouterr().err
    assert code == 2 and re.search(message, said) and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("program, processes", [("train_net.py", 1), ("module", 2)])
def test_as_a_program(folder, program, processes):
    start = ["-m", "sparse_refine", "train"]
    if program == "train_net.py":
        start = [str(TOOLS.parent / "train_net.py")]
    arguments = ["--config-file", str(folder / "dense.yaml"), "--num-gpus", str(processes)]
    env = {**os.environ, "PYTHONPATH": str(Path(sparse_refine.__file__).parents[1])}
    end = subprocess.run(
        [sys.executable, *start, *arguments], env=env, capture_output=True, text=True, cwd=folder
    )
    assert end.returncode == 2 and "Traceback" not in end.stderr
    assert "error: MODEL.MODULE.PATH of" in end.stderr and "it ran" not in end.stderr


def test_what_goes_wrong_in_the_work_keeps_its_traceback(folder, quiet_logs, monkeypatch):
    def broken():
        raise ValueError("in the middle")

    monkeypatch.setattr(train, "prepared", lambda args, trainer_class: broken)
    with pytest.raises(ValueError, match="in the middle"):
        train.train(["--config-file", str(folder / "dense.yaml")])
