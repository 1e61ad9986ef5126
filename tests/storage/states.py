# SPDX-License-Identifier: Apache-2.0
"""A small model, its state, and a pickle that must not be read."""

import os

import torch
from torch import nn

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([0.5, -1.0])}


class Trap:
    """Unpickled by an unsafe reader, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def linear(value=0.0):
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def same(content, expected=STATE):
    return content.keys() == expected.keys() and all(
        torch.equal(torch.as_tensor(content[name]), tensor) for name, tensor in expected.items()
    )
