# SPDX-License-Identifier: Apache-2.0
"""A wheel without the clone: built from a copy, installed into a folder of its own, used from an
empty one. torch and Detectron2 are those of this environment."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_refine import SparseRefinePredictor
from sparse_refine.__main__ import COMMANDS
from sparse_refine.data.synthetic import CLASS_NAMES, generate_field
from sparse_refine.data.synthetic_field import SCALES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
MODEL = "synthetic_field/sparse_refine"

YAML = """
_BASE_: {configs}/synthetic_field/sparse_refine.yaml
DATASETS:
  FOLDERS:
    - ["field_train", "field/images", "field/labels"]
    - ["field_test", "field/images", "field/labels"]
  CLASS_NAMES: [{names}]
  TRAIN: ("field_train",)
  TEST: ("field_test",)
INPUT:
  CACHE_IMAGES: 0
  CROP: {{SIZE: [96, 128]}}
SOLVER: {{IMS_PER_BATCH: 1, MAX_ITER: 2}}
DATALOADER: {{NUM_WORKERS: 0}}
OUTPUT_DIR: output/field
"""
PROGRAM = """
import contextlib, io, json, sys
import numpy as np
import sparse_refine
from sparse_refine import __main__, SparseRefinePredictor
from sparse_refine.inference import model_zoo

helps = {}
for name in __main__.COMMANDS:
    sys.argv = ["sparse_refine", name, "--help"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            __main__.main()
        except SystemExit as end:
            helps[name] = [end.code or 0, text.getvalue()]
sys.argv = "x check --images field/images --labels field/labels --classes 3 --workers 1".split()
with contextlib.redirect_stdout(io.StringIO()):
    checked = __main__.main()
np.save("labels.npy", SparseRefinePredictor(MODEL)("photo.png")["labels"].numpy())
found = {"helps": helps, "checked": checked, "names": model_zoo.names()}
print(json.dumps({"file": sparse_refine.__file__, **found}))
"""


def done(command, **options) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The .whl of a copy of this checkout."""
    for name in ("pip", "setuptools", "wheel"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"building a wheel needs {name}")
    copy = tmp_path_factory.mktemp("copy")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "output", "figures")
    shutil.copytree(ROOT / "projects", copy / "projects", ignore=unwanted)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", copy / "dist")
    done([sys.executable, "-m", "pip", "wheel", *options, copy])
    (found,) = (copy / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The folder that it is installed into."""
    site = tmp_path_factory.mktemp("site")
    options = ("--no-deps", "--no-index", "--target", site)
    done([sys.executable, "-m", "pip", "install", *options, wheel])
    return site


@pytest.fixture(scope="module")
def outside(site, tmp_path_factory):
    """run(*command) -> stdout, in a folder with a photograph and a labelled data set in field/."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for kind in ("images", "labels"):
        (folder / "field" / kind).mkdir(parents=True)
    image, labels = generate_field(384, 512, seed=0, **SCALES)  # as the shipped base knows them
    Image.fromarray(image).save(folder / "photo.png")
    Image.fromarray(image).save(folder / "field" / "images" / "a.png")
    Image.fromarray(labels).save(folder / "field" / "labels" / "a.png")
    unwanted = ("DETECTRON2_DATASETS", "SPARSE_REFINE_ZOO")
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    env.update(PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1", CUDA_VISIBLE_DEVICES="")

    def run(*command) -> str:
        return done(command, cwd=folder, env=env)

    run.folder = folder
    return run


def test_a_wheel_holds_the_package_the_zoo_and_the_script(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "projects" / "SparseRefine"
    sources = {p.relative_to(package).as_posix() for p in (package / "sparse_refine").rglob("*.py")}
    assert sources <= names
    zoo = {
        f"sparse_refine/zoo/configs/{MODEL}.yaml",
        f"sparse_refine/zoo/weights/{MODEL}.safetensors",
    }
    assert zoo <= names
    assert not [name for name in names if name.startswith(("tests", "projects", "tools"))]
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    script = zipfile.ZipFile(wheel).read(entry).decode()
    assert "sparse-refine = sparse_refine.__main__:main" in script


def test_import_help_check_and_predictor(outside, site):
    found = json.loads(
        outside(sys.executable, "-c", f"MODEL = {MODEL!r}\n{PROGRAM}").splitlines()[-1]
    )
    assert Path(found["file"]).is_relative_to(site)
    assert found["checked"] == 0  # of `check`: no faults
    assert MODEL in found["names"] and "rgbweed/sparse_refine" in found["names"]
    assert found["helps"].keys() == COMMANDS.keys()
    for name, (code, text) in found["helps"].items():
        assert code == 0 and f"sparse_refine {name}" in text, text
    labels = np.load(outside.folder / "labels.npy")
    expected = SparseRefinePredictor(MODEL)(outside.folder / "photo.png")["labels"].numpy()
    assert labels.shape == (384, 512) and (labels == expected).mean() > 0.9999


def test_train_evaluate_and_predict(outside, site):
    """A yaml on top of one of the zoo's, whose weights are found inside the wheel."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="the base of the shipped models")
    configs = Path(outside(site / "bin" / "sparse-refine", "configs").strip())
    assert configs.is_relative_to(site)
    names = ", ".join(f'"{name}"' for name in CLASS_NAMES)
    (outside.folder / "field.yaml").write_text(YAML.format(configs=configs, names=names))
    program = (sys.executable, "-m", "sparse_refine")
    outside(*program, "train", "--config-file", "field.yaml")
    weights = "output/field/model_final.pth"
    assert (outside.folder / weights).is_file()
    outside(*program, "evaluate", "--config-file", "field.yaml", "MODEL.WEIGHTS", weights)
    results = outside.folder / "output" / "field" / "inference" / "field_test" / "results.json"
    # trained for two iterations on the shipped base: the coarse arm has the base's accuracy
    assert json.loads(results.read_text())["sparse_refine"]["coarse/mIoU"] > 40

    outside(*program, "predict", "--model", MODEL, "photo.png", "--show-why")
    written = sorted(
        p.parent.name for p in (outside.folder / "output/predictions").glob("*/photo.*")
    )
    assert written == ["labels", "overlays", "panels"]
