"""Images -> the pixels behind each visual token, for methods that compare pictures."""

from __future__ import annotations

import torch
from jaxtyping import Num


def image_patches(
    images: Num[torch.Tensor, 'views H W 3'], rows: int, cols: int
) -> Num[torch.Tensor, 'V P']:
    """RGB of the ``rows`` x ``cols`` patches of every view, in the order of the visual tokens.

    Values and dtype stay as they are (0 to 255: cosines of patches are published so). H and W must
    be multiples of ``rows`` and ``cols``.
    """
    views, height, width, _ = images.shape
    if height % rows or width % cols:
        raise ValueError(
            f'images of {height} x {width} px do not divide into {rows} x {cols} patches; resize '
            'them to what the vision tower reads'
        )
    grid = images.reshape(views, rows, height // rows, cols, width // cols, 3)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(views * rows * cols, -1)
