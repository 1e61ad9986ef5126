# SPDX-License-Identifier: Apache-2.0
"""The repository's own set-up: setup.py, the pins, tools/setup_env.sh, the Makefile and .ci/run.

Nothing is installed here. The set-up script runs in a copy of the repository, on an environment
whose `python` is a shell script that writes down what it was asked to do.
"""

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


# ---- tools/setup_env.sh


class Clone:
    """A copy of what set-up reads, and an environment whose python only keeps a diary."""

    def __init__(self, root: Path):
        self.root = root / "clone"
        self.venv = root / "venv"
        self.site = self.venv / "site-packages"
        self.diary = root / "diary"
        self.site.mkdir(parents=True)
        for name in ("tools", "requirements", ".ci"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy(ROOT / "setup.py", self.root)
        self.program(
            self.venv / "bin" / "python",
            f'echo "$*" >>"{self.diary}"\n'
            f'case "$*" in *purelib*) echo "{self.site}" ;; *ctypes*) exit 1 ;; esac',
        )

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, *steps: str, python: str = "", venv=None, path=None, **variables: str):
        search = os.pathsep.join(filter(None, [path and str(path), os.environ["PATH"]]))
        return subprocess.run(
            ["bash", "tools/setup_env.sh", str(venv or self.venv), python, *steps],
            cwd=self.root,
            env={
                **os.environ,
                "PATH": search,
                "XDG_CACHE_HOME": str(self.root / "cache"),
                **variables,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def installs(self) -> list[str]:
        """The pip installs since the last call."""
        lines = self.diary.read_text().splitlines()
        self.diary.unlink()
        return [line for line in lines if "pip install" in line]


@pytest.fixture
def clone(tmp_path):
    if os.name != "posix" or shutil.which("bash") is None:
        pytest.skip("set-up needs bash")
    return Clone(tmp_path)


def test_set_up_installs_once_and_again_after_a_changed_pin(clone):
    assert clone.run("lint").returncode == 0
    assert any("requirements/lint.txt" in line for line in clone.installs())
    assert clone.run("lint").returncode == 0
    assert clone.installs() == []
    with (clone.root / "requirements" / "lint.txt").open("a") as file:
        file.write("other==1\n")
    assert clone.run("lint").returncode == 0
    assert clone.installs()


def test_set_up_installs_detectron2_by_hash_into_the_environment(clone):
    done = clone.run("base")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in clone.installs() if "detectron2.txt" in line)
    assert "--require-hashes" in line and f"--target {clone.site}" in line


def test_set_up_of_tests_installs_mask2former_by_hash_and_nothing_that_it_names(clone):
    python = clone.venv / "bin" / "python"
    with python.open("a") as file:  # the environment, which says what its setup.py compiles
        file.write(f'echo "FORCE_CUDA=$FORCE_CUDA," >>"{clone.diary}"\n')
        file.write(f'echo "DEVICES=$CUDA_VISIBLE_DEVICES," >>"{clone.diary}"\n')
    done = clone.run("test", FORCE_CUDA="1", CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 0, done.stderr
    lines = clone.diary.read_text().splitlines()
    (at,) = (i for i, line in enumerate(lines) if "mask2former.txt" in line)
    assert {"--no-deps", "--no-build-isolation", "--require-hashes"} <= set(lines[at].split())
    assert lines[at + 1 : at + 3] == ["FORCE_CUDA=,", "DEVICES=,"]
    assert clone.run("test").returncode == 0
    assert not any("pip install" in line for line in clone.diary.read_text().splitlines()[at + 3 :])


def test_killed_set_up_is_done_again_and_half_installed_packages_go(clone):
    half, whole = (clone.site / f"{name}-1.dist-info" for name in ("half", "whole"))
    for folder in (half, whole, clone.site / "~ld"):
        folder.mkdir()
    (half / "METADATA").touch()
    (whole / "INSTALLER").write_text("pip\n")
    # A stamp is moved into place when its step is over. Killed just before:
    (clone.venv / ".setup").mkdir()
    (clone.venv / ".setup" / "lint.new").touch()
    assert clone.run("lint").returncode == 0
    assert clone.installs()
    assert {path.name for path in clone.site.iterdir()} == {"whole-1.dist-info"}


def test_failed_step_leaves_no_stamp(clone):
    Clone.program(
        clone.venv / "bin" / "python",
        f'case "$*" in *lint.txt*) exit 1 ;; *purelib*) echo "{clone.site}" ;; esac',
    )
    assert clone.run("lint").returncode != 0
    assert not (clone.venv / ".setup" / "lint").exists()


def test_old_python_gives_one_line(clone, tmp_path):
    old = tmp_path / "old"
    Clone.program(old, 'case "$1" in -V) echo Python 3.8.1 ;; *) exit 1 ;; esac')
    done = clone.run("base", python=str(old), venv=tmp_path / "new")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "3.11 or newer" in done.stderr and "3.8.1" in done.stderr


def test_missing_system_package_gives_one_line_to_whoever_is_not_root(clone, tmp_path):
    Clone.program(tmp_path / "bin" / "id", "echo 1000")
    done = clone.run("minkowski", path=tmp_path / "bin")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "set-up: missing system packages; install them and run again: "
        "sudo apt-get install libopenblas-dev"
    ]


@pytest.mark.parametrize("user", [0, 1000])
def test_set_up_goes_on_without_a_browser(clone, tmp_path, user):
    programs = tmp_path / "programs"  # all that there are, but for the browser
    programs.mkdir()
    for folder in os.get_exec_path():
        for path in Path(folder).glob("*"):
            if not path.name.startswith("chrom") and not (programs / path.name).is_symlink():
                (programs / path.name).symlink_to(path)
    for name, text in (("id", f"echo {user}"), ("apt-get", "exit 100")):
        (programs / name).unlink(missing_ok=True)
        Clone.program(programs / name, text)
    done = clone.run("browser", PATH=str(programs))
    assert done.returncode == 0, done.stderr
    assert "is skipped" in done.stdout
    assert "chromium chromium-driver" in done.stderr
    assert clone.run("browser", PATH=str(programs)).stdout == ""


# ---- Makefile and .ci/run


@pytest.mark.parametrize(
    ("target", "steps", "command"),
    [
        ("install", "base", None),
        ("demo", "base", "projects/SparseRefine/demo/synthetic_demo.py"),
        ("web", "base web", "projects/SparseRefine/demo/web_demo.py"),
        ("test", "base web test minkowski browser", "-m pytest"),
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


@pytest.mark.parametrize("with_data", [True, False])
def test_ci_run_points_to_the_data_and_passes_the_exit_status_on(clone, tmp_path, with_data):
    data = tmp_path / "shared" / "data"
    if with_data:
        data.mkdir(parents=True)
    Clone.program(tmp_path / "bin" / "make", 'echo "$1:$DETECTRON2_DATASETS"; exit 7')
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    env.pop("DETECTRON2_DATASETS", None)
    done = subprocess.run(
        ["bash", str(clone.root / ".ci" / "run")],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7
    assert done.stdout == f"test:{data if with_data else ''}\n"
