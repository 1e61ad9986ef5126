# SPDX-License-Identifier: Apache-2.0
"""tools/setup_env.sh and .ci/run, in a copy of the repository, on an environment whose `python` is
a shell script that writes down what it was asked to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
