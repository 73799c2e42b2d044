"""The reference every speedup and every action error is measured against: all tokens stay."""

from __future__ import annotations

from dataclasses import dataclass

from safe_pruner_ros.core.pruner import SaliencyRequest, StepAttention, StepContext, StepPlan
from safe_pruner_ros.core.settings import check_pruning_layer


@dataclass(frozen=True)
class UnprunedConfig:
    """``pruning_layer`` only splits the reported time into shallow and deep, as the others do."""

    pruning_layer: int = 0


class Unpruned:
    """Runs every step in full; measures nothing, so it pays for nothing."""

    def __init__(self, config: UnprunedConfig, n_layers: int) -> None:
        check_pruning_layer(config.pruning_layer, n_layers, first=0)
        self.method = type(self).__name__
        self.retention_ratio = 1.0
        self.similarity_threshold = float('nan')
        self.pruning_layer = config.pruning_layer
        self.shallow_requests: tuple[SaliencyRequest, ...] = ()
        self.deep_requests: tuple[SaliencyRequest, ...] = ()

    def plan(self, context: StepContext) -> StepPlan:
        return StepPlan(retained=None)

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        """Nothing to learn."""

    def force_keyframe(self) -> None:
        """Every step runs in full anyway."""

    def reset(self) -> None:
        """Nothing to forget."""
