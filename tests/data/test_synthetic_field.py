# SPDX-License-Identifier: Apache-2.0
"""Images of the synthetic field are made once, when asked for, by any number of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.data import reading, register_synthetic_field, synthetic, synthetic_field
from sparse_refine.data.synthetic_field import SCALES

pytestmark = pytest.mark.usefixtures("catalogs")


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
        image, labels = synthetic.generate_field(40, 48, 1_000_000 + k, **SCALES)
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


@pytest.mark.slow
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
        labels = synthetic.generate_field(64, 64, seed, **SCALES)[1]
        np.testing.assert_array_equal(reading.read_labels(found["sem_seg_file_name"]), labels)
    assert not list((tmp_path / "unasked").iterdir())


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
