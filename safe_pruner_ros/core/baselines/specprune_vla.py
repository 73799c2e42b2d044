"""SpecPrune-VLA (arXiv 2509.05614): what mattered to the last action, what moved, what text asks.

Score: mean over heads and text rows of the attention to a visual token, Score_l(i).
V_global:  the highest of the last step's deep layers (15 and 32 of 32, averaged).
V_dynamic: tokens whose image patch (`StepContext.shown`) has a cosine with its own place
           ``lookback_steps`` ago below ``change_threshold``, most changed first; a patch that
           stays black has not changed (`core/patch_similarity.py`).
V_local:   the highest of the first two layers, layer by layer.
Retained: V_global U V_dynamic U V_local, exactly K: a third of K for V_global, at most a third for
V_dynamic, and V_local grows until K is full. Layer: one cut, after two layers. The first step has
no last action and runs in full. Kept between steps: patches and one vector per step looked back.
Cost: text rows of two shallow and two deep attention maps on every step; V P for the cosines.

``change_threshold``: 0.986 is the released code's (alexwhz-sjtu/SpecPrune-VLA d3b06ed,
openvla_utils.py:779), for RGB patches of 14 x 14 px; a policy that gives no patches is compared by
its visual features, for which no number is published.
Differs from the paper: its lookback of 6 to 11 frames, by arm speed, is about one action chunk, so
one policy step. Its coarse/fine controller changes K with the motion of one arm's end effector and
its layer-wise cuts change K with depth: both are off here (the cuts also in the release), so that
all methods keep the same K; a third of it for V_global and at most a third for V_dynamic is ours,
where the paper has counts tuned by suite (24 or 40 times a factor). In the release the last
action's tokens are always empty, the local ones of its second layer index the shortened list, and
its first 9 text rows, the same in every prompt, do not ask; here the first two work, and all text
rows ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float

from safe_pruner_ros.core.history_pruner import HistoryPruner
from safe_pruner_ros.core.patch_similarity import patch_similarity
from safe_pruner_ros.core.pruner import KeyframeReason, SaliencyRequest, StepContext
from safe_pruner_ros.core.score_pruner import ScorePrunerConfig
from safe_pruner_ros.core.selection import quota_groups, ranks, void_unless
from safe_pruner_ros.core.settings import check_range, resolve_layers
from safe_pruner_ros.core.step_history import PastStep


@dataclass(frozen=True)
class SpecPruneConfig(ScorePrunerConfig):
    """``deep_layers``: where V_global is read, None: 15/32 into the decoder and its last."""

    pruning_layer: int = 2
    change_threshold: float = 0.986
    lookback_steps: int = 1
    deep_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range('change_threshold', self.change_threshold, -1, 1, 'it meets a cosine')
        check_range('lookback_steps', self.lookback_steps, 1, math.inf, '1 is the step before')


class SpecPrune(HistoryPruner):
    keeps_pictures = True

    def __init__(self, config: SpecPruneConfig, n_layers: int) -> None:
        published = (max(0, round(n_layers * 15 / 32) - 1), n_layers - 1)
        deep = resolve_layers(config.deep_layers, n_layers, published)
        super().__init__(config, n_layers, 'text', deep, config.lookback_steps)
        self._config = config
        # Two layers, or the one there is when the cut comes after the first.
        self.shallow_requests = tuple(
            SaliencyRequest(layer, 'text') for layer in range(min(2, config.pruning_layer))
        )

    def why_in_full(self, past: list[PastStep]) -> KeyframeReason | None:
        return None if past else KeyframeReason.FIRST_STEP

    def saliency(self, context: StepContext) -> Float[torch.Tensor, ' V']:
        """Members of V_global and V_dynamic first, then V_local in the order it grows."""
        local = torch.stack([context.shallow[r].float() for r in self.shallow_requests])
        past = self._history.before(context)
        saliency = torch.zeros(context.layout.n_visual, device=local.device)
        for group, quota in quota_groups(context.layout, self.retention_ratio, self.quota_scope):
            size = group.stop - group.start
            # Taking the top k of each layer for growing k visits tokens by their better rank; of
            # two tokens at one rank, the first layer's comes first.
            order = torch.stack(
                [len(local) * ranks(layer[group]) + i for i, layer in enumerate(local)]
            )
            saliency[group] = 1.0 - ranks(-order.amin(dim=0).float()) / size
            if past:
                is_global = ranks(past[0].saliency[group]) < quota // 3
                earlier = past[-1].shown
                assert earlier is not None  # keeps_pictures
                similarity = patch_similarity(context.shown[group], earlier[group])
                is_dynamic = similarity < self._config.change_threshold
                is_dynamic &= ranks(-similarity) < quota // 3
                saliency[group] += (is_global | is_dynamic).float()
        return void_unless(self.can_be_judged(context), saliency)
