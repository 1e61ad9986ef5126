# SPDX-License-Identifier: Apache-2.0
"""Datasets register at no cost, pair their files, and say what is wrong with a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

from sparse_refine import add_sparse_refine_config
from sparse_refine.data import (
    datasets,
    reading,
    register_folders,
    register_image_label_folder,
    register_synthetic_field,
    synthetic,
    synthetic_field,
)

NAMES = ("soil", "weed", "crop")
BUILTIN = [
    *("rgbweed_train", "rgbweed_test", "camvid_train", "camvid_val", "camvid_test"),
    *("ade20k_train", "ade20k_val", "synthetic_field_train", "synthetic_field_val"),
]
CLASSES = {"camvid": 11, "ade20k": 150}


@pytest.fixture(autouse=True)
def catalogs():
    """Both catalogs as they were, after each test."""
    before = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, data in before:
        catalog.data.clear()
        catalog.data.update(data)


def make(folder: Path, images, labels=()):
    """Files of 6 x 4 pixels in folder/images and folder/labels, by name."""
    for kind, names in (("images", images), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            with open(folder / kind / name, "wb") as file:
                format = Image.registered_extensions()[Path(name).suffix.lower()]
                Image.new("RGB" if kind == "images" else "L", (6, 4)).save(file, format=format)
    return folder / "images", folder / "labels"


def register(folders, **options):
    register_image_label_folder("mine", *folders, **{"class_names": NAMES, **options})


# ---------------------------------------------------------------------- folders


def test_pairs_by_stem_whatever_the_extension(tmp_path):
    images = ["b.PNG", "a.jpg", "c.1.JPEG", "d.tif", "e.TIFF", "f.bmp", "g.webp", ".hidden.jpg"]
    labels = ["a.png", "b.png", "c.1.PNG", "d.tif", "e.png", "f.bmp", "g.png", "unused.png"]
    folders = make(tmp_path, images, labels)
    (folders[0] / "notes.txt").write_text("not an image")
    register(folders, colors=[(1, 2, 3), (4, 5, 6), np.array([7, 8, 9])])
    dicts = DatasetCatalog.get("mine")
    assert [Path(d["file_name"]).stem for d in dicts] == ["a", "b", "c.1", "d", "e", "f", "g"]
    assert [Path(d["sem_seg_file_name"]).name for d in dicts] == labels[:-1]
    assert all(set(d) == {"file_name", "sem_seg_file_name", "height", "width"} for d in dicts)
    assert all((d["height"], d["width"]) == (4, 6) for d in dicts)
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == list(NAMES) and metadata.ignore_label == 255
    assert metadata.stuff_colors == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert metadata.evaluator_type == "sem_seg"
    assert metadata.image_root == str(folders[0]) and metadata.sem_seg_root == str(folders[1])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_size_is_the_upright_image_s(tmp_path, orientation):
    folders = make(tmp_path, [], ["a.png"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(folders[0] / "a.jpg", exif=exif)
    register(folders)
    (found,) = DatasetCatalog.get("mine")
    assert (found["height"], found["width"]) == ((6, 4) if orientation in (6, 8) else (4, 6))
    assert reading.read_image(found["file_name"]).shape[:2] == (found["height"], found["width"])


def test_split_file(tmp_path):
    folders = make(tmp_path, ["a.jpg", "b.jpg", "c.png", "d.e.jpg"], ["a.png", "c.png", "d.e.png"])
    (tmp_path / "split.txt").write_bytes("\ufeffc.png\r\n\r\n  a \r\nd.e\r\n".encode())
    register(folders, split_file=tmp_path / "split.txt")
    dicts = DatasetCatalog.get("mine")
    assert [Path(d["file_name"]).name for d in dicts] == ["c.png", "a.jpg", "d.e.jpg"]


def test_nothing_is_read_at_registration(tmp_path):
    register((tmp_path / "no", tmp_path / "where"))
    folders = make(tmp_path, ["a.jpg"], ["a.png"])
    folders[0].rename(tmp_path / "no")
    folders[1].rename(tmp_path / "where")
    assert len(DatasetCatalog.get("mine")) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_names": []}, "class_names has to be a list of names"),
        ({"class_names": "soil"}, "class_names has to be a list of names, got 'soil'"),
        ({"class_names": ["a", "b", "a"]}, "class_names has a more than once"),
        ({"ignore_label": 2}, "ignore_label 2 is the id of class 'crop'.*outside 0..2"),
        ({"colors": [(0, 0, 0)]}, "1 colors for 3 classes"),
        ({"labels_from_one": True, "ignore_label": 0}, "labels .* need ignore_label 255.* 0 and 3"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"'mine': {message}"):
        register(make(tmp_path, []), **options)
    assert "mine" not in DatasetCatalog.list() and "mine" not in MetadataCatalog.list()


def test_name_in_use(tmp_path):
    register(make(tmp_path, []))
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register(make(tmp_path, []))


@pytest.mark.parametrize(
    "images, labels, split, message",
    [
        ([], [], None, "no image files .*in .*images; subfolders are not searched"),
        (["a.jpg"], [], None, "no label files .*in .*labels"),
        (
            ["a.jpg", "b.jpg"],
            ["a.png"],
            None,
            r"images/b.jpg has no labels, looked for b\(.*1 of 2",
        ),
        (["a.jpg", "a.PNG"], ["a.png"], None, "images/a.PNG and .*images/a.jpg are images of one"),
        (["a.jpg"], ["a.png", "a.tif"], None, "a.png and .*a.tif are label files of one name"),
        (["a.jpg"], ["a.png"], "a\nq\n", "split.txt, line 2: no image 'q' in .*images"),
        (["a.jpg"], ["a.png"], "a\n\na.jpg\n", "split.txt lists 'a' twice, in lines 1 and 3"),
        (["a.jpg"], ["a.png"], "\n", "split.txt lists no images"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path, images, labels, split, message):
    if split is not None:
        (tmp_path / "split.txt").write_text(split)
    register(make(tmp_path, images, labels), split_file=split and tmp_path / "split.txt")
    with pytest.raises((FileNotFoundError, ValueError), match=f"'mine': .*{message}"):
        DatasetCatalog.get("mine")


def test_twins_outside_the_split_do_no_harm(tmp_path):
    folders = make(tmp_path, ["a.jpg", "b.jpg", "b.png"], ["a.png", "b.png"])
    (tmp_path / "split.txt").write_text("a\n")
    register(folders, split_file=tmp_path / "split.txt")
    assert len(DatasetCatalog.get("mine")) == 1


def test_missing_folders_and_split_file(tmp_path):
    folders = make(tmp_path, ["a.jpg"], ["a.png"])
    for given, split, message in [
        ((tmp_path / "x", folders[1]), None, "no image folder .*x"),
        ((folders[0], tmp_path / "x"), None, "no label folder .*x"),
        (folders, tmp_path / "x.txt", "no split file .*x.txt"),
    ]:
        register(given, split_file=split)
        with pytest.raises(FileNotFoundError, match=f"'mine': {message}"):
            DatasetCatalog.get("mine")
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")


def test_an_unreadable_image_is_named(tmp_path):
    folders = make(tmp_path, [], ["a.png"])
    (folders[0] / "a.jpg").write_bytes(b"nothing")
    register(folders)
    with pytest.raises(OSError, match="images/a.jpg"):
        DatasetCatalog.get("mine")


# ---------------------------------------------------------------------- labels from one


def labels_from_one(tmp_path, values, dtype=np.uint8):
    """The name under which a label map of one row is registered."""
    folders = make(tmp_path, ["a.png"])
    Image.fromarray(np.array([values], dtype=dtype)).save(folders[1] / "a.png")
    register(folders, labels_from_one=True)
    (found,) = DatasetCatalog.get("mine")
    return found["sem_seg_file_name"]


def test_labels_from_one_are_shifted_for_every_reader(tmp_path):
    name = labels_from_one(tmp_path, [0, 1, 3, 255])
    assert name == f"labels_from_one://{tmp_path}/labels/a.png"
    expected = [[255, 0, 2, 254]]
    assert reading.read_labels(name).tolist() == expected
    assert detection_utils.read_image(name).tolist() == expected  # Detectron2's own
    assert PathManager.isfile(name) and not PathManager.exists(name + "x")
    with pytest.raises(ValueError, match=r"labels/a.png: label 254 .*not one of 0..2 or 255"):
        reading.check_labels(np.array(expected), 3, 255, name)
    with pytest.raises(ValueError, match="\"rb\" only, not 'w'"):
        PathManager.open(name, "w")


def test_labels_from_one_of_16_bits_are_refused(tmp_path):
    name = labels_from_one(tmp_path, [0, 300], np.uint16)
    with pytest.raises(ValueError, match="labels/a.png: .*8 bits, these are uint16"):
        reading.read_labels(name)


def test_labels_from_one_in_a_config(tmp_path):
    folders = make(tmp_path, ["a.png"], ["a.png"])  # all 0
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    cfg.DATASETS.FOLDERS = [["mine", *map(str, folders)]]
    cfg.DATASETS.CLASS_NAMES = ["soil", "crop"]
    cfg.DATASETS.LABELS_FROM_ONE = True
    register_folders(cfg)
    (found,) = DatasetCatalog.get("mine")
    assert (reading.read_labels(found["sem_seg_file_name"]) == 255).all()


def test_ade20k_as_it_is_downloaded(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    images, labels = (folder / kind / "validation" for kind in ("images", "annotations"))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(images / "ADE_val_00000001.jpg")
    Image.fromarray(np.array([[0, 1, 150]], np.uint8)).save(labels / "ADE_val_00000001.png")
    forget_builtin()
    datasets.register_builtin(tmp_path)
    (found,) = DatasetCatalog.get("ade20k_val")
    assert reading.read_labels(found["sem_seg_file_name"]).tolist() == [[255, 0, 149]]
    assert MetadataCatalog.get("ade20k_val").stuff_classes[0] == "wall"


# ---------------------------------------------------------------------- built-in


def forget_builtin():
    for name in BUILTIN:
        DatasetCatalog.data.pop(name, None)
        MetadataCatalog.data.pop(name, None)


def test_importing_registers(tmp_path):
    assert set(BUILTIN) <= set(DatasetCatalog.list())
    for name in BUILTIN:
        metadata = MetadataCatalog.get(name)
        assert len(metadata.stuff_classes) == CLASSES.get(name.split("_")[0], 3)
        if not name.startswith("ade20k"):
            assert len(metadata.stuff_colors) == len(metadata.stuff_classes)
        assert metadata.ignore_label == 255 and metadata.evaluator_type == "sem_seg"


def test_registering_again_leaves_what_is_there():
    DatasetCatalog.remove("camvid_val")
    MetadataCatalog.remove("camvid_val")
    DatasetCatalog.register("camvid_val", lambda: ["someone else's"])
    datasets.register_builtin()
    datasets.register_builtin()
    assert DatasetCatalog.get("camvid_val") == ["someone else's"]


@pytest.mark.parametrize("name", ["rgbweed_test", "camvid_train"])
def test_absent_data_says_where_it_was_looked_for(tmp_path, monkeypatch, name):
    forget_builtin()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    datasets.register_builtin()
    folder = name.split("_")[0]
    message = (
        f"no image folder {tmp_path}/{folder}/images.*set DETECTRON2_DATASETS.*holds {folder}/"
    )
    with pytest.raises(FileNotFoundError, match=message):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    "name, count, size",
    [
        ("rgbweed_train", 25, (2448, 3264)),
        ("rgbweed_test", 11, (2448, 3264)),
        ("camvid_train", 367, (360, 480)),
        ("camvid_val", 101, (360, 480)),
        ("camvid_test", 233, (360, 480)),
    ],
)
def test_real_data(datasets_root, name, count, size):
    forget_builtin()
    datasets.register_builtin(datasets_root)
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == count
    assert {(d["height"], d["width"]) for d in dicts} == {size}
    classes = len(MetadataCatalog.get(name).stuff_classes)
    for found in dicts[:: max(count // 5, 1)]:
        labels = reading.read_labels(found["sem_seg_file_name"])
        assert labels.shape == size
        reading.check_labels(labels, classes, 255, found["sem_seg_file_name"])
    assert len({d["file_name"] for d in dicts}) == count


# ---------------------------------------------------------------------- synthetic


def field(root, name="field", split="val", count=2, height=40, width=48):
    register_synthetic_field(name, split, count, height, width, root)


def test_synthetic_images_are_made_once_when_asked_for(tmp_path, monkeypatch):
    field(tmp_path)
    assert not list(tmp_path.iterdir())
    dicts = DatasetCatalog.get("field")
    folder = tmp_path / synthetic.GENERATOR_VERSION / "40x48" / "val"
    assert MetadataCatalog.get("field").image_root == str(folder)
    assert len(dicts) == 2 and len(list(folder.iterdir())) == 4  # no temporary file stays
    for k, found in enumerate(dicts):
        image, labels = synthetic.generate_field(40, 48, 1_000_000 + k)
        np.testing.assert_array_equal(reading.read_labels(found["sem_seg_file_name"]), labels)
        stored = reading.read_image(found["file_name"])
        assert stored.shape == image.shape and (found["height"], found["width"]) == (40, 48)
        assert np.abs(stored.astype(int) - image).mean() < 3

    monkeypatch.setattr(synthetic, "generate_field", None)  # would raise if called
    assert DatasetCatalog.get("field") == dicts


def test_an_interrupted_image_is_made_again(tmp_path, monkeypatch):
    field(tmp_path)
    dicts = DatasetCatalog.get("field")
    kept = Path(dicts[0]["sem_seg_file_name"]).read_bytes()
    os.unlink(dicts[0]["sem_seg_file_name"])

    def fail(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", fail)
        DatasetCatalog.get("field")
    assert len(list(Path(dicts[0]["file_name"]).parent.iterdir())) == 3
    assert DatasetCatalog.get("field") == dicts
    assert Path(dicts[0]["sem_seg_file_name"]).read_bytes() == kept


def test_several_processes_at_once_and_none_at_import(tmp_path):
    (tmp_path / "unasked").mkdir()
    code = f"""
