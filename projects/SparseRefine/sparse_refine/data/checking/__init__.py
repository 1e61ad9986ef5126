# SPDX-License-Identifier: Apache-2.0
"""Whether a data set can be trained on: every file is read as training reads it, nothing stops at
the first fault. listing.py finds the pairs, pair.py reads one, dataset.py sums up."""

from .dataset import DatasetCheck, check_dataset, shared_images
from .findings import KINDS, Finding, Kind
from .listing import Listing, list_folder, list_registered
from .pair import CheckedPair, check_pair

__all__ = [
    "KINDS",
    "CheckedPair",
    "DatasetCheck",
    "Finding",
    "Kind",
    "Listing",
    "check_dataset",
    "check_pair",
    "list_folder",
    "list_registered",
    "shared_images",
]
