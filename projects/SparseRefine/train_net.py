#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a dense base or SparseRefine on top of one, the Detectron2 way.

python projects/SparseRefine/train_net.py --config-file C.yaml [--resume] [--num-gpus N] [KEY VALUE]
python projects/SparseRefine/train_net.py --config-file C.yaml --eval-only MODEL.WEIGHTS W.pth
"""

from sparse_refine import Trainer
from sparse_refine.commands.train import main, train  # noqa: F401 (main: one process)

if __name__ == "__main__":
    train(trainer_class=Trainer)  # a subclass of your own goes here
