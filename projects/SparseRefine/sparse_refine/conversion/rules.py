# SPDX-License-Identifier: Apache-2.0
"""Rules that turn the tensors of one checkpoint format into those of another, and a report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Transform = Callable[[torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Rule:
    """Tensors whose whole name matches `source` become those named `targets`.

    Args:
        source: a regular expression.
        targets: a name, or several where one tensor is split; \\1 and so on stand for the groups of
            `source`.
        transform: tensor -> as many tensors as there are targets; None leaves it as it is.
    """

    source: str
    targets: str | tuple[str, ...]
    transform: Transform | None = None

    def apply(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """The renamed and transformed tensors; None where the name does not match.

        Raises:
            RuntimeError, IndexError: the transform does not fit the tensor's shape, or makes
                another number of tensors than there are targets.
        """
        match = re.fullmatch(self.source, name)
        if match is None:
            return None
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        tensors = (tensor,) if self.transform is None else self.transform(tensor)
        if len(tensors) != len(targets):
            raise RuntimeError(f"it made {len(tensors)} tensors for {len(targets)} names")
        return dict(zip((match.expand(target) for target in targets), tensors))


@dataclass(frozen=True)
class Drop:
    """Tensors whose whole name matches `source`, a regular expression, are left out on purpose."""

    source: str
    reason: str


@dataclass
class Report:
    """What a conversion did.

    `matched`: (source name, target names). `dropped`: (source name, reason). `left_over`: source
    names that match no rule. `missing`, `unexpected`, `shapes`: how the result differs from a
    model, see `compare`.
    """

    matched: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every tensor of both sides has found its place."""
        faults = (self.left_over, self.missing, self.unexpected, self.shapes)
        return bool(self.matched) and not any(faults)

    def summary(self, limit: int = 8) -> str:
        """Lines for people; the first `limit` names of each list."""
        lines = [f"matched {len(self.matched)} tensors"]
        reasons = {}
        for name, reason in self.dropped:
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            lines.append(_listing(f"left out, {reason}", names, limit))
        for title, names in (
            ("in the file, but no rule speaks of them", self.left_over),
            ("in the model, but not in the file", self.missing),
            ("converted, but not in the model", self.unexpected),
            ("of another shape", self.shapes),
        ):
            if names:
                lines.append(_listing(title, names, limit))
        return "\n".join(lines)


def convert(
    state: Mapping[str, torch.Tensor], rules: Sequence[Rule | Drop]
) -> tuple[dict[str, torch.Tensor], Report]:
    """Apply to each tensor the first rule that its name matches -> (converted, report).

    Raises:
        ValueError: two tensors became one name, or a tensor cannot be transformed.
    """
    converted, report = {}, Report()
    for name, tensor in state.items():
        for rule in rules:
            if isinstance(rule, Drop):
                if re.fullmatch(rule.source, name):
                    report.dropped.append((name, rule.reason))
                    break
                continue
            try:
                made = rule.apply(name, tensor)
            except (RuntimeError, IndexError) as error:
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} is not what the rule "
                    f"{rule.source!r} expects: {error}"
                ) from error
            if made is None:
                continue
            twice = sorted(set(made) & set(converted))
            if twice:
                raise ValueError(f"{name} becomes {twice}, which another tensor became already")
            converted.update(made)
            report.matched.append((name, tuple(made)))
            break
        else:
            report.left_over.append(name)
    return converted, report


def compare(
    report: Report, converted: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Write into `report` how `converted` differs from `expected`, a model's state dict.

    `num_batches_tracked` may be missing: only a norm with a cumulative average reads it.
    """
    report.missing = [
        name
        for name in expected
        if name not in converted and not name.endswith("num_batches_tracked")
    ]
    report.unexpected = [name for name in converted if name not in expected]
    report.shapes = [
        f"{name}: {tuple(tensor.shape)} in the file, {tuple(expected[name].shape)} in the model"
        for name, tensor in converted.items()
        if name in expected and tensor.shape != expected[name].shape
    ]


def _listing(title: str, names: list[str], limit: int) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{title}: {len(names)} ({', '.join(names[:limit])}{more})"
