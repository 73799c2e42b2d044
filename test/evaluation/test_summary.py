"""Cells, pairs and the table."""

from __future__ import annotations

import pytest
from helpers.episodes import bare_episode as episode
from helpers.episodes import measured, read_table

from safe_pruner_ros.evaluation.results import ResultsError, to_json
from safe_pruner_ros.evaluation.summary import as_dict, summarise
from safe_pruner_ros.evaluation.tables import markdown_summary, markdown_table


def test_differences_are_taken_on_shared_episodes_only() -> None:
    episodes = [episode('unpruned', seed, seed != 3) for seed in range(10)]
    episodes += [episode('random', seed, seed > 5) for seed in range(2, 8)]
    base, random = summarise(episodes)
    assert base.versus_baseline is None and base.successes == 9
    versus = random.versus_baseline
    assert versus is not None and versus.pairs == 6  # seeds 2 to 7
    assert (versus.wins, versus.losses) == (0, 3)  # 2, 4, 5; both failed on 3
    assert versus.difference == pytest.approx(-0.5)
    assert (random.episodes, random.successes) == (6, 2)


def test_named_objects_of_a_scene_are_pairs_of_their_own() -> None:
    episodes = [
        episode(method, 0, method == 'unpruned', asked_object=index)
        for index in range(4)
        for method in ('unpruned', 'random')
    ]
    _, random = summarise(episodes)
    assert random.versus_baseline is not None and random.versus_baseline.pairs == 4


def test_means_weigh_policy_steps() -> None:
    episodes = [
        episode('random', 0, True, policy_steps=10, retained_tokens_mean=50.0, keyframes=1),
        episode('random', 1, False, policy_steps=30, retained_tokens_mean=70.0, keyframes=9),
        episode('random', 2, False, policy_steps=0, retained_tokens_mean=None, keyframes=0,
                error='RuntimeError: no'),
    ]  # fmt: skip
    (cell,) = summarise(episodes)
    assert cell.retained_tokens_mean == pytest.approx(65.0)
    assert cell.keyframe_share == pytest.approx(0.25)
    assert cell.errors == 1 and cell.macs_mean is None


def test_first_cell_is_the_baseline_where_unpruned_did_not_run() -> None:
    episodes = [episode('fastv', 0, True), episode('random', 0, False)]
    first, second = summarise(episodes)
    assert first.versus_baseline is None and second.versus_baseline is not None
    chosen = summarise(episodes, baseline='fastv')
    assert chosen[0].method == 'fastv' and chosen[0].versus_baseline is None


def test_baseline_is_the_cell_of_the_same_ratio() -> None:
    episodes = [
        episode(method, seed, method == 'safe_pruner' or seed < limit, ratio)
        for method in ('safe_pruner', 'fastv')
        for ratio, limit in ((0.3, 6), (0.1, 2))
        for seed in range(10)
    ]
    episodes += [episode('fastv', seed, False, 0.05) for seed in range(10)]
    cells = {
        (c.method, c.retention_ratio): c.versus_baseline
        for c in summarise(episodes, 'safe_pruner')
    }
    assert cells['safe_pruner', 0.3] is None and cells['safe_pruner', 0.1] is None
    assert cells['fastv', 0.3].losses == 4 and cells['fastv', 0.1].losses == 8
    assert cells['fastv', 0.05].pairs == 0  # no such cell to compare with


def test_variants_and_checkpoints_are_cells_of_their_own() -> None:
    episodes = [
        episode('safe_pruner', seed, seed < limit, variant=variant, config={'checkpoint': weights})
        for variant, weights, limit in (
            ('safe_pruner', 'aa', 5), ('safe_pruner:alpha=1', 'aa', 3), ('safe_pruner', 'bb', 1),
        )
        for seed in range(5)
    ]  # fmt: skip
    found = [(c.variant, c.config['checkpoint'], c.successes) for c in summarise(episodes)]
    assert found == [
        ('safe_pruner', 'aa', 5),
        ('safe_pruner:alpha=1', 'aa', 3),
        ('safe_pruner', 'bb', 1),
    ]
    other = episode('safe_pruner', 9, True, config={'checkpoint': 'aa'}, settings={'alpha': 0.1})
    with pytest.raises(ResultsError, match='different settings'):
        summarise([*episodes, other])


def test_summary_compares_pair_by_pair_with_every_baseline() -> None:
    episodes = [
        episode(method, seed, seed >= failures)
        for method, failures in (('unpruned', 0), ('fastv', 8), ('random', 2), ('safe_pruner', 0))
        for seed in range(10)
    ]
    text = markdown_summary(episodes, ['unpruned', 'safe_pruner'])
    first, second = text.split('Each against safe_pruner, on the same scenes')
    assert first.startswith('Against unpruned, on the same scenes') and first.count('\n|') == 6
    rows = {row['method']: row for row in read_table(second)}
    assert set(rows) == {'fastv', 'random'}
    # McNemar of 0 against 8: 2 / 2**8; Holm doubles the smaller of two.
    wanted = {'pairs': '10', 'only it': '0', 'only the other': '8', 'McNemar p': '0.008'}
    assert wanted.items() <= rows['fastv'].items() and rows['fastv']['Holm p'] == '0.016'
    assert rows['fastv']['baseline retention'] == '0.3'
    assert rows['fastv']['baseline tokens'] == rows['fastv']['mean tokens'] == '60.0'


