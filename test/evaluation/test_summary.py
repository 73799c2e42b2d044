"""Cells, pairs and the table."""

from __future__ import annotations

import pytest

from safe_pruner_ros.evaluation.baselines import Baseline, check_baseline, read_baseline
from safe_pruner_ros.evaluation.evaluate_command import _baseline
from safe_pruner_ros.evaluation.macs import DecoderShape
from safe_pruner_ros.evaluation.plan import EvaluationPlan, build_cells
from safe_pruner_ros.evaluation.results import ResultsError, to_json
from safe_pruner_ros.evaluation.summary import as_dict, summarise
from safe_pruner_ros.evaluation.tables import markdown_summary, markdown_table
from safe_pruner_ros.policies.policy import LayerTokens


def episode(method: str, seed: int, success: bool, ratio: float = 0.3, **more: object) -> dict:
    return {
        'task': 'pick_place',
        'method': method,
        'retention_ratio': 1.0 if method == 'unpruned' else ratio,
        'seed': seed,
        'asked_object': None,
        'success': success,
        'policy_steps': 10,
        'keyframes': 1,
        'retained_tokens_mean': 60.0,
        'pruning_ratio_mean': 0.7,
        'macs_mean': None,
        'latency_ms_p50': 10.0,
    } | more


def measured(key_ms: float | None, pruned_ms: float | None) -> dict[str, object]:
    return {'latency_ms_key_p50': key_ms, 'latency_ms_pruned_p50': pruned_ms}


