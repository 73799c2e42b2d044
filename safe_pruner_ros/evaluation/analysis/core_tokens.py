"""How often does pruning drop what other layers need? (SAFE-Pruner, section 3.2)

The core tokens of a layer are the top tenth of its saliency. Pruning keeps the top K of some cue;
a core token of another layer that is not among them is dropped. The paper counts all other layers;
those before the cut saw every token and lose nothing, so later layers also stand by themselves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from safe_pruner_ros.core.pruner import KeyframeReason
from safe_pruner_ros.core.safe_pruner import SafePruner, SafePrunerConfig
from safe_pruner_ros.core.selection import QuotaScope, n_retained, select_retained
from safe_pruner_ros.core.tokens import QueryGroup, TokenLayout
from safe_pruner_ros.evaluation.analysis.estimates import Estimate, estimate, share_estimate
from safe_pruner_ros.evaluation.analysis.recording import Float32, Recording

CORE_SHARE = 0.1

Retained = npt.NDArray[np.int64]
Cue = Callable[[Recording, int, float], 'Retained | None']


@dataclass(frozen=True)
class CoreShare:
    """``minus_baseline``: the difference to the baseline, paired by episode; None for the baseline
    itself, for chance, and where nothing is compared."""

    share: Estimate
    minus_baseline: Estimate | None = None


@dataclass(frozen=True)
class CoreRow:
    """``steps``: how many were judged, 0 for chance. ``dropped``: probability that a core token of
    another layer is pruned; ``later_dropped``: of a layer after the cut; ``any_dropped``: that
    another layer loses at least one."""

    cue: str
    pruning_ratio: float
    steps: int
    dropped: CoreShare
    later_dropped: CoreShare
    any_dropped: CoreShare


@dataclass(frozen=True)
class CoreLoss:
    """``same_steps``: every cue on the steps that all of them can judge, to compare them; chance
    beside them. ``all_steps``: the cues that need no keyframe on every step, as the paper counts.
    """

    same_steps: tuple[CoreRow, ...]
    all_steps: tuple[CoreRow, ...]


class _EpisodeLoss(NamedTuple):
    dropped: float
    later_dropped: float
    any_dropped: float
    steps: int


_Losses = dict[str, dict[float, list[_EpisodeLoss]]]  # cue -> pruning ratio -> one an episode


def core_tokens(saliency: Float32, share: float = CORE_SHARE) -> Retained:
    """Visual indices of the most salient ``share`` of [V], at least one; ties: lower index."""
    count = max(1, round(share * len(saliency)))
    return np.sort(np.argsort(-saliency.astype(np.float64), kind='stable')[:count])


def dropped_share(retained: Retained, core: Retained) -> float:
    """Share of ``core`` that is not in ``retained``."""
    return float(1 - np.isin(core, retained).mean())


def random_row(pruning_ratio: float, n_visual: int) -> CoreRow:
    """What chance alone drops, exactly: K of V kept, c of them core (hypergeometric)."""
    kept = n_retained(n_visual, 1 - pruning_ratio)
    core = max(1, round(CORE_SHARE * n_visual))
    none_dropped = math.comb(n_visual - core, kept - core) if kept >= core else 0
    any_dropped = 1 - none_dropped / math.comb(n_visual, kept)
    share = 1 - kept / n_visual
    exact = [CoreShare(Estimate(value, value, value, 0)) for value in (share, share, any_dropped)]
    return CoreRow('random (exact)', pruning_ratio, 0, *exact)


def early_cue(queries: QueryGroup, layer: int, scope: QuotaScope = 'joint') -> Cue:
    """Prune by the saliency of one early layer alone."""

    def retained(recording: Recording, step: int, retention_ratio: float) -> Retained:
        saliency = recording.saliency[queries][step, layer]
        return _select(saliency, retention_ratio, recording.layout(), scope)

    return retained


def safe_cue(config: Mapping[str, object], lag: int) -> Cue:
    """What SAFE-Pruner keeps when its keyframe is ``lag`` steps old; None for earlier steps."""

    def retained(recording: Recording, step: int, retention_ratio: float) -> Retained | None:
        if step < lag:
            return None
        settings: dict[str, object] = {
            **config,
            'retention_ratio': retention_ratio,
            'similarity_threshold': 0.0,  # the age of the keyframe is what is varied
            'max_keyframe_age': None,
            'keyframe_interval': None,
        }
        pruner = SafePruner(SafePrunerConfig(**settings), recording.n_layers)  # type: ignore[arg-type]
        context, attention = recording.step(step - lag)
        plan = pruner.plan(context)
        assert plan.keyframe is KeyframeReason.FIRST_STEP
        pruner.observe(context, plan, attention)
        kept = pruner.plan(recording.step(step)[0]).retained
        return None if kept is None else kept.visual_index.numpy()

    return retained


def core_token_loss(
    recordings: Iterable[Recording],
    cues: Mapping[str, Cue],
    pruning_ratios: Sequence[float],
    early_layer: int,
    baseline: str,
) -> CoreLoss:
    """A row a cue and pruning ratio: mean over steps and over all layers but ``early_layer``,
    averaged over episodes.

    The first steps of an episode lose other tokens than the rest, and a cue that needs a keyframe
    cannot judge them: only the same steps compare. ``baseline``: which cue the others are
    measured against. Raises ValueError when it is none of ``cues``.
    """
    if baseline not in cues:
        raise ValueError(f'baseline must be one of {list(cues)}, got {baseline!r}')
    same: _Losses = {name: defaultdict(list) for name in cues}
    whole: _Losses = {name: defaultdict(list) for name in cues}
    n_visual = 0
    for recording in recordings:
        n_visual = recording.features.shape[1]
        others = [layer for layer in range(recording.n_layers) if layer != early_layer]
        later = [layer > early_layer for layer in others]
        cores = [
            [core_tokens(recording.saliency['action'][step, layer]) for layer in others]
            for step in range(recording.n_steps)
        ]
        for ratio in pruning_ratios:
            lost = {name: _lost(cue, recording, cores, ratio) for name, cue in cues.items()}
            shared = set.intersection(*(set(steps) for steps in lost.values()))
            for name, steps in lost.items():
                if shared:
                    same[name][ratio].append(
                        _episode([steps[step] for step in sorted(shared)], later)
                    )
                if len(steps) == recording.n_steps:
                    whole[name][ratio].append(_episode(list(steps.values()), later))
    chance = [random_row(ratio, n_visual) for ratio in pruning_ratios if n_visual]
    return CoreLoss((*_rows(same, baseline), *chance), tuple(_rows(whole)))


def _lost(
    cue: Cue, recording: Recording, cores: Sequence[Sequence[Retained]], pruning_ratio: float
) -> dict[int, list[float]]:
    """Step -> share of core tokens that each other layer loses, of the steps the cue judges."""
    retained = {step: cue(recording, step, 1 - pruning_ratio) for step in range(len(cores))}
    return {
        step: [dropped_share(kept, core) for core in cores[step]]
        for step, kept in retained.items()
        if kept is not None
    }


def _episode(steps: Sequence[Sequence[float]], later: Sequence[bool]) -> _EpisodeLoss:
    shares = np.array(steps)  # [steps, other layers]
    return _EpisodeLoss(
        dropped=float(shares.mean()),
        later_dropped=float(shares[:, later].mean()) if any(later) else float('nan'),
        any_dropped=float((shares > 0).mean()),
        steps=len(steps),
    )


def _rows(losses: _Losses, baseline: str = '') -> Iterator[CoreRow]:
    for name, by_ratio in losses.items():
        for ratio, episodes in by_ratio.items():
            against = losses[baseline][ratio] if baseline not in ('', name) else None
            yield CoreRow(
                name,
                ratio,
                sum(episode.steps for episode in episodes),
                *(_share(kind, episodes, against) for kind in (0, 1, 2)),
            )


def _share(
    kind: int, episodes: Sequence[_EpisodeLoss], against: Sequence[_EpisodeLoss] | None
) -> CoreShare:
    share = share_estimate([episode[kind] for episode in episodes])
    if against is None:
        return CoreShare(share)
    pairs = zip(episodes, against, strict=True)
    return CoreShare(share, estimate([own[kind] - other[kind] for own, other in pairs]))


def _select(
    saliency: Float32, retention_ratio: float, layout: TokenLayout, scope: QuotaScope
) -> Retained:
    kept = select_retained(torch.from_numpy(saliency), retention_ratio, layout, scope)
    return kept.visual_index.numpy()
