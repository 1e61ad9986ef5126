# SPDX-License-Identifier: Apache-2.0
"""Arms, rounds and table of `benchmark_token_merging.py`."""

from __future__ import annotations

import contextlib
import copy
from functools import partial

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.evaluation.counting import products_of
from sparse_refine.evaluation.peak_memory import peak_bytes
from sparse_refine.evaluation.timing import (
    ForwardTimer,
    median_and_spread,
    once,
    speedup,
    take_turns,
)
from sparse_refine.inference.loading import load_model
from sparse_refine.modeling.building import build_model
from sparse_refine.modeling.contract import refines
from sparse_refine.modeling.folded_head import fold_head, unfold_head
from sparse_refine.modeling.mix_transformer import SIZES
from sparse_refine.modeling.token_merging import apply_token_merging, remove_token_merging
from sparse_refine.modeling.token_merging.applying import attention_stages

from .arms import build_models, dense_labels, refiner_multiply_adds
from .records import LONG, in_precision

PLAIN = "plain"
HEADS = ("own", "folded")


def segformer_options(size: str) -> list:
    """KEY VALUE pairs: SegFormer-B0 .. B5 with random weights in place of the config's model."""
    channels, depths = SIZES[size]
    config = {
        "model_type": "segformer",
        "depths": list(depths),
        "hidden_sizes": list(channels),
        "decoder_hidden_size": 256 if size in ("b0", "b1") else 768,
    }
    return ["MODEL.HUGGING_FACE.NAME", "", "MODEL.HUGGING_FACE.CONFIG", config]


def build(
    cfg: CfgNode, sites: torch.Tensor | None, dense: bool
) -> tuple[SparseRefine | None, nn.Module, list[str]]:
    """SparseRefine, or None where it is not to be timed; the base; what has random weights."""
    if refines(cfg):
        models, random = build_models(cfg, None, sites)
        (model,) = models.values()
        return (None if dense else model), model.coarse.base, random
    if cfg.MODEL.WEIGHTS:
        return None, load_model(cfg), []
    return None, build_model(cfg).eval(), ["the model"]


def merged_copy(model: nn.Module, merging: str, head: str) -> nn.Module:
    """A copy that shares all tensors with `model` and merges tokens of its own."""
    tensors = [*model.parameters(), *model.buffers()]
    copied = unfold_head(remove_token_merging(copy.deepcopy(model, {id(t): t for t in tensors})))
    if merging != PLAIN:
        apply_token_merging(copied, merging)
    return fold_head(copied) if head == "folded" else copied


class PartTimers:
    """Seconds that a model spends in its attention and in its head, a sum for each call."""

    def __init__(self, model: nn.Module):
        head = [m for n, m in model.named_modules() if n.split(".")[-1].endswith("_head")]
        attention = [m for blocks in attention_stages(model).values() for m in blocks]
        self._timers = {
            name: [ForwardTimer(module) for module in modules]
            for name, modules in (("attention", attention), ("head", head[:1]))
        }
        self._calls: list[dict[str, float]] = []

    def timed(self, call):
        """`call` with all of it measured."""

        def measured():
            with contextlib.ExitStack() as stack:
                for timer in sum(self._timers.values(), []):
                    timer.seconds.clear()
                    stack.enter_context(timer)
                result = call()
            sums = {n: sum(sum(t.seconds) for t in ts) for n, ts in self._timers.items()}
            self._calls.append(sums)
            return result

        return measured

    def median(self) -> dict[str, float]:
        return {n: median_and_spread(c[n] for c in self._calls)[0] for n in self._timers}


def measure(
    model: SparseRefine | None,
    base: nn.Module,
    size: tuple[int, int],
    precision: str,
    variants: list[tuple[str, str]],
    repeats: int,
    budget: float,
) -> list[dict]:
    """A record an arm: for each of `variants`, (merging, head), the base by itself on the full
    image, then SparseRefine around it. All take turns; speedups are over the first."""
    device = next(base.parameters()).device
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, device=device)
    inputs = [{"image": image, "height": size[0], "width": size[1]}]
    calls, timers, refined = {}, {}, {}
    for variant in variants:
        alone = merged_copy(base, *variant)
        arms = {("dense", *variant): (alone, partial(dense_labels, alone, inputs))}
        if model is not None:
            around = merged_copy(model, *variant)
            refined[("SparseRefine", *variant)] = around
            arms[("SparseRefine", *variant)] = (around.coarse.base, partial(around, inputs))
        for name, (inner, call) in arms.items():
            timers[name] = PartTimers(inner)
            calls[name] = in_precision(timers[name].timed(call), precision, device)
    first, peaks, counts = {}, {}, {}
    for name, call in calls.items():
        peaks[name], (counts[name], (first[name], output)) = peak_bytes(
            partial(products_of, partial(once, call, device)), device
        )
        if name in refined:  # its own products are nominal, as in `benchmark.py`
            counts[name] = _refined_count(refined[name], inputs, output, size)
        del output
    counted = repeats > 1 and min(first.values()) > LONG
    if repeats - counted > 0:
        rounds = take_turns(calls, device, repeats - counted, min_rounds=1, budget=budget, turn=0.0)
    else:
        rounds = {name: [] for name in calls}
    if counted:
        rounds = {name: [first[name], *rounds[name]] for name in calls}
    start = next(iter(calls))
    return [
        {
            "precision": precision,
            "model": name[0],
            "merging": name[1],
            "head": name[2],
            "seconds": (middle := median_and_spread(rounds[name]))[0],
            "spread": list(middle[1]),
            "speedup": speedup(rounds[start], rounds[name]),
            "parts": timers[name].median(),
            "gmacs": counts[name] / 1e9,
            "peak_mb": None if peaks[name] is None else peaks[name] / 1e6,
            "rounds": len(rounds[name]),
        }
        for name in calls
    ]


def _refined_count(model: SparseRefine, inputs, output, size) -> int:
    coarse, _ = products_of(partial(model.coarse, inputs))
    own = refiner_multiply_adds(model, output[0]["refinement"].sites, size)
    return coarse + (own or 0)


def table(records: list[dict]) -> str:
    """A row an arm."""
    rows = []
    for record in records:
        low, high = record["spread"]
        rows.append(
            {
                "precision": record["precision"],
                "model": record["model"],
                "merging": record["merging"],
                "head": record["head"],
                "seconds": f"{record['seconds']:.3f}",
                "min .. max": f"{low:.3f} .. {high:.3f}",
                "x faster": f"{record['speedup']:.2f}",
                "GMACs": f"{record['gmacs']:.0f}",
                "peak MB": "" if record["peak_mb"] is None else f"{record['peak_mb']:.0f}",
                **{f"in {name}": f"{seconds:.3f}" for name, seconds in record["parts"].items()},
                "rest": f"{record['seconds'] - sum(record['parts'].values()):.3f}",
            }
        )
    align = [
        "left" if name in ("precision", "model", "merging", "head") else "right" for name in rows[0]
    ]
    return tabulate(
        [list(row.values()) for row in rows], list(rows[0]), colalign=align, disable_numparse=True
    )
