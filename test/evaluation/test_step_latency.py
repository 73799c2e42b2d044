"""Latency of a policy step in tables and plots: key timesteps in, pauses out, runs apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.episodes import bare_episode, full_episode, measured, write
from matplotlib.figure import Figure

from safe_pruner_ros import cli
from safe_pruner_ros.evaluation import plots
from safe_pruner_ros.evaluation.closed_loop import read_results
from safe_pruner_ros.evaluation.results import read_episodes
from safe_pruner_ros.evaluation.summary import summarise
from safe_pruner_ros.evaluation.tables import markdown_table


def test_a_machine_that_stood_still_does_not_show_in_the_latency() -> None:
    """789 s in one of ten steps, in one of 100 episodes: 78.9 s in the mean of that episode."""
    paused = {'latency_ms_mean': 78_900.0 + 22.5, 'latency_ms_p50': 22.5} | measured(None, 22.5)
    usual = {'latency_ms_mean': 23.0, 'latency_ms_p50': 22.0} | measured(None, 22.0)
    episodes = [
        bare_episode('divprune', seed, True, keyframes=0, **(usual if seed else paused))
        for seed in range(100)
    ]
    (cell,) = summarise(episodes)
    assert cell.latency.weighted_p50_ms == 22.0
    assert '22.0' in markdown_table([cell]) and '78' not in markdown_table([cell])


def test_latency_counts_key_timesteps_in() -> None:
    episodes = [
        bare_episode('safe_pruner', 0, True, policy_steps=10, keyframes=1, **measured(40.0, 20.0)),
        bare_episode('safe_pruner', 1, True, policy_steps=30, keyframes=9, **measured(50.0, 22.0)),
        # The policy raised on its first step.
        bare_episode('safe_pruner', 2, True, policy_steps=0, keyframes=0, **measured(None, None)),
    ]
    (cell,) = summarise(episodes)
    assert cell.latency.weighted_p50_ms == pytest.approx(0.25 * 45 + 0.75 * 21)


@pytest.mark.parametrize(
    ('keyframes', 'latencies', 'expected'),
    [
        (0, measured(None, 20.0), 20.0),
        (10, measured(40.0, None), 40.0),
        (2, measured(40.0, None), None),  # others ran, and nobody knows how long
        (2, {}, None),  # an older record
    ],
)
def test_latency_of_one_kind_only(keyframes: int, latencies: dict, expected: object) -> None:
    (cell,) = summarise([bare_episode('safe_pruner', 0, True, keyframes=keyframes, **latencies)])
    assert cell.latency.weighted_p50_ms == expected
    assert cell.latency.p50_ms == 10.0  # what older records have stays readable


@pytest.mark.parametrize(
    ('methods', 'medians', 'label', 'expected'),
    [
        (('unpruned', 'fastv'), (20.0, 15.0), 'unpruned, scene by scene', [1.0, 0.75]),
        (('random', 'fastv'), (20.0, 30.0), 'medians of key and of other', [20.0, 30.0]),
        (('random', 'fastv'), (20.0, None), 'ms (median)', [11.0, 11.0]),
    ],
)
def test_latency_counts_key_timesteps_in_where_all_cells_can(
    methods, medians, label, expected, tmp_path, monkeypatch
) -> None:
    episodes = [
        full_episode(method, 1, True, latency_ms_pruned_p50=median, latency_ms_mean=78_900.0)
        | ({'latency_ms_p50': median} if method == 'unpruned' else {})
        for method, median in zip(methods, medians, strict=True)
    ]
    drawn = {}

    def remember(cells: Any, x: Any, text: str, left_out: str = '') -> None:
        assert not left_out
        drawn[text] = [x(cell) for cell in cells]

    monkeypatch.setattr(plots, 'draw_success', remember)
    plots.write_plots(tmp_path, summarise(episodes), episodes)
    (values,) = (drawn[text] for text in drawn if 'latency' in text and label in text)
    assert values == expected


def both(ms: float) -> dict[str, float]:
    return {'latency_ms_p50': ms, 'latency_ms_pruned_p50': ms}


def two_runs(folder: Path, unpruned: bool = True) -> list[Path]:
    """One of a machine that was busy, and variants that ran alone, a third faster."""

    def of(method: str, ms: float) -> list[dict[str, Any]]:
        return [full_episode(method, seed, True, **both(ms)) for seed in range(5)]

    busy = [*of('fastv', 42.0), *of('divprune', 39.0), *(of('unpruned', 60.0) * unpruned)]
    alone = of('fastv:queries=last', 28.0)
    return [
        write(folder / 'grid' / name / 'episodes.jsonl', episodes)
        for name, episodes in (('pick_place', busy), ('variants', alone))
    ]


def table_of(*results: Path, out: Path, baseline: str) -> dict[str, dict[str, str]]:
    paths = [str(path) for path in results]
    assert cli.main(['table', *paths, '--out', str(out), '--baseline', baseline]) == 0
    rows = [line[2:-2].split(' | ') for line in out.with_suffix('.md').read_text().splitlines()
            if line.startswith('| ')]  # fmt: skip
    return {row['method']: row for row in (dict(zip(rows[0], r, strict=True)) for r in rows[2:])}


def test_latencies_of_two_runs_are_not_compared(tmp_path: Path, monkeypatch) -> None:
    two_runs(tmp_path)
    out = tmp_path / 'out/closed_loop.json'
    titles = []
    suptitle = Figure.suptitle
    monkeypatch.setattr(
        Figure, 'suptitle', lambda s, text, **k: titles.append(text) or suptitle(s, text, **k)
    )
    rows = table_of(tmp_path / 'grid', out=out, baseline='unpruned')
    assert {name: (row['run'], row['step / unpruned']) for name, row in rows.items()} == {
        'unpruned': ('pick_place', '1.00'),
        'fastv': ('pick_place', '0.70'),
        'fastv:queries=last': ('variants', ''),
        'divprune': ('pick_place', '0.65'),
    }
    text = out.with_suffix('.md').read_text()
    assert 'Milliseconds of two runs cannot be compared' in text
    cells = {cell['variant']: cell for cell in json.loads(out.read_text())}
    assert cells['fastv']['latency_ratio_to_unpruned'] == 0.7
    variant = cells['fastv:queries=last']
    assert (variant['latency_run'], variant['latency_ms_weighted_p50']) == ('variants', 28.0)
    assert variant['latency_ratio_to_unpruned'] is None
    why = 'not drawn, for want of a latency of unpruned in the same run: 1 cells of variants'
    assert why in titles


def test_milliseconds_are_drawn_of_one_run_only(tmp_path: Path, monkeypatch) -> None:
    episodes = read_results(two_runs(tmp_path, unpruned=False))
    drawn = {}

    def remember(cells: Any, x: Any, label: str, left_out: str = '') -> None:
        drawn[label] = [x(cell) for cell in cells], left_out

    monkeypatch.setattr(plots, 'draw_success', remember)
    plots.write_plots(tmp_path, summarise(episodes), episodes)
    ((values, left_out),) = (drawn[label] for label in drawn if 'ms' in label)
    assert values == [42.0, None, 39.0]  # fastv, its variant that ran alone, divprune
    assert left_out.endswith('milliseconds of two runs cannot be compared: 1 cells of variants')


def test_the_load_may_change_within_a_run() -> None:
    """The later scenes ran beside something else, and random in these only."""
    ran = (('unpruned', 1.0, range(10)), ('fastv', 0.8, range(10)), ('random', 0.7, range(6, 10)))
    episodes = [
        full_episode(method, seed, True, **both(share * (40.0 if seed < 6 else 90.0)))
        for method, share, seeds in ran
        for seed in seeds
    ]
    cells = {cell.variant: cell.latency for cell in summarise(episodes)}
    assert cells['random'].weighted_p50_ms == pytest.approx(63.0)  # slower than unpruned's 40
    ratios = {name: latency.ratio_to_unpruned for name, latency in cells.items()}
    assert ratios == pytest.approx({'unpruned': 1.0, 'fastv': 0.8, 'random': 0.7})


def test_a_ratio_counts_key_timesteps_in() -> None:
    slow = {'latency_ms_p50': 50.0, 'latency_ms_key_p50': 80.0, 'latency_ms_pruned_p50': 40.0}
    unpruned = {'latency_ms_p50': 80.0, 'latency_ms_pruned_p50': 80.0}
    episodes = [
        full_episode(method, seed, True, **more)
        for seed in range(3)
        for method, more in (('unpruned', unpruned), ('safe_pruner', slow))
    ]
    episodes.append(
        full_episode('safe_pruner', 3, True, **slow)
    )  # a scene that unpruned did not run
    safe = next(cell for cell in summarise(episodes) if cell.method == 'safe_pruner')
    assert safe.latency.ratio_to_unpruned == pytest.approx(0.2 * 1.0 + 0.8 * 0.5)


def test_a_shared_cell_leaves_each_run_its_own_unpruned(tmp_path: Path) -> None:
    """The episodes of unpruned count once, those of the other run are only left out there."""
    first, second = two_runs(tmp_path)
    faster = [full_episode('unpruned', s, True, **both(35.0)) for s in range(5)]
    write(second, [*faster, *read_episodes(second)])
    cells = {cell.variant: cell for cell in summarise(read_results([first, second]))}
    assert cells['unpruned'].episodes == 5
    ratios = {name: cell.latency.ratio_to_unpruned for name, cell in cells.items()}
    assert ratios['fastv'] == pytest.approx(42 / 60)
    assert ratios['fastv:queries=last'] == pytest.approx(28 / 35)


def test_a_cell_of_two_runs_has_the_latency_of_one(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    more = [full_episode('fastv', seed, True, **both(20.0)) for seed in (7, 8)]
    write(second, [*more, *read_episodes(second)])
    cells = {cell.variant: cell for cell in summarise(read_results([first, second]))}
    latency = cells['fastv'].latency
    assert cells['fastv'].episodes == 7
    assert (latency.run, latency.weighted_p50_ms) == ('pick_place', 42.0)
