"""What every policy does with its pruner. A backend says what one step is: `_run`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

from safe_pruner_ros.core.catalog import accepted_settings, build_pruner
from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.policies.policy import PolicyOutput
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput
from safe_pruner_ros.policies.trace import pruning_trace
from safe_pruner_ros.types import ActionChunk, Observation


class PrunedPolicy(ABC):
    """The pruner, its settings and the step count of the Policy protocol.

    ``causal``: a token of the decoder sees itself and earlier ones only; else all see all.
    ``method`` and ``settings`` as `core.catalog.build_pruner` takes them, for a decoder of
    ``n_layers`` layers.
    """

    causal = False

    def __init__(self, method: str, settings: Mapping[str, Any] | None, n_layers: int) -> None:
        self._method, self._settings = method, dict(settings or {})
        self._n_layers, self._step = n_layers, 0
        self._pruner = self._build_pruner(self._settings)
        self._updating = threading.Lock()

    def _build_pruner(self, settings: Mapping[str, Any]) -> Pruner:
        return build_pruner(self._method, self._n_layers, causal=self.causal, **settings)

    @abstractmethod
    def with_pruner(self, method: str, settings: Mapping[str, Any] | None = None) -> PrunedPolicy:
        """Another policy on the network of this one, under a fresh pruner: weights are in memory
        once, and nothing that a policy step leaves behind is shared, CUDA graphs included.

        Made by the constructor, so that state which is added later starts fresh, too. Raises
        ValueError as `core.catalog.build_pruner`.
        """

    @abstractmethod
    def _run(
        self, observation: Observation, pruner: Pruner, step: int
    ) -> tuple[DecoderOutput, ActionChunk, dict[str, float]]:
        """One step: decoder output, actions, latency by stage in a dict of its own. Changes
        nothing of the policy, and with the same ``step`` draws the same noise."""

    def predict(self, observation: Observation) -> PolicyOutput:
        pruner = self._pruner  # `update_pruner` may replace it meanwhile
        out, chunk, latency_ms = self._run(observation, pruner, self._step)
        # Only a step whose action is good may shape the next ones.
        began = perf_counter_ns()
        pruner.observe(out.context, out.plan, out.attention)
        observe_ms = (perf_counter_ns() - began) / 1e6
        self._step += 1
        latency_ms |= {'observe': observe_ms, 'total': latency_ms['total'] + observe_ms}
        return PolicyOutput(chunk, pruning_trace(out, pruner), latency_ms)

    def predict_unpruned(self, observation: Observation) -> PolicyOutput:
        pruner = build_pruner('unpruned', self._n_layers)
        out, chunk, latency_ms = self._run(observation, pruner, max(0, self._step - 1))
        return PolicyOutput(chunk, pruning_trace(out, pruner), latency_ms)

    def force_keyframe(self) -> None:
        self._pruner.force_keyframe()

    def update_pruner(self, **changes: Any) -> None:
        """Change settings of the method from the next policy step on.

        The memory starts anew, and doubt keeps every token: the next step is a key timestep, as
        after `force_keyframe`, which methods that remember no steps ignore. Only `reset` lifts
        that: a new episode begins as the method says. Settings that the method does not have are
        ignored; ValueError for a value out of range, and then nothing changes. May be called from
        several threads, a policy step running or not: no change gets lost.
        """
        accepted = accepted_settings(self._method)
        with self._updating:
            settings = {**self._settings, **{k: v for k, v in changes.items() if k in accepted}}
            pruner = self._build_pruner(settings)
            pruner.force_keyframe()
            self._pruner, self._settings = pruner, settings

    def forget_plans(self) -> None:  # noqa: B027  (chunks stand alone, unless a backend joins them)
        pass

    def reset(self) -> None:
        self._pruner.reset()
        self._step = 0
