# SPDX-License-Identifier: Apache-2.0
"""Feature maps of the small image, which a dense network at the selected pixels reads around them.

They are the base's, which has run there already, or the network's own.
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..sparse_inference import Recording, Trace


def _precision(context: torch.Tensor):
    """In training without its mixed precision, as the coarse pass has it."""
    if torch.is_grad_enabled():
        return torch.autocast(context.device.type, enabled=False)
    return contextlib.nullcontext()


class OwnFeatures:
    """Of a network that is not the base: it runs on the small image itself.

    Args:
        model: called with Detectron2's list of {"image": (3,h,w)}, in eval mode.
    """

    def __init__(self, model: nn.Module):
        self._model = model

    def trace(self, context: torch.Tensor) -> Trace:
        """Of the small image (3,h,w)."""
        height, width = context.shape[-2:]
        # in inference mode tensors do not tell that they were changed in place
        with _precision(context), torch.inference_mode(False), torch.no_grad():
            with Recording() as recording:
                self._model([{"image": context.float(), "height": height, "width": width}])
        return recording.of_image(0, (height, width))


class BaseFeatures:
    """Of the base: recorded whenever it runs, and kept while the tensor lives that it was given.

    Args:
        base: called with Detectron2's list of {"image": (3,h,w)}; gets two hooks for good.
    """

    def __init__(self, base: nn.Module):
        self._base = base
        self._traces = WeakTensorKeyDictionary()
        self._recording: Recording | None = None
        base.register_forward_pre_hook(self._before)
        base.register_forward_hook(self._after, always_call=True)

    def trace(self, context: torch.Tensor) -> Trace:
        """Of the base on `context` (3,h,w); it runs if it has not (logits came from a cache)."""
        if context not in self._traces:
            height, width = context.shape[-2:]
            with _precision(context):
                self._base([{"image": context, "height": height, "width": width}])
        if torch.is_grad_enabled():  # in training once; a data loader may keep the tensor for good
            return self._traces.pop(context)
        return self._traces[context]

    def __getstate__(self) -> dict:
        return {"_base": self._base}

    def __setstate__(self, state: dict) -> None:
        self._base, self._traces, self._recording = state["_base"], WeakTensorKeyDictionary(), None

    def _before(self, base: nn.Module, args: tuple) -> None:
        self._stack = contextlib.ExitStack()
        # in inference mode tensors do not tell that they were changed in place
        self._stack.enter_context(torch.inference_mode(False))
        self._stack.enter_context(torch.no_grad())
        self._recording = self._stack.enter_context(Recording())

    def _after(self, base: nn.Module, args: tuple, output) -> None:
        self._stack.close()
        recording, self._recording = self._recording, None
        if output is None:  # it failed
            return
        for index, item in enumerate(args[0]):
            image = item["image"]
            self._traces[image] = recording.of_image(index, tuple(image.shape[-2:]))
