# SPDX-License-Identifier: Apache-2.0
"""The layout of the package, read from its sources: which module may import which."""

import ast
import graphlib
from pathlib import Path

import pytest

import sparse_refine

PACKAGE = Path(sparse_refine.__file__).parent
# The paper's figure: what `meta_arch` puts together, and what it is made of.
FIGURE = ("meta_arch", "coarse", "selector", "ensembler", "losses", "extractors.extractor")
# What knows nothing of refinement, and what it may therefore not import.
FOUNDATIONS = ("modeling", "sparse", "sparse_inference", "sites", "resampling")
REFINEMENT = (
    *("meta_arch", "base", "coarse", "selector", "extractors", "ensembler", "losses", "results"),
    *("training", "inference", "evaluation", "calibration", "commands", "visualization"),
)


def sources():
    """Dotted name below the package ("" for the package itself) -> path."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imported(name):
    """Modules of the package that a module imports, anywhere in it, by their own names."""
    is_package = SOURCES[name].name == "__init__.py"
    folder = name.split(".") if is_package else name.split(".")[:-1]
    folder = [part for part in folder if part]
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            bases = [n.partition(".")[2] for n in names if n.split(".")[0] == "sparse_refine"]
            found.update(bases)
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            above = folder[: len(folder) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
        elif (node.module or "").split(".")[0] == "sparse_refine":
            base = node.module.partition(".")[2]
        else:
            continue
        for alias in node.names:
            full = f"{base}.{alias.name}".lstrip(".")
            found.add(full if full in SOURCES else base)
    unknown = found - set(SOURCES)
    assert not unknown, f"{name} imports {unknown}, which the package does not have"
    return found


def executed(name):
    """The same with the packages that stand above each, whose __init__ runs first."""
    found = set()
    for target in imported(name):
        parts = target.split(".")
        above = {".".join(parts[:depth]) for depth in range(1, len(parts))}
        found |= {target, *(one for one in above if not f"{name}.".startswith(f"{one}."))}
    return found - {name}


def inside(name, rooms):
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def registered_classes():
    """Names of the classes of the package that stand in a registry."""
    return {
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any("_REGISTRY.register" in ast.unparse(mark) for mark in node.decorator_list)
    }


def test_the_imports_are_understood():
    assert {"base", "coarse", "extractors", "modeling.contract", "sites"} <= imported("meta_arch")
    assert imported("sites") == set()
    assert "inference.model_zoo" in imported("inference.predictor")  # from . import model_zoo
    assert "modeling" in executed("coarse")  # above modeling.contract


@pytest.mark.parametrize("edges", [imported, executed])
def test_no_import_circle(edges):
    graph = {name: edges(name) for name in SOURCES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("name", [*FIGURE, "sites", "resampling"])
def test_the_core_imports_no_special_part(name):
    """Neither token merging nor an extractor of its own needs."""
    special = {found for found in imported(name) if inside(found, ["modeling.token_merging"])}
    special |= imported(name) & {"extractors.pretrained", "sparse_inference"}
    assert not special


@pytest.mark.parametrize("room", FOUNDATIONS)
def test_the_foundations_know_nothing_of_refinement(room):
    names = [name for name in SOURCES if inside(name, [room])]
    assert names
    above = {f"{name} -> {t}" for name in names for t in imported(name) if inside(t, REFINEMENT)}
    assert not above


def test_sparse_convolution_stands_alone():
    """Both engines know sites and no base; a dense network at sites uses the sparse convolution."""
    own = {"sparse": {"sparse", "sites"}, "sparse_inference": {"sparse_inference", "sparse"}}
    for room, known in own.items():
        for name in SOURCES:
            if inside(name, [room]):
                assert all(inside(t, known) for t in imported(name)), name


def test_nothing_but_the_figure_stands_on_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_no_name_test_stands_beside_a_registry():
    """A part is asked for what it can do, never for what it is called: subclasses, and parts of
    other people, count as much as the package's own."""
    names = registered_classes()
    assert {"SparseRefine", "EntropySelector", "GatedEnsembler", "SparseUNetExtractor"} <= names
    found = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
                texts = {part.value for part in parts if isinstance(part, ast.Constant)}
                tested = texts & names
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                kinds = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                tested = kinds & names
            else:
                continue
            found += [f"{module}:{node.lineno}: {name}" for name in tested]
    assert not found
