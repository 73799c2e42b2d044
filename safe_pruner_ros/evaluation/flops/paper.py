"""SAFE-Pruner's own figures (arXiv 2605.29662, Tables 1 and 2), to stand beside ours.

What they count: multiply-accumulates (they call them FLOPs) of the language model's prefill alone,
``4 n d^2 + 2 n^2 d + 3 n d m`` a layer, key timesteps counted in. Vision tower, projector, decoded
tokens, denoising, action head and the choice of tokens are left out, and pi0.5's key and value
projections count as if they were as wide as its queries. pi0.5 has 968 tokens there: a blank third
camera and a prompt padded to 200. The retention ratios are published for OpenVLA-OFT only (0.20,
0.25, 0.10 and 0.30 by suite).
"""

from __future__ import annotations

# model -> method -> T of Table 1 (LIBERO, mean of the suites).
TABLE_1: dict[str, dict[str, float]] = {
    'openvla': {
        'unpruned': 1.862,
        'fastv': 0.811,
        'sparsevlm': 0.876,
        'divprune': 0.832,
        'vla_cache': 0.941,
        'vla_pruner': 0.793,
        'safe_pruner': 0.742,
    },
    'openvla_oft': {
        'unpruned': 3.970,
        'fastv': 2.141,
        'sparsevlm': 2.289,
        'divprune': 2.126,
        'vla_cache': 2.730,
        'vla_pruner': 2.234,
        'safe_pruner': 1.722,
    },
    'pi05': {
        'unpruned': 2.115,
        'fastv': 1.612,
        'sparsevlm': 1.713,
        'divprune': 1.576,
        'vla_cache': 1.632,
        'vla_pruner': 1.583,
        'safe_pruner': 1.482,
    },
}

# method -> percent of unpruned in Table 2 (CogACT on SIMPLER: visual matching, variants).
TABLE_2: dict[str, tuple[float, float]] = {
    'unpruned': (100.0, 100.0),
    'random': (58.5, 58.5),
    'fastv': (42.0, 42.0),
    'vla_cache': (80.1, 82.6),
    'safe_pruner': (37.4, 36.2),
}


def paper_t(model: str, method: str) -> float | None:
    """The paper's figure in T; None where it has none."""
    return TABLE_1.get(model, {}).get(method)


def paper_percent(model: str, method: str) -> tuple[float, ...] | None:
    """Percent of the unpruned row: one number of Table 1, two of Table 2."""
    if model == 'cogact':
        return TABLE_2.get(method)
    figure = paper_t(model, method)
    return None if figure is None else (100 * figure / TABLE_1[model]['unpruned'],)
