"""`safe-pruner replay` from bag to verdict."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from safe_pruner_ros import cli
from safe_pruner_ros.policies.embedded import SHIPPED_WEIGHTS, load_weights

DATA = Path(__file__).parents[4] / 'shared' / 'data'  # beside the checkout


@pytest.fixture(scope='module')
def replayed(recording, tmp_path_factory):
    """(exit code, folder) of one run with two methods and a limit that no pruning can keep."""
    out = tmp_path_factory.mktemp('replay')
    code = cli.main(
        ['replay', str(recording), '--methods', 'safe_pruner,fastv', '--retention', '0.3',
         '--max-deviation-rad', '1e-7', '--out', str(out)]
    )  # fmt: skip
    return code, out


@pytest.fixture(scope='module')
def report(replayed):
    return json.loads((replayed[1] / 'report.json').read_text())


def test_an_exceeded_limit_is_exit_code_1_and_named(replayed, report):
    assert replayed[0] == 1 and report['passed'] is False
    assert sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest().startswith(report['checkpoint_sha256'])
    unpruned, safe, fastv = report['methods']
    assert all('max_deviation_rad' in method['exceeded'][0] for method in (safe, fastv))
    assert not unpruned['exceeded']


def test_the_numbers(report):
    unpruned, safe, fastv = report['methods']
    assert report['policy_steps'] == len(report['steps']) == 6
    assert report['deadline_ms'] == pytest.approx(400)
    assert unpruned['deviation_rad']['max'] == 0 and unpruned['gripper_flips'] == 0
    assert unpruned['retained_tokens_mean'] == unpruned['n_visual'] == 192
    assert fastv['retained_tokens_mean'] == 58 and fastv['keyframes'] == 0
    assert safe['keyframe_steps'][0] == 0 and safe['keyframe_reasons']['first step'] == 1
    retained = [step['methods']['safe_pruner 0.3']['n_retained'] for step in report['steps']]
    assert {k for k, n in enumerate(retained) if n == 192} == set(safe['keyframe_steps'])
    for method in (safe, fastv):
        joints = method['deviation_per_joint']
        arms = [v['max'] for name, v in joints.items() if 'gripper' not in name]
        assert method['deviation_rad']['max'] == pytest.approx(max(arms))
        assert joints['astribot_arm_left_joint_1']['n'] == 6 * 4
        hands = method['end_effector_mm']
        assert set(hands) == {'left_tcp', 'right_tcp'} and hands['right_tcp']['max'] > 0
    # A key timestep answers as the unpruned policy does, bit for bit.
    first = report['steps'][0]['methods']
    assert first['safe_pruner 0.3']['first_target'] == first['unpruned']['first_target']
    # The expert's recorded commands are near what the policy would have done.
    assert report['recorded_commands'] == 200
    assert 0 < unpruned['versus_commands']['deviation_rad']['p50'] < 0.3
    assert 0 < unpruned['versus_commands']['end_effector_mm']['right_tcp']['p50'] < 300
    assert unpruned['versus_commands']['gripper_flips'] <= 6 * 2


def test_the_page_is_one_file(replayed):
    page = (replayed[1] / 'report.html').read_text()
    assert page.count('<svg') == 6 and 'Limits exceeded' in page and '<script' not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)


def test_the_film_shows_every_step(replayed):
    import av

    with av.open(str(replayed[1] / 'overlay.mp4')) as film:
        frames = [frame.to_ndarray(format='rgb24') for frame in film.decode(video=0)]
    assert len(frames) == 6 and frames[0].shape[1] == 3 * 384
    assert not np.array_equal(frames[0], frames[2])


def test_kept_limits_are_exit_code_0(recording, tmp_path, monkeypatch):
    loaded = []

    def load_once(path):
        loaded.append(path)
        return load_weights(path)

    monkeypatch.setattr('safe_pruner_ros.policies.embedded.load_weights', load_once)
    code = cli.main(
        ['replay', str(recording), '--max-deviation-rad', '3', '--max-gripper-flips', '99',
         '--methods', 'safe_pruner:tau=0.9,alpha=1', 'fastv@0.5,random', '--retention', '0.3',
         '0.2', '--no-video', '--out', str(tmp_path)]
    )  # fmt: skip
    report = json.loads((tmp_path / 'report.json').read_text())
    first = 'safe_pruner:alpha=1,similarity_threshold=0.9'
    assert [method['name'] for method in report['methods']] == [
        'unpruned', f'{first} 0.3', f'{first} 0.2', 'fastv 0.5', 'random 0.3', 'random 0.2'
    ]  # fmt: skip
    page = (tmp_path / 'report.html').read_text()
    assert len(loaded) == 1  # of the unpruned policy, for all methods
    assert code == 0 and 'All methods keep the limits' in page
    assert not (tmp_path / 'overlay.mp4').exists()


def test_wrong_requests_are_one_line(recording, tmp_path, capsys, episode, kit):
    silent = kit.write_bag(tmp_path / 'silent', [])
    for arguments, message in (
        ([str(tmp_path / 'nowhere')], 'does not exist'),
        ([str(silent)], 'holds no messages'),
        ([str(recording), '--map', 'tail=/x'], "has no ['tail']"),
        ([str(recording), '--methods', 'magic'], 'unknown pruning method'),
        ([str(recording), '--methods', 'fastv', 'fastv'], "given twice: ['fastv']"),
        ([str(recording), '--methods', 'fastv:tau=1'], "'fastv' has no setting"),
        ([str(recording), '--retention', '0.3', 'little'], "like 0.3,0.1, got '0.3 little'"),
        (['--methods', 'fastv', str(recording)], 'Name it before --methods'),
        ([str(recording), '--robot-file', 'aloha'], 'differ in joints'),
        ([str(recording), '--instruction', 'xyzzy the plugh'], 'another one with --instruction'),
        ([str(recording), '--deadline-ms', '-1'], '--deadline-ms must be at least 0'),
    ):
        assert cli.main(['replay', *arguments, '--out', str(tmp_path / 'out')]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1, error
    assert not (tmp_path / 'out').exists()


@pytest.mark.skipif(not DATA.is_dir(), reason=f'the public recordings are not in {DATA}')
def test_a_real_robot_recording(tmp_path, kit, sim_config):
    """The G1's head pictures as a bag, with invented joints: real data pass through.

    It has one camera, so three topics carry its pictures; the policy never saw its like.
    """
    import av

    folder, views = DATA / 'g1_dual_arm', ('head', 'left_wrist', 'right_wrist')
    entries = [kit.Entry('/task', kit.STRING, kit.START_NS, kit.START_NS,
                         {'data': 'pick up the red block and place it in the tray'})]  # fmt: skip
    arms = [j for j in sim_config.robot.layout.joints if j.kind == 'arm']
    middle = {j.name: 0.5 * (j.lower + j.upper) for j in arms}
    with av.open(str(folder / 'episode_000010.cam_high.mp4')) as film:
        for number, frame in zip(range(40), film.decode(video=0), strict=False):
            stamp_ns = kit.START_NS + number * 33_333_333
            rgb = frame.to_ndarray(format='rgb24')
            entries += [kit.image(f'/{v}_cam', stamp_ns + 1_000_000, stamp_ns, rgb) for v in views]
            names = list(sim_config.robot.layout.names)
            values = {'name': names, 'position': [middle.get(name, 0.0) for name in names]}
            entries.append(kit.Entry('/g1', kit.JOINTS, stamp_ns + 500_000, stamp_ns, values))
    entries.sort(key=lambda entry: entry.log_ns)
    path = kit.write_bag(tmp_path / 'g1', entries)
    maps = [f'{view}=/{view}_cam' for view in views]
    maps += ['joint_states=/g1', 'instruction=/task']
    code = cli.main(
        ['replay', str(path), *(f'--map={text}' for text in maps), '--out', str(tmp_path / 'out')]
    )
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert code == 0 and report['policy_steps'] == 4
    sources = {source['name']: source for source in report['source']['sources']}
    assert sources['head']['accepted'] == 40 and not sources['head']['refused']
    assert (tmp_path / 'out' / 'overlay.mp4').is_file()


def test_a_changed_recording_changes_the_verdict(tmp_path, episode, kit):
    """Black wrist pictures: the node would hold the arms, and so nothing is judged as good."""
    black = np.zeros(64 * 64 * 3, np.uint8)
    entries = [
        replace(e, values={**e.values, 'data': black}) if 'left_wrist' in e.topic else e
        for e in episode
    ]
    path = kit.write_bag(tmp_path / 'bag', entries)
    assert cli.main(['replay', str(path), '--no-video', '--out', str(tmp_path / 'out')]) == 0
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    held = [reason for span in report['source']['held'] for reason in span['reasons']]
    assert any('IMAGE_UNIFORM' in reason and 'left_wrist' in reason for reason in held)
    assert report['policy_steps'] < 7
