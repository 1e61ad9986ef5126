# SPDX-License-Identifier: Apache-2.0
"""A feature map that is known at its active cells, and what torch's functions do with it.

Torch asks the class of an argument to carry a function out (`__torch_function__`), so that a
network is called as it is: nothing of it is compiled, copied or replaced.
"""

from __future__ import annotations

from typing import Callable

import torch

from .cells import Cells, Resolutions
from .trace import Trace, UnsupportedOperation

OPERATIONS: dict[Callable, Callable] = {}  # torch's function -> ours: pointwise.py, windowed.py


def implements(*functions: Callable):
    """A decorator: the function carries these functions of torch out for a `SiteTensor`."""

    def register(ours):
        OPERATIONS.update(dict.fromkeys(functions, ours))
        return ours

    return register


def known_operations() -> list[str]:
    """Names of torch's functions that have a form at single pixels."""
    return sorted({function.__name__ for function in OPERATIONS})


class SiteTensor:
    """Stands for a map (1,C,H,W) that is known at its active cells.

    Has of a tensor what networks of convolutions use; anything else raises `UnsupportedOperation`,
    also as an attribute, so that `hasattr` is False.

    Args:
        rows: (P,C), the values at the active cells.
        cells: P active cells of the map.
        resolutions: the cells of other strides.
        trace: of a network of the same architecture on the small image; functions that read a
            neighbourhood take the next entry of it.
        pad: (left, right, top, bottom), zeros around the map that a convolution is still to read.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        cells: Cells,
        resolutions: Resolutions,
        trace: Trace,
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    ):
        self.rows, self.cells, self.pad = rows, cells, pad
        self.resolutions, self.trace = resolutions, trace

    def like(self, rows: torch.Tensor, cells: Cells | None = None) -> SiteTensor:
        """Other features (P,C), at the same cells or at others, without padding."""
        return SiteTensor(rows, cells or self.cells, self.resolutions, self.trace)

    def around(self, function: Callable) -> torch.Tensor:
        """(1,C,h,w): the small image's map that `function` read in the recorded run.

        Raises:
            UnsupportedOperation: the recorded run called something else at this point.
        """
        maps = self.trace.next(function, self.rows.shape[1])
        left, right, top, bottom = self.pad  # the recorded map has had them
        height, width = maps.shape[-2:]
        return maps[..., top : height - bottom, left : width - right]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function not in OPERATIONS:
            raise _unsupported(getattr(function, "__name__", str(function)))
        return OPERATIONS[function](*args, **(kwargs or {}))

    def __getattr__(self, name: str):
        raise _unsupported(name)

    @property
    def shape(self) -> torch.Size:
        left, right, top, bottom = self.pad
        height, width = self.cells.size
        return torch.Size((1, self.rows.shape[1], height + top + bottom, width + left + right))

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
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def requires_grad(self) -> bool:
        return False

    def contiguous(self, memory_format=None) -> SiteTensor:
        return self

    def float(self) -> SiteTensor:
        return self.like(self.rows.float())

    def __add__(self, other) -> SiteTensor:
        return OPERATIONS[torch.add](self, other)

    def __sub__(self, other) -> SiteTensor:
        return OPERATIONS[torch.sub](self, other)

    def __mul__(self, other) -> SiteTensor:
        return OPERATIONS[torch.mul](self, other)

    def __truediv__(self, other) -> SiteTensor:
        return OPERATIONS[torch.div](self, other)

    def __rsub__(self, other) -> SiteTensor:
        return OPERATIONS[torch.sub](other, self)

    def __rtruediv__(self, other) -> SiteTensor:
        return OPERATIONS[torch.div](other, self)

    def __neg__(self) -> SiteTensor:
        return self * -1

    __radd__, __rmul__ = __add__, __mul__

    def _in_place(self, result: SiteTensor) -> SiteTensor:
        self.rows.copy_(result.rows)
        return self

    def __iadd__(self, other) -> SiteTensor:
        return self._in_place(self + other)

    def __isub__(self, other) -> SiteTensor:
        return self._in_place(self - other)

    def __imul__(self, other) -> SiteTensor:
        return self._in_place(self * other)

    def __itruediv__(self, other) -> SiteTensor:
        return self._in_place(self / other)

    def __getitem__(self, index):
        raise _unsupported("indexing")

    def __pow__(self, exponent):
        raise _unsupported("pow")


def _unsupported(name: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"the network uses {name}, which has no form at single pixels here. Known are "
        f"{', '.join(known_operations())}"
    )
