# SPDX-License-Identifier: Apache-2.0
"""The feature maps that a network read neighbourhoods of while it ran on the small image."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

# Functions whose output at a place depends on more of their input than that place.
READS_AROUND = (
    *(F.conv2d, F.max_pool2d, torch.max_pool2d, F.interpolate, F.group_norm),
    F.adaptive_avg_pool2d,
)


class UnsupportedOperation(NotImplementedError, AttributeError):
    """A network uses a function, or a method of its input, that has no form at single pixels.

    An AttributeError, too, so that `hasattr` of such a method is False.
    """


class Recording(TorchFunctionMode):
    """Within `with Recording() as recording:` the inputs of `READS_AROUND` are kept, in the order
    of the calls and without a copy: memory grows by the feature maps that 3x3 convolutions read.

    A network that changes a map in place after a convolution has read it (hardly any does) is
    refused. In inference mode tensors have no version counter: there its results would be wrong.
    """

    def __init__(self):
        super().__init__()
        self.entries: list[tuple[str, torch.Tensor, int]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in READS_AROUND and not (
            function is F.conv2d and is_pointwise(*args[1:], **kwargs)
        ):
            maps = args[0] if args else kwargs["input"]
            self.entries.append((function.__name__, maps, _version(maps)))
        return function(*args, **kwargs)

    def of_image(self, index: int, size: tuple[int, int]) -> Trace:
        """The entries of one image of the batch; `size` (h,w) is its own, without padding.

        Raises:
            UnsupportedOperation: a map was changed in place after it was read.
        """
        for name, maps, version in self.entries:
            if _version(maps) != version:
                raise UnsupportedOperation(
                    f"the network changes the input {tuple(maps.shape)} of {name} in place, after "
                    "it has been read"
                )
        entries = [(name, maps[index : index + 1]) for name, maps, _ in self.entries]
        return Trace(entries, size)


def _version(maps: torch.Tensor) -> int:
    """Number of changes in place, as far as the tensor knows."""
    return 0 if maps.is_inference() else maps._version


def is_pointwise(weight, bias=None, stride=1, padding=0, dilation=1, groups=1, **image) -> bool:
    """Whether a convolution with these arguments of `F.conv2d` reads of each place its own channels
    alone."""
    padding = 0 if isinstance(padding, str) else padding  # "same" and "valid": none for 1x1
    ones, zeros = (1, (1, 1), [1, 1]), (0, (0, 0), [0, 0])
    one_tap = tuple(weight.shape[-2:]) == (1, 1)
    return one_tap and stride in ones and padding in zeros and groups == 1


class Trace:
    """Recorded maps (1,C,h,w) of one small image, handed out in the order of recording.

    Args:
        entries: names of the functions, and the maps that they read.
        size: (h,w) of the small image, without padding.
    """

    def __init__(self, entries: list[tuple[str, torch.Tensor]], size: tuple[int, int]):
        self.entries, self.size = entries, size
        self.position = 0

    def from_start(self) -> Trace:
        """The same entries, for another run."""
        return Trace(self.entries, self.size)

    def next(self, function: Callable, channels: int) -> torch.Tensor:
        """(1,C,h,w), the next map, which `function` must have read; C is `channels`.

        Raises:
            UnsupportedOperation: the recorded network called something else at this point.
        """
        recorded, maps = None, None
        while self.position < len(self.entries):
            recorded, maps = self.entries[self.position]
            if recorded == function.__name__ or maps.shape[-2:] != (1, 1):
                break
            self.position += 1  # of a map pooled to one place, which is a plain tensor here
        if recorded != function.__name__ or maps.shape[1] != channels:
            found = "nothing more" if maps is None else f"{recorded} of {maps.shape[1]}"
            raise UnsupportedOperation(
                f"the network calls {function.__name__} of {channels} channels where {found} was "
                "recorded: it must be of the architecture of the network on the small image"
            )
        self.position += 1
        return maps
