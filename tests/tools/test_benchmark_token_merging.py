# SPDX-License-Identifier: Apache-2.0
"""tools/benchmark_token_merging.py on tiny models: its records, what the arms share, its errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.evaluation.counting import multiply_adds, products_of
from sparse_refine.modeling.token_merging import remove_token_merging
from sparse_refine.modeling.token_merging.applying import attention_stages

pytest.importorskip("transformers")
SIZE = (128, 192)
HUB = [
    "MODEL.HUGGING_FACE.CONFIG",
    {
        "model_type": "segformer",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 20, 32],
        "num_attention_heads": [1, 2, 2, 4],
        "decoder_hidden_size": 16,
    },
]
BASE = ["MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor"]


@pytest.fixture
def run(tmp_path, tool, make_cfg):
    """run(*options, config options) -> content of the JSON."""

    def main(*options: str, config=(*HUB, *BASE)):
        yaml, out = tmp_path / "config.yaml", tmp_path / "out.json"
        yaml.write_text(make_cfg(*config).dump())
        start = ["--config-file", str(yaml), "--height", str(SIZE[0]), "--width", str(SIZE[1])]
        tool("benchmark_token_merging").main([*start, "--json", str(out), *options])
        return json.loads(out.read_text())

    return main


@pytest.fixture
def mask(tmp_path) -> str:
    pixels = np.zeros(SIZE, np.uint8)
    pixels[10:20, 30:50] = 1
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


@pytest.mark.slow
def test_dense_and_refined(run, mask, capsys):
    content = run(
        "--sites", mask, "--merging", "plain", "fast", "--head", "own", "folded", "--repeats", "2"
    )
    arms = {(a["model"], a["merging"], a["head"]): a for a in content["arms"]}
    assert list(arms) == [
        (model, merging, head)
        for head in ("own", "folded")
        for merging in ("plain", "fast")
        for model in ("dense", "SparseRefine")
    ]
    for arm in arms.values():
        low, high = arm["spread"]
        assert 0 < low <= arm["seconds"] <= high and arm["rounds"] == 2
        assert arm["parts"]["attention"] > 0 and arm["parts"]["head"] > 0
        assert sum(arm["parts"].values()) < high and arm["speedup"] > 0
    assert content["arms"][0]["speedup"] == 1
    for model in ("dense", "SparseRefine"):
        plain, fast = arms[model, "plain", "own"], arms[model, "fast", "own"]
        folded = arms[model, "plain", "folded"]
        assert fast["gmacs"] < plain["gmacs"] > folded["gmacs"]
    assert content["random_weights"] == ["the base", "the refiner"]
    text = capsys.readouterr().out
    assert "in attention" in text and "in head" in text and "folded" in text


def test_dense_alone(run):
    dense = [*HUB, "MODEL.META_ARCHITECTURE", "HuggingFaceSegmentor"]
    for options, config in (((), dense), (("--dense",), (*HUB, *BASE))):
        content = run(*options, "--merging", "plain", "2x2", "--budget", "0", config=config)
        assert [(a["model"], a["merging"]) for a in content["arms"]] == [
            ("dense", "plain"),
            ("dense", "2x2"),
        ]
        assert all(a["rounds"] == 1 for a in content["arms"])


def test_segformer_of_a_size(tool):
    options = tool("model_benchmark.merging").segformer_options("b5")
    assert options[3]["depths"] == [3, 6, 40, 3] and options[3]["decoder_hidden_size"] == 768
    assert tool("model_benchmark.merging").segformer_options("b1")[3]["decoder_hidden_size"] == 256


def test_copies_share_tensors_and_nothing_else(tool, make_cfg):
    merging = tool("model_benchmark.merging")
    cfg = make_cfg(*HUB, *BASE, "MODEL.TOKEN_MERGING.PRESET", "hq")
    model, base, _ = merging.build(cfg, None, False)
    plain, fast = (merging.merged_copy(base, name, "own") for name in ("plain", "fast"))
    for name, tensor in base.state_dict().items():
        assert tensor.data_ptr() == fast.state_dict()[name].data_ptr()

    def merged(m):
        return ["forward" in vars(x) for blocks in attention_stages(m).values() for x in blocks]

    assert merged(base) == merged(fast) == [True] * 4 and merged(plain) == [False] * 4
    inputs = [{"image": torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)}]
    with torch.no_grad():
        before = plain(inputs)[0]["sem_seg"]
        assert not torch.equal(fast(inputs)[0]["sem_seg"], before)
        assert torch.equal(remove_token_merging(fast)(inputs)[0]["sem_seg"], before)


def test_products_of(tool, make_cfg):
    """As many as fvcore counts, but for norms and interpolation."""
    base = tool("model_benchmark.merging").build(make_cfg(*HUB, *BASE), None, True)[1]
    inputs = [{"image": torch.zeros(3, *SIZE)}]
    with torch.no_grad():
        count, output = products_of(lambda: base(inputs))
    assert output[0]["sem_seg"].shape[-2:] == SIZE
    assert 0.8 * multiply_adds(base, SIZE) < count <= multiply_adds(base, SIZE)


def test_sites_need_a_refiner(run, mask, capsys):
    with pytest.raises(SystemExit):
        run("--dense", "--sites", mask)
    assert "--sites: it is for SparseRefine" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--merging", "quick")
    assert "quick" in capsys.readouterr().err
