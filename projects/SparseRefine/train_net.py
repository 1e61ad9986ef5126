#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a dense base or SparseRefine on top of one.

python projects/SparseRefine/train_net.py --config-file C.yaml [--resume] [--num-gpus N] [KEY VALUE]
python projects/SparseRefine/train_net.py --config-file C.yaml --eval-only MODEL.WEIGHTS W.pth
"""

from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from sparse_refine.engine import Trainer, load_config, load_model
from sparse_refine.memory import keep_freed_memory


def setup(args):
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sparse_refine")
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:  # with --resume: only the images that an interrupted evaluation left
        keep_freed_memory()
        results = Trainer.test(cfg, load_model(cfg), resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
