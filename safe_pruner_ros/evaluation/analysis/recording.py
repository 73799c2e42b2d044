"""Attention of every layer at every policy step of unpruned episodes, on disk.

The policy runs unpruned, so what is recorded is what pruning would have to guess. One .npz file
an episode; a run that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from safe_pruner_ros.core.pruner import (
    Pruner,
    SaliencyRequest,
    StepAttention,
    StepContext,
    StepPlan,
)
from safe_pruner_ros.core.tokens import QueryGroup, Span, TokenLayout, ViewGrid
from safe_pruner_ros.evaluation.execution import run_jobs
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.results import ResultsError
from safe_pruner_ros.evaluation.rollout import run_episode
from safe_pruner_ros.evaluation.worker import warm_environment
from safe_pruner_ros.policies.embedded import EmbeddedPolicy, load_weights
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.expert import ScriptedExpert

QUERIES: tuple[QueryGroup, ...] = ('action', 'last', 'text', 'prefill')
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """One unpruned episode of T policy steps, V visual tokens, L decoder layers.

    ``features`` [T, V, D]: what tokens are matched by. ``saliency``: query group -> [T, L, V]
    (Eq. 1 and 2). ``subtasks`` [T]: what the scripted expert would be doing.
    """

    seed: int
    success: bool
    views: tuple[ViewGrid, ...]
    features: Float32
    saliency: Mapping[QueryGroup, Float32]
    subtasks: tuple[str, ...]

    @property
    def n_steps(self) -> int:
        return len(self.features)

    @property
    def n_layers(self) -> int:
        return int(self.saliency['action'].shape[1])

    def layout(self) -> TokenLayout:
        """Visual tokens only: all that ranking and matching look at."""
        count = sum(view.n_tokens for view in self.views)
        return TokenLayout(
            self.views, Span(0, count), Span(count, count), Span(count, count), count
        )

    def step(self, step: int) -> tuple[StepContext, StepAttention]:
        """A policy step as a pruner would have seen it, every layer measured."""
        measured = {
            SaliencyRequest(layer, queries): torch.from_numpy(values[step, layer])
            for queries, values in self.saliency.items()
            for layer in range(self.n_layers)
        }
        features = torch.from_numpy(self.features[step])
        return StepContext(features, self.layout(), measured, '', step), StepAttention(measured)


class AttentionProbe:
    """A pruner that keeps every token and looks at every layer."""

    def __init__(self, n_layers: int) -> None:
        self.method = 'unpruned'
        self.retention_ratio = 1.0
        self.similarity_threshold = float('nan')
        self.pruning_layer = 0
        self.shallow_requests: tuple[SaliencyRequest, ...] = ()
        self.deep_requests = tuple(
            SaliencyRequest(layer, queries) for queries in QUERIES for layer in range(n_layers)
        )
        self.features: list[Float32] = []
        self.saliency: list[list[Float32]] = []

    def plan(self, context: StepContext) -> StepPlan:
        return StepPlan(retained=None)

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        self.features.append(context.features.cpu().numpy())
        self.saliency.append([attention.saliency[r].cpu().numpy() for r in self.deep_requests])

    def force_keyframe(self) -> None: ...

    def reset(self) -> None:
        self.features, self.saliency = [], []


class ProbedPolicy(EmbeddedPolicy):
    """The embedded policy, unpruned, under an `AttentionProbe`."""

    probe: AttentionProbe

    def _build_pruner(self, settings: Mapping[str, Any]) -> Pruner:
        self.probe = AttentionProbe(self._n_layers)
        return self.probe


def record_episode(
    policy: ProbedPolicy, env: DualArmEnv, expert: ScriptedExpert, seed: int
) -> Recording:
    """One episode of ``seed``, unpruned."""
    result = run_episode(policy, env, seed, subtask=lambda: expert.subtask(env.target_index))
    if result.error or not result.subtasks:
        raise RuntimeError(f'seed {seed}: the unpruned policy failed: {result.error}')
    probe, layers = policy.probe, len(policy.model.layers)
    stacked = np.array(probe.saliency, dtype=np.float32)  # [T, groups * L, V]
    stacked = stacked.reshape(len(result.subtasks), len(QUERIES), layers, -1)
    return Recording(
        seed=seed,
        success=result.success,
        views=policy.model.layout.views,
        features=np.stack(probe.features).astype(np.float32),
        saliency={queries: stacked[:, k] for k, queries in enumerate(QUERIES)},
        subtasks=result.subtasks,
    )


@dataclass(frozen=True)
class RecordingJob:
    task: str
    policy: PolicySource
    seed: int
    path: Path
    card: Mapping[str, Any]


_policies: dict[str, ProbedPolicy] = {}


def run_recording(job: RecordingJob) -> dict[str, Any]:
    """Record one episode into its file, in the process that joblib chose. Raises OtherCheckpoint
    when the weights here are not those of the job."""
    torch.set_num_threads(1)
    key, checkpoint = job.policy.key, job.policy.checkpoint
    if key not in _policies:
        with job.policy.unchanged():
            model = load_weights(Path(checkpoint) if checkpoint else None)
        _policies[key] = ProbedPolicy(model, 'unpruned')
    policy = _policies[key]
    size = policy.model.config.image_size
    recording = record_episode(policy, *warm_environment(job.task, size, size), job.seed)
    save(recording, job.path, job.card)
    return {'seed': job.seed, 'steps': recording.n_steps, 'success': recording.success}


def save(recording: Recording, path: Path, card: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    facts = {
        'card': card,
        'seed': recording.seed,
        'success': recording.success,
        'views': [[view.name, view.rows, view.cols] for view in recording.views],
        'subtasks': recording.subtasks,
    }
    part = path.with_suffix('.part')
    with part.open('wb') as file:
        np.savez(
            file,
            facts=np.array(json.dumps(facts)),
            features=recording.features,
            **{f'saliency_{queries}': values for queries, values in recording.saliency.items()},
        )
    part.replace(path)


def load(path: Path, card: Mapping[str, Any] | None = None) -> Recording:
    """Read a recording; ResultsError when it is broken or, with ``card``, of something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays['facts']))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ResultsError(f'{path} is not a recording ({error}); delete it') from error
    if card is not None and facts['card'] != dict(card):
        raise ResultsError(
            f'{path} was recorded with {facts["card"]}, now {dict(card)}; choose another folder'
        )
    return Recording(
        seed=facts['seed'],
        success=facts['success'],
        views=tuple(ViewGrid(*view) for view in facts['views']),
        features=arrays['features'],
        saliency={queries: arrays[f'saliency_{queries}'] for queries in QUERIES},
        subtasks=tuple(facts['subtasks']),
    )


def collect(
    folder: Path,
    seeds: Sequence[int],
    task: str = 'pick_place',
    policy: PolicySource | None = None,
    n_jobs: int = 0,
) -> Iterator[Recording]:
    """The recordings of ``seeds``, those that ``folder`` lacks made first. ``policy``: an embedded
    one, None for the one that ships."""
    policy = (policy or PolicySource()).pinned()
    card = {'task': task, 'checkpoint': policy.identity['checkpoint']}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {seed: folder / f'{seed}.npz' for seed in seeds}
    waiting = [
        RecordingJob(task, policy, seed, path, card)
        for seed, path in paths.items()
        if not path.is_file()
    ]
    with tqdm(total=len(paths), initial=len(paths) - len(waiting), unit='episode') as bar:
        for _ in run_jobs(run_recording, waiting, n_jobs):
            bar.update()
    for path in paths.values():
        yield load(path, card)
