import math

import pytest
import torch

from safe_pruner_ros.core.correspondence import Correspondence
from safe_pruner_ros.core.saliency import (
    attention_saliency,
    fuse,
    mean_over_layers,
    normalize,
    transfer,
)

VISUAL = slice(1, 6)


def random_tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saliency_by_loop(query, key, visual, scaling, visible):
    """Eq. 1 and 2 as written: one head, one row, one token at a time."""
    n_heads, n_rows, _ = query.shape
    per_group = n_heads // key.shape[0]
    total = [0.0] * (visual.stop - visual.start)
    for head in range(n_heads):
        for row in range(n_rows):
            logits = [
                math.fsum((query[head, row] * k).tolist()) * scaling
                for k in key[head // per_group]
            ]
            weights = [
                math.exp(logit) if visible[row][s] else 0.0 for s, logit in enumerate(logits)
            ]
            for i in range(len(total)):
                total[i] += weights[visual.start + i] / math.fsum(weights)
    return torch.tensor([value / (n_heads * n_rows) for value in total])


@pytest.mark.parametrize('n_key_heads', [4, 2, 1])
@pytest.mark.parametrize('causal', [False, True])
def test_equals_an_explicit_loop(n_key_heads, causal):
    query, key = random_tensor(4, 3, 8), random_tensor(n_key_heads, 9, 8, seed=1)
    visible = torch.ones(3, 9, dtype=torch.bool)
    if causal:
        visible = torch.arange(9)[None, :] <= torch.tensor([4, 7, 8])[:, None]
    expected = saliency_by_loop(query, key, VISUAL, 0.3, visible.tolist())
    got = attention_saliency(query, key, VISUAL, 0.3, visible if causal else None)
    assert torch.allclose(got, expected, atol=1e-6)


def test_text_keys_compete_for_the_mass():
    """Softmax runs over all keys: were the visual columns renormalised, the sum would be 1."""
    saliency = attention_saliency(random_tensor(4, 3, 8), random_tensor(4, 9, 8), VISUAL, 1.0)
    assert saliency.sum() < 0.99


def test_bfloat16_inputs_give_float32_saliency():
    query, key = random_tensor(2, 1, 8).bfloat16(), random_tensor(2, 9, 8).bfloat16()
    assert attention_saliency(query, key, VISUAL, 1.0).dtype == torch.float32


def test_transfer_equals_an_explicit_loop():
    saliency, index = random_tensor(3, 5), torch.tensor([4, 4, 0, 2, 1])
    got = transfer(saliency, Correspondence(index, torch.ones(5)))
    for layer in range(3):
        for i in range(5):
            assert got[layer, i] == saliency[layer, index[i]]


def test_norms():
    rows = torch.tensor([[1.0, 3.0, 4.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    third = 1 / 3
    l1 = [[1 / 8, 3 / 8, 4 / 8], [third] * 3, [0, 0, 0]]
    minmax = [[0, 2 / 3, 1], [0, 0, 0], [0, 0, 0]]
    assert normalize(rows, 'none') is rows
    assert torch.allclose(normalize(rows, 'l1'), torch.tensor(l1))
    assert torch.allclose(normalize(rows, 'minmax'), torch.tensor(minmax))
    scores = normalize(rows, 'zscore')
    assert torch.allclose(scores.mean(dim=1), torch.zeros(3), atol=1e-6)
    assert torch.allclose(scores.square().mean(dim=1), torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize('norm', ['minmax', 'zscore'])
@pytest.mark.parametrize('size', [20, 768])
@pytest.mark.parametrize('value', [0.1, 1 / 3, 1e-9, 700.0, -0.1])
def test_a_constant_row_up_to_rounding_ranks_nothing(value, size, norm):
    """Also beside a row that does rank, which keeps its own scale."""
    constant = torch.full((1, size), value)
    assert normalize(constant, norm).tolist() == [[0.0] * size]
    noise = 2e-7 * (random_tensor(1, size) > 0)
    nearly = constant * (1 + noise)
    assert len(nearly.unique()) > 1
    assert normalize(nearly, norm).tolist() == [[0.0] * size]
    other = random_tensor(1, size, seed=1)
    both = normalize(torch.cat([nearly, other]), norm)
    assert torch.equal(both[1:], normalize(other, norm)) and not both[0].any()


@pytest.mark.parametrize('norm', ['minmax', 'zscore'])
def test_a_small_difference_above_rounding_still_ranks(norm):
    row = torch.full((1, 20), 0.1)
    row[0, 7] *= 1 + 1e-5
    scaled = normalize(row, norm)
    assert scaled.argmax() == 7 and scaled.amax() - scaled.amin() > 0.99


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('norm', ['l1', 'minmax', 'zscore'])
def test_a_row_in_doubt_stays_in_doubt(norm, bad):
    row = torch.full((1, 20), 0.1)
    row[0, 3] = bad
    assert not torch.isfinite(normalize(row, norm)).all()


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match="got 'l2'"):
        normalize(torch.ones(3), 'l2')


def test_eq_4_and_5_by_hand():
    forecasts = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    deep = mean_over_layers(forecasts)
    assert deep.tolist() == [0.5, 1.5]
    assert fuse(torch.tensor([1.0, 2.0]), deep, 0.25, 0.75).tolist() == [0.625, 1.625]


def test_norm_is_applied_to_every_term_before_it_is_added():
    forecasts = torch.tensor([[100.0, 300.0], [3.0, 1.0]])
    deep = mean_over_layers(forecasts, 'l1')
    assert torch.allclose(deep, torch.tensor([0.5, 0.5]))
    early = torch.tensor([10.0, 30.0])
    assert torch.allclose(fuse(early, deep, 1, 1, 'l1'), torch.tensor([0.75, 1.25]))
