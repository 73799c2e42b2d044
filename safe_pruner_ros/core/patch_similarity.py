"""How much each place of a picture still looks as it did some steps ago."""

from __future__ import annotations

import torch
from jaxtyping import Float

from safe_pruner_ros.core.correspondence import TIE_TOLERANCE, unit_rows


def patch_similarity(
    current: Float[torch.Tensor, 'V P'], earlier: Float[torch.Tensor, 'V P']
) -> Float[torch.Tensor, ' V']:
    """Cosine of each token's row (`StepContext.shown`) with the row of its own place earlier.

    1 where nothing changed at all, also in a black patch, which has no direction: the black bars
    of a letterboxed picture stand still. 0 where a patch turned black or ceased to be: changed.
    NaN where a row is not finite. Rounded to `TIE_TOLERANCE`: what is equally still must tie.
    """
    cosine = (unit_rows(current) * unit_rows(earlier)).sum(dim=1)
    cosine = torch.where((current == earlier).all(dim=1), torch.ones_like(cosine), cosine)
    return (cosine / TIE_TOLERANCE).round() * TIE_TOLERANCE
