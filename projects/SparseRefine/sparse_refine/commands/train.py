# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a dense base or SparseRefine on top of one.

python -m sparse_refine train --config-file C.yaml [--resume] [--num-gpus N] [KEY VALUE ...]
python -m sparse_refine evaluate --config-file C.yaml MODEL.WEIGHTS W.pth
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import load_config
from ..inference import model_zoo
from ..inference.loading import load_model
from ..training import Trainer
from ..training.checks import check_inputs_are_kept
from .arguments import add_trust_code
from .memory import keep_freed_memory


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, with loggers, seed and output folder set up."""
    trust_code = getattr(args, "trust_code", False)  # Detectron2's own parser has no such flag
    cfg = load_config(args.config_file, args.opts, trust_code=trust_code)
    cfg = model_zoo.with_weights_found(cfg)
    if not getattr(args, "eval_only", False):  # before config.yaml is written there
        check_inputs_are_kept(cfg, getattr(args, "resume", False))
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sparse_refine")
    return cfg


def main(args: argparse.Namespace, trainer_class: type[Trainer] = Trainer):
    """One process: train, or evaluate with --eval-only. Returns the results of the evaluation."""
    cfg = setup(args)
    if args.eval_only:  # with --resume: only the images that an interrupted evaluation left
        keep_freed_memory()
        results = trainer_class.test(cfg, load_model(cfg), resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


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
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args, trainer_class),
    )


def evaluate(arguments: Sequence[str]) -> None:
    """`train` with --eval-only."""
    train(["--eval-only", *arguments])
