"""One method name, one set of settings, whoever runs it: the node, or an evaluation."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pytest

from safe_pruner_ros.cli_common import read_config
from safe_pruner_ros.core.catalog import METHODS, accepted_settings, alike, resolved_settings
from safe_pruner_ros.evaluation.plan import build_cells
from safe_pruner_ros.policies.catalog import CAUSAL
from safe_pruner_ros.runtime.config import ConfigError, PrunerConfig
from safe_pruner_ros.runtime.config_parameters import override, parameter_specs
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.runtime.pruner_settings import (
    effective_settings,
    for_method,
    stated_settings,
)

CONFIG = Path(__file__).parents[2] / 'config'
SIM = CONFIG / 'robots' / 'sim.yaml'
POLICIES = ('embedded', 'openvla', 'openvla_oft', 'cogact', 'pi05')

# What the shipped policy runs with: every measured number of it stands on these.
SHIPPED = {
    'retention_ratio': 0.25,
    'pruning_layer': 3,
    'similarity_threshold': 0.75,
    'alpha': 0.5,
    'deep_weight': 1.0,
    'variant': 'paper',
    'deep_layers': None,
    'norm': 'l1',
    'match_scope': 'per_view',
    'quota_scope': 'joint',
    'max_keyframe_age': 32,
    'keyframe_interval': 0,
    'forecast': True,
    'certain': 0.25,
    'early_queries': 'prefill',
    'full_first_step': False,
}
BIG = {
    'retention_ratio': 0.3,
    'pruning_layer': 3,
    'similarity_threshold': 0.92,
    'alpha': 0.5,
    'deep_weight': 1.0,
    'variant': 'paper',
    'deep_layers': None,
    'norm': 'l1',
    'match_scope': 'per_view',
    'quota_scope': 'per_view',
    'max_keyframe_age': 16,
    'keyframe_interval': 0,
    'forecast': True,
}


def shipped(policy: str):
    return load_config(SIM, CONFIG / 'policies' / f'{policy}.yaml')


def test_what_the_shipped_files_run_with():
    assert effective_settings(shipped('embedded').pruner) == SHIPPED
    for policy in POLICIES[1:]:
        assert effective_settings(shipped(policy).pruner) == BIG, policy


def test_the_big_policies_leave_no_choice_between_methods_open():
    for policy in POLICIES:
        stated = stated_settings(shipped(policy).pruner)
        assert set(stated) == set(accepted_settings(shipped(policy).pruner.method)), policy


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('method', METHODS)
def test_node_and_evaluation_run_a_method_alike(policy, method):
    """The node is told the method by a parameter, an evaluation by --methods."""
    config = shipped(policy)
    ratio = config.pruner.retention_ratio
    told = override(config, {'pruner.method': method}).pruner
    node = effective_settings(told, causal=policy in CAUSAL)
    _, configured = read_config(Namespace(policy_file=policy, checkpoint='', device=''), 'sim')
    causal = policy in CAUSAL
    (cell,) = build_cells([method], [ratio], {}, configured, causal=causal)
    assert node == cell.resolved()
    if method not in alike(config.pruner.method):
        own = {'retention_ratio': ratio} if 'retention_ratio' in node else {}
        assert node == resolved_settings(method, own, causal=causal)


def test_a_file_speaks_for_its_own_method_and_those_like_it():
    config = shipped('embedded')
    divprune = override(config, {'pruner.method': 'divprune'}).pruner
    assert effective_settings(divprune)['pruning_layer'] == 0  # not diverse_forecast's 3
    fastv = override(config, {'pruner.method': 'fastv', 'pruner.quota_scope': 'per_view'}).pruner
    assert effective_settings(fastv)['quota_scope'] == 'per_view'  # a parameter does count
    alike_one = override(config, {'pruner.method': 'safe_pruner'}).pruner
    assert effective_settings(alike_one)['similarity_threshold'] == 0.75
    assert for_method(config.pruner, 'diverse_forecast') == config.pruner
    with pytest.raises(ConfigError, match="unknown pruning method 'magic'; choose from"):
        override(config, {'pruner.method': 'magic'})


@pytest.mark.parametrize('method', METHODS)
def test_nothing_set_is_the_default_of_the_method(method):
    nothing = PrunerConfig(method=method)
    settings = effective_settings(nothing)
    ratio = {'retention_ratio': 0.3} if 'retention_ratio' in settings else {}
    # 0 and None both say "never" of ages and intervals.
    never = {name for name, value in settings.items() if value == 0 and value is not False}
    expected = resolved_settings(method, ratio)
    assert {k: v or 0 if k in never else v for k, v in expected.items()} == settings


def test_own_defaults_have_a_number_that_ros_can_carry_and_help_that_says_so():
    specs = {spec.name: spec for spec in parameter_specs(shipped('openvla'))}
    own = {item.name: item.metadata['own'] for item in fields(PrunerConfig)}
    differing = {name for name, value in own.items() if value is not None}
    assert differing == {
        'pruning_layer', 'similarity_threshold', 'norm', 'match_scope', 'quota_scope',
        'max_keyframe_age', 'queries', 'semantic_queries', 'early_queries',
    }  # fmt: skip
    for name in differing:
        spec = specs[f'pruner.{name}']
        assert f"{own[name]}: the method's own" in spec.doc
        if not isinstance(own[name], str):
            assert spec.minimum == own[name]  # else rclpy would refuse to declare it


def test_set_back_to_the_methods_own():
    config = override(shipped('embedded'), {'pruner.similarity_threshold': -1})
    assert effective_settings(config.pruner)['similarity_threshold'] == 0.75  # also its own
    config = override(shipped('openvla'), {'pruner.norm': 'default', 'pruner.pruning_layer': -1})
    assert effective_settings(config.pruner)['norm'] == 'none'
    assert effective_settings(config.pruner)['pruning_layer'] == 3
    for value in (-0.5, -2, 1.5):
        with pytest.raises(ConfigError, match=r"in \[0, 1\], or -1 for the method's own, got"):
            override(config, {'pruner.similarity_threshold': value})


@pytest.mark.parametrize(
    ('method', 'name'),
    [
        ('fastv', 'queries'), ('vla_pruner', 'semantic_queries'),
        ('diverse_forecast', 'early_queries'),
    ],
)  # fmt: skip
def test_who_is_asked_depends_on_the_decoder_until_somebody_says(method, name):
    pruner = override(shipped('openvla'), {'pruner.method': method}).pruner
    assert name not in stated_settings(pruner)
    assert effective_settings(pruner, causal=True)[name] == 'last'
    assert effective_settings(pruner)[name] == 'prefill'
    said = override(shipped('openvla'), {'pruner.method': method, f'pruner.{name}': 'prefill'})
    assert effective_settings(said.pruner, causal=True)[name] == 'prefill'


def test_minus_one_can_be_a_real_value():
    """A cosine may be -1: only the number that a field calls its own says "not set"."""
    pruner = PrunerConfig(method='specprune_vla', change_threshold=-1.0)
    assert stated_settings(pruner)['change_threshold'] == -1.0
