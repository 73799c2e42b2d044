"""DDIM sampling of a CogACT action chunk, with classifier-free guidance.

Deterministic DDIM (Song et al. 2021, Eq. 12 with sigma 0) on the cosine schedule of Nichol and
Dhariwal (2021, Eq. 17) over 100 training timesteps; the network predicts the noise. Guidance as
in Ho and Salimans (2022): noise = unconditional + scale * (conditional - unconditional).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from safe_pruner_ros.policies.cogact.dit import DiT

N_TRAINING_TIMESTEPS = 100


@dataclass(frozen=True)
class DiffusionSettings:
    """How actions are sampled and joined over policy steps; defaults as upstream deploys them, but
    for the ensemble: upstream's belongs to a query at every action.

    Parameters
    ----------
    n_steps : DDIM steps, an even stride over 100 timesteps.
    guidance_scale : 1 = without guidance, one network pass per step instead of two.
    ensemble_horizon : chunks that are averaged, this one included; 1 = no ensemble. Upstream takes
        2 for the Google robot and 7 for WidowX, with a query at every action.
    ensemble_alpha : how much likeness to the newest chunk counts; 0 = a plain mean.
    seed : of the noise; it starts anew with every episode.
    """

    n_steps: int = 10
    guidance_scale: float = 1.5
    ensemble_horizon: int = 1
    ensemble_alpha: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        ddim_timesteps(self.n_steps)
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 1):
            raise ValueError(
                f'guidance_scale must be at least 1, got {self.guidance_scale}; 1 is no guidance'
            )
        if self.ensemble_horizon < 1:
            raise ValueError(
                f'ensemble_horizon must be at least 1, got {self.ensemble_horizon}; 1 is none'
            )
        if not 0 <= self.ensemble_alpha <= 100:  # its exponential must stay finite
            raise ValueError(f'ensemble_alpha must be in [0, 100], got {self.ensemble_alpha}')
        if self.seed < 0:
            raise ValueError(f'seed must be at least 0, got {self.seed}')


def signal_shares() -> list[float]:
    """Cumulative product of 1 - beta ("alpha bar") by timestep, betas capped at 0.999."""

    def cosine(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    shares, share = [], 1.0
    for step in range(N_TRAINING_TIMESTEPS):
        now, after = (cosine((step + k) / N_TRAINING_TIMESTEPS) for k in (0, 1))
        share *= 1 - min(1 - after / now, 0.999)
        shares.append(share)
    return shares


def ddim_timesteps(n_steps: int) -> list[int]:
    """Descending, ending at 0: the smallest stride that gives ``n_steps`` of them; a single step
    is the middle one, as upstream. Raises ValueError listing what no stride gives."""
    if n_steps == 1:
        return [N_TRAINING_TIMESTEPS // 2]
    for stride in range(1, N_TRAINING_TIMESTEPS):
        timesteps = range(0, N_TRAINING_TIMESTEPS, stride)
        if len(timesteps) == n_steps:
            return list(timesteps)[::-1]
    possible = {len(range(0, N_TRAINING_TIMESTEPS, k)) for k in range(1, N_TRAINING_TIMESTEPS)}
    raise ValueError(f'n_steps must be one of {sorted({1, *possible})}, got {n_steps}')


class DDIMSampler:
    """Time embeddings depend on the timestep alone and are computed once, here."""

    def __init__(self, dit: DiT, n_steps: int, guidance_scale: float) -> None:
        self._dit, self._scale = dit, guidance_scale
        timesteps = ddim_timesteps(n_steps)
        shares = signal_shares()
        self._shares = [shares[t] for t in timesteps]
        with torch.inference_mode():
            device = dit.positional_embedding.device
            self._times = dit.embed_time(torch.tensor(timesteps, device=device))

    def sample(
        self, cognition: Float[torch.Tensor, '1 D'], noise: Float[torch.Tensor, '1 H n']
    ) -> Float[torch.Tensor, 'H n']:
        """Actions in the normalised space of training, not clipped."""
        conditions = [cognition.to(noise)]
        if self._scale > 1:
            conditions.append(self._dit.uncondition)
        condition = self._dit.embed_condition(torch.stack(conditions))
        actions = noise
        after: Sequence[float] = [*self._shares[1:], 1.0]
        for time, share, next_share in zip(self._times, self._shares, after, strict=True):
            predicted = self._dit(actions.expand(len(condition), -1, -1), time + condition)
            if self._scale > 1:
                conditional, unconditional = predicted.chunk(2)
                predicted = unconditional + self._scale * (conditional - unconditional)
            clean = (actions - math.sqrt(1 - share) * predicted) / math.sqrt(share)
            actions = math.sqrt(next_share) * clean + math.sqrt(1 - next_share) * predicted
        return actions[0]
