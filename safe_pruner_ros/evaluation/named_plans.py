"""Evaluations that have a name: data in plans/*.yaml, turned into checked plans.

A file holds ``about`` and a list of ``runs``; each run is one results folder::

    - name: pick_place            # its folder under --out
      task: pick_place
      methods: [all, "safe_pruner:published"]     # 'all': every method of the catalog; a list in
                                  # the list (a YAML alias) stands for what is in it
      retention: [0.3, 0.1]
      split: test
      episodes: 300               # the first so many seeds of the split
      configured:                 # may be: where a method starts instead of the policy file's
        safe_pruner: {max_keyframe_age: 8}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from safe_pruner_ros.core.catalog import METHODS, resolved_settings

PLANS = Path(__file__).parent / 'plans'
KEYS = {'name', 'task', 'methods', 'retention', 'split', 'episodes'}
OPTIONAL = {'first', 'configured'}


@dataclass(frozen=True)
class NamedRun:
    """One results folder of a plan. ``seeds``: of ``split``, ascending. ``configured``: method ->
    settings that replace the policy file's."""

    name: str
    task: str
    methods: tuple[str, ...]
    retention: tuple[float, ...]
    split: str
    seeds: tuple[int, ...]
    configured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def plan_names() -> list[str]:
    return sorted(path.stem for path in PLANS.glob('*.yaml'))


def load_named_plan(
    name: str, splits: Mapping[str, range], episodes: int = 0, split: str = ''
) -> list[NamedRun]:
    """The runs of plan ``name``, or of a YAML file of that path.

    ``episodes`` and ``split``, where given, replace those of every run: a small rehearsal on
    validation scenes. Raises ValueError for an unknown plan or a file that is not one.
    """
    path = Path(name) if name.endswith(('.yaml', '.yml')) else PLANS / f'{name}.yaml'
    if not path.is_file():
        close = get_close_matches(name, plan_names(), n=1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        raise ValueError(f'unknown plan {name!r}; choose from {plan_names()} or a .yaml{hint}')
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f'{path} is not YAML: {error}') from error
    runs = content.get('runs') if isinstance(content, dict) else None
    if not isinstance(runs, list) or not runs:
        raise ValueError(f'{path} has no list "runs"')
    found = [_read_run(path, run, splits, episodes, split) for run in runs]
    names = [run.name for run in found]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f'{path}: the run names {repeated} are there twice; each is a folder')
    return found


def _read_run(
    path: Path, run: Any, splits: Mapping[str, range], episodes: int, split: str
) -> NamedRun:
    where = f'{path}, run {run.get("name") if isinstance(run, dict) else run!r}'
    if not isinstance(run, dict) or not KEYS <= set(run) <= KEYS | OPTIONAL:
        raise ValueError(f'{where}: a run has {sorted(KEYS)} and may have {sorted(OPTIONAL)}')
    for key in ('name', 'task', 'split'):
        if not isinstance(run[key], str):
            raise ValueError(f'{where}: {key} must be a word, got {run[key]!r}')
    if not re.fullmatch(r'\w[\w.-]*', run['name']):
        raise ValueError(
            f'{where}: the name is that of a folder under --out; use letters, digits, "_", "-" '
            f'and ".", got {run["name"]!r}'
        )
    span = splits.get(split or run['split'])
    if span is None:
        raise ValueError(f'{where}: split must be one of {sorted(splits)}, got {run["split"]!r}')
    count, first = episodes or run['episodes'], run.get('first', 0)
    for key, value, least in (('episodes', count, 1), ('first', first, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(
                f'{where}: {key} must be a whole number of at least {least}, got {value!r}'
            )
    if first + count > len(span):
        raise ValueError(f'{where}: the split has only {len(span)} seeds')
    return NamedRun(
        name=run['name'],
        task=run['task'],
        methods=_methods(run['methods'], where),
        retention=_retention(run['retention'], where),
        split=split or run['split'],
        seeds=tuple(span[first : first + count]),
        configured=_configured(run.get('configured', {}), where),
    )


def _retention(ratios: Any, where: str) -> tuple[float, ...]:
    good = isinstance(ratios, list) and all(
        isinstance(ratio, (int, float)) and not isinstance(ratio, bool) for ratio in ratios
    )
    if not good:
        raise ValueError(f'{where}: retention must be a list like [0.3, 0.1], got {ratios!r}')
    return tuple(float(ratio) for ratio in ratios)


def _configured(configured: Any, where: str) -> dict[str, dict[str, Any]]:
    good = isinstance(configured, dict) and set(configured) <= set(METHODS)
    if not good or not all(isinstance(settings, dict) for settings in configured.values()):
        raise ValueError(f'{where}: configured is METHOD: {{SETTING: VALUE}}, got {configured!r}')
    for method, settings in configured.items():
        try:
            resolved_settings(method, settings)
        except ValueError as error:
            raise ValueError(f'{where}: configured: {error}') from error
    return configured


def _methods(methods: Any, where: str) -> tuple[str, ...]:
    if not isinstance(methods, list):
        raise ValueError(f'{where}: methods must be a list, got {methods!r}')
    chosen: dict[str, None] = {}
    for method in methods:
        if isinstance(method, list):
            chosen |= dict.fromkeys(_methods(method, where))
        else:
            chosen |= dict.fromkeys(METHODS if method == 'all' else [str(method)])
    return tuple(chosen)