def read_table(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table in ``text``, by column."""
    lines = text[text.index('| ') :].split('\n\n')[0].splitlines()
    head, _, *rows = [line[2:].removesuffix(' |').split(' | ') for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


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


def test_a_machine_that_stood_still_does_not_show_in_the_latency() -> None:
    """789 s in one of ten steps, in one of 100 episodes: 78.9 s in the mean of that episode."""
    paused = {'latency_ms_mean': 78_900.0 + 22.5, 'latency_ms_p50': 22.5} | measured(None, 22.5)
    usual = {'latency_ms_mean': 23.0, 'latency_ms_p50': 22.0} | measured(None, 22.0)
    episodes = [
        episode('divprune', seed, True, keyframes=0, **(usual if seed else paused))
        for seed in range(100)
    ]
    (cell,) = summarise(episodes)
    assert cell.latency.weighted_p50_ms == 22.0
    assert '22.0' in markdown_table([cell]) and '78' not in markdown_table([cell])


def test_latency_counts_key_timesteps_in() -> None:
    episodes = [
        episode('safe_pruner', 0, True, policy_steps=10, keyframes=1, **measured(40.0, 20.0)),
        episode('safe_pruner', 1, True, policy_steps=30, keyframes=9, **measured(50.0, 22.0)),
        # The policy raised on its first step.
        episode('safe_pruner', 2, True, policy_steps=0, keyframes=0, **measured(None, None)),
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
    (cell,) = summarise([episode('safe_pruner', 0, True, keyframes=keyframes, **latencies)])
    assert cell.latency.weighted_p50_ms == expected
    assert cell.latency.p50_ms == 10.0  # what older records have stays readable


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


def two_ratios() -> list[dict]:
    """A baseline at two ratios, and others at neither of them."""
    runs = (('unpruned', 1.0, 10), ('safe_pruner', 0.13, 9), ('safe_pruner', 0.18, 10),
            ('fastv', 0.25, 5), ('random', 0.25, 3))  # fmt: skip
    return [
        episode(method, seed, seed < solved, ratio, retained_tokens_mean=192 * ratio)
        for method, ratio, solved in runs
        for seed in range(10)
    ]


def test_a_baseline_at_other_ratios_is_named_by_one() -> None:
    text = markdown_summary(two_ratios(), ['unpruned', 'safe_pruner@0.13', 'safe_pruner@0.18'])
    _, first, second = text.split('Each against ')
    rows = {(row['method'], row['retention']): row for row in read_table(first)}
    assert set(rows) == {('fastv', '0.25'), ('random', '0.25'), ('safe_pruner', '0.18')}
    assert rows['fastv', '0.25']['only the other'] == '4'
    assert rows['fastv', '0.25']['baseline retention'] == '0.13'
    assert rows['fastv', '0.25']['baseline tokens'] == '25.0'  # of 192, where fastv keeps 48
    rows = {(row['method'], row['retention']): row for row in read_table(second)}
    assert rows['fastv', '0.25']['only the other'] == '5'
    assert rows['safe_pruner', '0.13']['only the other'] == '1'


def test_a_table_without_pairs_says_why() -> None:
    text = markdown_summary(two_ratios(), ['unpruned', 'safe_pruner', 'divprune'])
    assert 'No pairs with safe_pruner: no cell at this ratio. It ran at 0.13, 0.18; ' in text
    assert 'write METHOD@RATIO' in text
    assert 'No comparison with divprune: it did not run.' in text

    text = markdown_summary(two_ratios(), ['safe_pruner'])
    rows = {(row['method'], row['retention']): row for row in read_table(text)}
    assert rows['fastv', '0.25']['vs baseline, points [95 %]'] == 'no cell at this ratio'
    assert rows['safe_pruner', '0.13']['vs baseline, points [95 %]'] == 'baseline'
    assert 'write METHOD@RATIO' in text

    # With one row that has a pair, the others stay and say why they have none.
    more = [episode('divprune', seed, True, 0.18) for seed in range(10)]
    text = markdown_summary([*two_ratios(), *more], ['unpruned', 'safe_pruner'])
    rows = {row['method']: row for row in read_table(text.split('Each against ')[1])}
    assert rows['divprune']['pairs'] == '10' and rows['divprune']['Holm p'] == '1.000'
    assert rows['fastv']['points [95 %]'] == 'no cell at this ratio'
    assert rows['fastv']['pairs'] == rows['fastv']['Holm p'] == ''


def test_the_only_cell_of_a_baseline_is_said_to_have_another_ratio() -> None:
    episodes = [e for e in two_ratios() if e['retention_ratio'] != 0.18]
    rows = read_table(markdown_summary(episodes, ['safe_pruner']))
    fastv = next(row for row in rows if row['method'] == 'fastv')
    assert (fastv['retention'], fastv['baseline retention']) == ('0.25', '0.13')
    unpruned = markdown_summary(episodes, ['unpruned'])
    assert 'baseline retention' not in unpruned  # 1 in all rows


def test_a_task_without_the_baseline_is_not_compared_with_another() -> None:
    episodes = [episode(m, s, True) for m in ('unpruned', 'fastv') for s in range(3)]
    episodes += [episode('fastv', seed, False, task='pack_doll') for seed in range(3)]
    doll, _, fastv = summarise(episodes)
    assert (doll.task, doll.no_pairs) == ('pack_doll', 'did not run here')
    assert doll.versus_baseline is not None and doll.versus_baseline.pairs == 0
    assert fastv.versus_baseline is not None and fastv.versus_baseline.pairs == 3


@pytest.mark.parametrize(
    ('text', 'full'),
    [
        ('fastv', 'fastv'),
        ('fastv@0.25', 'fastv@0.25'),
        (' safe_pruner@0.1234567: alpha=0.2,tau=0.9',
         'safe_pruner@0.1234567:alpha=0.2,similarity_threshold=0.9'),
    ],
)  # fmt: skip
def test_baselines_are_written_as_methods_are(text: str, full: str) -> None:
    found = read_baseline(text)
    assert str(found) == full and Baseline.parse(full) == found


def of_variants(variants: dict[str, int], task: str = 'pick_place') -> list[dict]:
    """Ten episodes of each, so many of them solved."""
    return [
        episode(name.partition(':')[0], seed, seed < solved, variant=name, task=task)
        for name, solved in variants.items()
        for seed in range(10)
    ]


def test_the_only_variant_of_a_baseline_stands_for_it_and_is_named() -> None:
    episodes = of_variants({'unpruned': 10, 'fastv': 5, 'safe_pruner:alpha=1': 9})
    text = markdown_summary(episodes, ['unpruned', 'safe_pruner'])
    assert 'Each against safe_pruner:alpha=1, the only variant of safe_pruner here, on' in text
    assert 'against safe_pruner,' not in text
    (row,) = read_table(text.split('Each against')[1])
    assert (row['method'], row['only the other']) == ('fastv', '4')
    text = markdown_summary(episodes, ['safe_pruner@0.3'])
    assert text.startswith(
        'Against safe_pruner@0.3:alpha=1, the only variant of safe_pruner@0.3 here, on'
    )
    asked = markdown_summary(episodes, ['unpruned', 'safe_pruner:alpha=1'])
    assert 'Each against safe_pruner:alpha=1, on the same scenes' in asked


def test_one_of_several_variants_is_not_chosen() -> None:
    both = {'safe_pruner:alpha=1': 9, 'safe_pruner:published': 6}
    episodes = of_variants({'unpruned': 10, 'fastv': 5, **both})
    text = markdown_summary(episodes, ['unpruned', 'safe_pruner'])
    why = 'ran only as safe_pruner:alpha=1 and safe_pruner:published (write one of them)'
    assert f'No comparison with safe_pruner: it {why}.' in text and 'Each' not in text
    first = markdown_summary(episodes, ['safe_pruner'])
    assert first.startswith(f'safe_pruner {why}: there are no pairs.')
    ran = [(c.method, c.variant, c.retention_ratio) for c in summarise(episodes)]
    with pytest.raises(ValueError, match='alpha=1 and safe_pruner:published; write one of them'):
        check_baseline(read_baseline('safe_pruner'), ran, 'these results')


def test_no_variant_stands_for_a_baseline_that_ran_elsewhere() -> None:
    episodes = of_variants({'fastv': 5, 'safe_pruner': 8})
    episodes += of_variants({'fastv': 5, 'safe_pruner:alpha=1': 9}, task='pack_doll')
    text = markdown_summary(episodes, ['fastv', 'safe_pruner'])
    _, second = text.split('Each against safe_pruner, on the same scenes')
    (row,) = read_table(second)
    assert (row['method'], row['only the other']) == ('fastv', '3')
    assert 'Not compared: 2 cells where safe_pruner did not run.' in second


def test_baselines_that_did_not_run_are_refused() -> None:
    ran = [('unpruned', 'unpruned', 1.0), ('fastv', 'fastv', 0.25), ('fastv', 'fastv', 0.1)]
    check_baseline(read_baseline('fastv@0.1'), ran, 'these results')
    with pytest.raises(ValueError, match='fastv has the ratios 0.1, 0.25 only'):
        check_baseline(read_baseline('fastv@0.9'), ran, 'these results')
    with pytest.raises(ValueError, match=r"is not among these results \['fastv', 'unpruned'\]"):
        check_baseline(read_baseline('fastv:queries=last'), ran, 'these results')


def test_evaluate_takes_baselines_that_a_plan_runs() -> None:
    cells = build_cells(['fastv@0.25', 'random', 'safe_pruner@0.1:tau=0.9'], [0.3], {})
    plans = [EvaluationPlan('pick_place', cells, (500_000,))]
    assert _baseline('unpruned', plans) == 'unpruned'  # the default
    assert _baseline('fastv', plans) == 'fastv' and _baseline('fastv@0.25', plans) == 'fastv@0.25'
    full = 'safe_pruner@0.1:similarity_threshold=0.9'
    assert _baseline('safe_pruner@0.1:tau=0.9', plans) == full
    with pytest.raises(ValueError, match='among --methods fastv has the ratios 0.25 only'):
        _baseline('fastv@0.9', plans)


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


def test_macs_follow_the_formula() -> None:
    shape = DecoderShape(n_layers=12, n_tokens=215, width=128, mlp_width=352)
    n, d, m = 215, 128, 352
    full = 4 * n * d * d + 2 * n * n * d + 3 * n * d * m
    assert shape.step_macs(3, 0) == 12 * full
    n = 215 - 134
    pruned = 4 * n * d * d + 2 * n * n * d + 3 * n * d * m
    assert shape.step_macs(3, 134) == 3 * full + 9 * pruned


def test_macs_of_skipped_tokens_count_the_keys_they_leave_behind() -> None:
    """Two layers on all 192 visual tokens, one that computes 100 of them, one that computes 60
    and was pruned to them: 23 others each."""
    shape = DecoderShape(n_layers=4, n_tokens=215, width=128, mlp_width=352)
    d, m = 128, 352
    layers = [(215, 215), (215, 215), (123, 215), (83, 83)]
    expected = sum(4 * n * d * d + 2 * n * s * d + 3 * n * d * m for n, s in layers)
    tokens = [LayerTokens(192, 192)] * 2 + [LayerTokens(100, 192), LayerTokens(60, 60)]
    assert shape.trace_macs(tokens, 192) == expected
    assert shape.trace_macs([LayerTokens(192, 192)] * 4, 192) == shape.step_macs(2, 0)
    pruned = [LayerTokens(192, 192)] * 2 + [LayerTokens(58, 58)] * 2
    assert shape.trace_macs(pruned, 192) == shape.step_macs(2, 134)
