# SPDX-License-Identifier: Apache-2.0
"""A stranger's code, which makes a file, the canary, as soon as it is imported."""

KEY = "MODEL.MODULE.PATH"
# How to consent, as a pattern.
HOW = "--trust-code.*trust_code=True.*SPARSE_REFINE_TRUST_CODE=1"
CONV = {"in_channels": 3, "out_channels": 3, "kernel_size": 1}
CODE = """
import functools
import subprocess
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn
from torch.nn import Conv2d

Path({canary!r}).touch()


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, images):
        return self.layer(images)


def build(classes=3):
    return Net(classes)


cached = functools.lru_cache(build)
partly = functools.partial(Net, 3)
made = Net()
run = subprocess.run


def number():
    return 3


def add_config(cfg):
    cfg.MODEL.FOREIGN = CfgNode({{"WIDTH": 3}})
"""


def dense(code, **node):
    return {
        "MODEL": {
            "META_ARCHITECTURE": "ModuleSegmentor",
            "DEVICE": "cpu",
            "MODULE": {"PATH": code, "PRETRAINED": True, **node},
            "SEM_SEG_HEAD": {"NUM_CLASSES": 3},
        }
    }


class Touch:
    """Makes the file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")
