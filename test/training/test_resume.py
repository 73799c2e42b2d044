"""Training that is killed goes on from its last save with all that belongs to it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_training
from helpers.tiny_training import CONFIG, RECIPE

from safe_pruner_ros.training import imitation, vision_pretraining
from safe_pruner_ros.training.imitation import load_learner, save_learner, torch_load_statistics


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose decoder saves every second step and reports each."""
    monkeypatch.setattr(imitation, 'SAVE_STEPS', 2)
    monkeypatch.setattr(imitation, 'REPORT_STEPS', 1)
    tiny_training.write_run(tmp_path / 'run')
    return tmp_path / 'run'


def train(run: Path, stage: int = 0) -> None:
    imitation.train_stage(0, 1, RECIPE, stage, CONFIG, run)


def load(run: Path, stage: int = 0) -> tuple[imitation.Learner, int]:
    statistics = {k: torch.from_numpy(v) for k, v in torch_load_statistics(run).items()}
    return load_learner(RECIPE, stage, CONFIG, statistics, run, 'cpu')


def states(learner: imitation.Learner) -> dict[str, object]:
    return {
        'model': learner.model.state_dict(),
        'heads': learner.heads.state_dict(),
        'average': learner.average.state_dict(),
        'optimizers': learner.optimizers.state_dict(),
    }


def curve(run: Path) -> list[tuple[int, int]]:
    records = [json.loads(line) for line in (run / 'curve.jsonl').read_text().splitlines()]
    return [(record['stage'], record['step']) for record in records]


def kill_at_save(
    monkeypatch: pytest.MonkeyPatch, run: Path, number: int
) -> list[dict[str, object]]:
    """Train until save ``number``, which does not come to pass; the states that were saved."""
    saved: list[dict[str, object]] = []

    def save(learner: imitation.Learner, *args: object) -> None:
        if len(saved) == number - 1:
            raise KeyboardInterrupt
        saved.append(copy.deepcopy(states(learner)))
        save_learner(learner, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(imitation, 'save_learner', save)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    return saved


def assert_equal(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_killed_stage_goes_on_from_its_last_save(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = kill_at_save(monkeypatch, run, number=2)
    assert curve(run) == [(0, step) for step in range(1, 5)], 'two lines beyond the save'
    with (run / 'curve.jsonl').open('a') as log:
        log.write('{"stage": 0, "st')  # and one that the kill cut short
    learner, step = load(run)
    assert step == 2
    assert_equal(states(learner), saved[0])
    assert saved[0]['optimizers']['muon']['state'] and saved[0]['optimizers']['adam']['state']

    again = run.parent / 'again'
    shutil.copytree(run, again)
    for folder in (run, again):
        train(folder)
        assert curve(folder) == [(0, step) for step in range(1, 7)], 'each step once'
    one, other = load(run), load(again)
    assert one[1] == other[1] == 6
    assert_equal(states(one[0]), states(other[0]))


def test_a_loaded_learner_steps_like_the_one_that_was_saved(run: Path) -> None:
    learner, _ = load(run)
    statistics = {k: torch.from_numpy(v) for k, v in torch_load_statistics(run).items()}
    batch = tiny_training.demonstrations(run).batch(np.random.default_rng(0), 8, 3)

    def step(learner: imitation.Learner, number: int) -> None:
        sum(imitation.losses(learner, batch, statistics).values()).backward()
        learner.optimizers.step(imitation.multiplier(RECIPE.stages[0], number))
        imitation.update_average(learner, RECIPE.ema_decay, number)

    for number in range(2):
        step(learner, number)
    save_learner(learner, 0, 2, run)
    loaded, at = load(run)
    for number in range(at, at + 2):
        step(learner, number)
        step(loaded, number)
    assert_equal(states(loaded), states(learner))


def test_the_next_stage_begins_with_the_average_and_grows_it(run: Path) -> None:
    train(run)
    small, _ = load(run)
    large, step = load(run, stage=1)
    assert step == 0 and len(large.model.layers) == 4
    embeddings = torch.randn(1, small.model.layout.length, CONFIG.width)
    with torch.inference_mode():
        torch.testing.assert_close(
            large.model.decode_full(embeddings),
            small.average.decode_full(embeddings),
            rtol=0,
            atol=1e-5,
        )
    train(run, stage=1)
    assert curve(run)[-1] == (1, 4)
    assert load(run, stage=1)[1] == 4


def train_tower(folder: Path) -> dict[str, torch.Tensor]:
    width = CONFIG.vision_width
    return vision_pretraining.train_vision_tower(RECIPE, folder, width, 1).state_dict()


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(vision_pretraining, 'SAVE_STEPS', 2)
    monkeypatch.setattr(vision_pretraining, 'REPORT_STEPS', 1)
    for number in range(4):
        tiny_training.write_pictures(tmp_path / 'pick_place' / f'scene_{number}')
    return tmp_path


def kill_tower_at_save(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    saves, save = [], vision_pretraining._save

    def counted(*args: object) -> None:
        saves.append(1)
        if len(saves) == number:
            raise KeyboardInterrupt
        save(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(vision_pretraining, '_save', counted)
        with pytest.raises(KeyboardInterrupt):
            train_tower(folder)


def test_a_killed_tower_goes_on_from_its_last_save(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_tower_at_save(monkeypatch, pictures, number=2)
    assert not (pictures / 'tower.pt').exists()
    capsys.readouterr()
    tower = train_tower(pictures)
    said = [line.split(':')[0] for line in capsys.readouterr().out.splitlines()]
    steps = [line for line in said if line.startswith('vision step')]
    assert steps == [f'vision step {step}' for step in range(3, 7)]
    assert_equal(train_tower(pictures), tower)  # finished: loaded, not trained


def test_a_run_from_a_gpu_goes_on_without_one(
    run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # files say where their tensors were
        patch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
        kill_at_save(monkeypatch, run, number=2)
        kill_tower_at_save(monkeypatch, pictures, number=2)
        tower = torch.load(run / 'vision' / 'tower.pt', weights_only=True, map_location='cpu')
        torch.save(tower, run / 'vision' / 'tower.pt')
    assert load(run)[1] == 2
    train_tower(pictures)
    (run / 'learner.pt').unlink()
    assert load(run)[1] == 0, 'from the tower alone'
