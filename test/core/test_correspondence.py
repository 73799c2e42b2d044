import pytest
import torch

from safe_pruner_ros.core.correspondence import (
    TIE_TOLERANCE,
    ReferenceTokens,
    match_tokens,
    unit_rows,
)


def features_of(layout, seed=0, dim=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layout.n_visual, dim, generator=generator)


def match_by_loop(current, reference, layout, scope):
    """Algorithm 2 with its loops and the tie rule spelled out."""
    place = layout.grid_positions().tolist()
    matches = []
    for i in range(layout.n_visual):
        cosines = {}
        for j in range(layout.n_visual):
            if scope == 'per_view' and place[i][0] != place[j][0]:
                continue
            lengths = current[i].norm() * reference[j].norm()
            cosines[j] = float(current[i] @ reference[j] / lengths) if lengths > 0 else 0.0
        best = max(cosines.values())
        tied = [j for j, value in cosines.items() if value >= best - TIE_TOLERANCE]
        matches.append(
            min(
                tied,
                key=lambda j: (
                    place[i][0] != place[j][0],
                    (place[i][1] - place[j][1]) ** 2 + (place[i][2] - place[j][2]) ** 2,
                    j,
                ),
            )
        )
    return matches


@pytest.mark.parametrize('scope', ['joint', 'per_view'])
def test_equals_an_explicit_loop(layout, scope):
    reference, current = features_of(layout, 0), features_of(layout, 1)
    got = match_tokens(current, ReferenceTokens.of(reference, layout), scope)
    assert got.keyframe_index.tolist() == match_by_loop(current, reference, layout, scope)


@pytest.mark.parametrize('scope', ['joint', 'per_view'])
def test_ties_follow_the_rule_of_the_loop(layout, scope):
    """Two kinds of patches only, some blank: nearly every match is a tie."""
    kinds = torch.tensor([[1.0, 2.0, 0.5], [-3.0, 0.1, 1.0], [0.0, 0.0, 0.0]])
    generator = torch.Generator().manual_seed(3)
    reference = kinds[torch.randint(3, (20,), generator=generator)] * 1.7
    current = kinds[torch.randint(3, (20,), generator=generator)]
    got = match_tokens(current, ReferenceTokens.of(reference, layout), scope)
    assert got.keyframe_index.tolist() == match_by_loop(current, reference, layout, scope)


def test_tokens_that_moved_are_found_where_they_went(layout):
    reference = features_of(layout)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    got = match_tokens(3.0 * reference[order], ReferenceTokens.of(reference, layout))
    assert got.keyframe_index.tolist() == order.tolist()
    assert torch.allclose(got.similarity, torch.ones(20))


def test_identical_tokens_stay_where_they_are(layout):
    blank = torch.ones(20, 16)
    got = match_tokens(blank, ReferenceTokens.of(blank, layout))
    assert got.keyframe_index.tolist() == list(range(20))


def test_nearly_identical_tokens_stay_too(layout):
    """Cosines that differ by rounding alone must not send tokens across the image."""
    noise = features_of(layout)
    reference = ReferenceTokens.of(1 + 3e-4 * noise, layout)
    blank = torch.ones(20, 16)
    exact = (unit_rows(blank) @ reference.unit_features.T).argmax(dim=1)
    assert exact.tolist() != list(range(20))
    assert match_tokens(blank, reference).keyframe_index.tolist() == list(range(20))


def test_joint_may_cross_views_and_per_view_may_not(layout):
    reference = features_of(layout)
    current = reference.flip(0)
    crossed = match_tokens(current, ReferenceTokens.of(reference, layout), 'joint')
    assert crossed.keyframe_index.tolist() == list(range(19, -1, -1))
    inside = match_tokens(current, ReferenceTokens.of(reference, layout), 'per_view')
    assert (inside.keyframe_index[:12] < 12).all()
    assert (inside.keyframe_index[12:] >= 12).all()


def test_tokens_without_features_match_their_own_place(layout):
    reference, current = features_of(layout), features_of(layout, 1)
    current[5] = 0.0
    got = match_tokens(current, ReferenceTokens.of(reference, layout))
    assert got.keyframe_index[5] == 5
    assert got.similarity[5] == 0.0
    assert torch.isfinite(got.similarity).all()


def test_unit_rows_keep_zero_rows_zero():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert rows.dtype == torch.float32


def test_features_of_another_length_are_refused(layout):
    """The released code cached visual + proprioception rows and compared visual rows only."""
    with pytest.raises(ValueError, match=r'one row per visual token \(20\), got 21'):
        ReferenceTokens.of(torch.ones(21, 4), layout)
