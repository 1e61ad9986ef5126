# SPDX-License-Identifier: Apache-2.0
"""A dense network evaluated at a few pixels of a large image: features are computed at full
resolution at the selected places alone. What lies around them comes from a run on a small version
of the image.

Knows nothing of segmentation. `Recording` keeps what a network reads while it runs on the small
image; a network of the same architecture is then called with a `SiteTensor`, the pixels, or in
training with a `CompositeTensor`, whole maps of a window in which the pixels count.

Shapes: a feature map is (1,C,H,W) on the image and (1,C,h,w) on the small image. A cell is a place
of a map of some stride, as a site is one of the image; P cells of a map are active: they hold
selected pixels.
"""

from . import pointwise, windowed  # noqa: F401  (they fill SiteTensor's table)
from .cells import Cells, Resolutions
from .composite import CompositeTensor, Window
from .partial_tensor import PartialTensor, known_operations
from .site_tensor import SiteTensor
from .trace import Recording, Trace, UnsupportedOperation

__all__ = [
    "Cells",
    "CompositeTensor",
    "PartialTensor",
    "Recording",
    "Resolutions",
    "SiteTensor",
    "Trace",
    "UnsupportedOperation",
    "Window",
    "known_operations",
]
