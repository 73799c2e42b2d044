"""Weights of the embedded policy: what is written is read again, anything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_embedded import CONFIG, TASKS, model
from safetensors.torch import load_file, save_file

from safe_pruner_ros.policies.embedded import EmbeddedPolicy, load_weights, save_weights
from safe_pruner_ros.policies.embedded_model import EmbeddedVLA


def test_weights_survive_the_round_trip(tmp_path: Path) -> None:
    network = EmbeddedVLA(replace(CONFIG, tasks=TASKS)).half().float()
    save_weights(network, tmp_path / 'w.safetensors', {'note': 'test'})
    again = load_weights(tmp_path / 'w.safetensors')
    assert again.config == replace(CONFIG, tasks=TASKS)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_weights_of_unnamed_tasks_follow_any_sentence_of_their_words(tmp_path: Path) -> None:
    """Checkpoints of version 0.1 have no such entry."""
    path, state, metadata = _saved(tmp_path)
    config = {k: v for k, v in CONFIG.as_dict().items() if k != 'tasks'}
    save_file(state, path, {**metadata, 'config': json.dumps(config)})
    loaded = load_weights(path)
    assert loaded.config.tasks == ()
    EmbeddedPolicy(loaded, 'unpruned').check_instruction('put the block red in tray')
    config['tasks'] = [{'name': 'lifting'}]
    save_file(state, path, {**metadata, 'config': json.dumps(config)})
    with pytest.raises(ValueError, match='templates'):
        load_weights(path)


def _saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, str]]:
    path = tmp_path / 'w.safetensors'
    save_weights(model(), path, {})
    metadata = {
        'format': 'safe_pruner_ros/embedded/1',
        'config': json.dumps(CONFIG.as_dict()),
    }
    return path, load_file(path), metadata


@pytest.mark.parametrize('keep', [0, 7, 100, 0.5, 0.99])
def test_truncated_weights_are_refused(tmp_path: Path, keep: float) -> None:
    path, _, _ = _saved(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_weights(path)


def test_foreign_missing_and_non_finite_weights_are_refused(tmp_path: Path) -> None:
    path, state, metadata = _saved(tmp_path)
    save_file(state, path, {'format': 'pt'})
    with pytest.raises(ValueError, match='not an embedded-policy checkpoint'):
        load_weights(path)
    fewer = {name: value for name, value in state.items() if name != 'slots'}
    save_file(fewer, path, metadata)
    with pytest.raises(ValueError, match=r"missing \['slots'\]"):
        load_weights(path)
    wrong = {**state, 'slots': torch.zeros(2, 2)}
    save_file(wrong, path, metadata)
    with pytest.raises(ValueError, match=r"wrong shape \['slots'\]"):
        load_weights(path)
    poisoned = {**state, 'slots': torch.full_like(state['slots'], float('nan'))}
    save_file(poisoned, path, metadata)
    with pytest.raises(ValueError, match='NaN'):
        load_weights(path)
    with pytest.raises(FileNotFoundError, match='safe-pruner train'):
        load_weights(tmp_path / 'nothing.safetensors')


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / 'canary'

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (canary,))  # type: ignore[return-value]

    path = tmp_path / 'w.safetensors'
    torch.save(Payload(), path)
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_weights(path)
    assert not canary.exists()
