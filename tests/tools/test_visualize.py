# SPDX-License-Identifier: Apache-2.0
"""tools/visualize.py: its report holds what the evaluator says, stands by itself, and is there
whole or not at all."""

from __future__ import annotations

import html.parser
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from sparse_refine.config import load_config
from sparse_refine.data import register_image_label_folder
from sparse_refine.data.loader import build_test_loader
from sparse_refine.evaluation import SparseRefineEvaluator
from sparse_refine.inference.loading import load_model
from sparse_refine.storage.weights import save_weights

PLOTS = ("class_gains", "entropy_against_error", "budgets")
pytest.importorskip("matplotlib")


@pytest.fixture
def run(tool, tmp_path, make_cfg, tiny_dataset, monkeypatch):
    """run(*arguments, name, config) -> folder of the report. `run.dataset`: four tiny images. The
    diagrams, a second of work, are empty but for `plots=True`."""
    drawing = tool("visual_report.plots")
    real = {name: getattr(drawing, name) for name in PLOTS}

    def blank(path, *_) -> int:
        Image.new("L", (1, 1)).save(path)
        return 0

    def main(*arguments, name=None, config=(), plots=False) -> Path:
        for plot in PLOTS:
            monkeypatch.setattr(drawing, plot, real[plot] if plots else blank)
        yaml, weights = tmp_path / "c.yaml", tmp_path / "w.safetensors"
        cfg = make_cfg("DATASETS.TEST", (name or main.dataset,), *config)
        yaml.write_text(cfg.dump())
        if not weights.exists():
            save_weights(build_model(cfg).state_dict(), str(weights))
        source = ["--config-file", yaml, "--weights", weights, "--output", tmp_path / "report"]
        tool("visualize").main([*map(str, [*source, "--quiet", *arguments])])
        return tmp_path / "report"

    main.dataset = tiny_dataset(count=4)
    return main


class Links(html.parser.HTMLParser):
    """Every address in a page, its tags, and its text."""

    def __init__(self, page: Path):
        super().__init__()
        self.addresses, self.tags, self.text = [], [], ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_numbers_are_the_evaluators(run, tmp_path, capsys):
    folder = run("--fractions", "0.3", "0.1")
    content = report(folder)
    cfg = load_config(str(tmp_path / "c.yaml"), ["MODEL.WEIGHTS", str(tmp_path / "w.safetensors")])
    evaluator = SparseRefineEvaluator(run.dataset, distributed=False)
    evaluator.reset()
    model = load_model(cfg)
    for inputs in build_test_loader(cfg, run.dataset):
        evaluator.process(inputs, model(inputs))
    expected = evaluator.evaluate()["sparse_refine"]
    assert content["results"] == pytest.approx(expected)
    assert content["images"][2]["file_name"].endswith("2.png")
    pixels = 4 * 40 * 56
    net = sum(image["improved"] - image["degraded"] for image in content["images"])
    gain = expected["pACC"] - expected["coarse/pACC"]
    assert 100 * net / pixels == pytest.approx(gain)
    assert [row["fraction"] for row in content["budgets"]] == [0.1, 0.3]
    limits = {row["fraction"]: row for row in content["limits"]}
    assert limits[1.0]["errors_found"] == 1 and limits[1.0]["oracle_mIoU"] == 100
    for row in content["budgets"]:
        assert row["mIoU"] <= limits[row["fraction"]]["oracle_mIoU"] + 1e-6
    assert sum(content["entropy"]["pixels"]) == pixels
    errors = pixels * (1 - expected["coarse/pACC"] / 100)
    assert sum(content["entropy"]["coarse_errors"]) == pytest.approx(errors)
    assert f"{expected['mIoU']:.2f}" in Links(folder / "index.html").text
    assert str(folder / "index.html") in capsys.readouterr().out


@pytest.mark.slow
def test_the_folder_stands_by_itself(run):
    folder = run("--top", "2", "--fractions", plots=True)
    page = Links(folder / "index.html")
    for address in page.addresses:
        assert not re.match(r"[a-z]+:|/|\.\.", address)
        assert (folder / address).is_file()
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert written == {"index.html", *page.addresses}
    pages = sorted((folder / "pages").iterdir())
    assert 1 <= len(pages) <= 4
    for picture in (*pages, *(folder / "plots").iterdir()):
        assert np.asarray(Image.open(picture).convert("L")).std() > 5
    assert len(list((folder / "plots").iterdir())) == 3
    assert "How many pixels are worth it?" in page.text and "budget: refined" not in page.text


HOSTILE = "<img src=x onerror=alert(1)>&\"'; $a_b$ ü"


@pytest.fixture
def hostile(tmp_path, tiny_dataset):
    """A data set with one file and one class of a bad name."""
    root = tmp_path / tiny_dataset(count=1)
    for kind in ("images", "labels"):
        (root / kind / "0.png").rename(root / kind / f"{HOSTILE}.png")
    name = f"{root.name}_hostile"
    classes = ["soil", "<script>alert(2)</script>", "$\\frac{"]
    register_image_label_folder(name, root / "images", root / "labels", classes)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.slow
def test_names_are_shown_as_they_are(run, hostile):
    folder = run("--fractions", name=hostile, plots=True)
    page = Links(folder / "index.html")
    assert HOSTILE in page.text
    assert "script" not in page.tags and "x" not in page.addresses
    assert all(re.fullmatch(r"[\w./-]+", address) for address in page.addresses)
    assert all((folder / address).is_file() for address in page.addresses)


