import math

import pytest
import torch

from safe_pruner_ros.core.subtask import attention_similarity, decide_subtask


def test_similarity_is_the_uncentred_cosine():
    current, forecast = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])
    assert float(attention_similarity(current, forecast)) == pytest.approx(10 / 14)


def test_similarity_ignores_the_attention_mass():
    saliency = torch.rand(50, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 1e-3, 1e-30, 1e30):
        assert float(attention_similarity(saliency, saliency * scale)) == pytest.approx(1.0)


@pytest.mark.parametrize('bad', [0.0, float('nan'), float('inf')])
def test_similarity_without_attention_is_nan(bad):
    assert math.isnan(attention_similarity(torch.ones(3), torch.full((3,), bad)))
    assert math.isnan(attention_similarity(torch.full((3,), bad), torch.ones(3)))


@pytest.mark.parametrize(
    ('similarity', 'is_boundary'),
    [(0.91, True), (0.92, False), (0.99, False), (float('nan'), True)],
)
def test_boundary_below_the_threshold_or_undefined(similarity, is_boundary):
    assert decide_subtask(similarity, 0.92).is_boundary is is_boundary
