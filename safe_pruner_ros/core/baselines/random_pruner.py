"""Random pruning: the floor. A method that does not beat it has not looked at the image.

Uniform without replacement, each view with its share of the tokens (`quota_scope='per_view'`).
Layer, K and positions as for the method it is compared with. Kept between steps: the number of
the episode. Cost: V random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from safe_pruner_ros.core.pruner import StepContext
from safe_pruner_ros.core.score_pruner import ScorePruner, ScorePrunerConfig
from safe_pruner_ros.core.selection import QuotaScope
from safe_pruner_ros.core.settings import check_range


@dataclass(frozen=True)
class RandomPrunerConfig(ScorePrunerConfig):
    """``seed``: equal seeds keep equal tokens at equal (episode, step), on every device."""

    quota_scope: QuotaScope = 'per_view'
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range('seed', self.seed, 0, float('inf'), 'any non-negative integer will do')


class RandomPruner(ScorePruner):
    """Counts its own episodes: ``reset`` begins the next one."""

    def __init__(self, config: RandomPrunerConfig, n_layers: int) -> None:
        super().__init__(config, n_layers)
        self._seed = config.seed
        self._episode = 0

    def saliency(self, context: StepContext) -> Float[torch.Tensor, ' V']:
        # Drawn on the CPU: device generators differ, and the baseline should not.
        generator = np.random.default_rng((self._seed, self._episode, context.step))
        drawn = generator.random(context.layout.n_visual, dtype=np.float32)
        return torch.from_numpy(drawn).to(context.features.device)

    def reset(self) -> None:
        self._episode += 1
