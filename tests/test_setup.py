# SPDX-License-Identifier: Apache-2.0
"""The repository's own set-up: setup.py, the pins and the Makefile. Nothing is installed here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"^([\w.-]+)==([\w.+]+)(?: *; *(.+?))?(?: *\\)?$")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Name -> version of a requirements file, whatever platform the pin is for."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    found = [PIN.match(line) for line in lines if line and not line.startswith(("#", "--hash="))]
    assert found and all(found), f"{path.name} holds a line that is no exact version"
    return {normalised(match[1]): match[2] for match in found}


def all_pins() -> dict[str, str]:
    merged: dict[str, str] = {}
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for name, version in pins(path).items():
            assert merged.setdefault(name, version) == version, f"{name} is pinned twice"
    return merged


def setup_arguments(tmp_path: Path) -> dict:
    """What setup.py hands to setuptools, where importing torch or Detectron2 ends the process."""
    pytest.importorskip("setuptools")
    for name in ("torch", "detectron2"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'setup.py imported {__name__}')")
    code = (
        "import json, runpy, setuptools\n"
        "setuptools.setup = lambda **kwargs: print(json.dumps(kwargs, default=str))\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_setup_py_leaves_torch_detectron2_and_opencv_alone(tmp_path):
    arguments = setup_arguments(tmp_path)
    assert arguments["python_requires"] == ">=3.9"
    extras = {"minkowski", "bases", "timm", "huggingface", "smp", "demo", "web", "test"}
    assert set(arguments["extras_require"]) == extras
    wanted = " ".join(arguments["install_requires"])
    assert not re.search(r"torch|detectron2|opencv", wanted)


def test_setup_py_finds_every_package(tmp_path):
    source = ROOT / "projects" / "SparseRefine"
    folders = {path.parent for path in (source / "sparse_refine").rglob("*.py")}
    expected = {".".join(folder.relative_to(source).parts) for folder in folders}
    assert set(setup_arguments(tmp_path)["packages"]) == expected


def test_wheels_hold_the_model_zoo(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for kind in ("configs", "weights"):
        source, copy = ROOT / "projects" / "SparseRefine" / kind, tmp_path / "sparse_refine" / "zoo"
        found = {path.relative_to(copy / kind) for path in copy.glob(f"{kind}/**/*.*")}
        assert found == {path.relative_to(source) for path in source.rglob("*.*")} != set()


def test_versions_are_pinned_in_requirements_alone(tmp_path):
    names = all_pins()
    for path in ("setup.py", "pyproject.toml", "Makefile", "tools/setup_env.sh", ".ci/run"):
        assert not re.search(r"[\w\]]==\d", (ROOT / path).read_text()), f"{path} pins a version"
    arguments = setup_arguments(tmp_path)
    for wanted in (arguments["install_requires"], *arguments["extras_require"].values()):
        for requirement in wanted:
            assert normalised(re.match(r"[\w-]+", requirement)[0]) in names, requirement


@pytest.mark.parametrize("name", ["detectron2", "mask2former", "minkowski"])
def test_pinned_by_hash(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", text)


def test_environment_of_set_up_holds_the_pins():
    if not (Path(sys.prefix) / ".setup" / "base").exists():
        pytest.skip("this environment was not made by tools/setup_env.sh")
    wanted = {**pins(ROOT / "requirements/demo.txt"), **pins(ROOT / "requirements/detectron2.txt")}
    if sys.platform != "linux":
        wanted = {name: v for name, v in wanted.items() if not name.startswith(("nvidia", "cuda"))}
        wanted.pop("triton")
    # Not sys.path: setuptools puts its own copies of other packages there.
    site = sysconfig.get_path("purelib")
    held = {
        normalised(found.metadata["Name"]): found.version
        for found in importlib.metadata.distributions(path=[site])
    }
    assert {name: held.get(name) for name in wanted} == wanted


# ---- the Makefile


@pytest.mark.parametrize(
    ("target", "steps", "command"),
    [
        ("install", "base", None),
        ("demo", "base", "projects/SparseRefine/demo/synthetic_demo.py"),
        ("web", "base web", "projects/SparseRefine/demo/web_demo.py"),
        ("test", "base web test minkowski browser", "-m pytest"),
        ("test-fast", "base web test", '-m pytest -m "not slow"'),
        ("lint", "lint", "-m ruff format --check"),
    ],
)
def test_makefile_targets_take_venv_and_python(target, steps, command):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # Under `make test` these carry the outer make's own VENV.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", target, "VENV=some/venv", "PYTHON=some-python"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f'tools/setup_env.sh "some/venv" "some-python" {steps}\n' in done.stdout
    assert command is None or f'"some/venv/bin/python" {command}' in done.stdout
