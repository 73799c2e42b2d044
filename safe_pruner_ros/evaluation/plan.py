"""What an evaluation runs: cells (a method at a ratio) x scenes, checked before it starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, resolved_settings
from safe_pruner_ros.evaluation.methods import MethodSpec, check_ratio, parse_method
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.results import EpisodeKey
from safe_pruner_ros.evaluation.rollout import RolloutSettings

DEFAULT_EPISODES = 200


@dataclass(frozen=True)
class Cell:
    """A method and what was set of its pruner, ``retention_ratio`` among it if it has one.

    ``variant`` names the method with its settings, as one writes it (`MethodSpec.variant`).
    ``causal``: of the decoder it prunes.
    """

    method: str
    retention_ratio: float
    settings: Mapping[str, Any]
    variant: str = ''
    causal: bool = False

    def __post_init__(self) -> None:
        if not self.variant:
            object.__setattr__(self, 'variant', self.method)

    def resolved(self) -> dict[str, Any]:
        """Every setting the method runs with, defaults included; ValueError for a bad value."""
        return resolved_settings(self.method, self.settings, causal=self.causal)

    @property
    def identity(self) -> str:
        """The same text for cells that run the same thing."""
        return f'{self.method} {json.dumps(self.resolved(), sort_keys=True)}'


@dataclass(frozen=True)
class Job:
    """One episode to run. Everything a worker process needs, and nothing that is not picklable."""

    task: str
    policy: PolicySource
    cell: Cell
    seed: int
    asked_object: int | None
    rollout: RolloutSettings

    @property
    def key(self) -> EpisodeKey:
        cell = self.cell
        return self.task, cell.variant, cell.retention_ratio, self.seed, self.asked_object

    def __str__(self) -> str:
        asked = '' if self.asked_object is None else f', object {self.asked_object}'
        cell = self.cell
        return f'{self.task}, {cell.variant} at {cell.retention_ratio:g}, seed {self.seed}{asked}'


@dataclass(frozen=True)
class EvaluationPlan:
    """``asked_objects``: (None,) keeps each scene's own target; otherwise each of these objects is
    named in turn. ``split``: which seed range the scenes are from, '' if none. ``settings`` and
    ``configured``: what `build_cells` was given, for the record."""

    task: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    split: str = ''
    asked_objects: tuple[int | None, ...] = (None,)
    policy: PolicySource = field(default_factory=PolicySource)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    settings: Mapping[str, Any] = field(default_factory=dict)
    configured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def jobs(self) -> Iterator[Job]:
        """Scene by scene, so that a run that is cut short still has pairs to compare."""
        for seed in self.seeds:
            for asked_object in self.asked_objects:
                for cell in self.cells:
                    yield Job(self.task, self.policy, cell, seed, asked_object, self.rollout)

    def config(self) -> dict[str, Any]:
        """What must be the same for all episodes of a results folder. Methods, ratios and seeds
        are not part of it: a folder may grow by them."""
        return {
            'task': self.task,
            **self.policy.facts(),
            'split': self.split,
            'each_object': self.asked_objects != (None,),
            'max_policy_steps': self.rollout.max_policy_steps,
            'execution_horizon': self.rollout.execution_horizon,
            'latency_ticks': self.rollout.latency_ticks,
            'settings': dict(self.settings),
            'configured': {name: dict(values) for name, values in self.configured.items()},
        }


def parse_seeds(text: str) -> tuple[int, ...]:
    """'900000:900200' (end excluded), '900000:900200:2', or '900000,900007'; sorted, unique."""
    seeds: set[int] = set()
    for part in text.split(','):
        numbers = part.split(':')
        try:
            values = [int(number) for number in numbers]
        except ValueError:
            raise ValueError(
                f'seeds must be like 900000:900200 or 900000,900007, got {text!r}'
            ) from None
        if len(values) > 3 or (len(values) == 3 and values[2] < 1):
            raise ValueError(f'a seed range is start:end or start:end:step, got {part!r}')
        found = range(*values) if len(values) > 1 else values
        if not found:
            raise ValueError(f'the seed range {part!r} is empty: its end must lie above its start')
        seeds.update(found)
    if min(seeds) < 0:
        raise ValueError(f'seeds must not be negative, got {min(seeds)}')
    return tuple(sorted(seeds))


def choose_seeds(
    text: str, split: str, splits: Mapping[str, range]
) -> tuple[tuple[int, ...], str]:
    """(seeds, split name) from the two command line arguments, '' where the user gave none.

    Without seeds the first 200 of the split are taken; without either, of 'validation', because
    test scenes are for reported numbers only and must be asked for. Raises ValueError when seeds
    lie outside the split, or in none.
    """
    if split and split not in splits:
        raise ValueError(f'unknown split {split!r}; choose from {sorted(splits)}')
    if not text:
        split = split or 'validation'
        return tuple(splits[split][:DEFAULT_EPISODES]), split
    seeds = parse_seeds(text)
    home = {name for name, span in splits.items() if seeds[0] in span and seeds[-1] in span}
    if split and split not in home:
        span = splits[split]
        raise ValueError(
            f'seeds {seeds[0]} to {seeds[-1]} are not all in the {split} split, '
            f'{span.start}:{span.stop}'
        )
    if not home:
        spans = ', '.join(f'{name} {span.start}:{span.stop}' for name, span in splits.items())
        raise ValueError(
            f'seeds {seeds[0]} to {seeds[-1]} lie in no evaluation split ({spans}); policies may '
            'have been trained on them'
        )
    return seeds, split or home.pop()


def build_cells(
    methods: Sequence[str | MethodSpec],
    ratios: Sequence[float],
    settings: Mapping[str, Any],
    configured: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    causal: bool = False,
) -> tuple[Cell, ...]:
    """Methods x ratios; a method without a ratio (unpruned) is one cell at 1.0.

    ``methods``: names, or methods with settings and a ratio of their own as
    `methods.parse_method` reads them.
    ``configured``: method -> the settings it starts from; methods that are not in it start from
    their published defaults. ``settings`` change them: each applies to every method that knows
    it, one written 'method.setting' to that method only and with precedence; what a method itself
    is written with wins over all. Of cells that run with the same settings the first stays.
    ``causal``: of the policy's decoder (`policies.catalog.CAUSAL`).
    Raises ValueError for unknown methods, ratios outside (0, 1], settings that no chosen method
    takes, and values that a method refuses, also in ``configured`` of methods that do not run.
    """
    if not methods:
        raise ValueError(f'no method given; choose from {list(METHODS)}')
    specs = [parse_method(m) if isinstance(m, str) else m for m in methods]
    if not ratios:
        raise ValueError('no retention ratio given; for example 0.3')
    for ratio in ratios:
        check_ratio(ratio)
    for method, values in (configured or {}).items():
        resolved_settings(method, values)
    cells: dict[str, Cell] = {}
    used: set[str] = set()
    for spec in specs:
        accepted = accepted_settings(spec.method)
        chosen: dict[str, Any] = {}
        if not spec.published:
            chosen |= (configured or {}).get(spec.method, {})
        chosen.pop('retention_ratio', None)
        for name in sorted(settings, key=lambda name: '.' in name):  # 'method.setting' wins
            owner, _, short = name.rpartition('.')
            if short == 'retention_ratio':
                raise ValueError('retention_ratio is not a --set setting; use --retention')
            if owner in ('', spec.method) and short in accepted:
                chosen[short] = settings[name]
                used.add(name)
        chosen |= spec.settings
        takes_ratio = 'retention_ratio' in accepted
        own_ratios = ratios if spec.retention_ratio is None else (spec.retention_ratio,)
        for ratio in own_ratios if takes_ratio else (1.0,):
            own = {**chosen, 'retention_ratio': float(ratio)} if takes_ratio else dict(chosen)
            cell = Cell(spec.method, float(ratio), own, spec.variant, causal)
            cells.setdefault(cell.identity, cell)
    if unused := sorted(set(settings) - used):
        known = {spec.method: list(accepted_settings(spec.method)) for spec in specs}
        raise ValueError(f'none of the methods takes the setting {unused}; they take {known}')
    return tuple(cells.values())
