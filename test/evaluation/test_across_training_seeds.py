"""What another training changes stands in one row, and only there."""

from __future__ import annotations

from typing import Any

from helpers.episodes import bare_episode, read_table

from safe_pruner_ros.evaluation.across_training_seeds import training_seed_table
from safe_pruner_ros.evaluation.summary import summarise
from safe_pruner_ros.evaluation.tables import markdown_summary


def rows(
    method: str, n_solved: int, training_seed: int | None, **more: Any
) -> list[dict[str, Any]]:
    config = {'checkpoint': f'sha{training_seed}', 'training_seed': training_seed}
    return [
        bare_episode(
            method, seed, seed < n_solved, config=config | more.get('config', {}),
            retained_tokens_mean=50.0 + 10 * (training_seed or 0),
        )
        for seed in range(10)
    ]  # fmt: skip


def test_one_row_for_what_differs_in_the_weights_only() -> None:
    episodes = [
        *rows('unpruned', 10, 2), *rows('unpruned', 10, 0), *rows('unpruned', 8, 1),
        *rows('fastv', 9, 2), *rows('fastv', 7, 0), *rows('fastv', 2, 1),
        *rows('random', 3, 0),
    ]  # fmt: skip
    text = training_seed_table(summarise(episodes))
    unpruned, fastv = read_table(text)  # random ran with one training seed only
    assert (
        unpruned['training seeds'] == '0, 1, 2' and unpruned['success %'] == '100.0, 80.0, 100.0'
    )
    assert fastv['success %'] == '70.0, 20.0, 90.0' and fastv['mean'] == '60.0'
    # each against unpruned of the same weights
    assert fastv['vs baseline, points'] == '-30.0, -60.0, -10.0'
    assert fastv['mean tokens'] == '50, 60, 70'
    assert text in markdown_summary(episodes, ['unpruned', 'fastv'])


def test_other_configurations_are_not_mixed() -> None:
    late = {'config': {'latency_ticks': 10}}
    now = {'config': {'latency_ticks': 0}}
    episodes = [
        *rows('fastv', 9, 0, **now), *rows('fastv', 8, 1, **now),
        *rows('fastv', 5, 0, **late), *rows('fastv', 4, 1, **late), *rows('fastv', 3, 2, **late),
    ]  # fmt: skip
    table = read_table(training_seed_table(summarise(episodes, 'fastv')))
    assert {row['latency ticks']: row['success %'] for row in table} == {
        '0': '90.0, 80.0',
        '10': '50.0, 40.0, 30.0',
    }


def test_none_where_one_training_is_all_there_is() -> None:
    assert training_seed_table(summarise(rows('unpruned', 9, 0) + rows('fastv', 5, 0))) == ''
    # weights of others do not say their training seed: two of them are not two trainings
    unknown = [
        *rows('fastv', 5, None, config={'checkpoint': 'a'}),
        *rows('fastv', 6, None, config={'checkpoint': 'b'}),
    ]
    assert training_seed_table(summarise(unknown, 'fastv')) == ''
