"""Which cell a row of a table is compared with: 'fastv', 'fastv@0.25:queries=last'."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from safe_pruner_ros.evaluation.methods import parse_method

Ran = tuple[str, str, float]  # method, variant, retention_ratio of a cell


@dataclass(frozen=True)
class Baseline:
    """A variant; a method without settings is that method as it was configured.

    ``retention_ratio``: of the one cell that all are compared with; None: the cell at the ratio of
    each row, or the only one there is. `str` and `parse` are each other's inverse.
    """

    variant: str
    retention_ratio: float | None = None

    @classmethod
    def parse(cls, text: str) -> Baseline:
        """Of full names, and of any method: results may hold some that left the catalog."""
        name, colon, settings = text.partition(':')
        method, at, ratio = name.partition('@')
        return cls(method + colon + settings, float(ratio) if at else None)

    def __str__(self) -> str:
        method, colon, settings = self.variant.partition(':')
        ratio = '' if self.retention_ratio is None else f'@{self.retention_ratio}'
        return method + ratio + colon + settings

    def among(self, ran: Iterable[Ran]) -> Baseline:
        """Itself, or the only variant of its method in ``ran`` if it is not there. Which of
        several is meant, nobody can know."""
        variants = self.variants(ran)
        if self.variant in variants or len(variants) != 1:
            return self
        return Baseline(variants[0], self.retention_ratio)

    def variants(self, ran: Iterable[Ran]) -> list[str]:
        """Those of its method in ``ran``, each once; none of a baseline with settings."""
        return list(dict.fromkeys(variant for name, variant, _ in ran if name == self.variant))

    def cells(self, ran: Iterable[Ran]) -> list[Ran]:
        """Those of ``ran`` that it names, in their order."""
        return [
            cell
            for cell in ran
            if cell[1] == self.variant and self.retention_ratio in (None, cell[2])
        ]


def read_baseline(text: str) -> Baseline:
    """As one writes a method (`parse_method`), symbols and order of settings as one likes. Raises
    ValueError for an unknown method or setting, or a ratio of a method that has none."""
    spec = parse_method(text)
    return Baseline(spec.variant, spec.retention_ratio)


def check_baseline(baseline: Baseline, ran: Iterable[Ran], where: str) -> None:
    """ValueError when no cell of ``ran`` is meant; ``where`` says in the message what ran."""
    ran = sorted(set(ran))
    found = baseline.among(ran)
    if found.cells(ran):
        return
    at_any_ratio = Baseline(found.variant).cells(ran)
    if at_any_ratio:
        ratios = ', '.join(f'{ratio:g}' for _, _, ratio in at_any_ratio)
        raise ValueError(
            f'--baseline {baseline}: among {where} {found.variant} has the ratios {ratios} only'
        )
    if variants := baseline.variants(ran):
        raise ValueError(
            f'--baseline {baseline}: among {where} it has the variants {" and ".join(variants)}; '
            'write one of them'
        )
    names = sorted({name for method, variant, _ in ran for name in (method, variant)})
    raise ValueError(f'--baseline {baseline} is not among {where} {names}')
