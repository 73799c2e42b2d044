"""Cells, pairs and the table."""

from __future__ import annotations

import pytest

from safe_pruner_ros.evaluation.macs import DecoderShape
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
    first, second = text.split('Each against safe_pruner at the same ratio')
    assert first.count('\n|') == 5 and 'baseline' in first
    rows = [line for line in second.splitlines() if line.startswith('| fastv')]
    # McNemar of 0 against 8: 2 / 2**8; Holm doubles the smaller of two.
    assert '| 10 | 0 | 8 | -80.0 [' in rows[0] and rows[0].endswith('| 0.008 | 0.016 |')


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
