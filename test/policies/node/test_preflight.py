"""`safe-pruner preflight` without ROS topics: what it accepts, names and exits with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers.fake_policy import FakePolicy

from safe_pruner_ros.policies.embedded import SHIPPED_WEIGHTS, load_weights, save_weights
from safe_pruner_ros.policies.policy import NoActionError, PolicyOutputError, PolicySpec
from safe_pruner_ros.ros.startup import build_configured_policy, describe_timing, warm_up
from safe_pruner_ros.runtime.config import ConfigError
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.runtime.preflight import refuse_misfits

CONFIG = Path(__file__).parents[3] / 'config'


def test_a_checkpoint_that_fits_passes_every_question(tiny_policy, preflight) -> None:
    code, out = preflight('--policy-file', str(tiny_policy.file), '--topics', 'off')
    assert code == 0, out
    assert 'PROBLEM' not in out and out.endswith('files fit; topics not checked\n')
    subjects = re.findall(r'^OK +(\w+):', out, flags=re.MULTILINE)
    assert {'robot', 'pruner', 'names', 'config', 'deployment', 'statistics'} <= set(subjects)
    assert {'tokenizer', 'weights', 'memory'} <= set(subjects)
    assert re.search(rf'{tiny_policy.folder} needs 0.0\d GB on cpu as float32', out)
    assert "views ['head', 'left_wrist', 'right_wrist']" in out and '4 of 8 actions' in out


def test_every_problem_is_told_at_once_and_as_json(tiny_oft, preflight) -> None:
    tiny_oft.edit('views: [head, left_wrist, right_wrist]', 'views: [head, belly]')
    tiny_oft.edit('period_s: 0.1', 'period_s: 0.1\n    statistics_key: bridge')
    (tiny_oft.folder / 'tokenizer.json').unlink()
    shard = tiny_oft.folder / 'model-00002-of-00003.safetensors'
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out = preflight('--policy-file', str(tiny_oft.file), '--topics', 'off', '--json')
    report = json.loads(out)
    assert code == 1 and report['ok'] is False and report['policy'] == 'openvla_oft'
    problems = {f['subject']: f['text'] for f in report['findings'] if f['level'] == 'problem'}
    assert set(problems) >= {'names', 'statistics', 'tokenizer', 'weights'}
    assert "needs the views ['belly']" in problems['names']
    assert "['head', 'left_wrist', 'right_wrist']" in problems['names']
    assert "no statistics for 'bridge'; choose from ['lab_robot']" in problems['statistics']
    assert 'take it from an official OpenVLA checkpoint' in problems['tokenizer']
    assert 'copied in part?' in problems['weights']


def test_a_folder_trained_with_random_crops_needs_the_crop(tiny_oft, preflight) -> None:
    """Upstream's training says so in the name of the folder."""
    folder = tiny_oft.folder.rename(tiny_oft.folder.with_name('x--image_aug'))
    tiny_oft.edit(f'checkpoint: {tiny_oft.folder}', f'checkpoint: {folder}')
    arguments = ('--policy-file', str(tiny_oft.file), '--topics', 'off')
    code, out = preflight(*arguments)
    assert code == 1 and '1 problem' in out
    assert re.search(
        '^PROBLEM  deployment: .*x--image_aug was trained with random crops.*crop_area is 1.*'
        'set image_chain.crop_area to 0.9, or rename the folder',
        out,
        re.MULTILINE,
    )
    with pytest.raises(ValueError, match='trained with random crops'):
        refuse_misfits(load_config(CONFIG / 'robots' / 'sim.yaml', tiny_oft.file))
    tiny_oft.edit('period_s: 0.1', 'period_s: 0.1\n    image_chain: {crop_area: 0.9}')
    code, out = preflight(*arguments)
    assert code == 0, out


def test_an_odd_file_does_not_hide_the_rest(tiny_oft, preflight, monkeypatch) -> None:
    """What no check foresaw."""

    def fail(*_: object) -> None:
        raise TypeError('unhashable')

    monkeypatch.setattr('safe_pruner_ros.policies.openvla.files.read_size', fail)
    (tiny_oft.folder / 'tokenizer.json').write_text('{')
    code, out = preflight('--policy-file', str(tiny_oft.file), '--topics', 'off')
    assert code == 1 and out.count('TypeError') == 1  # many questions need that file; told once
    assert re.search('^PROBLEM  config: TypeError: .*official checkpoint', out, re.MULTILINE)
    assert re.search('^PROBLEM  tokenizer: .*not a readable tokenizer', out, re.MULTILINE)


