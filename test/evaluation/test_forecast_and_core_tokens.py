"""What a forecast is worth, on made-up episodes: against plain loops and numbers by hand."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.recordings import LAYERS, D, V, recording, shuffled_scene
from scipy import stats

from safe_pruner_ros import cli
from safe_pruner_ros.core.pruner import SaliencyRequest
from safe_pruner_ros.core.safe_pruner_config import Requests
from safe_pruner_ros.evaluation.analysis import command
from safe_pruner_ros.evaluation.analysis.core_tokens import (
    Retained,
    core_token_loss,
    core_tokens,
    dropped_share,
    early_cue,
    random_row,
    safe_cue,
)
from safe_pruner_ros.evaluation.analysis.forecast import (
    FEW_PAIRS,
    ForecastRow,
    cosine_and_kl,
    forecast_accuracy,
    same_subtask,
)
from safe_pruner_ros.evaluation.analysis.recording import Recording

RNG = np.random.default_rng(3)


def requests(*deep: int, queries: str = 'action') -> Requests:
    """Early layer 2."""
    early = SaliencyRequest(2, 'action')
    return Requests(early, early, tuple(SaliencyRequest(layer, queries) for layer in deep))


def by_kind(rows: list[ForecastRow]) -> dict[tuple[int, str, str], ForecastRow]:
    return {(row.lag, row.saliency, row.how): row for row in rows}


# ---- forecast


def test_cosine_and_kl_by_hand() -> None:
    cosine, kl = cosine_and_kl(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    assert cosine == pytest.approx(4 / (math.sqrt(10) * math.sqrt(2)))
    assert kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    p, q = RNG.random(V), RNG.random(V)
    assert cosine_and_kl(p, q)[1] == pytest.approx(stats.entropy(p, q))
    assert cosine_and_kl(p, 7 * p) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert cosine_and_kl(np.array([1.0, 1.0]), np.array([1.0, 0.0]))[1] == math.inf
    assert all(map(math.isnan, cosine_and_kl(np.zeros(2), np.ones(2))))


def test_things_that_moved_are_forecast_exactly_by_matching_only() -> None:
    scene = shuffled_scene(4, RNG)
    by = by_kind(forecast_accuracy([scene], requests(3, 4), max_lag=2, cohort_lag=2))
    assert len(by) == 2 * 2 * 3
    for lag, name in itertools.product((1, 2), ('early', 'deep')):
        matched = by[lag, name, 'matched'].all_pairs
        assert matched.cosine.mean == pytest.approx(1.0, abs=1e-6)
        assert matched.kl.mean == pytest.approx(0.0, abs=1e-6)
        assert by[lag, name, 'in place'].all_pairs.kl.mean > 0.05
    assert [by[lag, 'deep', 'matched'].all_pairs.pairs for lag in (1, 2)] == [3, 2]


def test_pairs_do_not_cross_a_subtask_boundary() -> None:
    scene = shuffled_scene(5, RNG)
    parted = recording(scene.saliency['action'], scene.features, 'aabba')
    within = forecast_accuracy([parted], requests(4), max_lag=4)
    assert {(row.lag, row.all_pairs.pairs) for row in within} == {(1, 2)}  # 0-1 and 2-3
    anywhere = forecast_accuracy([parted], requests(4), max_lag=4, within_subtask=False)
    pairs = {(row.lag, row.all_pairs.pairs) for row in anywhere}
    assert pairs == {(1, 4), (2, 3), (3, 2), (4, 1)}
    assert same_subtask('aabba', 2, 3) and not same_subtask('aabba', 0, 4)  # back to 'a' by then


def test_same_references_do_not_take_a_long_subtask_for_a_good_forecast() -> None:
    # Three short subtasks whose attention jumps, then a long one where it stands still.
    looks = np.repeat(RNG.random((1, LAYERS, V)), 10, axis=0) + 0.01
    looks[:6] = RNG.random((6, LAYERS, V)) + 0.01
    scene = recording(looks, RNG.normal(size=(10, V, D)), 'aabbaacccc')
    rows = by_kind(forecast_accuracy([scene], requests(4), max_lag=3, cohort_lag=2))
    first, second, third = (rows[lag, 'deep', 'in place'] for lag in (1, 2, 3))
    assert first.all_pairs.cosine.mean < 0.99 < second.all_pairs.cosine.mean  # seems to rise
    assert (first.all_pairs.pairs, second.all_pairs.pairs) == (6, 2)
    for row in (first, second):
        assert row.same_references.pairs == 2  # steps 6 and 7
        assert row.same_references.cosine.mean == pytest.approx(1)
    assert third.all_pairs.pairs == 1 and third.same_references is None


def test_a_cohort_that_nothing_is_long_enough_for_is_empty() -> None:
    scene = shuffled_scene(3, RNG)
    rows = forecast_accuracy([scene], requests(4), max_lag=5, cohort_lag=3)
    assert {row.lag for row in rows} == {1, 2}
    assert all(row.same_references is None for row in rows)
    with pytest.raises(ValueError, match='cohort_lag'):
        forecast_accuracy([scene], requests(4), max_lag=2, cohort_lag=3)


def test_layers_weigh_as_the_method_weighs_them() -> None:
    # Layer 4 has a hundred times the mass of layer 3: without a norm it is all that counts.
    looks = RNG.random((2, LAYERS, V)) + 0.01
    looks[:, 4] *= 100
    scene = recording(looks, RNG.normal(size=(2, V, D)), 'aa')

    def cosine(**options: str) -> float:
        rows = forecast_accuracy([scene], requests(3, 4), max_lag=1, cohort_lag=1, **options)
        return by_kind(rows)[1, 'deep', 'in place'].all_pairs.cosine.mean

    both = [step[3] / step[3].sum() + step[4] / step[4].sum() for step in looks]
    assert cosine(norm='l1') == pytest.approx(cosine_and_kl(both[1], both[0])[0], abs=1e-5)
    assert cosine() == pytest.approx(cosine_and_kl(looks[1, 4], looks[0, 4])[0], abs=0.01)
    assert cosine() != pytest.approx(cosine(norm='l1'), abs=0.02)
    with pytest.raises(ValueError, match='zscore'):
        cosine(norm='zscore')


def test_a_layer_is_forecast_from_the_rows_that_the_method_reads() -> None:
    scene = recording(RNG.random((2, LAYERS, V)), RNG.normal(size=(2, V, D)), 'aa')
    still = np.repeat(scene.saliency['last'][:1], 2, axis=0)
    scene = replace(scene, saliency={**scene.saliency, 'last': still})
    for queries, is_exact in (('last', True), ('action', False)):
        rows = forecast_accuracy([scene], requests(0, queries=queries), max_lag=1, cohort_lag=1)
        cosine = by_kind(rows)[1, 'deep', 'in place'].all_pairs.cosine.mean
        assert (cosine == pytest.approx(1.0)) == is_exact


# ---- core tokens


def test_core_tokens_are_the_top_tenth() -> None:
    assert core_tokens(np.array([0.1, 0.9, 0.5, 0.9]), 0.5).tolist() == [1, 3]
    assert core_tokens(np.ones(30)).tolist() == [0, 1, 2]
    assert core_tokens(np.arange(4.0)).tolist() == [3]  # at least one
    assert dropped_share(np.array([0, 3]), np.array([1, 3])) == 0.5


def test_loss_of_core_tokens_is_that_of_a_plain_count() -> None:
    saliency = RNG.random((3, LAYERS, V))
    scene = recording(saliency, RNG.normal(size=(3, V, D)), 'abc')
    loss = core_token_loss([scene], {'early': early_cue('action', 2)}, [0.25, 0.75], 2, 'early')
    for row, keep in zip(loss.all_steps, (9, 3), strict=True):
        dropped = np.zeros((3, LAYERS), dtype=bool)
        for step, layer in itertools.product(range(3), (0, 1, 3, 4)):
            kept = set(sorted(range(V), key=lambda v: -saliency[step, 2, v])[:keep])
            best = max(range(V), key=lambda v: saliency[step, layer, v])
            dropped[step, layer] = best not in kept  # a tenth of twelve tokens is one
        assert row.dropped.share.mean == pytest.approx(dropped[:, [0, 1, 3, 4]].mean())
        assert row.any_dropped.share.mean == pytest.approx(dropped[:, [0, 1, 3, 4]].mean())
        assert row.later_dropped.share.mean == pytest.approx(dropped[:, [3, 4]].mean())
        assert row.steps == 3
    assert [row.cue for row in loss.same_steps[2:]] == ['random (exact)'] * 2


def keeps(n_tokens: int, from_step: int = 0):
    """A cue that keeps the first tokens, and judges no step before ``from_step``."""

    def retained(recording: Recording, step: int, retention_ratio: float) -> Retained | None:
        return np.arange(n_tokens) if step >= from_step else None

    return retained


def test_methods_are_compared_on_the_steps_that_all_of_them_can_judge() -> None:
    # Every layer looks at token 0 in the first two steps and at token 11 in the last two.
    looks = np.full((4, LAYERS, V), 0.01)
    looks[:2, :, 0], looks[2:, :, 11] = 1, 1
    scenes = [recording(looks[:length], np.zeros((length, V, D)), 'aaaa') for length in (4, 4, 2)]
    cues = {'early': keeps(6), 'late': keeps(6, from_step=2)}
    loss = core_token_loss(scenes, cues, [0.5], 2, 'early')
    early, late, _ = loss.same_steps
    for row in (early, late):  # the same tokens are kept, so neither is worse
        assert (row.dropped.share.mean, row.steps, row.dropped.share.episodes) == (1, 4, 2)
    assert late.dropped.minus_baseline.mean == 0 and early.dropped.minus_baseline is None
    (everywhere,) = loss.all_steps
    assert everywhere.cue == 'early' and everywhere.steps == 10
    assert everywhere.dropped.share.mean == pytest.approx((0.5 + 0.5 + 0) / 3)
    with pytest.raises(ValueError, match="baseline must be one of .*'early'"):
        core_token_loss(scenes, cues, [0.5], 2, 'FastV')


def test_the_difference_is_paired_by_episode() -> None:
    # Episodes differ a lot in how many core tokens lie among the first, not in what one more does.
    scenes = []
    for hard in (0, 2, 4, 6) * 3:
        looks = np.full((8, LAYERS, V), 0.01)
        for step, needed in enumerate([6] + [11] * hard + [0] * (7 - hard)):
            looks[step, :, needed] = 1
        scenes.append(recording(looks, np.zeros((8, V, D)), 'a' * 8))
    loss = core_token_loss(scenes, {'six': keeps(6), 'seven': keeps(7)}, [0.5], 2, 'six')
    six, seven, _ = loss.same_steps
    for kind in ('dropped', 'later_dropped', 'any_dropped'):
        apart = getattr(seven, kind).minus_baseline
        # The same in each pair: there is no spread that an interval could be made of.
        assert apart.mean == pytest.approx(-1 / 8) and math.isnan(apart.low + apart.high)
        assert getattr(six, kind).share.high - getattr(six, kind).share.low > 0.25


def test_chance_is_exact() -> None:
    row = random_row(0.5, 30)  # 15 of 30 kept, 3 core
    assert row.dropped.share.mean == row.later_dropped.share.mean == 0.5
    assert row.any_dropped.share.mean == pytest.approx(1 - stats.hypergeom(30, 3, 15).pmf(3))
    assert random_row(0.95, 30).any_dropped.share.mean == 1.0  # 2 kept, 3 core


def test_a_perfect_forecast_drops_nothing_that_it_has_room_for() -> None:
    scene = shuffled_scene(4, RNG)
    deep = scene.saliency['action'].copy()
    deep[:, 3:] = deep[:, 3:4]  # both deep layers look at the same
    deep[:, :3] = 0.01 + 1e-4 * RNG.random(deep[:, :3].shape)  # early ones at nothing
    scene = recording(deep, scene.features, scene.subtasks)
    cue = safe_cue({'deep_layers': (3, 4), 'alpha': 0.0}, lag=2)
    assert cue(scene, 1, 0.25) is None
    for step in (2, 3):
        retained = cue(scene, step, 0.25)
        assert len(retained) == 3
        assert dropped_share(retained, core_tokens(deep[step, 4], 0.25)) == 0


# ---- the command


@pytest.fixture
def analyse(monkeypatch, capsys, tmp_path: Path):
    """Ask a question about ``scenes``; (what was printed, the answer in the JSON file)."""

    def ask(question: str, scenes: list[Recording], *arguments: str) -> tuple[str, object]:
        monkeypatch.setattr(command, 'collect', lambda *_: iter(scenes))
        assert cli.main(['analyse', question, *arguments, '--out', str(tmp_path)]) == 0
        name = question.replace('-', '_')
        assert (tmp_path / f'{name}.png').is_file()
        answer = json.loads((tmp_path / f'{name}.json').read_text())['answer']
        return capsys.readouterr().out, answer

    return ask


def test_a_table_says_from_how_few_pairs_and_what_was_left_out(analyse) -> None:
    scene = shuffled_scene(FEW_PAIRS + 1, RNG)
    blind = scene.saliency['action'].copy()
    blind[:-1, :, 0] = 0  # a token that is seen in the last step only: KL is infinite
    unseen = recording(blind, scene.features, scene.subtasks)
    text, answer = analyse('forecast', [scene, unseen], '--max-lag', '31', '--cohort-lag', '1')
    lines = [line.split(' | ') for line in text.splitlines() if '| deep | in place |' in line]
    first, last = lines[0], next(line for line in lines if line[0] == f'| {FEW_PAIRS}')
    assert first[5:8] == ['60', '2', '1 (1 infinite)'] and first[-3:-1] == ['60', '2']
    assert last[5] == '2 *' and set(''.join(last[8:])) <= {' ', '|'}
    assert answer['cohort_lag'] == 1
    row = answer['rows']['same subtask'][0]
    assert row['all_pairs']['kl'].keys() == {'mean', 'low', 'high', 'episodes', 'infinite'}


def test_a_table_compares_with_the_same_method_without_its_forecast(analyse) -> None:
    scenes = [shuffled_scene(6, RNG), shuffled_scene(7, RNG)]
    for scope, baseline in (
        ('joint', 'action rows, layer 2'),
        ('per_view', 'action rows, layer 2, a quota a view'),
    ):
        text, answer = analyse('core-tokens', scenes, '--set', f'quota_scope={scope}')
        same, everywhere = text.split('Every policy step')
        rows = [line.split(' | ') for line in same.splitlines() if ' | 70 | ' in line]
        assert [row[0][2:] for row in rows if 'baseline' in row] == [baseline]
        assert {row[-2] for row in rows if 'random' not in row[0]} == {'5'}  # steps 4, 5; 4, 5, 6
        assert 'safe_pruner' in same and 'safe_pruner' not in everywhere
        assert {row['steps'] for row in answer['all_steps']} == {13}
