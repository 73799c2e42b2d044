"""Shards of episodes without the simulator: what is kept, and what failing experts leave."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_training
from helpers.tiny_training import CONFIG, RECIPE

from safe_pruner_ros.training import collect
from safe_pruner_ros.training.dataset import save_shard

SEEDS = range(3)


def tower(pixels: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(pixels), CONFIG.grid**2, CONFIG.vision_width)


@pytest.fixture
def no_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, 'environment', lambda task: None)
    monkeypatch.setattr(collect, 'load_tower', lambda path, width: tower)


def test_images_of_an_episode_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_simulator: None
) -> None:
    images: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def episode(env: None, seed: int, *args: object) -> list[object]:
        alive.append(sum(image() is not None for image in images))
        frames = tiny_training.frames(4, seed)
        images.extend(weakref.ref(frame.images) for frame in frames)
        return frames  # type: ignore[return-value]

    monkeypatch.setattr(collect, 'expert_episode', episode)
    target = tmp_path / 'expert_0'
    assert collect._demonstration_shard(RECIPE, 'pick_place', SEEDS, tmp_path, 8, target) == 3
    assert alive == [0, 0, 0]
    assert np.load(target / 'tokens.npy').shape == (12, CONFIG.n_visual, CONFIG.vision_width)
    assert np.load(target / 'proprioception.npy')[:, 0].tolist() == [0, 1, 2, 3] * 3


def test_a_shard_of_failed_episodes_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_simulator: None
) -> None:
    asked: list[int] = []

    def fail(env: None, seed: int, *args: object) -> list[object]:
        asked.append(seed)
        return []

    monkeypatch.setattr(collect, 'expert_episode', fail)
    for _ in range(2):  # a resume neither repeats it nor stumbles over it
        rates = collect.collect_demonstrations(RECIPE, tmp_path, 8, processes=1)
        assert rates == {'pick_place': 0.0} and len(asked) == 4
    with pytest.raises(ValueError, match='none of the 1 shards .* holds a solved demonstration'):
        tiny_training.demonstrations(tmp_path)
    tiny_training.write_shard(tmp_path / 'demonstrations' / 'expert_more', n_frames=5)
    data = tiny_training.demonstrations(tmp_path)
    assert len(data) == 5
    assert len(data.batch(np.random.default_rng(0), 6, 2)['chunk']) == 6


def test_half_a_shard_is_made_anew(tmp_path: Path) -> None:
    partial = tmp_path / 'expert_0.partial'
    partial.mkdir()
    (partial / 'tokens.npy').write_bytes(b'half')
    save_shard(tmp_path / 'expert_0', [], [], {'task': 'pick_place', 'solved': 0})
    assert [path.name for path in tmp_path.iterdir()] == ['expert_0']
    assert [path.name for path in (tmp_path / 'expert_0').iterdir()] == ['facts.json']
    facts = json.loads((tmp_path / 'expert_0' / 'facts.json').read_text())
    assert facts == {'task': 'pick_place', 'solved': 0, 'frames': 0}