def test_wrong_units_are_found_in_the_statistics(tiny_oft, preflight) -> None:
    """Percent for a closed fraction, degrees for radians; a small overshoot is only a note."""
    path = tiny_oft.folder / 'dataset_statistics.json'
    statistics = json.loads(path.read_text())
    action = statistics['lab_robot']['action']
    action['q99'] = [100.0 if value == 1.0 else 180.0 for value in action['q99']]
    path.write_text(json.dumps(statistics))
    tiny_oft.edit('joint_1, semantics: delta', 'joint_1, semantics: absolute')
    _, out = preflight('--policy-file', str(tiny_oft.file), '--topics', 'off')
    lines = [line for line in out.splitlines() if 'units:' in line]
    assert len(lines) == 4 and all(line.startswith('PROBLEM') for line in lines)
    assert "'astribot_gripper_left_joint_L1' from 0 to 100" in lines[1]
    assert 'correct scale and offset' in lines[0] and '-3 to 3 rad' in lines[0]
    action['q01'] = [-1.0 if value == 0.0 else value for value in action['q01']]
    action['q99'] = [1.0 if value == 100.0 else 3.2 for value in action['q99']]
    path.write_text(json.dumps(statistics))
    _, out = preflight('--policy-file', str(tiny_oft.file), '--topics', 'off')
    assert "'astribot_gripper_left_joint_L1' from -1 to 1" in out and '2 problems' in out
    action['q01'] = [0.0 if value == -1.0 else value for value in action['q01']]
    path.write_text(json.dumps(statistics))
    code, out = preflight('--policy-file', str(tiny_oft.file), '--topics', 'off')
    assert code == 0 and out.count('NOTE     units') == 2


def test_cameras_of_the_training_that_are_not_named_are_noted(tiny_pi05, preflight) -> None:
    config = tiny_pi05.folder / 'config.json'
    values = json.loads(config.read_text())
    values['input_features'] = {f'observation.images.{name}': {} for name in ('front', 'left')}
    config.write_text(json.dumps(values))
    tiny_pi05.edit('views: [head, left_wrist, right_wrist]', 'views: [head, left_wrist]')
    code, out = preflight('--policy-file', str(tiny_pi05.file), '--topics', 'off')
    assert code == 0 and 'views:' not in out
    tiny_pi05.edit('views: [head, left_wrist]', 'views: [head]')
    code, out = preflight('--policy-file', str(tiny_pi05.file), '--topics', 'off')
    assert code == 0 and re.search(r"^NOTE +views: .*\['front', 'left'\]", out, re.MULTILINE)


def test_the_shipped_policy_passes_and_wrong_files_are_named(preflight, tmp_path) -> None:
    code, out = preflight('--topics', 'off')
    assert code == 0 and 'the shipped weights, 3 views' in out
    code, out = preflight('--topics', 'off', '--robot-file', 'aloha')
    assert code == 1 and 'only in the robot' in out
    code, out = preflight('--topics', 'off', '--policy-file', 'pi05')
    assert code == 1 and 'ships no weights; give the folder' in out
    code, out = preflight('--topics', 'off', '--policy-file', 'pi06')
    assert code == 1 and "'pi05'" in out
    code, out = preflight(
        '--topics', 'off', '--policy-file', 'pi05', '--checkpoint', str(tmp_path / 'no')
    )
    assert code == 1 and 'does not exist; give the folder of a pi05 checkpoint' in out
    (tmp_path / 'empty').mkdir()
    for policy in ('openvla', 'openvla_oft', 'cogact', 'pi05'):
        code, out = preflight(
            '--topics', 'off', '--policy-file', policy, '--checkpoint', str(tmp_path / 'empty')
        )
        assert code == 1 and f'{tmp_path}/empty is empty; give the folder that' in out
        assert '1 problem' in out  # not one for each file that is missing


def test_shipped_weights_move_no_real_robot(preflight, tmp_path) -> None:
    """Preflight and configure both refuse; a dry run, a simulator and own weights are fine."""
    robot = (CONFIG / 'robots' / 'astribot_s1.yaml').read_text()
    real = tmp_path / 'real.yaml'
    real.write_text(robot.replace('dry_run: true', 'dry_run: false'))
    copied, own = tmp_path / 'mine.safetensors', tmp_path / 'own.safetensors'
    shutil.copy(SHIPPED_WEIGHTS, copied)
    model = load_weights()
    model.bos.data += 0.01
    save_weights(model, own, {})

    def refused(checkpoint: str, **overrides: object) -> str:
        values = {'policy.checkpoint': checkpoint, **overrides}
        config = load_config(real, CONFIG / 'policies' / 'embedded.yaml', values)
        try:
            build_configured_policy(config)
        except ConfigError as error:
            return str(error)
        return ''

    for checkpoint in ('', str(SHIPPED_WEIGHTS), str(copied)):
        text = refused(checkpoint)
        assert "trained in simulation only and must not move robot 'astribot_s1'" in text
        assert all(move in text for move in ('Set it to true', 'policy.checkpoint', 'simulated'))
    assert refused('', **{'robot.dry_run': True}) == ''
    assert refused('', **{'robot.simulated': True}) == ''
    assert refused(str(own)) == ''
    code, out = preflight('--topics', 'off', '--robot-file', str(real))
    assert code == 1 and 'PROBLEM  checkpoint: the shipped weights were trained in sim' in out
    code, out = preflight('--topics', 'off', '--robot-file', 'astribot_s1')
    assert code == 0, out


