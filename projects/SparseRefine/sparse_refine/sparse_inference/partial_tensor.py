# SPDX-License-Identifier: Apache-2.0
"""What stands for a feature map of which some cells alone count, and how torch's functions find
their form for it.

Torch asks the class of an argument to carry a function out (`__torch_function__`), so that a
network is called as it is: nothing of it is compiled, copied or replaced.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import ChainMap
from typing import Callable

import torch

from .trace import Trace, UnsupportedOperation


class PartialTensor:
    """Stands for a map (1,C,H,W); its active cells, those that hold selected pixels, count.

    Has of a tensor what networks of convolutions use; anything else raises `UnsupportedOperation`,
    also as an attribute, so that `hasattr` is False. A subclass says how the values are kept.

    Args:
        values: C channels of the active cells, and of others or not.
        trace: of a network of the same architecture on the small image; functions that read a
            neighbourhood take the next entry of it.
        pad: (left, right, top, bottom), zeros around the map that a convolution is still to read.
    """

    stride: int  # of the map, in pixels

    # torch's function -> ours: pointwise.py; a subclass adds those that read a neighbourhood
    operations: ChainMap[Callable, Callable] = ChainMap()

    def __init_subclass__(cls):
        cls.operations = cls.operations.new_child()

    def __init__(self, values: torch.Tensor, trace: Trace, pad: tuple[int, int, int, int]):
        self.values, self.trace, self.pad = values, trace, pad

    @property
    @abstractmethod
    def map_size(self) -> tuple[int, int]:
        """(H,W) of the map, without `pad`."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """C."""

    @abstractmethod
    def like(self, values: torch.Tensor) -> PartialTensor:
        """Other values of the same cells, without padding."""

    @abstractmethod
    def with_pad(self, pad: tuple[int, int, int, int]) -> PartialTensor:
        """The same map with zeros around it."""

    @abstractmethod
    def each_channel(self, vector: torch.Tensor) -> torch.Tensor:
        """(C,) in the shape that broadcasts over `values`."""

    @abstractmethod
    def has_cells_of(self, other: PartialTensor) -> bool:
        """Whether both are maps of the same cells."""

    def small(self, function: Callable) -> torch.Tensor:
        """(1,C,h,w): the small image's map that `function` read in the recorded run.

        Raises:
            UnsupportedOperation: the recorded run called something else at this point.
        """
        maps = self.trace.next(function, self.channels)
        left, right, top, bottom = self.pad  # the recorded map has had them
        height, width = maps.shape[-2:]
        return maps[..., top : height - bottom, left : width - right]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function not in cls.operations:
            raise cls.unsupported(getattr(function, "__name__", str(function)))
        return cls.operations[function](*args, **(kwargs or {}))

    @classmethod
    def unsupported(cls, name: str) -> UnsupportedOperation:
        """The error that the network uses something of this name."""
        return UnsupportedOperation(
            f"the network uses {name}, which has no form at single pixels here. Known are "
            f"{', '.join(known_operations(cls))}"
        )

    def __getattr__(self, name: str):
        raise self.unsupported(name)

    @property
    def shape(self) -> torch.Size:
        left, right, top, bottom = self.pad
        height, width = self.map_size
        return torch.Size((1, self.channels, height + top + bottom, width + left + right))

    def size(self, dim: int | None = None):
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return 4

    @property
    def ndim(self) -> int:
        return 4

    def numel(self) -> int:
        return self.shape.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def requires_grad(self) -> bool:
        return self.values.requires_grad

    def contiguous(self, memory_format=None) -> PartialTensor:
        return self

    def float(self) -> PartialTensor:
        return self.like(self.values.float())

    def __add__(self, other) -> PartialTensor:
        return self.operations[torch.add](self, other)

    def __sub__(self, other) -> PartialTensor:
        return self.operations[torch.sub](self, other)

    def __mul__(self, other) -> PartialTensor:
        return self.operations[torch.mul](self, other)

    def __truediv__(self, other) -> PartialTensor:
        return self.operations[torch.div](self, other)

    def __rsub__(self, other) -> PartialTensor:
        return self.operations[torch.sub](other, self)

    def __rtruediv__(self, other) -> PartialTensor:
        return self.operations[torch.div](other, self)

    def __neg__(self) -> PartialTensor:
        return self * -1

    __radd__, __rmul__ = __add__, __mul__

    def _in_place(self, result: PartialTensor) -> PartialTensor:
        if self.values.requires_grad:  # autograd may need the old ones
            self.values = result.values
        else:
            self.values.copy_(result.values)
        return self

    def __iadd__(self, other) -> PartialTensor:
        return self._in_place(self + other)

    def __isub__(self, other) -> PartialTensor:
        return self._in_place(self - other)

    def __imul__(self, other) -> PartialTensor:
        return self._in_place(self * other)

    def __itruediv__(self, other) -> PartialTensor:
        return self._in_place(self / other)

    def __getitem__(self, index):
        raise self.unsupported("indexing")

    def __pow__(self, exponent):
        raise self.unsupported("pow")


def implements(kind: type[PartialTensor], *functions: Callable):
    """A decorator: the function carries these functions of torch out for a class."""

    def register(ours):
        kind.operations.update(dict.fromkeys(functions, ours))
        return ours

    return register


def known_operations(kind: type[PartialTensor]) -> list[str]:
    """Names of torch's functions that have a form at single pixels."""
    return sorted({function.__name__ for function in kind.operations})
