"""How well does saliency carry over from an earlier step? (SAFE-Pruner, appendix B)

A step t0 is the reference; the saliency of step t0 + lag is forecast from it through the
correspondence of tokens and compared with what was measured: cosine, and KL(measured || forecast)
of the two as distributions over visual tokens, in nats.

A long lag exists only inside a long subtask, so each lag is of other steps, and accuracy over lag
would tell how subtasks differ as well as how forecasts age. So every number stands twice: of all
pairs, and of those whose reference has every lag up to a cohort's, the same ones at each lag.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from safe_pruner_ros.core.correspondence import MatchScope, ReferenceTokens, match_tokens
from safe_pruner_ros.core.safe_pruner_config import Requests
from safe_pruner_ros.core.saliency import Norm, mean_over_layers, transfer
from safe_pruner_ros.evaluation.analysis.estimates import Estimate, estimate
from safe_pruner_ros.evaluation.analysis.recording import Float32, Recording

# matched: the paper's; in place: token i stays token i; uniform: no forecast at all.
How = Literal['matched', 'in place', 'uniform']
HOWS: tuple[How, ...] = ('matched', 'in place', 'uniform')


FEW_PAIRS = 30  # below it, a mean says little: marked


@dataclass(frozen=True)
class Accuracy:
    """Mean over the pairs of an episode, then over episodes."""

    cosine: Estimate
    kl: Estimate
    pairs: int

    @property
    def is_thin(self) -> bool:
        return self.pairs < FEW_PAIRS


@dataclass(frozen=True)
class ForecastRow:
    """``saliency``: 'early' (the layer before the cut) or 'deep' (mean over S, Eq. 4).
    ``same_references``: None beyond the cohort's lag, and where no step has all lags up to it."""

    lag: int
    saliency: str
    how: How
    all_pairs: Accuracy
    same_references: Accuracy | None


class _Pair(NamedTuple):
    cosine: float
    kl: float
    in_cohort: bool


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
    requests: Requests,
    max_lag: int = 10,
    cohort_lag: int = 4,
    scope: MatchScope = 'joint',
    norm: Norm = 'none',
    within_subtask: bool = True,
) -> list[ForecastRow]:
    """One row a lag, saliency and way of forecasting; ``within_subtask`` as in the paper.

    ``requests``, ``scope`` and ``norm`` as the method has them. Raises ValueError for a norm
    that leaves no distribution and for a ``cohort_lag`` above ``max_lag``.
    """
    if norm == 'zscore':
        raise ValueError('zscore makes saliency negative, which has no KL; use norm none or l1')
    if not 1 <= cohort_lag <= max_lag:
        raise ValueError(f'cohort_lag must be in [1, {max_lag}] (max_lag), got {cohort_lag}')
    found: dict[tuple[int, str, How], list[list[_Pair]]] = defaultdict(list)
    for recording in recordings:
        own: dict[tuple[int, str, How], list[_Pair]] = defaultdict(list)
        for first in range(recording.n_steps):
            reach = _reach(recording, first, max_lag, within_subtask)
            for lag in range(1, reach + 1):
                in_cohort = lag <= cohort_lag <= reach
                for name, how, values in _compare(recording, first, lag, requests, scope, norm):
                    own[lag, name, how].append(_Pair(*values, in_cohort))
        for key, pairs in own.items():
            found[key].append(pairs)
    rows = []
    for key, episodes in sorted(found.items(), key=lambda item: item[0]):
        cohort = [[pair for pair in pairs if pair.in_cohort] for pairs in episodes]
        rows.append(
            ForecastRow(*key, _accuracy(episodes), _accuracy(cohort) if any(cohort) else None)
        )
    return rows


def _reach(recording: Recording, first: int, max_lag: int, within_subtask: bool) -> int:
    """The longest lag from ``first`` on."""
    reach = min(max_lag, recording.n_steps - 1 - first)
    while within_subtask and not same_subtask(recording.subtasks, first, first + reach):
        reach -= 1
    return reach


def _accuracy(episodes: Iterable[Sequence[_Pair]]) -> Accuracy:
    told = [pairs for pairs in episodes if pairs]
    return Accuracy(
        cosine=estimate([float(np.nanmean([p.cosine for p in pairs])) for pairs in told]),
        kl=estimate([float(np.nanmean([p.kl for p in pairs])) for pairs in told]),
        pairs=sum(map(len, told)),
    )


def _compare(
    recording: Recording, first: int, lag: int, requests: Requests, scope: MatchScope, norm: Norm
) -> Iterator[tuple[str, How, tuple[float, float]]]:
    """(saliency, how, cosine and KL) of the forecast of step ``first + lag``."""
    before, now = (_saliency(recording, step, requests) for step in (first, first + lag))
    reference = ReferenceTokens.of(torch.from_numpy(recording.features[first]), recording.layout())
    matched = match_tokens(torch.from_numpy(recording.features[first + lag]), reference, scope)
    forecasts: dict[How, torch.Tensor] = {'matched': transfer(before, matched), 'in place': before}
    measured = {'early': now[0], 'deep': mean_over_layers(now[1:], norm)}
    for name, truth in measured.items():
        for how, rows in forecasts.items():
            forecast = rows[0] if name == 'early' else mean_over_layers(rows[1:], norm)
            yield name, how, cosine_and_kl(truth.numpy(), forecast.numpy())
        yield name, 'uniform', cosine_and_kl(truth.numpy(), np.ones_like(truth.numpy()))


def _saliency(recording: Recording, step: int, requests: Requests) -> torch.Tensor:
    """[1 + S, V]: the early layer, then the deep ones, of the query rows that the method reads."""
    rows = [
        recording.saliency[request.queries][step, request.layer]
        for request in (requests.early, *requests.deep)
    ]
    return torch.from_numpy(np.stack(rows))
