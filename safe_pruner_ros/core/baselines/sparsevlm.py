"""SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417): let only words that look rate the image.

Raters: with H_v and H_t the visual and text tokens as they enter the decoder,
r = mean over visual tokens of softmax over text of (H_v H_t^T); rater j has r_j >= mean(r).
Score: attention of the layer before ``pruning_layer``, mean over heads and over the rater rows.
Retained: the K highest. Layer: one cut, at layer 3 by default. Queries: rater rows of the text.
Kept between steps: nothing. Cost: V T D for the raters, T query rows of one attention map.

This is the form that VLA papers compare with (single cut, as in VLA-Pruner's release). The
original (Gumpest/SparseVLMs 26a5f48) differs: it cuts after layers 2, 6 and 15 with fixed budgets,
and puts means of clusters of pruned tokens back in; a mean is no token of the image and has no
position of its own, and one retention ratio could not describe both. It takes raters with
r_j > mean(r), which is nobody when all words are alike; >= then takes everybody. And it numbers
the kept tokens anew; here they keep their original positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float

from safe_pruner_ros.core.pruner import SaliencyRequest, StepContext
from safe_pruner_ros.core.score_pruner import ScorePruner, ScorePrunerConfig


class SparseVLM(ScorePruner):
    first_pruning_layer = 1

    def __init__(self, config: ScorePrunerConfig, n_layers: int) -> None:
        super().__init__(config, n_layers)
        self._request = SaliencyRequest(config.pruning_layer - 1, 'text', per_query=True)
        self.shallow_requests = (self._request,)

    def saliency(self, context: StepContext) -> Float[torch.Tensor, ' V']:
        return rater_weights(context) @ context.shallow[self._request].float()


def rater_weights(context: StepContext) -> Float[torch.Tensor, ' T']:
    """1 / number of raters for every text token that is one, 0 for the others."""
    if context.embeddings is None:
        raise ValueError(
            'SparseVLM compares text with image, but this StepContext has no embeddings; '
            'pass the decoder input'
        )
    layout, embeddings = context.layout, context.embeddings.float()
    visual = embeddings[layout.visual.start : layout.visual.stop]
    text = embeddings[layout.query_positions('text')]
    relevance = torch.softmax(visual @ text.T, dim=1).mean(dim=0)
    # NaN raises no hand here: then nobody rates, and 0 / 0 keeps every token.
    is_rater = (relevance >= relevance.mean() * (1 - 1e-6)).float()  # equal words: rounding
    return is_rater / is_rater.sum()
