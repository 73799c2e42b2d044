"""What one camera or state source delivered: accepted, refused, rate, age."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.stamps import NS_PER_S, seconds

RATE_WINDOW_NS = 2 * NS_PER_S


@dataclass(frozen=True)
class SourceStatistics:
    """Counts of one view or state source since the start. ``age_s`` and ``rate_hz`` (accepted
    messages over the last 2 s) are NaN before the first message."""

    name: str
    accepted: int
    refused: Mapping[Code, int]
    age_s: float
    rate_hz: float
    last_refusal: Reason | None


class SourceCounter:
    """Counts behind a SourceStatistics. Not thread safe: its owner locks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last_refusal: Reason | None = None
        self._accepted = 0
        self._refused: Counter[Code] = Counter()
        self._receive_ns: deque[int] = deque(maxlen=2048)

    def accept(self, receive_ns: int) -> None:
        self._accepted += 1
        self._receive_ns.append(receive_ns)

    def refuse(self, reason: Reason) -> Reason:
        self._refused[reason.code] += 1
        self.last_refusal = reason
        return reason

    def clear(self) -> None:
        """The data is gone, the clock may differ: rates start anew, counts go on."""
        self.last_refusal = None
        self._receive_ns.clear()

    def statistics(self, now_ns: int, age_s: float) -> SourceStatistics:
        recent = [stamp for stamp in self._receive_ns if now_ns - stamp <= RATE_WINDOW_NS]
        rate_hz = float('nan')
        if self._receive_ns:
            # Since the first message, but over at least one second: one message is no rate.
            span_ns = min(RATE_WINDOW_NS, max(now_ns - self._receive_ns[0], NS_PER_S))
            rate_hz = len(recent) / seconds(span_ns)
        refused = dict(self._refused)
        return SourceStatistics(
            self.name, self._accepted, refused, age_s, rate_hz, self.last_refusal
        )
