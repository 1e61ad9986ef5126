# SPDX-License-Identifier: Apache-2.0
"""The convert command, from a foreign file to a refined prediction."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import load_file

from sparse_refine.commands.convert import main
from sparse_refine.config import load_config
from sparse_refine.conversion import FORMATS
from sparse_refine.storage.weights import save_weights

PROJECT = Path(__file__).parents[2] / "projects" / "SparseRefine"

YAML = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: SparseRefine
  WEIGHTS: ""
  BACKBONE: {NAME: build_mscan_backbone}
  MSCAN: {SIZE: "t"}
  SEM_SEG_HEAD:
    NAME: LightHamHead
    IN_FEATURES: ["res3", "res4", "res5"]
    CONVS_DIM: 32
    NORM: "GN"
    NUM_CLASSES: 4
  SPARSE_REFINE:
    BASE: {META_ARCHITECTURE: SemanticSegmentor}
    EXTRACTOR: {PRESET: small}
    SELECTOR: {NAME: BudgetSelector}
INPUT: {FORMAT: "RGB"}
"""


@pytest.fixture(scope="module")
def convert():
    return lambda *arguments: main([str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path):
    (tmp_path / "x.yaml").write_text(YAML)
    return tmp_path / "x.yaml"


@pytest.fixture
def foreign(tmp_path, config):
    """A file as MMSegmentation would write it of the yaml's base, and that base."""
    torch.manual_seed(3)
    base = build_model(load_config(str(config), ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"]))
    state = {}
    for name, tensor in base.state_dict().items():
        state[_to_mmseg(name)] = tensor.flatten() if "scale" in name else tensor
    state["decode_head.hamburger.ham.bases"] = torch.ones(1)
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "x.pth")
    return tmp_path / "x.pth", base


def _to_mmseg(name: str) -> str:
    """Backwards through the table, one name at a time."""
    for old, new in (
        ("sem_seg_head.predictor", "decode_head.conv_seg"),
        ("sem_seg_head.ham_", "decode_head.hamburger.ham_"),
        ("sem_seg_head.", "decode_head."),
        ("attention.strip_attention", "attn.spatial_gating_unit"),
        ("attention.before", "attn.proj_1"),
        ("attention.after", "attn.proj_2"),
        ("scale", "layer_scale_"),
        (".local.", ".conv0."),
        (".mix.", ".conv3."),
        ("mlp.0", "mlp.fc1"),
        ("mlp.1", "mlp.dwconv"),
        ("mlp.3", "mlp.fc2"),
    ):
        name = name.replace(old, new)
    for stage in range(1, 5):
        for part in ("blocks", "norm", "embed"):
            to = {"blocks": "block", "embed": "patch_embed"}.get(part, part)
            name = name.replace(f"stages.res{stage + 1}.{part}.", f"{to}{stage}.")
    for strip in range(3):
        for half in range(2):
            name = name.replace(f"strips.{strip}.{half}", f"conv{strip}_{half + 1}")
    name = name.replace("patch_embed1.", "patch_embed1.proj.")
    for stage in (2, 3, 4):
        name = name.replace(f"patch_embed{stage}.0", f"patch_embed{stage}.proj")
        name = name.replace(f"patch_embed{stage}.1", f"patch_embed{stage}.norm")
    if name.startswith("decode_head.") and "conv_seg" not in name:
        if ".norm." in name:
            return name.replace(".norm.", ".gn.")
        head, _, last = name.rpartition(".")
        return f"{head}.conv.{last}"
    return name


def test_a_base_from_file_to_prediction(tmp_path, convert, config, foreign, capsys):
    path, base = foreign
    output = tmp_path / "deep" / "x.safetensors"
    convert(
        *("--format", "mmseg-segnext", "--input", path, "--output", output),
        *("--config-file", config),
    )
    text = capsys.readouterr().out
    assert "matched" in text and "drawn, not learnt" in text and "not held" not in text
    cfg = load_config(str(config), ["MODEL.SPARSE_REFINE.BASE.WEIGHTS", str(output)])
    model = build_model(cfg).eval()
    expected = base.state_dict()
    loaded = model.coarse.base.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    with torch.no_grad():
        (result,) = model([{"image": torch.randint(0, 256, (3, 75, 101), dtype=torch.uint8)}])
    assert result["sem_seg"].shape == (4, 75, 101)


def test_a_part_is_refused_unless_allowed(tmp_path, convert, config, foreign, capsys):
    path, _ = foreign
    content = torch.load(path, weights_only=True)
    content["state_dict"]["stranger"] = torch.ones(1)
    torch.save(content, path)
    output = tmp_path / "x.safetensors"
    arguments = ("--format", "mmseg-segnext", "--input", path, "--output", output)
    with pytest.raises(SystemExit, match="does not fit format mmseg-segnext in full.*nothing was"):
        convert(*arguments)
    assert "no rule speaks of them: 1 (stranger)" in capsys.readouterr().out
    assert not output.exists()
    convert(*arguments, "--allow-partial", "--half")
    assert "stranger" not in load_file(output)
    assert load_file(output)["sem_seg_head.predictor.weight"].dtype == torch.float16
    assert "give --config-file" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, message",
    [
        (("MODEL.MSCAN.SIZE", "s"), r"\(32,\) in the file, \(64,\) in the model"),
        (("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"), r"\(4,\) in the file, \(7,\) in the model"),
        (
            ("MODEL.BACKBONE.NAME", "build_mix_transformer_backbone"),
            "in the model, but not in the file",
        ),
    ],
)
def test_another_model_is_refused(tmp_path, convert, config, foreign, capsys, option, message):
    with pytest.raises(SystemExit, match="does not fit"):
        convert(
            *("--format", "mmseg-segnext", "--input", foreign[0], "--config-file", config),
            *("--output", tmp_path / "x.safetensors", *option),
        )
    assert not (tmp_path / "x.safetensors").exists()
    assert re.search(message, capsys.readouterr().out)


def test_nothing_matches(tmp_path, convert, foreign):
    with pytest.raises(SystemExit, match="no tensor of .* matches format sparserefine"):
        convert(
            *("--format", "sparserefine", "--input", foreign[0], "--allow-partial"),
            *("--output", tmp_path / "x.safetensors"),
        )


def test_a_refiner_is_held_against_the_refiner_alone(tmp_path, convert, config):
    # the release's depth, few channels
    node = "MODEL.SPARSE_REFINE.EXTRACTOR"
    options = [
        f"{node}.PRESET",
        "custom",
        f"{node}.CHANNELS",
        "[4,4,4,4,4,4]",
        f"{node}.BLOCKS",
        "2",
    ]
    state = build_model(load_config(str(config), options)).state_dict()
    state = {n: t for n, t in state.items() if n.startswith(("extractor.", "ensembler."))}
    release = {f"model.{_to_release(n)}": _release_shape(n, t) for n, t in state.items()}
    save_weights(release, str(tmp_path / "x.safetensors"))
    convert(
        *("--format", "sparserefine", "--input", tmp_path / "x.safetensors"),
        *("--output", tmp_path / "y.safetensors", "--config-file", config, *options),
    )
    converted = load_file(tmp_path / "y.safetensors")
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in state.items())


