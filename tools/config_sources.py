# SPDX-License-Identifier: Apache-2.0
"""Functions that declare keys, read from their sources: statements, the comments around them, and
the functions of other files that they call."""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Function:
    """`path`: the file that defines it; `imports`: those of that file, by name."""

    path: Path
    node: ast.FunctionDef
    comments: dict[int, str]  # line -> its comment, without the mark
    imports: dict[str, ast.ImportFrom]

    @classmethod
    def of(cls, path: Path, name: str) -> Function:
        """The function `name` of a file, or of the file that it is imported from there.

        Raises:
            ValueError: there is none.
        """
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        imports = _imports(tree)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return cls(path, node, _comments(source), imports)
        if name not in imports:
            raise ValueError(f"{path.name} has no function {name}")
        return cls.of(*_origin(path, imports[name], name))

    @property
    def parameter(self) -> str:
        return self.node.args.args[0].arg

    def place(self, statement: ast.stmt) -> str:
        return f"{self.path.name}, line {statement.lineno}"

    def statements(self) -> list[tuple[ast.stmt, list[str]]]:
        """Each with the lines of comment above it; the docstring is left out."""
        found, end = [], self.node.lineno
        for index, statement in enumerate(self.node.body):
            above = [
                self.comments[i] for i in range(end + 1, statement.lineno) if i in self.comments
            ]
            end = statement.end_lineno
            if index or ast.get_docstring(self.node) is None:
                found.append((statement, above))
        return found

    def beside(self, statement: ast.stmt) -> str:
        return self.comments.get(statement.end_lineno, "")

    def calls(self, statement: ast.stmt) -> list[tuple[Function, ast.expr]]:
        """(function, its argument) of a statement `add_keys(node)`, or of a loop of such calls over
        a tuple of functions; else none."""
        names: list[ast.expr] = []
        if isinstance(statement, ast.For) and isinstance(statement.iter, (ast.Tuple, ast.List)):
            names, statement = statement.iter.elts, statement.body[0]
        if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
            return []
        call = statement.value
        return [(self._named(name), call.args[0]) for name in names or [call.func]]

    def _named(self, name: ast.expr) -> Function:
        imports = {**self.imports, **_imports(self.node)}
        if isinstance(name, ast.Attribute):  # `package.add_keys` after `from . import package`
            module, package = name.value.id, imports[name.value.id]
            folder = _folder(self.path, package)
            return Function.of(_file(folder, module), name.attr)
        if name.id in imports:
            return Function.of(*_origin(self.path, imports[name.id], name.id))
        return Function.of(self.path, name.id)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("#").strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _imports(tree: ast.AST) -> dict[str, ast.ImportFrom]:
    """By the names that they give; those in functions too where `tree` is one."""
    return {
        alias.asname or alias.name: node
        for node in ast.iter_child_nodes(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _origin(path: Path, statement: ast.ImportFrom, name: str) -> tuple[Path, str]:
    """(file, name there) of what a relative import brings."""
    real = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
    folder = _folder(path, statement)
    return (folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")), real


def _folder(path: Path, statement: ast.ImportFrom) -> Path:
    folder = path.parents[statement.level - 1]
    return folder.joinpath(*(statement.module or "").split("."))


def _file(folder: Path, module: str) -> Path:
    path = folder / module
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
