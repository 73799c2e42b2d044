import pytest
import torch
from helpers.plain import cosine

from safe_pruner_ros.core.patch_similarity import patch_similarity


def test_equals_the_cosine_place_by_place():
    generator = torch.Generator().manual_seed(0)
    now, then = (torch.randn(20, 48, generator=generator) for _ in range(2))
    expected = [cosine(a, b) for a, b in zip(now.tolist(), then.tolist(), strict=True)]
    assert patch_similarity(now, then).tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ('now', 'then', 'expected'),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 1.0),  # black and still: a letterbox's bar
        ([90.0, 80.0, 70.0], [0.0, 0.0, 0.0], 0.0),  # uncovered
        ([0.0, 0.0, 0.0], [90.0, 80.0, 70.0], 0.0),  # covered
        ([9.0, 8.0, 7.0], [90.0, 80.0, 70.0], 1.0),  # darker alone is no change
        ([1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], -1.0),  # features may point anywhere
    ],
)
def test_what_counts_as_change(now, then, expected):
    assert patch_similarity(torch.tensor([now]), torch.tensor([then])).tolist() == [expected]


def test_equal_pictures_are_equally_still():
    """To the last bit: what stands still is ranked by other things than rounding."""
    patches = torch.rand(500, 48, generator=torch.Generator().manual_seed(0)) * 255
    assert set(patch_similarity(patches, patches.clone()).tolist()) == {1.0}
    assert len(set(patch_similarity(patches, patches * 0.7).tolist())) == 1


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_what_is_not_finite_is_neither_still_nor_changed(bad):
    broken = torch.ones(2, 3)
    broken[1, 2] = bad
    good, doubt = patch_similarity(broken, torch.ones(2, 3)).isnan().tolist()
    assert (good, doubt) == (False, True)
