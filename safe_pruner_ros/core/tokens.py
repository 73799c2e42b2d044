"""Where tokens sit in the decoder input. The only place where index spaces convert.

Two index spaces exist (glossary): a *visual index* in [0, V) numbers the visual tokens of all
views in order; a *sequence position* in [0, S) is a place in the decoder input. After pruning a
third one appears, the *row* of the shortened input; `kept_positions` and `rows_after_pruning`
lead there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64

QueryGroup = Literal['action', 'last', 'text', 'prefill']


@dataclass(frozen=True)
class ViewGrid:
    """One view's patch grid; its tokens are row-major and contiguous."""

    name: str
    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise ValueError(
                f'view {self.name!r} needs at least 1 x 1 tokens, got {self.rows} x {self.cols}'
            )

    @property
    def n_tokens(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True)
class Span:
    """Half-open range [start, stop) of sequence positions."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TokenLayout:
    """Places of the token groups in one decoder input of ``length`` tokens.

    ``action`` are the rows that queries of Eq. 2 come from (SAFE-Pruner: action tokens); ``last``
    is the final token of the sequence. Visual tokens are contiguous, views in order. ``prefill``:
    the prompt, None for all rows before ``action``; a policy that acts from its prompt's last row
    says that this one belongs to it.
    """

    views: tuple[ViewGrid, ...]
    visual: Span
    text: Span
    action: Span
    length: int
    prefill: Span | None = None

    def __post_init__(self) -> None:
        names = [view.name for view in self.views]
        if not names or len(set(names)) != len(names):
            raise ValueError(f'a layout needs views with unique names, got {names}')
        for name in ('visual', 'text', 'action'):
            span: Span = getattr(self, name)
            if not 0 <= span.start <= span.stop <= self.length:
                raise ValueError(f'{name} span {span} lies outside a sequence of {self.length}')
            if name != 'visual' and self._overlaps_visual(span):
                raise ValueError(f'{name} span {span} overlaps the visual span {self.visual}')
        if self.prefill is not None and not (
            0 <= self.prefill.start <= self.visual.start
            and self.visual.stop <= self.prefill.stop <= self.length
        ):
            raise ValueError(
                f'prefill span {self.prefill} must hold the visual span {self.visual} and lie '
                f'inside a sequence of {self.length}'
            )
        total = sum(view.n_tokens for view in self.views)
        if total != len(self.visual):
            raise ValueError(
                f'visual span holds {len(self.visual)} tokens but the views have {total}'
            )

    def _overlaps_visual(self, span: Span) -> bool:
        return span.start < self.visual.stop and self.visual.start < span.stop and len(span) > 0

    @property
    def n_visual(self) -> int:
        return len(self.visual)

    def view_slices(self) -> dict[str, slice]:
        """View name -> slice of visual indices."""
        slices, start = {}, 0
        for view in self.views:
            slices[view.name] = slice(start, start + view.n_tokens)
            start += view.n_tokens
        return slices

    def grid_positions(self, device: torch.device | None = None) -> Int64[torch.Tensor, 'V 3']:
        """(view number, row, column) of every visual index."""
        places = []
        for number, view in enumerate(self.views):
            token = torch.arange(view.n_tokens, device=device)
            row, col = token // view.cols, token % view.cols
            places.append(torch.stack([torch.full_like(token, number), row, col], dim=1))
        return torch.cat(places)

    def query_positions(self, group: QueryGroup) -> slice:
        """Sequence positions of a query group. Raises ValueError when the group is empty.

        'prefill': the prompt, visual tokens included.
        """
        if group == 'last':
            return slice(self.length - 1, self.length)
        if group == 'prefill':
            stop = self.action.start if len(self.action) else self.length
            span = self.prefill or Span(0, stop)
        else:
            span = self.action if group == 'action' else self.text
        if not len(span):
            raise ValueError(
                f"this layout has no {group!r} tokens to take queries from; ask for 'last'"
            )
        return slice(span.start, span.stop)

    def kept_positions(
        self, visual_index: Int64[torch.Tensor, ' K']
    ) -> Int64[torch.Tensor, ' S_kept']:
        """Ascending sequence positions that stay when the visual tokens ``visual_index`` [K] stay.

        int64 [S - V + K]; every non-visual token stays (SAFE-Pruner Algorithm 1).
        """
        device = visual_index.device
        before = torch.arange(0, self.visual.start, device=device)
        after = torch.arange(self.visual.stop, self.length, device=device)
        return torch.cat([before, visual_index + self.visual.start, after])

    def rows_after_pruning(self, span: Span, n_retained: int) -> slice:
        """Rows of the shortened input, ``n_retained`` visual tokens left, that hold ``span``.

        ``span`` are sequence positions of non-visual tokens: those never leave, so the answer
        needs no tensor. Raises ValueError for visual tokens, whose rows depend on the selection.
        """
        if self._overlaps_visual(span):
            raise ValueError(f'{span} contains visual tokens; look them up in kept_positions')
        n_pruned = self.n_visual - n_retained if span.start >= self.visual.stop else 0
        return slice(span.start - n_pruned, span.stop - n_pruned)

    def shortened(self, n_retained: int) -> TokenLayout:
        """Layout of the rows after pruning to ``n_retained`` visual tokens. What is left of the
        views has no grid any more: it counts as one row of tokens."""
        n_pruned = self.n_visual - n_retained

        def moved(span: Span) -> Span:
            rows = self.rows_after_pruning(span, n_retained)
            return Span(rows.start, rows.stop)

        return TokenLayout(
            (ViewGrid('retained', 1, n_retained),),
            Span(self.visual.start, self.visual.stop - n_pruned),
            moved(self.text),
            moved(self.action),
            self.length - n_pruned,
            self.prefill and Span(self.prefill.start, self.prefill.stop - n_pruned),
        )
