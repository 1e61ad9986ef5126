# SPDX-License-Identifier: Apache-2.0
"""The predict command on images: every kind of file, what is written, and under which names."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sparse_refine.data import read_image, read_labels
from sparse_refine.inference import model_zoo
from sparse_refine.inference.inputs import assign_names, find_inputs
from sparse_refine.inference.predictor import SparseRefinePredictor


@pytest.mark.slow
def test_every_kind_of_image(run, model, tmp_path, picture, save, written, predicted):
    """Label maps are the predictor's labels, whatever the file is like."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = picture()
    grey = image[..., 1]
    deep = image.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(folder / "rgb.jpg")
    Image.fromarray(image).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(image).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(np.dstack([image, grey])).save(folder / "rgba.png")
    Image.fromarray(np.dstack([grey, grey])).save(folder / "grey_alpha.png")
    Image.fromarray(deep[..., 0]).save(folder / "grey16.png")
    cv2.imwrite(str(folder / "rgb16.png"), deep)
    Image.fromarray(image).quantize(30).save(folder / "palette.png")
    Image.fromarray(grey > 100).save(folder / "bits.png")
    Image.fromarray(image).save(folder / "rgb_.bmp")
    Image.fromarray(image).save(folder / "rgb__.TIF")
    Image.fromarray(image).save(folder / "web.webp")
    save(folder / "narrow.png", size=(40, 1))
    save(folder / "one.png", size=(1, 1))
    assert run(folder) == 0
    sources = {path.stem: path for path in folder.iterdir()}
    assert {f"overlays/{stem}.jpg" for stem in sources} <= set(written(tmp_path / "out"))
    for stem, source in sources.items():
        labels = read_labels(str(tmp_path / "out" / "labels" / f"{stem}.png"))
        assert np.array_equal(labels, predicted(model, source)), stem
        assert read_image(str(tmp_path / "out" / "overlays" / f"{stem}.jpg")).shape[:2] == (
            labels.shape
        )
    assert read_labels(str(tmp_path / "out" / "labels" / "turned.png")).shape == (32, 24)


def test_all_outputs(run, model, tmp_path, picture, save, written):
    source = save(tmp_path / "in" / "a.png")
    options = ["--show-why", "--probabilities", "--format", "png", "--budget", "0.1"]
    assert run(source, *options) == 0
    out = tmp_path / "out"
    assert written(out) == [
        "labels/a.png",
        "overlays/a.png",
        "panels/a.png",
        "probabilities/a.npz",
    ]
    _, config, _, weights = model()
    predictor = SparseRefinePredictor(config, weights)
    predictor.set_budget(0.1)
    output = predictor(source)
    with np.load(out / "probabilities" / "a.npz") as file:
        shares = file["probabilities"] / 65535
    assert np.abs(shares - predictor.probabilities(output).numpy()).max() <= 0.51 / 65535
    assert np.array_equal(read_labels(str(out / "labels" / "a.png")), output["labels"].numpy())
    # half of the class's colour, half of the image
    colors = np.array(predictor.metadata.stuff_colors)[output["labels"].numpy()]
    expected = 0.5 * colors + 0.5 * picture()
    assert np.abs(read_image(str(out / "overlays" / "a.png")) - expected).max() <= 0.5
    assert read_image(str(out / "panels" / "a.png")).shape[1] > 900


def test_more_than_256_classes(run, model, tmp_path, save, predicted):
    source = save(tmp_path / "a.png")
    options = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 300, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 65535]
    assert run(source, options=options) == 0
    path = tmp_path / "out" / "labels" / "a.png"
    assert path.read_bytes()[24] == 16
    assert np.array_equal(read_labels(str(path)), predicted(lambda: model(*options), source))


def test_folders_and_globs(run, tmp_path):
    root = tmp_path / "in"
    for name in ("b.png", "a.jpg", "deep/c.PNG", ".hidden.png", "note.txt", "d[1].png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "clip.mp4").touch()
    out = root / "out"
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "a.jpg").touch()

    def found(*arguments, recursive=False) -> list[str]:
        given = [str(root / argument) for argument in arguments]
        return [path.relative_to(root).as_posix() for path in find_inputs(given, out, recursive)]

    assert found("") == ["a.jpg", "b.png", "clip.mp4", "d[1].png"]
    assert found("", recursive=True) == ["a.jpg", "b.png", "clip.mp4", "d[1].png", "deep/c.PNG"]
    assert found("*.png", "a.jpg") == ["b.png", "d[1].png", "a.jpg"]
    assert found("**/*.PNG") == ["deep/c.PNG"]
    assert found("d[1].png", "b.png", "b.png", "") == ["d[1].png", "b.png", "a.jpg", "clip.mp4"]
    assert found("note.txt") == ["note.txt"]  # asked for by name: it is tried
    for nothing in ("gone.png", "*.gif", "deep/*.jpg"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            found(nothing)
    assert run(root / "gone.png") == 2


@pytest.mark.slow
def test_same_names(run, model, tmp_path, save, predicted):
    """Two inputs of one name do not write over one another, in one run or in two."""
    root = tmp_path / "in"
    sources = [save(root / "x" / "a.png", 1), save(root / "y" / "a.png", 2)]
    sources += [save(root / "y" / "b.png", 3), save(root / "y" / "b.jpg", 4)]
    assert run(*sources) == 0
    names = ["b_jpg", "b_png", "x_a", "y_a"]
    out = tmp_path / "out"
    assert [path.stem for path in sorted((out / "labels").iterdir())] == names
    later = save(root / "z" / "b.png", 5)
    first = save(root / "w" / "x_a.png", 6)
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    assert run(later, first, sources[0]) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    for source, name in zip([*sources, later, first], ["x_a", "y_a", "b_png", "b_jpg", "b"]):
        labels = read_labels(str(out / "labels" / f"{name}.png"))
        assert np.array_equal(labels, predicted(model, source)), name
    labels = read_labels(str(out / "labels" / "x_a_png.png"))
    assert np.array_equal(labels, predicted(model, first))

    paths = [Path(f"/r/{name}") for name in ("A.png", "a.png", "b_a.png", "b/a.png", "a_b/a.png")]
    named = list(assign_names(paths, {}).values())
    assert len({name.casefold() for name in named}) == len(paths)
    assert all("/" not in name for name in named)
    many = [Path(f"/{index}/a.png") for index in range(50)]
    assert len(set(assign_names(many, {"/gone": "0_a"}).values()) | {"0_a"}) == 51


def test_shipped_model(run, tmp_path, monkeypatch, save, written):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    name = next(name for name in model_zoo.names() if name.endswith("sparse_refine"))
    assert run(save(tmp_path / "a.jpg"), "--model", name, "--show-why", "--device", "cpu") == 0
    assert written(tmp_path / "out") == ["labels/a.png", "overlays/a.jpg", "panels/a.jpg"]
