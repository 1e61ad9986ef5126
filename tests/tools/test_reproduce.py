# SPDX-License-Identifier: Apache-2.0
"""tools/reproduce.sh with a stand-in for Python: what is trained, on what, and what is compared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine"
STAND_IN = """#!/usr/bin/env bash
echo "$@" >> "{log}"
for word in "$@"; do
  if [ "${{before:-}}" = OUTPUT_DIR ]; then mkdir -p "$word"; touch "$word/model_final.pth"; fi
  before=$word
done
"""


@pytest.fixture
def run(tmp_path):
    """run(*arguments) -> (exit code, the command lines that Python got)."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(STAND_IN.format(log=log))
    python.chmod(0o755)

    def call(*arguments):
        log.write_text("")
        done = subprocess.run(
            ["bash", PROJECT / "tools" / "reproduce.sh", *arguments],
            env={**os.environ, "PYTHON": str(python), "OUTPUT": str(tmp_path / "out")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, log.read_text().splitlines()

    return call


def trained(lines):
    """(config, seed) of each training, in order."""
    words = [line.split() for line in lines if "train_net.py" in line]
    return [(Path(w[w.index("--config-file") + 1]).stem, w[w.index("SEED") + 1]) for w in words]


def test_a_refiner_brings_its_base(run, tmp_path):
    done, lines = run("rgbweed/sparse_refine_fast", "4", "--", "SOLVER.MAX_ITER", "2")
    assert done.returncode == 0, done.stderr
    assert trained(lines) == [("dense_low", "4"), ("sparse_refine", "4")]
    base = tmp_path / "out/rgbweed/seed_4/dense_low/model_final.pth"
    assert f"MODEL.SPARSE_REFINE.BASE.WEIGHTS {base}" in lines[1]
    assert all(line.endswith("SOLVER.MAX_ITER 2") for line in lines)
    assert "--seeds 4 --oracle --arm sparse_refine_fast" in lines[2]
    # what is there is not trained again
    assert trained(run("rgbweed/sparse_refine", "4")[1]) == []


def test_full_starts_as_low(run, tmp_path):
    _, lines = run("camvid/dense_full", "0", "1")
    assert trained(lines) == [
        *(("dense_low", "0"), ("dense_full", "0"), ("dense_low", "1"), ("dense_full", "1"))
    ]
    assert f"MODEL.WEIGHTS {tmp_path}/out/camvid/seed_1/dense_low/model_final.pth" in lines[3]
    assert "--oracle" not in lines[4]


def test_a_trained_extractor_starts_as_full(run, tmp_path):
    _, lines = run("camvid/sparse_refine_trained", "2")
    assert trained(lines) == [
        ("dense_low", "2"),
        ("dense_full", "2"),
        ("sparse_refine_trained", "2"),
    ]
    folder, node = f"{tmp_path}/out/camvid/seed_", "MODEL.SPARSE_REFINE"
    assert f"{node}.EXTRACTOR.WEIGHTS {folder}2/dense_full/model_final.pth" in lines[2]
    assert f"OUTPUT_DIR {folder}2/sparse_refine_trained" in lines[2]
    assert f"{node}.EXTRACTOR.WEIGHTS={folder}{{seed}}/dense_full/" in lines[-1]


def test_a_pretrained_extractor_is_not_trained(run, tmp_path):
    _, lines = run("camvid/sparse_refine_pretrained", "0")
    assert trained(lines) == [("dense_low", "0"), ("dense_full", "0")]
    folder = f"{tmp_path}/out/camvid/seed_{{seed}}"
    node = "MODEL.SPARSE_REFINE"
    assert f"sparse_refine_pretrained.yaml  {node}.BASE.WEIGHTS={folder}/dense_low/" in lines[-1]
    assert f"{node}.EXTRACTOR.WEIGHTS={folder}/dense_full/model_final.pth" in lines[-1]


@pytest.mark.parametrize("table", ["rgbweed", "camvid"])
def test_a_table_has_all_its_arms(run, table):
    _, lines = run(table, "0")
    configs = {path.stem for path in (PROJECT / "configs" / table).glob("*.yaml")}
    arms = {name for name in configs if name.startswith(("dense", "pointrend", "sparse_refine"))}
    words = lines[-1].split()
    named = {words[i + 1] for i, word in enumerate(words) if word == "--arm"}
    assert named == arms
    assert len(set(trained(lines))) == len(trained(lines))


def test_ablation_differs_in_keys(run):
    _, lines = run("rgbweed/ablation", "0")
    assert trained(lines) == [("dense_low", "0"), ("sparse_refine", "0")]
    assert "MODEL.SPARSE_REFINE.SELECTOR.NAME=RandomBudgetSelector" in lines[-1]


@pytest.mark.parametrize("arguments", [(), ("nonesuch",), ("rgbweed/nonesuch",)])
def test_usage(run, arguments):
    done, lines = run(*arguments)
    assert done.returncode == 2 and "TABLE[/ARM]" in done.stderr and lines == []
