"""Results survive a kill and are never counted twice."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from safe_pruner_ros.evaluation.results import (
    ResultsError,
    ResultsFolder,
    read_episodes,
    to_json,
)

CONFIG = {'task': 'pick_place', 'settings': {'deep_layers': (0, -1)}}


def record(seed: int, method: str = 'random', success: bool = True) -> dict[str, object]:
    return {
        'task': 'pick_place',
        'method': method,
        'retention_ratio': 0.3,
        'seed': seed,
        'asked_object': None,
        'success': success,
        'latency_ms_p50': float('nan'),
    }


def key(seed: int) -> tuple[str, str, float, int, None]:
    return 'pick_place', 'random', 0.3, seed, None


def fill(folder: Path, count: int) -> Path:
    with ResultsFolder(folder, CONFIG) as results:
        for seed in range(count):
            results.add(record(seed))
    return folder / 'episodes.jsonl'


def test_reopened_folder_knows_its_episodes(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    with ResultsFolder(tmp_path, CONFIG) as results:
        assert key(2) in results and key(3) not in results
        assert len(results.episodes) == 3
        assert results.episodes[0]['latency_ms_p50'] is None  # strict JSON has no NaN


def test_packed_episodes_are_read_and_gone_on_with(tmp_path: Path) -> None:
    path = fill(tmp_path, 3)
    packed = path.with_name('episodes.jsonl.xz')
    packed.write_bytes(lzma.compress(path.read_bytes()))
    path.unlink()
    assert [episode['seed'] for episode in read_episodes(packed)] == [0, 1, 2]
    kept = packed.read_bytes()
    with ResultsFolder(tmp_path, CONFIG) as results:
        assert key(2) in results and key(3) not in results
        results.add(record(3))
    with ResultsFolder(tmp_path, CONFIG) as results:
        assert key(3) in results  # the file that was written, not the packed one again
    assert packed.read_bytes() == kept
    assert [episode['seed'] for episode in read_episodes(path)] == [0, 1, 2, 3]


@pytest.mark.parametrize('left', [0, 10, -1])
def test_a_packed_file_that_is_cut_is_refused(tmp_path: Path, left: int) -> None:
    path = fill(tmp_path, 3)
    packed = path.with_name('episodes.jsonl.xz')
    packed.write_bytes(lzma.compress(path.read_bytes())[:left])
    path.unlink()
    with (
        pytest.raises(ResultsError, match='cannot be unpacked'),
        ResultsFolder(tmp_path, CONFIG),
    ):
        pass
    assert not path.exists() or not path.read_bytes()


@pytest.mark.parametrize('cut', [1, 5, 40])
def test_line_cut_by_a_kill_is_run_again(tmp_path: Path, cut: int) -> None:
    path = fill(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-cut])
    with ResultsFolder(tmp_path, CONFIG) as results:
        assert key(1) in results and key(2) not in results
        results.add(record(2))
    assert [episode['seed'] for episode in read_episodes(path)] == [0, 1, 2]


@pytest.mark.parametrize(
    'foreign',
    ['{"epoch": 1}\n', '{"task": "pick_place", "se\n', '{"epoch": 1}', 'loss 0.3', 'a,b\n1,2'],
)
def test_what_is_not_ours_is_not_cut(tmp_path: Path, foreign: str) -> None:
    for before in ('', to_json(record(0), indent=None) + '\n'):
        path = tmp_path / 'episodes.jsonl'
        path.write_text(before + foreign)
        with (
            pytest.raises(ResultsError, match='is not an episode'),
            ResultsFolder(tmp_path, CONFIG),
        ):
            pass
        assert path.read_text() == before + foreign


def test_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = fill(tmp_path, 3)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20] + '\n' + lines[2])
    with pytest.raises(
        ResultsError,
        match=f'line 2 of {path} is not an episode: it is no JSON .*; delete that line',
    ):
        read_episodes(path)


def test_an_episode_is_never_there_twice(tmp_path: Path) -> None:
    path = fill(tmp_path, 2)
    with ResultsFolder(tmp_path, CONFIG) as results, pytest.raises(ResultsError, match='already'):
        results.add(record(1))
    path.write_text(path.read_text() + json.dumps(record(0) | {'latency_ms_p50': 1}) + '\n')
    with pytest.raises(ResultsError, match='lines 1 and 3'):
        read_episodes(path)


def test_another_config_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with (
        pytest.raises(ResultsError, match=r"task was 'pick_place', now 'pack_doll'"),
        ResultsFolder(tmp_path, CONFIG | {'task': 'pack_doll'}),
    ):
        pass
    with ResultsFolder(tmp_path, CONFIG) as results:
        assert len(results.episodes) == 1


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with (
        ResultsFolder(tmp_path, CONFIG),
        pytest.raises(ResultsError, match='another evaluation'),
        ResultsFolder(tmp_path, CONFIG),
    ):
        pass


def test_a_folder_without_episodes_takes_another_config(tmp_path: Path) -> None:
    fill(tmp_path, 0)
    with ResultsFolder(tmp_path, CONFIG | {'latency_ticks': 3}) as results:
        results.add(record(0))
    assert json.loads((tmp_path / 'config.json').read_text())['latency_ticks'] == 3
    with pytest.raises(ResultsError, match='latency_ticks was 3'), ResultsFolder(tmp_path, CONFIG):
        pass


def test_episodes_know_their_config_when_the_file_is_lost(tmp_path: Path) -> None:
    config = CONFIG | {'checkpoint': 'abc'}
    with ResultsFolder(tmp_path, config) as results:
        results.add(record(0) | {'config': results.config_of_episode})
        results.add(record(1))  # as lines of the first versions: nothing to compare
    (tmp_path / 'config.json').unlink()
    for change in ({'checkpoint': 'def'}, {'task': 'pack_doll'}, {'latency_ticks': 3}):
        name = next(iter(change))
        with (
            pytest.raises(ResultsError, match=f'{name} was'),
            ResultsFolder(tmp_path, config | change),
        ):
            pass
        assert not (tmp_path / 'config.json').exists()
    with ResultsFolder(tmp_path, config) as results:
        assert len(results.episodes) == 2


def test_removed_episodes_are_added_anew_once(tmp_path: Path) -> None:
    path = fill(tmp_path, 3)
    with ResultsFolder(tmp_path, CONFIG) as results:
        results.remove({key(1)})
        assert [episode['seed'] for episode in read_episodes(path)] == [0, 2]
        with (
            pytest.raises(ResultsError, match='another evaluation'),  # still locked
            ResultsFolder(tmp_path, CONFIG),
        ):
            pass
        results.add(record(1))
        with pytest.raises(ResultsError, match='already'):
            results.add(record(1))
    assert [episode['seed'] for episode in read_episodes(path)] == [0, 2, 1]
