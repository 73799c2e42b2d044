"""The recipe's numbers do not depend on how many processes train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_training
from helpers.tiny_training import CONFIG, RECIPE

from safe_pruner_ros.training import imitation, parallel
from safe_pruner_ros.training.dataset import DemonstrationSet
from safe_pruner_ros.training.recipe import DepthStage

POLICY_SEED = 2  # of the shard of corrections, which a frame shows as its second joint


@pytest.mark.parametrize('processes', [1, 2, 3, 64])
def test_shares_sum_to_the_total_and_differ_by_one_at_most(processes: int) -> None:
    for total in (22, 64, 384):
        shares = [parallel.share(total, rank, processes) for rank in range(processes)]
        assert sum(shares) == total
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize('processes', [1, 2, 4, 64])
def test_every_number_of_processes_samples_as_many_corrections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """A step of the shipped recipe's batch: 22 of 64 are corrections, with two processes 11 of 32
    each, as the shipped weights were trained."""
    tiny_training.write_run(tmp_path)
    recipe = replace(RECIPE, batch=64, stages=(DepthStage(2, 1, 1e-3, 1e-3), RECIPE.stages[1]))
    seen: list[torch.Tensor] = []
    draw = DemonstrationSet.batch

    def batch(self: DemonstrationSet, *args: object) -> dict[str, torch.Tensor]:
        made = draw(self, *args)  # type: ignore[arg-type]
        seen.append(made['proprioception'][:, 1])
        return made

    monkeypatch.setattr(DemonstrationSet, 'batch', batch)
    monkeypatch.setattr(imitation, 'average_gradients', lambda module, processes: None)
    for rank in reversed(range(processes)):  # rank 0 saves
        imitation.train_stage(rank, processes, recipe, 0, CONFIG, tmp_path)
    assert sum(len(sources) for sources in seen) == 64
    corrections = [int((sources == POLICY_SEED).sum()) for sources in seen]
    assert sum(corrections) == 22
    assert max(corrections) - min(corrections) <= 1


def test_two_ranks_have_the_mean_gradient_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halves of a batch on two ranks, against all of it on one. Each made-up frame shows as many
    object patches, so also the grounding loss is a mean of equal parts."""
    tiny_training.write_run(tmp_path)
    statistics = {
        name: torch.from_numpy(values)
        for name, values in imitation.torch_load_statistics(tmp_path).items()
    }
    whole = tiny_training.demonstrations(tmp_path).batch(np.random.default_rng(0), 8, 3)

    def learner_after(rows: slice) -> imitation.Learner:
        learner, _ = imitation.load_learner(RECIPE, 0, CONFIG, statistics, tmp_path, 'cpu')
        part = {name: values[rows] for name, values in whole.items()}
        sum(imitation.losses(learner, part, statistics).values()).backward()
        return learner

    first, second, one = (learner_after(rows) for rows in (slice(4), slice(4, 8), slice(8)))

    def add_the_other_rank(flat: torch.Tensor) -> None:
        other = [p.grad.flatten() for p in second.trained.parameters() if p.grad is not None]
        flat += torch.cat(other)

    monkeypatch.setattr(parallel.dist, 'all_reduce', add_the_other_rank)
    parallel.average_gradients(first.trained, 2)
    for mean, expected in zip(first.trained.parameters(), one.trained.parameters(), strict=True):
        torch.testing.assert_close(mean.grad, expected.grad, rtol=1e-4, atol=1e-6)