def _to_release(name: str) -> str:
    name = name.replace("ensembler.gate", "ensembler.attn").replace(".head.", ".fuser.")
    if not name.startswith("extractor.unet."):
        return name.removeprefix("extractor.")
    part, *rest = name.removeprefix("extractor.unet.").split(".")
    net = "backbone.net"
    if part == "stem":
        return f"{net}.0.kernel"
    if part == "last":
        return f"{net}.2.{rest[1]}"
    level = f"{net}.1" + ".4.1.3" * int(rest[0])
    simple = {"before_down": "0", "downs": "2", "before_up": "4", "ups": "6"}
    if part in simple:
        last = "kernel" if part in ("downs", "ups") else rest[2]
        return f"{level}.4.1.{simple[part]}.{last}"
    index = 2 * int(rest[1]) + (6 if part == "decoders" else 0)
    inside = {"skip": "0", "act1": "1.0", "conv1": "1.2", "act2": "1.3", "conv2": "1.5"}[rest[2]]
    last = rest[-1] if rest[2].startswith("act") else "kernel"
    return f"{level}.{index}.{inside}.{last}"


def _release_shape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 3:
        tensor = tensor.unflatten(0, (3, 3)).transpose(0, 1).flatten(0, 1)
        return tensor.flip(1) if ".stem." in name else tensor
    return tensor.t() if ".skip." in name else tensor


def test_pickles_and_names(tmp_path, convert, capsys):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": {"criterion.empty_weight": 1}}))
    for output, message in (("x.safetensors", "--allow-pickle"), ("x.pth", "must end in")):
        with pytest.raises(SystemExit):
            convert("--format", "mask2former", "--input", path, "--output", tmp_path / output)
        assert message in capsys.readouterr().err


def test_help_names_every_format(convert, capsys):
    with pytest.raises(SystemExit):
        convert("--help")
    text = capsys.readouterr().out
    assert all(name in text for name in FORMATS)
