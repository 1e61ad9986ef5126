# SPDX-License-Identifier: Apache-2.0
"""What makes a resumed run the same as an unbroken one, and says so where it is not."""

from __future__ import annotations

import logging
import random

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..data.loader import SeededDataset, ShuffledStream
from ..evaluation import SparseRefineEvaluator
from ..storage.weights import state_digest

logger = logging.getLogger(__name__)

# Keys whose values the optimizer's and the scheduler's states bring back on a resume.
_KEPT = (
    *("BASE_LR", "BACKBONE_MULTIPLIER", "BIAS_LR_FACTOR"),
    *("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"),
    *("MOMENTUM", "NESTEROV"),
)


def seed_of_run(cfg: CfgNode, loader) -> int:
    """SEED; where it is below 0, the seed that the loader drew for its stream. It belongs into the
    checkpoint: a resumed run goes on with it."""
    if cfg.SEED >= 0:
        return cfg.SEED
    stream = _stream(loader)
    return comm.shared_random_seed() if stream is None else stream.seed


def place_stream(loader, start: int, seed: int) -> bool:
    """Let the stream of a loader, from which nothing has been taken yet, begin at sample `start` of
    the stream of `seed`. False where it is not one of `build_train_loader`."""
    stream = _stream(loader)
    if stream is None:
        return False
    if isinstance(loader.dataset, SeededDataset) and loader.dataset.seed == stream.seed:
        loader.dataset.seed = seed
    stream.start, stream.seed = start, seed
    return True


def _stream(loader) -> ShuffledStream | None:
    stream = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    return stream if isinstance(stream, ShuffledStream) else None


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed Python's, numpy's and torch's generators for one training iteration of this process.

    Random numbers (dropout, drop path, PointRend's points) are then a function of seed, process and
    iteration, as the data are: no state of a generator has to be in the checkpoint, of which there
    would be one for each process.
    """
    drawn = np.random.SeedSequence([seed, comm.get_rank(), iteration]).generate_state(1)
    random.seed(int(drawn[0]))
    np.random.seed(drawn[0])
    torch.manual_seed(int(drawn[0]))  # of every device


def kept_solver_keys(cfg: CfgNode) -> dict[str, float | str | None]:
    """What `warn_of_changed_solver` compares, for the checkpoint."""
    kept = {key: _number(cfg.SOLVER[key]) for key in _KEPT}
    return {**kept, "OPTIMIZER": cfg.SOLVER.OPTIMIZER}


def warn_of_changed_solver(cfg: CfgNode, kept: dict[str, float | str | None]) -> None:
    """Say which keys of SOLVER have changed since the checkpoint that is resumed from: the
    optimizer's state in it goes before the config, as in Detectron2.

    Raises:
        ValueError: another optimizer, which cannot go on from that state.
    """
    anew = (
        "To change it, begin anew from that checkpoint: MODEL.WEIGHTS, another OUTPUT_DIR, no "
        "--resume"
    )
    optimizer = kept.get("OPTIMIZER", cfg.SOLVER.OPTIMIZER)
    if optimizer != cfg.SOLVER.OPTIMIZER:
        raise ValueError(
            f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}, and the checkpoint that --resume goes "
            f"on from holds the state of {optimizer!r}. {anew}"
        )
    for key in _KEPT:
        if key in kept and _number(cfg.SOLVER[key]) != kept[key]:
            logger.warning(
                f"SOLVER.{key} is {_shown(cfg.SOLVER[key])}, but --resume goes on with the "
                f"checkpoint's {_shown(kept[key])}. {anew}"
            )


def _number(value: float | bool | None) -> float | None:
    return None if value is None else float(value)


def _shown(value: float | bool | None) -> str:
    return "None" if value is None else f"{value:g}"


def prediction_tag(cfg: CfgNode, model: torch.nn.Module) -> str:
    """A digest of all that a prediction depends on: an interrupted evaluation goes on only where it
    is the same. Of files that weights come from it does not depend."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.SPARSE_REFINE
    cfg.MODEL.WEIGHTS = node.BASE.WEIGHTS = node.EXTRACTOR.WEIGHTS = node.TEACHER.WEIGHTS = ""
    node.COARSE_CACHE = ""
    settings = f"{cfg.INPUT.SCALE} {cfg.INPUT.FORMAT} {cfg.MODEL.dump()}"
    return state_digest(model.state_dict(), settings)


def with_records(ours: SparseRefineEvaluator | None, name: str) -> SparseRefineEvaluator:
    """The evaluator of the set `name` that an evaluation can be resumed with.

    Raises:
        ValueError: it has none.
    """
    if ours is None:
        raise ValueError(
            f"--resume of an evaluation goes on from the records of SparseRefineEvaluator, and the "
            f"evaluators of {name!r} have none: leave --resume out"
        )
    return ours
