# SPDX-License-Identifier: Apache-2.0
"""Files of weights: read safely, written so that they read the same."""

import pytest
import torch
from torch import nn

from sparse_refine.storage.weights import load_weights, save_weights, state_digest

from .states import STATE, Trap, same


@pytest.mark.parametrize("wrapped", [True, False], ids=["with model", "bare"])
@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_kinds_of_files(tmp_path, suffix, wrapped):
    path = str(tmp_path / f"weights.{suffix}")
    if suffix == "safetensors":
        save_weights(STATE, path)
    else:
        torch.save({"model": STATE, "iteration": 3} if wrapped else STATE, path)
    content = load_weights(path)
    assert same(content["model"])
    if wrapped and suffix != "safetensors":
        assert content["iteration"] == 3


@pytest.mark.parametrize("keep", [0, 10, 300, -200])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_broken_file_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"broken.{suffix}"
    if suffix == "pth":
        torch.save({"model": {"weight": torch.zeros(500)}}, path)
    else:
        save_weights({"weight": torch.zeros(500)}, str(path))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"broken\.{suffix} cannot be read as a checkpoint"):
        load_weights(str(path))


def test_a_pth_file_runs_no_code(tmp_path):
    torch.save({"model": STATE, "extra": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth cannot be read"):
        load_weights(str(tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()


def test_safetensors_round_trip(tmp_path):
    state = {
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 4),
        "half": torch.tensor([0.1]).bfloat16(),
    }
    save_weights(state, tmp_path / "all.safetensors")
    assert same(load_weights(str(tmp_path / "all.safetensors"))["model"], state)
    save_weights(state, tmp_path / "half.safetensors", half=True)
    halved = load_weights(str(tmp_path / "half.safetensors"))["model"]
    assert halved["transposed"].dtype == torch.float16 and halved["count"].dtype == torch.int64
    assert torch.equal(halved["transposed"].float(), state["transposed"])


def test_tied_weights_are_written_twice(tmp_path):
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    save_weights(model.state_dict(), tmp_path / "tied.safetensors")
    assert same(load_weights(str(tmp_path / "tied.safetensors"))["model"], model.state_dict())


def test_digest_changes_with_any_name_or_number():
    digest = state_digest(STATE)
    assert len(digest) == 16 and digest == state_digest({k: v.clone() for k, v in STATE.items()})
    other = {**STATE, "bias": torch.tensor([0.5, -1.0000001])}
    renamed = {"weight": STATE["weight"], "bios": STATE["bias"]}
    counted = {**STATE, "count": torch.tensor(1)}
    assert len({digest, *map(state_digest, (other, renamed, counted))}) == 4
    assert state_digest(STATE, "salt") != digest