from sparse_refine.data import register_synthetic_field
from detectron2.data import DatasetCatalog
register_synthetic_field("field", "train", 4, 64, 64, {str(tmp_path / "made")!r})
print(DatasetCatalog.get("field"))
"""
    env = {**os.environ, "SPARSE_REFINE_CACHE": str(tmp_path / "unasked")}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-W", "ignore", "-c", code]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = [process.communicate(timeout=300)[0] for process in both]
    assert first == second and all(process.returncode == 0 for process in both)
    field(tmp_path / "made", split="train", count=4, height=64, width=64)
    dicts = DatasetCatalog.get("field")
    assert first == f"{dicts}\n"
    assert len(list(Path(dicts[0]["file_name"]).parent.iterdir())) == 8
    for seed, found in enumerate(dicts):
        labels = synthetic.generate_field(64, 64, seed)[1]
        np.testing.assert_array_equal(reading.read_labels(found["sem_seg_file_name"]), labels)
    assert not list((tmp_path / "unasked").iterdir())


def test_default_sets(tmp_path, monkeypatch):
    forget_builtin()
    monkeypatch.setenv("SPARSE_REFINE_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(
        synthetic,
        "generate_field",
        lambda h, w, seed: made.append((h, w, seed)) or (np.zeros((1, 1, 3), np.uint8),) * 2,
    )
    datasets.register_builtin(tmp_path)
    train = DatasetCatalog.get("synthetic_field_train")
    seeds = {seed for _, _, seed in made}
    assert len(train) == len(seeds) == 24
    val = DatasetCatalog.get("synthetic_field_val")
    assert len(val) == 6 and len(made) == 30
    assert not seeds & {seed for _, _, seed in made[24:]}
    assert {(h, w) for h, w, _ in made} == {(1536, 2048)}
    assert Path(val[0]["file_name"]).parent == (
        tmp_path / "synthetic_field" / synthetic.GENERATOR_VERSION / "1536x2048" / "val"
    )


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("SPARSE_REFINE_CACHE", "/x")
    assert synthetic_field._cache_folder() == Path("/x")
    monkeypatch.delenv("SPARSE_REFINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/y")
    assert synthetic_field._cache_folder() == Path("/y/sparse_refine")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert synthetic_field._cache_folder() == Path.home() / ".cache" / "sparse_refine"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "test"}, r"one of \['train', 'val'\], got 'test'"),
        ({"count": 0}, "'field': 0 images of 48 x 40 pixels"),
        ({"height": 0}, "'field': 2 images of 48 x 0 pixels"),
    ],
)
def test_impossible_synthetic_sets(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        field(tmp_path, **options)


def test_folders_of_a_config(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "a.png")
    Image.new("L", (6, 4)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "split.txt").write_text("a\n")
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    name = f"folders_{tmp_path.name}"
    entry = [name, str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "split.txt")]
    text = yaml.safe_dump({"DATASETS": {"FOLDERS": [entry], "CLASS_NAMES": ["soil", "crop"]}})
    (tmp_path / "own.yaml").write_text(text)
    cfg.merge_from_file(str(tmp_path / "own.yaml"))
    register_folders(cfg)
    register_folders(cfg)  # a second time is nothing new
    (record,) = DatasetCatalog.get(name)
    assert (record["height"], record["width"]) == (4, 6)
    assert MetadataCatalog.get(name).stuff_classes == ["soil", "crop"]
    cfg.DATASETS.FOLDERS = [["b", "images"]]
    with pytest.raises(ValueError, match=r"DATASETS.FOLDERS .*'b', 'images'"):
        register_folders(cfg)
