"""Recipes that cannot be trained are refused before anything is simulated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safe_pruner_ros.training.recipe import (
    RECIPES,
    DepthStage,
    TaskScenes,
    all_tasks_recipe,
    smoke_recipe,
)

SCENES = TaskScenes('pick_place', 160, 5, 4, 2)
RECIPE = replace(smoke_recipe(), tasks=(SCENES,))


@pytest.mark.parametrize(
    ('count', 'value'),
    [('pictures', 0), ('picture_episodes', -1), ('demonstrations', 0), ('corrections', -1)],
)
def test_counts_that_leave_a_stage_empty_are_refused(count: str, value: int) -> None:
    with pytest.raises(ValueError, match=f'{count} of pick_place must be at least .* got {value}'):
        replace(SCENES, **{count: value})


@pytest.mark.parametrize('name', ['n_layers', 'steps'])
def test_a_stage_without_steps_or_layers_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f'{name} of a stage must be at least 1, got 0'):
        replace(DepthStage(2, 3, 2e-3, 1e-3), **{name: 0})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'tasks': ()}, '0 tasks and 2 stages'),
        ({'stages': (), 'dagger_before_stages': ()}, '1 tasks and 0 stages'),
        ({'dagger_before_stages': (0,)}, 'before stage 0 there is no policy'),
        ({'dagger_before_stages': (2,)}, r'ascending stages of \[1\], got \[2\]'),
        ({'dagger_before_stages': (1, 1)}, r'got \[1, 1\]'),
        ({'tasks': (replace(SCENES, corrections=0),)}, r'use dagger_before_stages=\(\) for none'),
        ({'tasks': (replace(SCENES, corrections=2001),)}, 'holds 2000 scenes, asked for 2001'),
        ({'tasks': (replace(SCENES, demonstrations=5001),)}, 'holds 5000 scenes'),
        ({'correction_share': 1.0}, r'must be in \[0, 1\), got 1.0'),
        ({'stages': smoke_recipe().stages[::-1]}, r'may only grow .* got \[4, 2\]'),
    ],
)
def test_recipes_that_cannot_run_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


def test_a_recipe_may_do_without_corrections() -> None:
    replace(RECIPE, dagger_before_stages=(), tasks=(replace(SCENES, corrections=0),))


def test_processes_that_would_change_the_batches_are_refused() -> None:
    recipe = all_tasks_recipe()
    for processes in (1, 2, 4, 64):
        recipe.check_processes(processes)
    for processes, fitting in ((3, 2), (6, 4), (65, 64), (128, 64)):
        with pytest.raises(ValueError, match=f'by {processes} processes; use {fitting}$'):
            recipe.check_processes(processes)
    assert {name: make(0).fitting_processes(6) for name, make in RECIPES.items()} == {
        'all_tasks': 4,
        'pick_place': 4,
        'smoke': 4,
    }
