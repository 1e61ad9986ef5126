# SPDX-License-Identifier: Apache-2.0
"""A dense network at a few pixels of a large image: features are computed at full resolution at the
selected places alone. What lies around them was computed on a small version of the image before.

Knows nothing of segmentation. `Recording` keeps what a network reads while it runs on the small
image; a `SiteTensor` is what a network of the same architecture is then called with.
"""

from . import pointwise, windowed  # noqa: F401  (they fill SiteTensor's table)
from .cells import Cells, Resolutions
from .site_tensor import SiteTensor, known_operations
from .trace import Recording, Trace, UnsupportedOperation

__all__ = [
    "Cells",
    "Recording",
    "Resolutions",
    "SiteTensor",
    "Trace",
    "UnsupportedOperation",
    "known_operations",
]