def test_first_table_corrects_for_the_rows_of_a_task() -> None:
    losses = {'pick_place': {'fastv': 8, 'random': 2, 'divprune': 0}, 'pack_doll': {'fastv': 8}}
    episodes = [
        episode(method, seed, seed >= failures, task=task)
        for task, methods in losses.items()
        for method, failures in {'unpruned': 0, **methods}.items()
        for seed in range(10)
    ]
    rows = {(r['task'], r['method']): r for r in read_table(markdown_table(summarise(episodes)))}
    assert {key: row['Holm p'] for key, row in rows.items()} == {
        ('pack_doll', 'unpruned'): '',
        ('pack_doll', 'fastv'): '0.008',  # the only one of its task
        ('pick_place', 'unpruned'): '',
        ('pick_place', 'random'): '1.000',  # 0.5 x 2
        ('pick_place', 'fastv'): '0.023',  # 2 / 2**8 x 3
        ('pick_place', 'divprune'): '1.000',
    }


def test_rows_of_other_configurations_can_be_told_apart() -> None:
    configs = [
        {'checkpoint': 'aa', 'training_seed': 0, 'split': split, 'latency_ticks': ticks,
         'deployment': {'views': [split]}}
        for split, ticks in (('test', 0), ('test', 2), ('validation', 0))
    ]  # fmt: skip
    episodes = [episode('unpruned', 0, True, config=config) for config in configs]
    rows = read_table(markdown_table(summarise(episodes)))
    assert {(row['split'], row['latency ticks']) for row in rows} == {
        ('test', '0'),
        ('test', '2'),
        ('validation', '0'),
    }
    assert len({row['deployment'] for row in rows}) == 2  # short, but another
    assert 'checkpoint' not in rows[0] and 'training seed' not in rows[0]

    seeds = [{'checkpoint': c, 'training_seed': s} for c, s in (('aa', 0), ('bb', 1))]
    head = read_table(
        markdown_table(summarise([episode('fastv', 0, True, config=c) for c in seeds]))
    )
    assert 'training seed' in head[0] and 'checkpoint' not in head[0]
    seeds.append({'checkpoint': 'cc', 'training_seed': 1})  # the seed says no longer which
    head = read_table(
        markdown_table(summarise([episode('fastv', 0, True, config=c) for c in seeds]))
    )
    assert 'training seed' in head[0] and 'checkpoint' in head[0]


def test_scenes_are_counted_where_they_have_several_episodes() -> None:
    episodes = [
        episode(method, seed, method == 'unpruned' or seed >= 2, asked_object=index)
        for method in ('unpruned', 'random')
        for seed in range(10)
        for index in range(4)
    ]
    _, random = summarise(episodes)
    assert (random.episodes, random.scenes) == (40, 10)
    assert random.low < 0.55 and random.high > 0.93  # 40 independent ones: 0.65 to 0.90
    row = read_table(markdown_table(summarise(episodes)))[1]
    assert (row['n'], row['scenes'], row['sign flip p']) == ('40', '10', '0.500')
    one_each = markdown_table(summarise([e for e in episodes if e['asked_object'] == 0]))
    assert 'scenes' not in one_each and 'McNemar p' in one_each


def test_new_measurements_have_columns_where_they_were_made() -> None:
    old = [episode('fastv', seed, True) for seed in range(2)]
    new = [
        episode('random', 0, True, scoring_macs_mean=2e6, **measured(30.0, 10.0)),
        episode('random', 1, True, scoring_macs_mean=None, **measured(50.0, 20.0)),
    ]
    assert 'scoring' not in markdown_table(summarise(old))
    assert 'weighted' not in markdown_table(summarise(old))
    assert 'step ms p50' not in markdown_table(summarise(new))  # one figure is enough
    rows = {row['method']: row for row in read_table(markdown_table(summarise([*old, *new])))}
    assert rows['fastv']['scoring MMACs'] == rows['fastv']['step ms weighted p50'] == ''
    assert rows['fastv']['step ms p50'] == '10.0'
    assert rows['random']['scoring MMACs'] == '2.00'
    assert rows['random']['step ms weighted p50'] == '17.5'  # 0.1 x 40 + 0.9 x 15
    names = list(rows['random'])
    assert names[names.index('decoder MMACs') + 1] == 'scoring MMACs'


def test_table_has_a_row_a_cell() -> None:
    cells = summarise([episode(m, s, True) for m in ('unpruned', 'random') for s in range(5)])
    lines = markdown_table(cells).splitlines()
    assert len(lines) == 4 and len({line.count('|') for line in lines}) == 1
    assert 'baseline' in lines[2] and '100.0 [56.6, 100.0]' in lines[3] and '+0.0 [' in lines[3]
    to_json({'cells': [as_dict(cell) for cell in cells]})
