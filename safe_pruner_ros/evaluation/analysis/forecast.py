"""How well does saliency carry over from an earlier step? (SAFE-Pruner, appendix B)

A step t0 is the reference; the saliency of step t0 + lag is forecast from it through the
correspondence of tokens and compared with what was measured: cosine, and KL(measured || forecast)
of the two as distributions over visual tokens, in nats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from safe_pruner_ros.core.correspondence import MatchScope, ReferenceTokens, match_tokens
from safe_pruner_ros.core.saliency import transfer
from safe_pruner_ros.evaluation.analysis.estimates import Estimate, estimate
from safe_pruner_ros.evaluation.analysis.recording import Float32, Recording

# matched: the paper's; in place: token i stays token i; uniform: no forecast at all.
How = Literal['matched', 'in place', 'uniform']
HOWS: tuple[How, ...] = ('matched', 'in place', 'uniform')


@dataclass(frozen=True)
class ForecastRow:
    """``saliency``: 'early' (the layer before the cut) or 'deep' (mean over S, Eq. 4)."""

    lag: int
    saliency: str
    how: How
    cosine: Estimate
    kl: Estimate
    pairs: int


def cosine_and_kl(measured: Float32, forecast: Float32) -> tuple[float, float]:
    """(cosine, KL(measured || forecast)) of two saliency vectors [V]; NaN for an empty one."""
    p, q = measured.astype(np.float64), forecast.astype(np.float64)
    if not (p.sum() > 0 and q.sum() > 0):
        return float('nan'), float('nan')
    cosine = float(p @ q / np.sqrt((p @ p) * (q @ q)))
    p, q = p / p.sum(), q / q.sum()
    seen = p > 0
    with np.errstate(divide='ignore'):  # a token that was forecast to get nothing: infinite
        return cosine, float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


def same_subtask(subtasks: Sequence[str], first: int, last: int) -> bool:
    """Whether the subtask stays the same from step ``first`` to step ``last``."""
    return len(set(subtasks[first : last + 1])) == 1


def forecast_accuracy(
    recordings: Iterable[Recording],
    deep_layers: Sequence[int],
    early_layer: int = 2,
    max_lag: int = 10,
    scope: MatchScope = 'joint',
    within_subtask: bool = True,
) -> list[ForecastRow]:
    """One row a lag, saliency and way of forecasting; ``within_subtask`` as in the paper."""
    found: dict[tuple[int, str, How], list[list[tuple[float, float]]]] = defaultdict(list)
    for recording in recordings:
        own: dict[tuple[int, str, How], list[tuple[float, float]]] = defaultdict(list)
        for first in range(recording.n_steps):
            for lag in range(1, min(max_lag, recording.n_steps - 1 - first) + 1):
                if within_subtask and not same_subtask(recording.subtasks, first, first + lag):
                    break
                _compare(recording, first, lag, deep_layers, early_layer, scope, own)
        for key, values in own.items():
            found[key].append(values)
    rows = []
    for (lag, name, how), episodes in sorted(found.items(), key=lambda item: item[0]):
        rows.append(
            ForecastRow(
                lag,
                name,
                how,
                cosine=estimate([np.nanmean([c for c, _ in values]) for values in episodes]),
                kl=estimate([np.nanmean([k for _, k in values]) for values in episodes]),
                pairs=sum(map(len, episodes)),
            )
        )
    return rows


def _compare(
    recording: Recording,
    first: int,
    lag: int,
    deep_layers: Sequence[int],
    early_layer: int,
    scope: MatchScope,
    own: dict[tuple[int, str, How], list[tuple[float, float]]],
) -> None:
    saliency = recording.saliency['action']
    reference = ReferenceTokens.of(torch.from_numpy(recording.features[first]), recording.layout())
    matched = match_tokens(torch.from_numpy(recording.features[first + lag]), reference, scope)
    before = torch.from_numpy(saliency[first])
    forecasts: dict[How, Float32] = {
        'matched': transfer(before, matched).numpy(),
        'in place': saliency[first],
        'uniform': np.ones_like(saliency[first]),
    }
    for how, forecast in forecasts.items():
        for name, layers in (('early', [early_layer]), ('deep', list(deep_layers))):
            pair = saliency[first + lag, layers].mean(axis=0), forecast[layers].mean(axis=0)
            own[lag, name, how].append(cosine_and_kl(*pair))
