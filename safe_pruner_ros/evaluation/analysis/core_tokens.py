"""How often does pruning drop what other layers need? (SAFE-Pruner, section 3.2)

The core tokens of a layer are the top tenth of its saliency. Pruning keeps the top K of some cue;
a core token of another layer that is not among them is lost for good.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from safe_pruner_ros.core.pruner import KeyframeReason
from safe_pruner_ros.core.safe_pruner import SafePruner, SafePrunerConfig
from safe_pruner_ros.core.selection import QuotaScope, n_retained, select_retained
from safe_pruner_ros.core.tokens import QueryGroup, TokenLayout
from safe_pruner_ros.evaluation.analysis.estimates import Estimate, estimate
from safe_pruner_ros.evaluation.analysis.recording import Float32, Recording

CORE_SHARE = 0.1

Retained = npt.NDArray[np.int64]
Cue = Callable[[Recording, int, float], 'Retained | None']


@dataclass(frozen=True)
class CoreRow:
    """``dropped``: probability that a core token of another layer is pruned; ``any_dropped``:
    that at least one of such a layer's is."""

    cue: str
    pruning_ratio: float
    dropped: Estimate
    any_dropped: Estimate


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
    exact = [Estimate(value, value, value, 0) for value in (share, any_dropped)]
    return CoreRow('random (exact)', pruning_ratio, *exact)


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
) -> list[CoreRow]:
    """One row a cue and pruning ratio: mean over steps and over all layers but ``early_layer``,
    averaged over episodes."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    n_visual = 0
    for recording in recordings:
        n_visual = recording.features.shape[1]
        others = [layer for layer in range(recording.n_layers) if layer != early_layer]
        cores = [
            [core_tokens(recording.saliency['action'][step, layer]) for layer in others]
            for step in range(recording.n_steps)
        ]
        for name, cue in cues.items():
            for ratio in pruning_ratios:
                lost = []
                for step, cores_of_step in enumerate(cores):
                    retained = cue(recording, step, 1 - ratio)
                    if retained is not None:
                        lost += [dropped_share(retained, core) for core in cores_of_step]
                if lost:
                    any_lost = float(np.mean([share > 0 for share in lost]))
                    found[name, ratio].append((float(np.mean(lost)), any_lost))
    rows = [
        CoreRow(
            name,
            ratio,
            dropped=estimate([share for share, _ in values]),
            any_dropped=estimate([share for _, share in values]),
        )
        for (name, ratio), values in found.items()
    ]
    return rows + [random_row(ratio, n_visual) for ratio in pruning_ratios if n_visual]


def _select(
    saliency: Float32, retention_ratio: float, layout: TokenLayout, scope: QuotaScope
) -> Retained:
    kept = select_retained(torch.from_numpy(saliency), retention_ratio, layout, scope)
    return kept.visual_index.numpy()
