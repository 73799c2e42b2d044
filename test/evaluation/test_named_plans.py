"""Plans are data that holds: every shipped one builds, and says what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_pruner_ros.core.catalog import METHODS, resolved_settings
from safe_pruner_ros.evaluation.methods import parse_method
from safe_pruner_ros.evaluation.named_plans import load_named_plan, plan_names
from safe_pruner_ros.evaluation.plan import build_cells
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.runtime.pruner_settings import stated_settings
from safe_pruner_ros.sim.tasks.catalog import TASKS

CONFIG = Path(__file__).parents[2] / 'config'

SPLITS = {'validation': range(500_000, 600_000), 'test': range(900_000, 1_000_000)}
CONFIGURED = {'safe_pruner': {'similarity_threshold': 0.5, 'norm': 'l1', 'quota_scope': 'per_view',
                              'match_scope': 'per_view', 'max_keyframe_age': 32,
                              'deep_layers': [-4, -3, -2, -1]}}  # fmt: skip


@pytest.mark.parametrize('name', plan_names())
def test_shipped_plans_build(name: str) -> None:
    for run in load_named_plan(name, SPLITS):
        assert run.task in TASKS and set(run.seeds) <= set(SPLITS[run.split])
        cells = build_cells(run.methods, run.retention, {}, {**CONFIGURED, **run.configured})
        n_unpruned = 'unpruned' in run.methods
        # No method of a plan is another one by another name.
        assert len(cells) == (len(run.methods) - n_unpruned) * len(run.retention) + n_unpruned


def test_the_grid_is_what_was_asked_for() -> None:
    runs = {run.name: run for run in load_named_plan('grid', SPLITS)}
    variants = runs.pop('pick_place_variants')
    assert set(runs) == set(TASKS) and variants.seeds == runs['pick_place'].seeds
    assert all(set(METHODS) <= set(run.methods) and run.split == 'test' for run in runs.values())
    assert runs['pick_place'].retention == (0.5, 0.3, 0.2, 0.1, 0.05)
    assert len(runs['pick_place'].seeds) == 300
    assert {
        (run.retention, len(run.seeds)) for task, run in runs.items() if task != 'pick_place'
    } == {((0.3, 0.1), 150)}


def test_at_equal_tokens_every_method_is_there() -> None:
    for run in load_named_plan('equal_tokens', SPLITS):
        specs = [parse_method(method) for method in run.methods]
        assert {spec.method for spec in specs} == set(METHODS)
        assert all(spec.retention_ratio for spec in specs if spec.method != 'unpruned')


@pytest.mark.parametrize(
    'name', sorted(set(plan_names()) - {'baseline_options', 'settings_over_seeds'})
)
def test_safe_pruner_is_compared_as_it_was_tuned(name: str) -> None:
    as_tuned = CONFIGURED['safe_pruner']
    if name == 'sweeps':  # begins where earlier weights had left it
        as_tuned = {**as_tuned, 'max_keyframe_age': 8, 'deep_layers': None}
        as_tuned = {key: value for key, value in as_tuned.items() if value is not None}
    for run in load_named_plan(name, SPLITS):
        assert run.configured['safe_pruner'] == as_tuned


def test_the_policy_file_of_safe_pruner_is_what_the_plans_have() -> None:
    config = load_config(CONFIG / 'robots/sim.yaml', CONFIG / 'policies/embedded_safe_pruner.yaml')
    stated = stated_settings(config.pruner, 'safe_pruner')
    planned = {**CONFIGURED['safe_pruner'], 'retention_ratio': stated['retention_ratio']}
    stated['keyframe_interval'] = stated['keyframe_interval'] or None  # YAML says 0 for none
    assert resolved_settings('safe_pruner', stated) == resolved_settings('safe_pruner', planned)


def test_an_alias_in_a_list_of_methods_stands_for_its_entries(tmp_path: Path) -> None:
    path = tmp_path / 'plan.yaml'
    text = RUN.replace('[random]', '[[random, fastv], unpruned, random]')
    path.write_text(f'runs: [{{{text}}}]')
    (run,) = load_named_plan(str(path), SPLITS)
    assert run.methods == ('random', 'fastv', 'unpruned')


def test_choices_are_made_on_validation_scenes() -> None:
    for name in ('sweeps', 'baseline_options', 'settings_over_seeds'):
        assert {run.split for run in load_named_plan(name, SPLITS)} == {'validation'}


def test_a_rehearsal_takes_few_validation_scenes() -> None:
    for run in load_named_plan('grid', SPLITS, episodes=2, split='validation'):
        assert run.seeds == (500_000, 500_001) and run.split == 'validation'


RUN = 'name: a, task: pick_place, methods: [random], retention: [0.3], split: test, episodes: 1'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[', 'not YAML'),
        ('about: nothing', 'no list "runs"'),
        ('runs: [{name: a}]', "run 'a': a run has"),
        (f'runs: [{{{RUN}, speed: 1}}]', 'may have'),
        (f'runs: [{{{RUN}, configured: [1]}}]', 'configured is METHOD'),
        (f'runs: [{{{RUN}, configured: {{magic: {{}}}}}}]', 'configured is METHOD'),
        (f'runs: [{{{RUN}, configured: {{random: 1}}}}]', 'configured is METHOD'),
        (f'runs: [{{{RUN}}}, {{{RUN}}}]', r"run names \['a'\] are there twice"),
        (f'runs: [{{{RUN.replace("split: test", "split: train")}}}]', 'split must be one of'),
        (f'runs: [{{{RUN.replace("episodes: 1", "episodes: 0")}}}]', 'episodes must be'),
        (f'runs: [{{{RUN.replace("episodes: 1", "episodes: 100001")}}}]', 'only 100000 seeds'),
        (f'runs: [{{{RUN.replace("[random]", "random")}}}]', 'methods must be a list'),
        (f'runs: [{{{RUN.replace("[0.3]", "0.3")}}}]', 'retention must be a list like'),
        (f'runs: [{{{RUN.replace("[0.3]", "[much]")}}}]', "retention must be .*'much'"),
        (f'runs: [{{{RUN.replace("[0.3]", "[true]")}}}]', 'retention must be .*True'),
        (f'runs: [{{{RUN.replace("split: test", "split: [test]")}}}]', 'split must be a word'),
        (f'runs: [{{{RUN.replace("task: pick_place", "task: [a]")}}}]', 'task must be a word'),
        (f'runs: [{{{RUN.replace("episodes: 1", "episodes: true")}}}]', 'episodes must be .*True'),
        (f'runs: [{{{RUN}, first: true}}]', 'first must be a whole number of at least 0'),
        (f'runs: [{{{RUN.replace("name: a", "name: ../a")}}}]', "folder under --out.*'../a'"),
        (f'runs: [{{{RUN.replace("name: a", "name: ..")}}}]', 'folder under --out'),
        (f'runs: [{{{RUN.replace("name: a", "name: /a")}}}]', 'folder under --out'),
        (f'runs: [{{{RUN.replace("name: a", "name: 5")}}}]', 'name must be a word, got 5'),
        (
            f'runs: [{{{RUN}, configured: {{fastv: {{alpha: 1}}}}}}]',
            r"configured: method 'fastv' has no setting \['alpha'\]",
        ),
        (
            f'runs: [{{{RUN}, configured: {{fastv: {{pruning_layer: 2.5}}}}}}]',
            "configured: method 'fastv': pruning_layer must be a whole number, got 2.5",
        ),
    ],
)
def test_wrong_plans_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / 'plan.yaml'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_named_plan(str(path), SPLITS)


def test_unknown_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'sweeps'"):
        load_named_plan('sweep', SPLITS)
