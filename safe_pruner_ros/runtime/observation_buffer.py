"""Latest images, measured joints and instruction -> Observation, or NotReady with reasons.

Callbacks store, the worker takes snapshots, the control timer asks `readiness`; all thread safe.
Knows no policy and no clock: ``receive_ns`` and ``now_ns`` are readings of the node clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import BufferConfig, RobotConfig
from safe_pruner_ros.types import ArmState, CameraImage, Observation


@dataclass(frozen=True)
class NotReady:
    """Why there is no Observation; at least one reason, each naming its camera or joint source."""

    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        return '; '.join(str(reason) for reason in self.reasons)


@dataclass(frozen=True)
class Snapshot:
    """An Observation, the generation it belongs to, and warnings (old view, skew, ...)."""

    observation: Observation
    generation: int
    warnings: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class SourceStatistics:
    """Counts of one view or state source since the last `clear`. ``age_s`` is NaN before the first
    message, ``rate_hz`` (accepted messages over the last 2 s) too."""

    name: str
    accepted: int
    refused: Mapping[Code, int]
    age_s: float
    rate_hz: float
    last_refusal: Reason | None


class ObservationBuffer:
    def __init__(self, robot: RobotConfig, config: BufferConfig) -> None: ...

    # --- callbacks ---
    def store_image(self, image: CameraImage, receive_ns: int) -> Reason | None:
        """Keep an image, or return why it was refused (counted, never raised)."""
        raise NotImplementedError

    def store_joints(
        self,
        source: str,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        receive_ns: int,
    ) -> Reason | None:
        """Keep a message of the state source ``source`` (its config name), or return why not."""
        raise NotImplementedError

    def refuse(self, source: str, reason: Reason) -> None:
        """Count a message that conversion already refused (encoding, truncated, ...)."""
        raise NotImplementedError

    def set_instruction(self, text: str) -> Reason | None:
        """Set the instruction; a change bumps the generation.

        An empty, too long or unprintable text is refused *and* leaves no instruction: the arms hold
        instead of going on with the last one.
        """
        raise NotImplementedError

    # --- readers ---
    def snapshot(self, now_ns: int) -> Snapshot | NotReady:
        """The newest set of images and joints that belongs together."""
        raise NotImplementedError

    def readiness(self, now_ns: int) -> NotReady | None:
        """As `snapshot`, without building one; None means ready. Cheap: for the control timer."""
        raise NotImplementedError

    def warnings(self, now_ns: int) -> tuple[Reason, ...]:
        """What is reported but does not hold the arms."""
        raise NotImplementedError

    def state(self) -> ArmState | None:
        """Latest joints of all sources in layout order, stamped with the oldest; None: missing."""
        raise NotImplementedError

    @property
    def instruction(self) -> str:
        raise NotImplementedError

    @property
    def generation(self) -> int:
        """Changes when pending results must not be used any more."""
        raise NotImplementedError

    def bump_generation(self) -> int:
        """Make every result of an earlier snapshot void; returns the new generation."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget images and joints (time jump, reset), keep the instruction, bump the generation."""
        raise NotImplementedError

    def statistics(self, now_ns: int) -> tuple[SourceStatistics, ...]:
        """One entry per camera, then one per state source."""
        raise NotImplementedError
