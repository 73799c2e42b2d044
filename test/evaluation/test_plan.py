"""Arguments of an evaluation: what is accepted, and how it is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from safe_pruner_ros.cli_common import read_policy_file
from safe_pruner_ros.core.catalog import alike
from safe_pruner_ros.evaluation.methods import (
    MethodSpec,
    parse_method,
    parse_settings,
    split_methods,
)
from safe_pruner_ros.evaluation.plan import (
    EvaluationPlan,
    build_cells,
    choose_seeds,
    parse_seeds,
)
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.policies.device import choose_device
from safe_pruner_ros.runtime.config_yaml import load_config

CONFIG = Path(__file__).parents[2] / 'config'
SPLITS = {'validation': range(500, 600), 'test': range(900, 1900)}


def test_seeds() -> None:
    assert parse_seeds('5:8') == (5, 6, 7)
    assert parse_seeds('5:10:2,6') == (5, 6, 7, 9)
    assert parse_seeds('7,5,7') == (5, 7)


@pytest.mark.parametrize('text', ['', 'a', '5:', '5:5', '8:5', '1:2:3:4', '1:9:0', '-3'])
def test_wrong_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='seed'):
        parse_seeds(text)


def test_split_follows_from_seeds_and_is_checked() -> None:
    assert choose_seeds('900:902', '', SPLITS) == ((900, 901), 'test')
    assert choose_seeds('510', 'validation', SPLITS) == ((510,), 'validation')
    assert choose_seeds('', 'test', SPLITS)[0] == tuple(range(900, 1100))
    assert choose_seeds('', '', SPLITS) == (tuple(range(500, 600)), 'validation')
    with pytest.raises(ValueError, match=r'not all in the test split, 900:1900'):
        choose_seeds('510', 'test', SPLITS)
    with pytest.raises(ValueError, match='trained on them'):
        choose_seeds('3:9', '', SPLITS)
    with pytest.raises(ValueError, match='trained on them'):
        choose_seeds('599:601', '', SPLITS)
    with pytest.raises(ValueError, match="unknown split 'train'"):
        choose_seeds('', 'train', SPLITS)


def test_settings_are_literals_or_text() -> None:
    found = parse_settings(
        ['alpha=0.4', 'norm=l1', 'deep_layers=0,-2,-1', 'max_keyframe_age=None']
    )
    assert found == {
        'alpha': 0.4,
        'norm': 'l1',
        'deep_layers': (0, -2, -1),
        'max_keyframe_age': None,
    }
    for wrong in ('alpha', '=3', 'alpha 0.4'):
        with pytest.raises(ValueError, match='name=value'):
            parse_settings([wrong])
    with pytest.raises(ValueError, match='twice'):
        parse_settings(['alpha=1', 'alpha=2'])


def test_method_with_settings() -> None:
    assert parse_method('fastv') == MethodSpec('fastv')
    assert parse_method('safe_pruner:tau=0.9,alpha=0.5') == MethodSpec(
        'safe_pruner', {'similarity_threshold': 0.9, 'alpha': 0.5}
    )
    found = parse_method(' safe_pruner : published, S=0,-1 , norm=l1,max_keyframe_age=None ')
    assert found.published and found.settings == {
        'deep_layers': (0, -1),
        'norm': 'l1',
        'max_keyframe_age': None,
    }
    assert parse_method('safe_pruner:S=-1').settings == {'deep_layers': (-1,)}
    # One name for one thing, however it was written; and the name can be read again.
    variant = 'safe_pruner:published,deep_layers=0,-1,max_keyframe_age=None,norm=l1'
    assert found.variant == variant and parse_method(variant) == found
    assert split_methods(['fastv,random', 'safe_pruner:tau=0.9,alpha=0.5']) == [
        'fastv',
        'random',
        'safe_pruner:tau=0.9,alpha=0.5',
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('magic:alpha=1', "unknown pruning method 'magic'"),
        ('fastv:alpha=1', r"method 'fastv' has no setting \['alpha'\]; it takes"),
        ('safe_pruner:', 'NAME:SETTING=VALUE'),
        ('safe_pruner:0.9', 'NAME:SETTING=VALUE'),
        ('safe_pruner:=1', 'NAME:SETTING=VALUE'),
        ('safe_pruner:tau=0.9,,', 'NAME:SETTING=VALUE'),
        ('safe_pruner:tau=0.9,similarity_threshold=1', 'similarity_threshold is given twice'),
        ('safe_pruner:retention_ratio=0.1', 'use --retention or safe_pruner@RATIO'),
        ('fastv@', 'NAME@RATIO'),
        ('fastv@half', 'NAME@RATIO'),
        ('fastv@1.5', r'\(0, 1\], got 1.5'),
        ('fastv@nan', r'\(0, 1\], got nan'),
        ('unpruned@0.3', "'unpruned' has no retention ratio"),
    ],
)
def test_wrong_methods_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text)


def test_settings_of_a_method_win_and_equal_cells_run_once() -> None:
    configured = {'safe_pruner': {'norm': 'l1', 'alpha': 0.7}}
    cells = build_cells(
        ['safe_pruner', 'safe_pruner:alpha=0.7', 'safe_pruner:alpha=1', 'safe_pruner:published'],
        [0.3],
        {'similarity_threshold': 0.4},
        configured,
    )
    names = ['safe_pruner', 'safe_pruner:alpha=1', 'safe_pruner:published']
    assert [cell.variant for cell in cells] == names  # alpha=0.7 is what is configured
    _, second, published = (cell.resolved() for cell in cells)
    assert (second['alpha'], second['norm'], second['similarity_threshold']) == (1, 'l1', 0.4)
    assert (published['alpha'], published['norm']) == (0.5, 'none')
    assert second['pruning_layer'] == 3  # defaults are part of the record


def test_cells_are_methods_times_ratios_but_unpruned_once() -> None:
    cells = build_cells(
        ['unpruned', 'safe_pruner', 'random'],
        [0.3, 0.1],
        {'pruning_layer': 2, 'random.pruning_layer': 4, 'alpha': 0.2},
    )
    assert [(cell.method, cell.retention_ratio) for cell in cells] == [
        ('unpruned', 1.0),
        ('safe_pruner', 0.3),
        ('safe_pruner', 0.1),
        ('random', 0.3),
        ('random', 0.1),
    ]
    assert cells[1].settings == {'alpha': 0.2, 'pruning_layer': 2, 'retention_ratio': 0.3}
    assert cells[3].settings == {'pruning_layer': 4, 'retention_ratio': 0.3}
    assert cells[0].settings == {'pruning_layer': 2}


def test_a_ratio_of_its_own_replaces_those_of_the_others() -> None:
    found = parse_method('safe_pruner@0.175:published,alpha=0.2')
    assert (found.method, found.retention_ratio) == ('safe_pruner', 0.175)
    assert found.variant == 'safe_pruner:published,alpha=0.2'  # results name the ratio beside it
    cells = build_cells(['random', 'fastv@0.25', 'fastv@0.1', 'unpruned'], [0.3, 0.2], {})
    assert [(cell.variant, cell.retention_ratio) for cell in cells] == [
        ('random', 0.3),
        ('random', 0.2),
        ('fastv', 0.25),
        ('fastv', 0.1),
        ('unpruned', 1.0),
    ]
    assert cells[2].settings == {'retention_ratio': 0.25}


def test_a_policy_file_configures_all_that_share_its_settings() -> None:
    arguments = argparse.Namespace(policy_file='embedded', checkpoint='', device='')
    _, configured = read_policy_file(arguments)
    assert list(configured) == ['diverse_forecast', 'safe_pruner']
    shared = set(configured['safe_pruner'])
    assert shared < set(configured['diverse_forecast'])
    for name in shared:
        assert configured['safe_pruner'][name] == configured['diverse_forecast'][name]
    assert alike('fastv') == ('fastv',)


def test_configured_settings_are_where_a_method_starts() -> None:
    configured = {'safe_pruner': {'alpha': 0.7, 'norm': 'l1', 'retention_ratio': 0.9}}
    safe, random = build_cells(['safe_pruner', 'random'], [0.3], {'alpha': 0.2}, configured)
    assert safe.settings == {'alpha': 0.2, 'norm': 'l1', 'retention_ratio': 0.3}
    assert random.settings == {'retention_ratio': 0.3}


@pytest.mark.parametrize(
    ('spellings', 'variant'),
    [
        (['tau=1', 'tau=1.0', 'tau=1e0'], 'similarity_threshold=1'),
        (['tau=0', 'tau=0.0'], 'similarity_threshold=0'),
        (['forecast=0', 'forecast=False', 'forecast=false'], 'forecast=False'),
        (['K=2', 'K=2.0'], 'pruning_layer=2'),
        (['max_keyframe_age=None'], 'max_keyframe_age=None'),
        (
            ['S=-4,-3,-2,-1', 'S=[-4.0, -3, -2, -1]', "S='-4, -3,-2,-1'"],
            'deep_layers=-4,-3,-2,-1',
        ),
        (['S=8', 'S=(8,)', "S='8'"], 'deep_layers=8'),
        (['tau=0.95'], 'similarity_threshold=0.95'),
    ],
)
def test_equal_settings_are_one_cell_under_one_name(spellings, variant) -> None:
    for spelling in spellings:
        assert parse_method(f'safe_pruner:{spelling}').variant == f'safe_pruner:{variant}'
    cells = build_cells([f'safe_pruner:{spelling}' for spelling in spellings], [0.3], {})
    assert [cell.variant for cell in cells] == [f'safe_pruner:{variant}']
    name, value = spellings[-1].split('=')
    again = build_cells(
        ['safe_pruner', f'safe_pruner:{spellings[0]}'], [0.3], parse_settings([f'{name}={value}'])
    )
    assert len(again) == 1  # from --set it is the same, too


def test_settings_of_methods_that_do_not_run_are_checked() -> None:
    with pytest.raises(ValueError, match="method 'fastv': pruning_layer must be a whole number"):
        build_cells(['random'], [0.3], {}, {'fastv': {'pruning_layer': 'deep'}})


@pytest.mark.parametrize(
    ('methods', 'ratios', 'settings', 'message'),
    [
        ([], [0.3], {}, 'no method given'),
        (['magic'], [0.3], {}, "unknown pruning method 'magic'"),
        (['random'], [], {}, 'no retention ratio'),
        (['random'], [0.0], {}, r'\(0, 1\], got 0.0'),
        (['random'], [1.4], {}, r'\(0, 1\], got 1.4'),
        (['random'], [float('nan')], {}, r'\(0, 1\], got nan'),
        (['random'], [0.3], {'alpha': 1}, r"none of the methods takes the setting \['alpha'\]"),
        (['random'], [0.3], {'safe_pruner.alpha': 1}, 'none of the methods'),
        (['random'], [0.3], {'retention_ratio': 1}, 'use --retention'),
        (['safe_pruner'], [0.3], {'alpha': 1.5}, 'alpha must be in'),
        (['safe_pruner:alpha=much'], [0.3], {}, "'safe_pruner': alpha must be .* got 'much'"),
        (['safe_pruner:tau=nan'], [0.3], {}, 'similarity_threshold must be a finite number'),
        (['safe_pruner:tau=True'], [0.3], {}, 'similarity_threshold must be .* got True'),
        (['safe_pruner:K=2.5'], [0.3], {}, 'pruning_layer must be a whole number, got 2.5'),
        (['safe_pruner:max_keyframe_age=often'], [0.3], {}, "a whole number, got 'often'"),
        (['safe_pruner:S=0,x'], [0.3], {}, "deep_layers must be whole numbers like .* got '0,x'"),
        (['safe_pruner:S=0,1.5'], [0.3], {}, r'deep_layers must be .* got \(0, 1.5\)'),
        (["safe_pruner:S='0,1.5'"], [0.3], {}, "deep_layers must be .* got '0,1.5'"),
        (['safe_pruner:forecast=2'], [0.3], {}, 'forecast must be True or False .* got 2'),
        (['random:seed=0.5'], [0.3], {}, 'seed must be a whole number, got 0.5'),
        (['safe_pruner'], [0.3], {'pruning_layer': 2.5}, 'pruning_layer must be a whole number'),
        (['safe_pruner'], [0.3], {'deep_weight': float('inf')}, 'deep_weight must be a finite'),
    ],
)
def test_wrong_cells_are_refused(methods, ratios, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_cells(methods, ratios, settings)


def test_jobs_go_scene_by_scene() -> None:
    cells = build_cells(['unpruned', 'random'], [0.5], {})
    plan = EvaluationPlan('pick_place', cells, (7, 8), asked_objects=(0, 1))
    jobs = list(plan.jobs())
    assert [job.seed for job in jobs] == [7] * 4 + [8] * 4
    assert [job.asked_object for job in jobs[:4]] == [0, 0, 1, 1]
    assert len({job.key for job in jobs}) == 8


def test_what_no_checkpoint_says_reaches_the_policy(monkeypatch) -> None:
    """A policy file of a big policy: `calibrate` once built it without its deployment."""
    config = load_config(CONFIG / 'robots/sim.yaml', CONFIG / 'policies/openvla_oft.yaml')
    source = PolicySource.of(config.policy)
    asked = {}
    monkeypatch.setattr(
        'safe_pruner_ros.evaluation.policy_source.build_policy', lambda *all: asked.update(all=all)
    )
    source.build('fastv', {'retention_ratio': 0.2})
    name, method, settings, _, device, deployment = asked['all']
    assert (name, method, settings, device) == (
        'openvla_oft', 'fastv', {'retention_ratio': 0.2}, str(choose_device('auto')),
    )  # fmt: skip
    assert deployment['chunk_size'] == 25 and deployment['views'] == (
        'head', 'left_wrist', 'right_wrist',
    )  # fmt: skip
    assert source.key != PolicySource('openvla_oft', device='auto').key