def test_a_urdf_that_is_not_there_is_found_before_the_node_is(preflight, tmp_path) -> None:
    robot = tmp_path / 'robot.yaml'
    text = (CONFIG / 'robots' / 'sim.yaml').read_text()
    robot.write_text(text.replace('urdf: sim.urdf', 'urdf: nosuch.urdf'))
    code, out = preflight('--topics', 'off', '--robot-file', str(robot))
    assert code == 1 and re.search('^PROBLEM  urdf: .*no URDF at .*nosuch.urdf; corr', out, re.M)
    assert out.endswith('1 problem; topics not checked\n')
    robot.write_text(text.replace('left_tcp', 'left_tpc'))
    code, out = preflight('--topics', 'off', '--robot-file', str(robot))
    assert code == 1 and "has no links ['left_tpc']; it has" in out
    with pytest.raises(ConfigError, match="no links \\['left_tpc'\\]"):
        build_configured_policy(load_config(robot, CONFIG / 'policies' / 'embedded.yaml'))
    assert 'OK       urdf: sim.urdf has the links' in preflight('--topics', 'off')[1]


def test_timing_is_told_in_numbers(preflight, tiny_oft) -> None:
    """From files alone what there is room for; with --measure what a step takes here."""
    arguments = ('--policy-file', str(tiny_oft.file), '--topics', 'off')
    code, out = preflight(*arguments)
    assert code == 0 and 'OK       timing: a policy step every 0.4 s (4 of 8 actions, 0.1 s' in out
    code, out = preflight(*arguments, '--measure')
    assert code == 0 and re.search(r'OK       policy step: \d+ ms on cpu', out)
    assert re.search(r'OK       timing: a policy step takes 0.\d+ s here', out)
    tiny_oft.edit('execution_horizon: 4', 'execution_horizon: 8')
    code, out = preflight(*arguments)
    assert code == 0 and 'NOTE     timing: execution_horizon is the whole chunk (8 of 8' in out
    tiny_oft.edit('chunk_size: 8', 'chunk_size: 7')
    code, out = preflight(*arguments)
    assert code == 1 and 'must be in [1, 7]' in out


def test_the_node_says_the_same_at_configure() -> None:
    """Of what it measured while it warmed up; nothing when all is well."""
    config = load_config(CONFIG / 'robots' / 'sim.yaml')
    one = PolicySpec('openvla', (), (), chunk_size=1, period_s=0.2, execution_horizon=1)
    whole, late = describe_timing(config, one, 310.0)
    assert 'the arms wait one policy step after every chunk' in whole
    assert 'takes 0.31 s here' in late and 'late by 0.16 s and the arms never move' in late
    assert len(describe_timing(config, one, float('nan'))) == 1
    shipped = PolicySpec('embedded', (), (), chunk_size=8, period_s=0.1, execution_horizon=4)
    assert describe_timing(config, shipped, 60.0) == []


def test_a_policy_may_find_no_action_for_the_noise_of_the_warm_up() -> None:
    """A language model may answer noise with a word; weights that give NaN are refused."""
    layout = load_config(CONFIG / 'robots' / 'sim.yaml').robot.layout
    for error, is_fine in ((NoActionError('a word'), True), (PolicyOutputError('NaN'), False)):
        policy = FakePolicy(joint_names=layout.names)
        policy.predict = Mock(side_effect=error)
        if is_fine:
            assert warm_up(policy, layout, 'lift') > 0 and policy.resets == 1
        else:
            with pytest.raises(PolicyOutputError, match='NaN'):
                warm_up(policy, layout, 'lift')


def test_measuring_waits_for_files_that_fit(preflight, tiny_oft) -> None:
    (tiny_oft.folder / 'tokenizer.json').unlink()
    code, out = preflight(
        '--policy-file', str(tiny_oft.file), '--topics', 'off', '--measure', '--json'
    )
    report = json.loads(out)
    assert code == 1 and 'policy step' not in {f['subject'] for f in report['findings']}
    assert report['topics_checked'] is False


def test_only_the_simulator_is_simulated() -> None:
    for path in (CONFIG / 'robots').glob('*.yaml'):
        assert load_config(path).robot.simulated is (path.stem == 'sim')
