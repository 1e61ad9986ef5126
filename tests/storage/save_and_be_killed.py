# SPDX-License-Identifier: Apache-2.0
"""What test_checkpointer.py runs as a script: FOLDER.

Two good checkpoints; then SIGKILL in the middle of writing over the second.
"""

import os
import signal
import sys

import torch
from states import linear
from torch import nn

from sparse_refine.storage.checkpointer import SafeCheckpointer


def save_and_be_killed(folder):
    checkpointer = SafeCheckpointer(linear(1.0), folder)
    checkpointer.save("model_1")
    checkpointer.save("model_best", tag=False)
    whole = torch.save

    def half(data, path):
        whole(data, path)
        with open(path, "rb+") as file:
            file.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    nn.init.constant_(checkpointer.model.bias, 9.0)
    checkpointer.save("model_best", tag=False)


if __name__ == "__main__":
    save_and_be_killed(sys.argv[1])
