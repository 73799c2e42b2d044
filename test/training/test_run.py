"""The schedule as a whole, without the simulator: resumed, refused, and what its card says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_training
from helpers.tiny_training import CONFIG, RECIPE
from safetensors import safe_open

from safe_pruner_ros.policies.embedded import load_weights
from safe_pruner_ros.policies.embedded_model import EmbeddedVLA
from safe_pruner_ros.sim.tasks.catalog import TASKS
from safe_pruner_ros.training import run as schedule
from safe_pruner_ros.training import run_record
from safe_pruner_ros.training.recipe import RECIPES, TrainingRecipe, smoke_recipe
from safe_pruner_ros.training.run import train


class Simulator:
    """What the schedule asks the simulator for, made up; counts the rounds of corrections."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.config, self.rounds, self.kill = CONFIG, 0, False
        patch.setattr(schedule, 'policy_config', lambda recipe: self.config)
        patch.setattr(schedule, 'collect_pictures', lambda *args: None)
        patch.setattr(schedule, 'train_vision_tower', lambda *args: None)
        patch.setattr(schedule.collect, 'collect_demonstrations', self.demonstrations)
        patch.setattr(schedule.collect, 'collect_corrections', self.corrections)
        patch.setattr(run_record, 'git_commit', lambda: 'first')

    def demonstrations(self, recipe: TrainingRecipe, run: Path, *args: object) -> dict[str, float]:
        if not (run / 'vision').exists():
            tiny_training.write_run(run)
        return {'pick_place': 1.0}

    def corrections(
        self, recipe: TrainingRecipe, number: int, model: EmbeddedVLA, run: Path, processes: int
    ) -> dict[str, float]:
        if self.kill:
            raise KeyboardInterrupt
        self.rounds += 1
        tiny_training.write_shard(run / 'demonstrations' / f'policy_round_{number}', seed=9)
        return {'pick_place': 0.5}


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Simulator:
    return Simulator(monkeypatch)


def contents(run: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in run.rglob('*') if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def written(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def starts(run: Path) -> list[dict[str, object]]:
    with safe_open(run / 'embedded.safetensors', framework='numpy') as file:
        metadata = file.metadata()
    assert json.loads(metadata['recipe'])['seed'] == RECIPE.seed
    listed: list[dict[str, object]] = json.loads(metadata['starts'])
    return listed


def test_a_killed_schedule_goes_on_and_its_card_names_each_start(
    tmp_path: Path,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / 'run'
    simulator.kill = True
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, run, 1)
    recipe, record = written(run / 'recipe.json'), written(run / 'run.json')
    statistics = (run / 'statistics.npz').read_bytes()
    reached = torch.load(run / 'learner.pt', weights_only=True)
    assert (reached['stage'], reached['step']) == (0, 6)

    simulator.kill = False
    monkeypatch.setattr(run_record, 'git_commit', lambda: 'second')
    capsys.readouterr()
    model = load_weights(train(RECIPE, run, 1))
    assert 'commit was first before and is second now' in capsys.readouterr().out
    assert len(model.layers) == 4 and simulator.rounds == 1
    assert written(run / 'recipe.json') == recipe, 'an equal recipe is not written again'
    assert written(run / 'run.json') != record
    assert (run / 'statistics.npz').read_bytes() == statistics, 'of the demonstrations alone'
    first, second = starts(run)
    assert (first['commit'], second['commit']) == ('first', 'second')
    assert first['processes'] == 1 and first['device'] == 'cpu' and first['torch']
    assert not list(run.rglob('*partial*'))

    before = contents(run)
    capsys.readouterr()
    train(RECIPE, run, 1)  # nothing is left to do
    assert 'commit was' not in capsys.readouterr().out and simulator.rounds == 1
    changed = {Path(path).name for path, was in before.items() if contents(run)[path] != was}
    assert changed == {'embedded.safetensors'}


def test_another_seed_recipe_or_network_is_refused_and_costs_nothing(
    tmp_path: Path, simulator: Simulator
) -> None:
    train(RECIPE, tmp_path, 1)
    before = contents(tmp_path)
    for other, name in ((replace(RECIPE, seed=1), 'seed'), (smoke_recipe(), 'stages')):
        with pytest.raises(ValueError, match=f'recipe.json holds another recipe .*{name}'):
            train(other, tmp_path, 1)
    simulator.config = replace(CONFIG, mlp_width=32)
    with pytest.raises(ValueError, match=r'another network .* \(mlp_width: 24 there, 32 asked'):
        train(RECIPE, tmp_path, 1)
    assert contents(tmp_path) == before


def test_processes_that_would_change_the_recipe_are_refused(
    tmp_path: Path, simulator: Simulator
) -> None:
    with pytest.raises(ValueError, match='by 3 processes; use 2'):
        train(RECIPE, tmp_path / 'run', 3)
    assert not (tmp_path / 'run').exists()


def test_a_folder_of_older_code_is_resumed_and_says_so(
    tmp_path: Path, simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(RECIPE.as_dict(), indent=1)  # as it was written before there was a record
    (tmp_path / 'recipe.json').write_text(text)
    train(RECIPE, tmp_path, 1)
    assert 'says which code began it' in capsys.readouterr().out
    assert (tmp_path / 'recipe.json').read_text() == text
    assert [start['commit'] for start in starts(tmp_path)] == ['unknown', 'first']


@pytest.mark.parametrize('name', ['recipe.json', 'run.json'])
@pytest.mark.parametrize('text', ['', '{"seed": 0, "ta', '[]', '{}\x00'])
def test_an_unreadable_record_is_called_so(
    tmp_path: Path, simulator: Simulator, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f'{name} cannot be read .* choose an empty folder'):
        train(RECIPE, tmp_path, 1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize('make', RECIPES.values())
def test_the_network_is_as_deep_as_its_last_stage(make: Callable[[int], TrainingRecipe]) -> None:
    recipe = make(0)
    assert schedule.policy_config(recipe).n_layers == recipe.stages[-1].n_layers


@pytest.mark.slow
def test_the_smoke_recipe_from_nothing(tmp_path: Path) -> None:
    """Every stage for every task, with the simulator and two processes as they really start."""
    model = load_weights(train(smoke_recipe(), tmp_path, 2))
    assert {task.name for task in model.config.tasks} == set(TASKS)
    assert [start['processes'] for start in starts(tmp_path)] == [2]