def test_file_names(tool):
    module = tool("visual_report.report")
    assert module.file_stem("a/../b c<d>é.x.jpg") == "b_c_d_x"
    assert len(module.file_stem("a" * 300 + ".png")) == 60
    assert module.display_name("a/b\udcff.png") == "b\ufffd.png"


def image(tool, gain: float, net: int = 0, pixels: int = 10, position: int = 0):
    module = tool("visual_report.measure")
    return module.ImageResult(position, "f", 50, 50 + gain, max(net, 0), max(-net, 0), pixels, 0.1)


def test_what_helped_and_what_hurt(tool):
    choose = tool("visual_report.report").choose
    images = [image(tool, gain, -gain) for gain in (3, -1, 0, 2, -4)]
    none = image(tool, math.nan, pixels=0)
    chosen = choose([*images, none], 2, "miou")
    assert [i.gain for i in chosen.helped] == [3, 2] and [i.gain for i in chosen.hurt] == [-4, -1]
    assert chosen.hurt_any
    assert [i.gain for i in choose([*images, none], 1, "pixels").helped] == [-4]
    chosen = choose(images[::3], 1, "miou")  # 3 and 2: nothing hurt
    assert [i.gain for i in chosen.helped] == [3] and [i.gain for i in chosen.hurt] == [2]
    assert not chosen.hurt_any
    assert choose([none], 1, "miou").helped == choose([none], 1, "miou").hurt == []


def test_pictures_tell_improved_from_degraded(tool):
    pictures = tool("visual_report.pictures")
    import torch

    from sparse_refine.results import Refinement

    truth = np.array([[0, 1, 1, 3]], np.uint8).repeat(3, 0)  # the last column is ignored
    sites = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])
    coarse, fused = torch.tensor([1, 0, 1, 0]), torch.tensor([0, 2, 0, 1])
    labels = torch.tensor([[0, 1, 1, 0]]).repeat(3, 1)
    labels[0] = fused
    refinement = Refinement(labels, sites, coarse, coarse, fused, torch.zeros(3, 4))
    grey = np.full((3, 4, 3), 100, np.uint8)
    output = {"labels": labels, "refinement": refinement}
    shown = pictures.view(grey, output, truth, ["a", "b", "c"], [[9, 9, 9]] * 3)
    changes = shown.pictures["changes"]
    assert [tuple(pixel) for pixel in changes[0, :3].tolist()] == [
        pictures.IMPROVED, pictures.STILL_WRONG, pictures.DEGRADED,
    ]  # fmt: skip
    assert (changes[0, 3] == changes[1, 3]).all()
    assert shown.counts == {"improved": 1, "degraded": 1, "selected": 4, "before": 2, "after": 2}
    assert shown.windows == {}


@pytest.mark.slow
def test_large_images_have_close_ups(run, tiny_dataset):
    folder = run("--fractions", "--top", "1", name=tiny_dataset(count=1, size=(300, 600)))
    (page,) = (folder / "pages").iterdir()
    assert Image.open(page).width > 3 * 480
    text = Links(folder / "index.html").text
    assert "close up" in text


@pytest.mark.slow
def test_images_without_labels(run, tmp_path):
    labels = tmp_path / run.dataset / "labels"
    for path in labels.iterdir():
        Image.fromarray(np.full((40, 56), 255, np.uint8)).save(path)
    content = report(run("--fractions", "0.1", plots=True))
    assert content["results"]["mIoU"] is None and content["images"][0]["gain"] is None


def test_limit_and_channel_order(run, tmp_path):
    folder = run("--limit", "1", "--fractions", config=["INPUT.FORMAT", "BGR"])
    content = report(folder)
    assert (len(content["images"]), content["of_images"]) == (1, 4)
    assert "1 of 4 images" in Links(folder / "index.html").text
    original = np.asarray(Image.open(tmp_path / run.dataset / "images" / "0.png"))
    (shown,) = (folder / "thumbnails").glob("*_0.jpg")
    difference = np.asarray(Image.open(shown)).mean((0, 1)) - original.mean((0, 1))
    assert np.abs(difference).max() < 3


def test_whole_or_not_at_all(run, tool, tmp_path, monkeypatch):
    folder = run("--fractions")
    first = (folder / "report.json").read_text()
    module = tool("visual_report.report")

    def fail(*_):
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_card", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            run("--fractions")
    assert (folder / "report.json").read_text() == first
    run("--fractions", "--limit", "1")
    assert len(report(folder)["images"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    assert [p.name for p in tmp_path.glob("report*")] == ["report"]


def test_what_is_refused(run, tmp_path, capsys):
    def error(*arguments, **options) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(*arguments, **options)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "MODEL.META_ARCHITECTURE is 'TinyBase'" in error(
        config=["MODEL.META_ARCHITECTURE", "TinyBase"]
    )
    (tmp_path / "w.safetensors").unlink()
    assert "--fractions 1.5" in error("--fractions", "1.5")
    assert "'no_such_set' is not registered" in error("--dataset", "no_such_set")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("mine")
    assert "report.json is missing" in error()
    assert (tmp_path / "report" / "thesis.txt").read_text() == "mine"


def test_model_zoo_names(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool("visualize").main(["--model", "no/such", "--output", str(tmp_path / "r")])
    assert "no/such" in capsys.readouterr().err and not (tmp_path / "r").exists()
