# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a dense base or SparseRefine on top of one.

python -m sparse_refine train --config-file C.yaml [--resume] [--num-gpus N] [KEY VALUE ...]
python -m sparse_refine evaluate --config-file C.yaml MODEL.WEIGHTS W.pth

What a refiner stands on and has no weights yet, the base and the extractor's network, is trained
first where MODEL.SPARSE_REFINE.BASE.TRAINING and EXTRACTOR.TRAINING say how. --resume goes on where
an interrupted run stopped, in any of them.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from ..config import load_config
from ..inference import model_zoo
from ..inference.loading import load_model
from ..storage.files import check_not_an_input
from ..training import Trainer
from ..training.checks import check_inputs_are_kept
from ..training.stages import check_stages, stages_of, train_stages
from .arguments import WRONG_ARGUMENT, add_trust_code, config_files, errors_in_a_line
from .memory import keep_freed_memory


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, with loggers, seed and output folder set up."""
    trust_code = getattr(args, "trust_code", False)  # Detectron2's own parser has no such flag
    args.config_file = os.path.expanduser(args.config_file)
    cfg = load_config(args.config_file, args.opts, trust_code=trust_code)
    cfg = model_zoo.with_weights_found(cfg)
    check_config_is_kept(args.config_file, cfg)
    if not getattr(args, "eval_only", False):  # before config.yaml is written there
        check_inputs_are_kept(cfg, getattr(args, "resume", False))
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sparse_refine")
    return cfg


def check_config_is_kept(path: str, cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: OUTPUT_DIR/config.yaml, which Detectron2 writes, is the yaml at `path` or one
            that it stands on. As it is written itself, with every key, it may be given again.
    """
    files = list(config_files(path))
    if not files:  # no local file
        return
    content = yaml.safe_load(files[0].read_text(encoding="utf-8"))
    written_before = set(get_cfg()) <= set(content)
    inputs = files[1:] if written_before else files
    check_not_an_input(Path(cfg.OUTPUT_DIR, "config.yaml"), inputs)


def main(args: argparse.Namespace, trainer_class: type[Trainer] = Trainer):
    """One process: train, or evaluate with --eval-only. Returns the results of the evaluation."""
    return prepared(args, trainer_class)()


def prepared(args: argparse.Namespace, trainer_class: type[Trainer]) -> Callable[[], Any]:
    """All of `main` up to the first image: config, data sets, model, weights. The rest is returned.

    Raises:
        ValueError, KeyError, OSError, ImportError: what is wrong with them.
    """
    cfg = setup(args)
    if args.eval_only:
        if trainer_class.is_own("test"):
            trainer_class.check_evaluation(cfg)
        return functools.partial(run_evaluation, cfg, load_model(cfg), args.resume, trainer_class)
    if stages_of(cfg):
        check_stages(cfg, trainer_class)
        return functools.partial(run_stages, cfg, args.resume, trainer_class)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train


def run_stages(cfg: CfgNode, resume: bool, trainer_class: type[Trainer]):
    """What the refiner stands on, then the refiner."""
    trainer = trainer_class(train_stages(cfg, trainer_class, resume))
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def run_evaluation(
    cfg: CfgNode, model: torch.nn.Module, resume: bool, trainer_class: type[Trainer]
) -> dict:
    """On all of DATASETS.TEST; with `resume` the images that an interrupted evaluation left."""
    keep_freed_memory()
    results = trainer_class.test(cfg, model, resume=resume)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def process(args: argparse.Namespace, trainer_class: type[Trainer]):
    """`main` as a program: what is wrong before the first image is a line, as in all programs. What
    goes wrong later keeps its traceback."""
    with errors_in_a_line(argument_parser()):
        rest = prepared(args, trainer_class)
    return rest()


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's, with --trust-code."""
    parser = default_argument_parser()
    add_trust_code(parser)
    return parser


def train(arguments: Sequence[str] | None = None, trainer_class: type[Trainer] = Trainer) -> None:
    """Detectron2's command line: as many processes as it asks for."""
    parser = argument_parser()
    args = parser.parse_args(arguments)
    if not args.config_file:
        parser.error("--config-file is needed: the yaml of the model")
    if not os.path.isfile(os.path.expanduser(args.config_file)):
        parser.error(f"--config-file {args.config_file}: no such file")
    try:
        launch(
            process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, trainer_class),
        )
    except ProcessExitedException as error:  # one of several, which has said why
        if error.exit_code != WRONG_ARGUMENT:
            raise
        sys.exit(WRONG_ARGUMENT)


def evaluate(arguments: Sequence[str]) -> None:
    """`train` with --eval-only."""
    train(["--eval-only", *arguments])
