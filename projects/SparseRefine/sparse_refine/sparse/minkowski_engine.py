# SPDX-License-Identifier: Apache-2.0
"""The engine on MinkowskiEngine 0.5, an optional package (github.com/NVIDIA/MinkowskiEngine).

The pyramid's sites of every level are handed to one coordinate manager, so that this engine has the
sites of the PyTorch one in both `downsample` modes; MinkowskiEngine then finds the neighbours and
multiplies. Guarded here: a convolution on zero points kills the process, there is no half
precision, and the order of rows is not promised.
"""

from __future__ import annotations

import collections
import collections.abc
import warnings

import torch

from .norm import FrozenNorm
from .pyramid import Pyramid


def minkowski_available(cuda: bool = False) -> bool:
    """Whether MinkowskiEngine can be imported and, with `cuda`, was compiled for CUDA."""
    try:
        engine = _import_minkowski()
    except ImportError:
        return False
    return engine.is_cuda_available() or not cuda


class MinkowskiGrid:
    """`TorchGrid`'s members on MinkowskiEngine, in float32 whatever autocast says (a float64 weight
    stays float64).

    Raises:
        ImportError: MinkowskiEngine is absent, or compiled without CUDA where the sites are on it.
    """

    def __init__(self, pyramid: Pyramid):
        engine = _import_minkowski()
        cuda = pyramid.levels[0].sites.is_cuda
        if cuda and not engine.is_cuda_available():
            raise ImportError(_advice("was compiled without CUDA, and the model is on a GPU"))
        from MinkowskiEngineBackend._C import ConvolutionMode  # the package does not export it

        self.pyramid = pyramid
        self._engine = engine
        self._mode = ConvolutionMode.DEFAULT
        self._kernels = {
            stride: engine.KernelGenerator(kernel_size=3, stride=stride, dimension=2)
            for stride in (1, 2)
        }
        kind = engine.CoordinateMapType.CUDA if cuda else engine.CoordinateMapType.CPU
        self._manager = engine.CoordinateManager(D=2, coordinate_map_type=kind)
        # a level: (key, its rows' places among our sites, our sites' places among its rows)
        self._maps = [self._insert(level) for level in range(len(pyramid.levels))]

    def enter(self, features: torch.Tensor, level: int = 0) -> torch.Tensor:
        """Features in the order of a level's sites -> in the engine's order."""
        return features[self._maps[level][1]]

    def leave(self, features: torch.Tensor, level: int = 0) -> torch.Tensor:
        """The inverse of `enter`."""
        return features[self._maps[level][2]]

    def submanifold(self, features: torch.Tensor, weight: torch.Tensor, level: int, **epilogue):
        """3x3, stride 1: (P_l,C_in), weight (9,C_in,C_out) -> (P_l,C_out)."""
        convolution = self._engine.MinkowskiConvolutionFunction
        return self._convolve(convolution, features, weight, 1, level, level, **epilogue)

    def down(self, features: torch.Tensor, weight: torch.Tensor, level: int, **epilogue):
        """3x3, stride 2: (P_l,C_in) -> (P_{l+1},C_out)."""
        convolution = self._engine.MinkowskiConvolutionFunction
        return self._convolve(convolution, features, weight, 2, level, level + 1, **epilogue)

    def up(self, features: torch.Tensor, weight: torch.Tensor, level: int, **epilogue):
        """The transpose of `down`, 3x3, stride 2: (P_{l+1},C_in) -> (P_l,C_out)."""
        convolution = self._engine.MinkowskiConvolutionTransposeFunction
        return self._convolve(convolution, features, weight, 2, level + 1, level, **epilogue)

    def _convolve(
        self,
        convolution,
        features: torch.Tensor,
        weight: torch.Tensor,
        stride: int,
        source: int,
        target: int,
        *,
        norm: FrozenNorm | None = None,
        relu: bool = False,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inputs, outputs = (self.pyramid.levels[level].count for level in (source, target))
        with torch.autocast(features.device.type, enabled=False):
            shift = None
            if norm is not None:
                weight, shift = norm.fold(weight, weight.dtype)
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32)).contiguous()
            features = features.to(weight.dtype)
            if inputs == 0 or outputs == 0:
                # a sum over nothing: zeros, and gradients of zero for features and weight
                output = features.new_zeros(outputs, inputs) @ features @ weight[0]
            else:
                output = convolution.apply(
                    features,
                    weight,
                    self._kernels[stride],
                    self._mode,
                    self._maps[source][0],
                    self._maps[target][0],
                    self._manager,
                )
            output = output if shift is None else output + shift
            output = output.relu() if relu else output
            return output if residual is None else output + residual

    def _insert(self, level: int):
        """Hand a level's sites to the coordinate manager: its key and both permutations of rows."""
        sites = self.pyramid.levels[level].sites
        if len(sites) == 0:
            nothing = sites.new_empty(0)
            return None, nothing, nothing
        step = 2**level
        # MinkowskiEngine's window is centred on the output's coordinate: -1..1 steps of the level
        # below for "floor", and with this shift 0..2 for "reach"
        shift = step - 1 if self.pyramid.downsample == "reach" else 0
        image, y, x = sites.unbind(1)
        # in its kernels the first axis is the fastest: x before y is the order of our taps
        coordinates = torch.stack([image, x * step + shift, y * step + shift], dim=1)
        key, (order, back) = self._manager.insert_and_map(
            coordinates.to(torch.int32).contiguous(), tensor_stride=step
        )
        return key, order.long(), back.long()


def _import_minkowski():
    """The package. Version 0.5.4 takes `Sequence` from where Python 3.10 no longer has it, and says
    at every import that it was compiled for the CPU."""
    restored = not hasattr(collections, "Sequence")
    if restored:
        collections.Sequence = collections.abc.Sequence
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*CPU_ONLY")
            import MinkowskiEngine
    except ImportError as error:
        raise ImportError(_advice(f"cannot be imported ({error})")) from error
    finally:
        if restored:
            del collections.Sequence
    return MinkowskiEngine


def _advice(complaint: str) -> str:
    return (
        f"MinkowskiEngine {complaint}: install it with `make env` (docs/installation.md), or set "
        "MODEL.SPARSE_REFINE.EXTRACTOR.BACKEND torch, which needs nothing more"
    )
