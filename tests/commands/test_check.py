# SPDX-License-Identifier: Apache-2.0
"""The check command: where its data sets come from, its exit codes, its JSON and its table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.commands import check


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """run(*arguments) -> (exit code, content of the JSON or None, what was printed)."""

    def main(*arguments):
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        try:
            code = check.main(["--json", str(out), "--workers", "1", *map(str, arguments)])
        except SystemExit as error:
            code = error.code
        printed = capsys.readouterr()
        content = json.loads(out.read_text()) if out.exists() else None
        return code, content, printed.out + printed.err

    return main


@pytest.fixture
def folders(tiny_dataset, tmp_path):
    """Arguments for a clean folder of two pairs, and the folder."""
    root = tmp_path / tiny_dataset(count=2)
    return ["--images", root / "images", "--labels", root / "labels"], root


def test_clean_folder(run, folders):
    arguments, root = folders
    code, content, text = run(*arguments, "--class-names", "soil", "crop", "weed")
    assert code == 0 and (content["faults"], content["warnings"]) == (0, 0)
    (data,) = content["datasets"]
    assert [c["name"] for c in data["classes"]] == ["soil", "crop", "weed"]
    assert sum(c["pixels"] for c in data["classes"]) == 2 * 40 * 56
    labels = np.asarray(Image.open(root / "labels" / "0.png"))
    assert data["pairs"][0]["pixels"]["2"] == (labels == 2).sum()
    assert data["pairs"][0]["megapixels"] == 40 * 56 / 1e6
    assert "2 pairs" in text and "56 x 40 (2)" in text and "no faults, no warnings" in text


def test_faults_and_warnings(run, folders):
    arguments, root = folders
    code, content, text = run(*arguments, "--classes", 2)
    assert code == 1 and content["faults"] == 2
    assert {f["kind"] for f in content["findings"] if f["fault"]} == {"out of range"}
    assert "label 2" in text and "labels count from one" in text
    Image.fromarray(np.full((40, 56), 9, np.uint8)).save(root / "labels" / "0.png")
    assert run(*arguments, "--ignore", 9)[0] == 0
    code, content, text = run(*arguments, "--ignore", 9, "--strict")
    assert code == 1 and content["faults"] == 0 and "empty labels" in text
    assert content["datasets"][0]["pairs"][0]["findings"] == ["empty labels"]


def test_only_the_first_messages_are_shown(run, folders):
    code, content, text = run(*folders[0], "--classes", 2, "--show", 1)
    assert "out of range: and 1 more" in text and len(content["findings"]) == 3


def test_names_that_a_terminal_obeys(run, folders):
    arguments, root = folders
    (root / "images" / "\x1b[2J\n\udcff.png").write_text("no image")
    code, content, text = run(*arguments)
    assert code == 1 and "\x1b" not in text and "\\x1b[2J\\n\\udcff.png" in text
    assert content["findings"][0]["files"][0].endswith("\x1b[2J\n\udcff.png")


def test_registered(run, tiny_dataset):
    names = tiny_dataset(count=2), tiny_dataset(count=1)  # the second is the first's first
    code, content, text = run("--dataset", names[0])
    assert code == 0 and content["datasets"][0]["num_classes"] == 3
    code, content, text = run("--dataset", *names)
    assert code == 1
    (finding,) = content["findings"]
    assert finding["kind"] == "in two sets" and all(name in finding["message"] for name in names)


def test_config(run, tiny_dataset, make_cfg, tmp_path):
    path, train, test = tmp_path / "c.yaml", tiny_dataset(count=3), tiny_dataset(count=2)
    sets = ["DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,)]
    path.write_text(make_cfg(*sets).dump())
    code, content, text = run("--config-file", path)
    assert code == 1 and [d["name"] for d in content["datasets"]] == [train, test]
    assert [f["kind"] for f in content["findings"]] == ["in two sets"] * 2

    options = ["--config-file", path, "DATASETS.TEST", "()"]
    assert run(*options)[0] == 0
    code, content, text = run(*options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)
    kinds = [f["kind"] for f in content["findings"]]
    assert code == 1 and kinds.count("out of range") == 3 and kinds[-1] == "config"
    assert "3 classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 2" in text

    code, content, text = run("--config-file", path, "DATASETS.TEST", f"('{train}',)")
    assert code == 1 and content["faults"] == 1 and "DATASETS.TRAIN and in DATASETS.TEST" in text


def test_folders_of_a_config(run, tmp_path, folders, make_cfg):
    root = folders[1]
    (root / "labels" / "0.png").unlink()
    path, name = tmp_path / "c.yaml", f"{root.name}_folder"
    entry = [name, str(root / "images"), str(root / "labels")]
    path.write_text(
        make_cfg(
            "DATASETS.FOLDERS", [entry], "DATASETS.CLASS_NAMES", ["a", "b", "c"],
            "DATASETS.TRAIN", (name,), "DATASETS.TEST", (),
        ).dump()
    )  # fmt: skip
    try:
        code, content, text = run("--config-file", path)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert code == 1 and [f["kind"] for f in content["findings"]] == ["missing"]
    assert len(content["datasets"][0]["pairs"]) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "one of the arguments --dataset --config-file --images is required"),
        (["--images", "x"], "--images needs --labels"),
        (["--dataset", "rgbweed_train", "--classes", "3"], "--classes belongs to --images"),
        (["--dataset", "no_such_set"], "'no_such_set' is not registered. Known: "),
        (["--config-file", "no_such.yaml"], "no_such.yaml"),
        (["--images", "x", "--labels", "y", "--classes", "0"], "--classes 0"),
        (["--images", "x", "--labels", "y", "A", "1"], "A: KEY VALUE pairs belong to"),
        (
            ["--images", "x", "--labels", "y", "--json", "nowhere/x.json"],
            "--json: nowhere/x.json: its folder",
        ),
    ],
)
def test_wrong_command_lines(run, arguments, message):
    code, content, text = run(*arguments)
    assert code == 2 and content is None and message in text


def test_yaml_that_is_none(run, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("MODEL: [")
    code, _, text = run("--config-file", path)
    assert code == 2 and str(path) in text


def test_folder_that_is_missing_is_a_fault(run, tmp_path):
    code, content, text = run("--images", tmp_path / "a", "--labels", tmp_path / "b")
    assert code == 1 and content["faults"] == 2 and str(tmp_path / "b") in text
