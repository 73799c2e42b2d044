"""Which policy was measured: by what is in its files."""

from __future__ import annotations

import hashlib
import pickle
import platform
from pathlib import Path

import pytest

from safe_pruner_ros.evaluation.policy_source import OtherCheckpoint, PolicySource
from safe_pruner_ros.policies.device import choose_device
from safe_pruner_ros.policies.embedded import SHIPPED_WEIGHTS


def test_facts_of_the_shipped_policy_are_those_of_all_recorded_episodes() -> None:
    facts = PolicySource().facts()
    assert list(facts) == ['policy', 'checkpoint', 'training_seed', 'device']
    assert facts['policy'] == 'embedded' and facts['device'] == 'cpu'
    assert facts['checkpoint'] == hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()[:16]


def test_two_models_in_the_same_folder_are_two(tmp_path: Path) -> None:
    """As after a second training: same names, same sizes, same headers."""
    folder = tmp_path / 'model'
    (folder / 'assets').mkdir(parents=True)
    (folder / 'model.safetensors').write_bytes(b'header' + b'0' * 100)
    (folder / 'assets' / 'stats.json').write_text('{}')

    def identity(place: Path) -> object:
        return PolicySource('openvla', str(place)).facts()['checkpoint']

    first = identity(folder)
    (folder / '.cache').mkdir()
    (folder / '.cache' / 'download.lock').write_text('')
    elsewhere = folder.rename(tmp_path / 'moved')
    assert identity(elsewhere) == first
    (elsewhere / 'model.safetensors').write_bytes(b'header' + b'1' * 100)
    second = identity(elsewhere)
    (elsewhere / 'assets' / 'stats.json').rename(elsewhere / 'stats.json')
    assert len({first, second, identity(elsewhere)}) == 3
    assert identity(tmp_path / 'nowhere') == str(tmp_path / 'nowhere')
    assert identity(Path()) != PolicySource('openvla').facts()['checkpoint'] == ''


def test_the_device_is_the_one_that_is_there() -> None:
    here = str(choose_device('auto'))
    assert PolicySource(device='auto').facts()['device'] == here != 'auto'
    assert PolicySource(device='auto').key == PolicySource(device=here).key
    assert PolicySource(device='cuda:1').device == 'cuda:1'  # there or not: the policy refuses it


def test_a_pinned_source_is_held_to_what_its_files_held(tmp_path: Path) -> None:
    file = tmp_path / 'weights.safetensors'
    file.write_bytes(b'old')
    source = PolicySource(checkpoint=str(file))
    pinned = pickle.loads(pickle.dumps(source.pinned()))  # as it reaches a worker
    assert pinned.facts() == source.facts() and pinned.pinned() is pinned
    with pinned.unchanged():
        pass
    old, new = source.facts()['checkpoint'], hashlib.sha256(b'new').hexdigest()[:16]

    entered = False
    with (
        pytest.raises(OtherCheckpoint, match=f'expected SHA-256 {old}, found {new}'),
        pinned.unchanged(),
    ):
        file.write_bytes(b'new')  # while it is loaded
        entered = True
    assert entered
    with pytest.raises(OtherCheckpoint) as error, pinned.unchanged():
        raise AssertionError('nothing is built of other weights')
    for told in (str(file), platform.node(), old, new, 'another --out'):
        assert told in str(pickle.loads(pickle.dumps(error.value)))
    assert pinned.facts()['checkpoint'] == old  # whatever is there by now
    assert source.pinned().key != pinned.key
    file.unlink()
    with pytest.raises(OtherCheckpoint, match='found nothing there'), pinned.unchanged():
        pass
    with source.unchanged():  # which nobody pinned
        pass


def test_where_there_is_nothing_building_says_so(tmp_path: Path) -> None:
    source = PolicySource(checkpoint=str(tmp_path / 'nowhere')).pinned()
    with pytest.raises(FileNotFoundError, match='nowhere'), source.unchanged():
        source.build('unpruned', {})
