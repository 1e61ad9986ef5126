# SPDX-License-Identifier: Apache-2.0
"""A dense network at a few pixels of a large image: features are computed at full resolution at the
selected places alone. What lies around them was computed on a small version of the image before.

Knows nothing of segmentation. `recording` keeps what a network reads while it runs on the small
image; a `SiteTensor` is what a network of the same architecture is then called with.
"""

from .cells import Cells, Resolutions
from .operations import known_operations
from .site_tensor import SiteTensor, UnsupportedOperation
from .trace import Recording, Trace

__all__ = [
    "Cells",
    "Recording",
    "Resolutions",
    "SiteTensor",
    "Trace",
    "UnsupportedOperation",
    "known_operations",
]
