# SPDX-License-Identifier: Apache-2.0
"""Programs over the package, a module each, which `python -m sparse_refine` runs."""
