import pytest
import torch

from safe_pruner_ros.core.diversity import diversity_saliency, farthest_points
from safe_pruner_ros.core.selection import select_retained

EVERYONE = torch.ones(20, dtype=torch.bool)


@pytest.mark.parametrize('blank', [0.0, 0.3])
def test_identical_tokens_are_picked_once_each_lowest_index_first(blank):
    picks = farthest_points(torch.full((20, 7), blank), 12, EVERYONE)
    assert picks.tolist() == list(range(12))


def test_one_copy_of_each_token_comes_before_any_second_copy():
    different = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    picks = farthest_points(different.repeat(4, 1), 20, EVERYONE).tolist()
    assert sorted(picks) == list(range(20))
    # All copies are at distance 0 from each other, so the very first pick is arbitrary: index 0.
    assert picks[0] == 0
    assert {index % 5 for index in picks[:5]} == set(range(5))


def test_only_candidates_are_picked():
    features = torch.randn(20, 16, generator=torch.Generator().manual_seed(2))
    candidates = torch.zeros(20, dtype=torch.bool)
    candidates[[3, 4, 9, 17]] = True
    assert sorted(farthest_points(features, 4, candidates).tolist()) == [3, 4, 9, 17]
    assert farthest_points(features, 0, candidates).tolist() == []


def test_a_single_candidate_has_no_neighbour_and_is_picked():
    candidates = torch.zeros(20, dtype=torch.bool)
    candidates[11] = True
    features = torch.randn(20, 16, generator=torch.Generator().manual_seed(3))
    assert farthest_points(features, 1, candidates).tolist() == [11]


@pytest.mark.parametrize('scope', ['joint', 'per_view'])
def test_saliency_keeps_the_picks(scope, layout):
    features = torch.randn(20, 16, generator=torch.Generator().manual_seed(4))
    saliency = diversity_saliency(features, layout, 0.4, scope)
    kept = select_retained(saliency, 0.4, layout, scope).visual_index
    assert kept.tolist() == saliency.nonzero()[:, 0].tolist()
