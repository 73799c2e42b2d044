"""What a run folder says about itself: its recipe, its network, and how it was started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safe_pruner_ros.policies.embedded_model import EmbeddedConfig
from safe_pruner_ros.runtime.code_and_machine import git_commit, machine
from safe_pruner_ros.training.files import whole_file
from safe_pruner_ros.training.recipe import TrainingRecipe

RECIPE, RECORD = 'recipe.json', 'run.json'
Start = dict[str, Any]


def this_start(processes: int, device: str) -> Start:
    """Code and machine of this process; ``processes`` that train the networks on ``device``.

    The number of processes changes the order of the samples and over how many the tower's batch
    normalisation averages, never how many samples a step sees.
    """
    return {'commit': git_commit(), 'processes': processes, 'device': device, **machine()}


def open_run(run: Path, recipe: TrainingRecipe, config: EmbeddedConfig, start: Start) -> list[str]:
    """Begin or resume the run in that folder; answers what is worth knowing about a resume.

    Raises ValueError when the folder is of another recipe or network, or says neither; then
    nothing in it has changed.
    """
    said = _read(run / RECIPE)
    if said is not None:
        _check_same(run / RECIPE, said, _plain(recipe.as_dict()), 'recipe')
    record = _read(run / RECORD)
    notes = []
    if record is None:
        record = {'config': _plain(config.as_dict()), 'starts': []}
        if said is not None:
            notes.append(f'nothing in {run} says which code began it; going on with this one')
            record['starts'].append({'commit': 'unknown'})
    elif not isinstance(record.get('config'), dict) or not isinstance(record.get('starts'), list):
        raise ValueError(_unreadable(run / RECORD, 'it lacks config or starts'))
    _check_same(run / RECORD, record['config'], _plain(config.as_dict()), 'network')
    if start not in record['starts']:
        notes += _differences(record['starts'], start)
        record['starts'].append(start)
    run.mkdir(parents=True, exist_ok=True)
    _write(run / RECORD, record)
    # The recipe last: without a record beside it, it is a folder of older code.
    _write(run / RECIPE, _plain(recipe.as_dict()))
    return notes


def card(run: Path, recipe: TrainingRecipe) -> dict[str, str]:
    """The metadata of the weights that ``run`` made: recipe and starts, as JSON."""
    record = _read(run / RECORD) or {}
    return {
        'recipe': json.dumps(recipe.as_dict()),
        'starts': json.dumps(record.get('starts', [])),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _read(path: Path) -> dict[str, Any] | None:
    """None where there is no such file; ValueError where it holds no JSON object."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(_unreadable(path, str(error))) from error
    if not isinstance(values, dict):
        raise ValueError(_unreadable(path, f'it holds a {type(values).__name__}'))
    return values


def _unreadable(path: Path, why: str) -> str:
    return (
        f'{path} cannot be read ({why}), so nobody knows what the folder holds; bring the file '
        'back, delete it if you are sure that the folder was made with the same arguments and '
        'code, or choose an empty folder'
    )


def _check_same(path: Path, said: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    changed = sorted(k for k in {*said, *asked} if said.get(k) != asked.get(k))
    if changed:
        first = changed[0]
        raise ValueError(
            f'{path} holds another {what} than the one asked for: {", ".join(changed)} differ '
            f'({first}: {_short(said.get(first))} there, {_short(asked.get(first))} asked for); '
            'resume with the same arguments and code, or choose an empty folder'
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _differences(starts: list[Start], start: Start) -> list[str]:
    """One line for each kind of change against the start before."""
    if not starts:
        return []
    before = starts[-1]
    return [
        f'{key} was {before[key]} before and is {start[key]} now; what is done stays'
        for key in start
        if key in before and before[key] != start[key] and before[key] != 'unknown'
    ]


def _write(path: Path, values: dict[str, Any]) -> None:
    if values != _read(path):
        with whole_file(path) as partial:
            partial.write_text(json.dumps(values, indent=1))
