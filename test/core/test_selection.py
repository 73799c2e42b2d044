import pytest
import torch

from safe_pruner_ros.core.selection import (
    is_usable,
    n_retained,
    select_retained,
    view_quotas,
)
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid

RATIOS = [0.01, 0.1, 0.125, 0.3, 0.5, 0.77, 0.999, 1.0]


@pytest.mark.parametrize('ratio', RATIOS)
@pytest.mark.parametrize('scope', ['joint', 'per_view'])
def test_ascending_unique_and_counted(layout, ratio, scope):
    saliency = torch.rand(20, generator=torch.Generator().manual_seed(1))
    index = select_retained(saliency, ratio, layout, scope).visual_index
    assert index.dtype == torch.int64
    assert len(index) == n_retained(20, ratio) == max(1, round(20 * ratio))
    assert (index[1:] > index[:-1]).all()
    assert index[0] >= 0 and index[-1] < 20


def test_joint_keeps_the_most_salient(layout):
    saliency = torch.arange(20.0)
    assert select_retained(saliency, 0.25, layout).visual_index.tolist() == [15, 16, 17, 18, 19]


def test_per_view_ranks_inside_each_view(layout):
    saliency = torch.arange(20.0)
    index = select_retained(saliency, 0.25, layout, 'per_view').visual_index
    assert view_quotas(layout, 0.25) == (3, 2)
    assert index.tolist() == [9, 10, 11, 18, 19]


@pytest.mark.parametrize('ratio', RATIOS)
def test_quotas_sum_to_the_joint_count_and_fit(ratio):
    views = (ViewGrid('a', 3, 7), ViewGrid('b', 1, 1), ViewGrid('c', 5, 5), ViewGrid('d', 1, 6))
    layout = TokenLayout(views, Span(0, 53), Span(53, 54), Span(54, 55), 55)
    quotas = view_quotas(layout, ratio)
    assert sum(quotas) == n_retained(53, ratio)
    for quota, view in zip(quotas, views, strict=True):
        assert 0 <= quota <= view.n_tokens
        assert abs(quota - n_retained(53, ratio) * view.n_tokens / 53) < 1


def test_left_over_tokens_go_to_earlier_views_first():
    views = (ViewGrid('a', 2, 2), ViewGrid('b', 2, 2), ViewGrid('c', 2, 2))
    layout = TokenLayout(views, Span(0, 12), Span(12, 12), Span(12, 12), 12)
    assert view_quotas(layout, 5 / 12) == (2, 2, 1)


def test_ties_keep_the_lower_index(layout):
    saliency = torch.zeros(20)
    saliency[17] = 1.0
    assert select_retained(saliency, 0.2, layout).visual_index.tolist() == [0, 1, 2, 17]


def test_bfloat16_saliency_is_ranked_in_float32(layout):
    saliency = torch.ones(20, dtype=torch.bfloat16)
    assert select_retained(saliency, 0.15, layout).visual_index.tolist() == [0, 1, 2]


def test_wrong_length_is_named(layout):
    with pytest.raises(ValueError, match=r'must be \[20\].*got \[19\]'):
        select_retained(torch.zeros(19), 0.5, layout)


@pytest.mark.parametrize(
    ('saliency', 'usable'),
    [
        ([0.1, 0.0], True),
        ([-1.0, 1.0], True),
        ([0.0, 0.0], False),
        ([float('nan'), 1.0], False),
        ([float('inf'), 1.0], False),
        ([[0.1, 0.2], [0.0, 0.0]], False),
    ],
)
def test_is_usable(saliency, usable):
    assert bool(is_usable(torch.tensor(saliency))) is usable
