"""Multiplications and additions of decoder layers against the formula."""

from __future__ import annotations

from safe_pruner_ros.evaluation.macs import DecoderShape
from safe_pruner_ros.policies.policy import LayerTokens


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
