"""With what a row is compared."""

from __future__ import annotations

import pytest
from helpers.episodes import bare_episode as episode
from helpers.episodes import read_table

from safe_pruner_ros.evaluation.baselines import Baseline, check_baseline, read_baseline
from safe_pruner_ros.evaluation.evaluate_command import _baseline
from safe_pruner_ros.evaluation.plan import EvaluationPlan, build_cells
from safe_pruner_ros.evaluation.summary import summarise
from safe_pruner_ros.evaluation.tables import markdown_summary


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
