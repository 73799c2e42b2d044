from dataclasses import replace

import pytest
import torch

from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid


def test_kept_positions_drop_visual_tokens_only(layout):
    kept = layout.kept_positions(torch.tensor([0, 19]))
    assert kept.tolist() == [0, 1, 20, *range(21, 30)]


def test_rows_after_pruning_agree_with_kept_positions(layout):
    kept = layout.kept_positions(torch.tensor([3, 7, 11])).tolist()
    for span in (Span(0, 1), layout.text, layout.action):
        rows = layout.rows_after_pruning(span, n_retained=3)
        assert kept[rows] == list(range(span.start, span.stop))


def test_rows_of_visual_tokens_are_refused(layout):
    with pytest.raises(ValueError, match='contains visual tokens'):
        layout.rows_after_pruning(Span(20, 22), n_retained=3)


def test_view_slices_and_grid_positions_number_tokens_alike(layout):
    assert layout.view_slices() == {'head': slice(0, 12), 'wrist': slice(12, 20)}
    grid = layout.grid_positions()
    assert grid[5].tolist() == [0, 1, 1]
    assert grid[12 + 6].tolist() == [1, 1, 2]


def test_query_positions(layout):
    assert layout.query_positions('last') == slice(29, 30)
    assert layout.query_positions('action') == slice(26, 29)
    assert layout.query_positions('text') == slice(21, 25)


def test_an_empty_query_group_is_an_error_not_a_nan():
    layout = TokenLayout((ViewGrid('head', 1, 2),), Span(0, 2), Span(2, 4), Span(4, 4), 4)
    with pytest.raises(ValueError, match="no 'action' tokens"):
        layout.query_positions('action')


@pytest.mark.parametrize(
    ('views', 'visual', 'text', 'message'),
    [
        ((ViewGrid('a', 1, 3),), Span(0, 2), Span(2, 4), 'visual span holds 2'),
        ((ViewGrid('a', 1, 2),), Span(0, 2), Span(2, 9), 'outside a sequence'),
        ((ViewGrid('a', 1, 2),), Span(0, 2), Span(1, 4), 'overlaps the visual'),
        ((ViewGrid('a', 1, 1), ViewGrid('a', 1, 1)), Span(0, 2), Span(2, 4), 'unique names'),
    ],
)
def test_impossible_layouts_are_refused(views, visual, text, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(views, visual, text, Span(4, 4), 4)


def test_prefill_is_everything_before_the_action_tokens(layout):
    assert layout.query_positions('prefill') == slice(0, 26)
    without_action = replace(layout, action=Span(30, 30))
    assert without_action.query_positions('prefill') == slice(0, 30)


def test_prefill_is_what_the_layout_says(layout):
    """A policy that acts from the last row of its prompt."""
    acting = replace(layout, text=Span(21, 30), action=Span(29, 30), prefill=Span(0, 30))
    assert acting.query_positions('prefill') == slice(0, 30)
    assert acting.query_positions('action') == slice(29, 30)
    for wrong in (Span(2, 30), Span(0, 20), Span(0, 31)):
        with pytest.raises(ValueError, match='must hold the visual span'):
            replace(layout, prefill=wrong)


@pytest.mark.parametrize('prefill', [None, Span(0, 29)])
@pytest.mark.parametrize('n_retained', [1, 7, 20])
def test_shortened_layout_names_the_rows_that_are_left(layout, n_retained, prefill):
    layout = replace(layout, prefill=prefill)
    short = layout.shortened(n_retained)
    kept = layout.kept_positions(torch.arange(n_retained)).tolist()
    assert (short.length, short.n_visual) == (len(kept), n_retained)
    for group in ('text', 'action', 'last', 'prefill'):
        wanted = set(range(30)[layout.query_positions(group)])
        assert {kept[row] for row in range(30)[short.query_positions(group)]} == wanted & set(kept)
