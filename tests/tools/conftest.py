# SPDX-License-Identifier: Apache-2.0
"""The programs of projects/SparseRefine/tools."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "tools"


@pytest.fixture
def tool(monkeypatch):
    """load(module) of the tool's folder."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module
