# SPDX-License-Identifier: Apache-2.0
"""Training that needs processes of its own: killed, and in two at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .runs import TWO, assert_same, final, logged_in

SCRIPT = Path(__file__).with_name("in_processes.py")


@pytest.mark.slow
def test_killed_while_saving(tmp_path):
    """SIGKILL halfway through writing the second checkpoint; then --resume.

    Each in a process of its own: one that has MinkowskiEngine loaded rounds some sums differently.
    """
    done = as_script("killed", tmp_path / "b")
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "b" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "b" / "model_0000003.pth").exists()
    for folder in ("a", "b"):
        assert as_script("resume", tmp_path / folder).returncode == 0
    assert_same(final(tmp_path / "a"), final(tmp_path / "b"))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(run, tmp_path):
    done = as_script("two", tmp_path / "two")
    assert done.returncode == 0
    run("one", *TWO)
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-5, rtol=1e-5), name

    options = [*TWO, "MODEL.WEIGHTS", str(tmp_path / "two" / "model_final.pth")]
    expected = run("alone", *options, flags=["--eval-only"])
    evaluated = json.loads((tmp_path / "two" / "evaluated.json").read_text())
    for kind in ("sparse_refine", "sem_seg"):
        assert len(expected[kind]) > 5 and evaluated[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            if "seconds" not in name:
                assert evaluated[kind][name] == pytest.approx(value, nan_ok=True), name
    # what the last evaluation of the training said
    logged = logged_in(tmp_path / "two")
    assert logged["sparse_refine/mIoU"] == pytest.approx(
        expected["sparse_refine"]["mIoU"], abs=1e-3
    )
    # one process may have nothing to learn from
    for norm in ("BN", "SyncBN"):
        assert json.loads((tmp_path / "two" / norm / "lonely.json").read_text()) == [True] * 3


def as_script(task, folder):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run([sys.executable, SCRIPT, task, str(folder)], env=environment)
