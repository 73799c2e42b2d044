"""The real node over DDS: what reaches the robot, and what the user is told."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.ros


def test_the_node_drives_the_robot_and_says_what_it_prunes(bench) -> None:
    robot = bench.run()
    bench.wait_for(lambda: robot.sent() > 40, 5.0, 'commands')
    received = robot.received
    bench.wait_for(lambda: len(received['/safe_pruner/status']) >= 5, 5.0, 'status')
    values = robot.commands()
    assert np.isfinite(values).all()
    left = received['/arm_left/command'][-1]
    assert list(left.joint_names) == ['left_1', 'left_gripper']
    assert left.points[0].time_from_start.nanosec == 20_000_000
    steps = np.diff([m.points[0].positions[0] for m in received['/arm_left/command']])
    assert np.abs(steps).max() <= 0.04 + 1e-9 and left.points[0].positions[0] > 0.1
    assert abs(left.points[0].positions[1] - 50.0) < 1.0  # closed fraction 0.5 on a 0..100 gripper
    observation = bench.policy.observations[-1]
    assert observation.instruction == 'lift the block'
    assert observation.state.positions.shape == (4,)

    status = received['/safe_pruner/status'][-1]
    assert (status.policy, status.method, status.n_visual) == ('fake', 'fake', 32)
    assert status.pruning_ratio == pytest.approx(1 - status.retention_ratio)
    assert status.latency_decoder_ms == 2.0 and 0 < status.observation_age_s < 1.0
    assert received['/safe_pruner/keyframe'][0].reason == 1
    chunk = received['/safe_pruner/action_chunk'][-1]
    assert list(chunk.joint_names) == ['left_1', 'left_gripper', 'right_1', 'right_gripper']
    assert len(chunk.positions) == chunk.chunk_size * 4
    saliency = received['/safe_pruner/saliency/wrist'][-1]
    assert (saliency.rows, saliency.cols, len(saliency.retained)) == (4, 4, 16)
    assert len(saliency.early_saliency) == 16 and len(saliency.forecast_saliency) == 0
    bench.wait_for(lambda: received['/safe_pruner/overlay/head'], 5.0, 'an overlay')
    assert received['/safe_pruner/overlay/head'][-1].encoding == 'rgb8'
    names = 'state|camera head|camera wrist|joints body|policy|pruning|audit|actions|guard|'
    names += 'commands|node'
    bench.wait_for(
        lambda: all(
            robot.diagnostics[f'safe_pruner: {name}'][0] == 0 for name in names.split('|')
        ),
        5.0,
        lambda: f'no complaint in {robot.diagnostics}',
    )


def test_age_of_the_actions_seams_and_audits_are_published(bench) -> None:
    robot = bench.run(runtime__audit__every_steps=2, runtime__audit__first_ms=1.0,
                      runtime__audit__max_deviation_rad=0.005)  # fmt: skip
    received = robot.received
    bench.wait_for(lambda: len(received['/safe_pruner/audit']) >= 2, 8.0, 'audits')
    audit = received['/safe_pruner/audit'][0]
    assert audit.arms_deviation_rad == pytest.approx(0.01)
    assert (audit.n_visual, audit.n_retained, audit.above_limit) == (32, 8, 1)
    assert np.isnan(audit.end_effectors_deviation_mm)
    text = robot.diagnostics
    bench.wait_for(lambda: text['safe_pruner: audit'][0] == 1, 3.0, 'a warning')
    assert 'differ by 0.010 rad (limit 0.005 rad)' in text['safe_pruner: audit'][1]

    before = len(received['/safe_pruner/status'])
    bench.wait_for(lambda: len(received['/safe_pruner/status']) > before + 2, 5.0, 'status')
    status = received['/safe_pruner/status'][-1]
    assert status.target_retention_ratio > 0.3 and 'an audit found' in status.retention_reason
    stamps = [status.observation_stamp, status.image_received_stamp, status.assembled_stamp,
              status.policy_start_stamp, status.policy_end_stamp, status.header.stamp]  # fmt: skip
    nanoseconds = [stamp.sec * 10**9 + stamp.nanosec for stamp in stamps]
    assert nanoseconds == sorted(nanoseconds) and nanoseconds[0] > 0
    assert 0 < status.seam_action_age_s < 1.0 and status.seam_position_jump_rad < 0.5
    first = status.seam_first_command_stamp
    assert 0 < first.sec * 10**9 + first.nanosec < nanoseconds[-1]
    assert 'ms from camera to first command' in text['safe_pruner: actions'][1]


def test_deactivate_ends_output_and_the_node_can_start_again(bench) -> None:
    robot = bench.run()
    assert robot.transition(4)
    sent = robot.sent()
    bench.wait_for(lambda: 'inactive' in robot.state(), 3.0, 'inactive')
    assert robot.sent() <= sent + 1
    assert robot.activate()
    robot.wait_state('RUN')
    assert robot.transition(4) and robot.transition(2) and robot.configure()


def test_a_transition_that_is_not_possible_is_answered_at_once(bench, capfd) -> None:
    from lifecycle_msgs.srv import ChangeState

    node, robot = bench.start(), bench.robot
    assert robot.configure() and robot.activate()
    robot.say('lift')
    robot.wait_state('RUN')
    for number, label, name in ((3, '', '3'), (0, 'activate', "'activate'")):
        request = ChangeState.Request()
        request.transition.id, request.transition.label = number, label
        answer = robot.call(ChangeState, '/safe_pruner/change_state', request)
        assert answer.success is False
        assert (
            f'transition {name} refused: not possible while active; possible are: '
            'deactivate (4), shutdown (7)'
        ) in capfd.readouterr().err
    sent = robot.sent()
    bench.wait_for(lambda: robot.sent() > sent + 20, 10.0, 'commands that go on')
    assert node.lifecycle == 'active' and 'RUN' in robot.state()
    assert not robot.transition(1) and robot.transition(4) and not robot.transition(4)


def test_a_send_that_fails_for_one_arm_stops_both_until_resume(bench, monkeypatch) -> None:
    node, robot = bench.start(), bench.robot
    assert robot.configure() and robot.activate()
    robot.say('lift')
    robot.wait_state('RUN')
    bench.wait_for(lambda: robot.sent() > 10, 3.0, 'commands')
    (_, left), (_, right) = node._session._commands._sinks
    tries = []

    def fail(message) -> None:
        tries.append(message)
        raise RuntimeError('no memory for it')

    monkeypatch.setattr(right, 'publish', fail)
    robot.wait_state('HOLD', 'COMMAND_UNSENT', 'no memory for it', '~/resume')
    assert len(tries) == 1 and bench.is_silent(), 'the left arm does not go on alone'
    level, text, _ = robot.diagnostics['safe_pruner: commands']
    assert level == 2 and 'could not be sent' in text
    monkeypatch.undo()
    assert robot.trigger('reset').success and bench.is_silent(), 'nobody looked yet'
    robot.wait_state('COMMAND_UNSENT')
    stands_at, sent = robot.positions['right_1'], len(robot.received['/arm_right/command'])
    assert robot.trigger('resume').success
    robot.wait_state('RUN')
    commands = robot.received['/arm_right/command']
    bench.wait_for(lambda: len(commands) > sent + 5, 3.0, 'commands')
    assert abs(commands[sent].data[0] - stands_at) < 0.02, 'a start from where the arm is'

    monkeypatch.setattr(left, 'publish', fail)
    robot.wait_state('COMMAND_UNSENT')
    monkeypatch.undo()
    assert robot.transition(4) and robot.activate()
    robot.wait_state('RUN')


def test_an_activate_that_fails_leaves_the_command_publishers_mute(bench, capfd) -> None:
    node = bench.start()
    robot = bench.robot
    assert robot.configure() and robot.activate()
    bench.policy.seconds = 4.0
    robot.say('lift')
    computing = len(bench.policy.observations)
    bench.wait_for(lambda: len(bench.policy.observations) > computing, 5.0, 'a policy step')
    assert robot.transition(4)
    assert not robot.activate(), 'while the last policy step still computes'
    log = capfd.readouterr().err
    assert 'activate refused: the inference worker was stopped but its last policy step' in log
    assert 'try again' in log and 'Traceback' not in log, log
    publishers = [publisher for _, publisher in node._session._commands._sinks]
    assert publishers and not any(publisher.is_activated for publisher in publishers)
    assert node.lifecycle == 'inactive' and bench.is_silent()
    bench.policy.seconds = 0.0
    bench.wait_for(robot.activate, 8.0, 'activation')
    robot.wait_state('RUN')
    assert all(publisher.is_activated for publisher in publishers)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            {'joint_names': ('left_1', 'left_gripper', 'right_1', 'elbow')},
            ['elbow', 'right_gripper'],
        ),
        ({'views': ('head', 'belly')}, ['belly', "'wrist'"]),
    ],
)
def test_configure_refuses_a_policy_of_another_robot(bench, capfd, change, words) -> None:
    for name, value in change.items():
        setattr(bench.policy, name, value)
    bench.start()
    assert not bench.robot.configure()
    log = capfd.readouterr().err
    assert 'configure refused' in log
    assert all(word in log for word in words), log


def test_a_failing_load_is_logged_with_its_traceback(bench, capfd, monkeypatch) -> None:
    bench.policy.mode = 'raise'
    bench.start()
    assert not bench.robot.configure()
    log = capfd.readouterr().err
    assert 'Traceback' in log and 'fails on purpose' in log
    bench.policy.mode = 'ok'
    assert bench.robot.configure()


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'pruner__retention_ration': 0.5}, ['pruner.retention_ration', 'pruner.retention_ratio']),
        ({'pruner__retention_ratio': 1.4}, ['retention_ratio', '1.4']),
        ({'robot_file': '/no/such/robot.yaml'}, ['/no/such/robot.yaml']),
    ],
)
def test_configure_refuses_a_wrong_setting_by_name(bench, capfd, parameters, words) -> None:
    bench.start(**parameters)
    assert not bench.robot.configure()
    log = capfd.readouterr().err
    assert all(word in log for word in words), log


def test_activate_names_the_camera_that_is_missing(bench, capfd) -> None:
    bench.robot.cameras = {'head'}
    bench.start(activation_timeout_s=0.6)
    assert bench.robot.configure()
    assert not bench.robot.activate()
    log = capfd.readouterr().err
    assert 'activate refused' in log and "'wrist'" in log and '/wrist/image/compressed' in log
    assert bench.robot.sent() == 0
    bench.robot.cameras = {'head', 'wrist'}
    assert bench.robot.activate()


def test_activate_waits_for_a_camera_that_comes_late(bench) -> None:
    import threading

    bench.robot.cameras = {'head'}
    bench.start(activation_timeout_s=5.0)
    assert bench.robot.configure()
    threading.Timer(0.7, lambda: bench.robot.cameras.add('wrist')).start()
    assert bench.robot.activate()


def test_nan_from_the_policy_moves_nothing(bench) -> None:
    robot = bench.run()
    bench.policy.mode = 'nan'
    robot.wait_state('ACTION_NONFINITE')  # HOLD, and after three of them FAULT
    robot.wait_state('FAULT', 'reset')
    assert np.isfinite(robot.commands()).all()


def test_a_policy_that_raises_holds_then_faults_until_reset(bench) -> None:
    robot = bench.run()
    bench.policy.mode = 'raise'
    robot.wait_state('fails on purpose')
    robot.wait_state('FAULT')
    sent = robot.sent()
    robot.wait_state('FAULT')
    assert robot.diagnostics['safe_pruner: state'][0] == 2
    assert robot.sent() <= sent + 1, 'a FAULT publishes nothing'
    bench.policy.mode = 'ok'
    resets = bench.policy.resets
    assert robot.trigger('reset').success
    robot.wait_state('RUN')
    assert bench.policy.resets > resets


def test_a_stale_camera_holds_and_the_run_resumes(bench) -> None:
    robot = bench.run()
    robot.cameras = {'wrist'}
    state = robot.wait_state('HOLD', 'IMAGE_STALE', "'head'")
    assert 'driver' in state
    assert robot.diagnostics['safe_pruner: camera head'][0] == 2
    # Diagnostics may overtake the last commands of the run: look at later ones.
    before = robot.sent()
    bench.wait_for(lambda: robot.sent() >= before + 8, 3.0, 'commands in HOLD')
    held = [list(m.points[0].positions) for m in robot.received['/arm_left/command'][-3:]]
    assert held[0] == held[-1], 'a hold repeats the last command'
    robot.cameras = {'head', 'wrist'}
    robot.wait_state('RUN')


def test_diagnostics_of_an_inactive_node_are_of_now(bench) -> None:
    """Not of the last control tick, nor all well because there was none."""
    robot = bench.robot
    bench.start()
    assert robot.configure()

    def ill() -> list[bool]:
        """Of each source, whether it is an error. How many pictures got lost is not the matter."""
        lines = ('camera head', 'camera wrist', 'joints body')
        return [robot.diagnostics[f'safe_pruner: {name}'][0] == 2 for name in lines]

    bench.wait_for(lambda: 'inactive' in robot.state() and not any(ill()), 5.0, 'all well')
    robot.cameras, robot.joints_on = set(), False
    bench.wait_for(lambda: all(ill()), 5.0, 'complaints about everything')
    _, text, values = robot.diagnostics['safe_pruner: state']
    assert 'inactive: no commands are sent; missing: IMAGE_STALE' in text and "'wrist'" in text
    assert values['codes'] == 'IMAGE_STALE IMAGE_STALE STATE_STALE'
    robot.cameras, robot.joints_on = {'head', 'wrist'}, True
    bench.wait_for(lambda: not any(ill()), 5.0, 'all well again')
    assert robot.activate()
    robot.say('lift')
    robot.wait_state('RUN')
    robot.cameras = {'wrist'}
    robot.wait_state('IMAGE_STALE', "'head'")
    assert robot.transition(4)
    robot.cameras = {'head', 'wrist'}
    bench.wait_for(lambda: 'inactive' in robot.state() and not any(ill()), 5.0, 'head')


def test_a_wrong_encoding_is_named(bench) -> None:
    robot = bench.run()
    robot.encoding = 'bayer_bggr8'
    robot.wait_state('HOLD', "'head'", 'bayer_bggr8')
    assert 'bayer_bggr8' in robot.diagnostics['safe_pruner: camera head'][1]
    robot.encoding = 'rgb8'
    robot.wait_state('RUN')


def test_a_truncated_image_is_named(bench) -> None:
    robot = bench.run()
    robot.wrist_share = 0.5
    robot.wait_state('HOLD', "'wrist'", 'truncated')
    refused = robot.diagnostics['safe_pruner: camera wrist'][2]['refused IMAGE_INVALID']
    assert int(refused) > 0


def test_a_renamed_joint_holds_and_is_named(bench) -> None:
    robot = bench.run()
    robot.names = ['right_1', 'torso', 'left_one', 'left_gripper', 'right_gripper']
    robot.wait_state('HOLD', 'left_1')
    assert 'left_1' in robot.diagnostics['safe_pruner: joints body'][1]
    robot.names = ['right_1', 'torso', 'left_1', 'left_gripper', 'right_gripper']
    robot.wait_state('RUN')


def test_joint_states_that_stop_hold_the_arms(bench) -> None:
    robot = bench.run()
    robot.joints_on = False
    robot.wait_state('HOLD', 'STATE_STALE', "'body'")


def test_an_empty_instruction_holds(bench) -> None:
    robot = bench.run()
    robot.say('   ')
    robot.wait_state('HOLD', 'INSTRUCTION_EMPTY')
    robot.say('lift it again')
    robot.wait_state('RUN')
    robot.say('fly away')
    robot.wait_state('HOLD', 'INSTRUCTION_REFUSED', 'cannot fly')


def test_without_an_instruction_nothing_is_sent(bench) -> None:
    bench.start()
    assert bench.robot.configure() and bench.robot.activate()
    bench.robot.wait_state('HOLD', 'INSTRUCTION_EMPTY', '/instruction')
    assert bench.robot.sent() == 0
    assert bench.robot.set_parameter('instruction', 'lift').successful
    bench.robot.wait_state('RUN')


def test_dry_run_goes_to_preview_only(bench) -> None:
    robot = bench.run(robot__dry_run=True)
    bench.wait_for(
        lambda: len(robot.received['/safe_pruner/preview/arm_left']) > 10, 3.0, 'preview'
    )
    assert robot.sent() == 0 and not robot.received['/arm_right/command']
    assert 'dry run' in robot.state()  # nobody listens to one of its previews: no matter


@pytest.mark.parametrize('dry_run', [False, True])
def test_configure_says_whether_commands_will_move_the_robot(bench, capfd, dry_run) -> None:
    bench.start(robot__dry_run=dry_run)
    assert bench.robot.configure()
    log = capfd.readouterr().err
    assert ('COMMANDS MOVE THE ROBOT' in log) is not dry_run
    assert ('DRY RUN' in log) is dry_run
    assert ('/arm_right/command' in log) is not dry_run


def test_pause_holds_and_resume_goes_on(bench) -> None:
    robot = bench.run()
    assert robot.trigger('pause').success
    robot.wait_state('HOLD', 'PAUSED', 'resume')
    assert robot.trigger('resume').success
    robot.wait_state('RUN')


def test_services_before_configure_say_so(bench) -> None:
    bench.start()
    answer = bench.robot.trigger('reset')
    assert not answer.success and 'not configured' in answer.message
