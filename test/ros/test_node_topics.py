"""Who else is on the node's topics: a second publisher, another commander, nobody."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros


@pytest.mark.parametrize(
    ('topic', 'message', 'source'),
    [
        ('/head/image', 'Image', "camera 'head'"),
        ('/joint_states', 'JointState', "state source 'body'"),
    ],
)
def test_two_publishers_of_one_input_hold_the_arms(bench, capfd, topic, message, source) -> None:
    """It needs to say nothing: that it could is enough."""
    import sensor_msgs.msg

    robot = bench.robot
    kind = getattr(sensor_msgs.msg, message)
    second = robot.node.create_publisher(kind, topic, 1)
    try:
        bench.start(activation_timeout_s=1.0)
        assert robot.configure()
        assert not robot.activate()
        log = capfd.readouterr().err
        assert 'INPUT_DOUBLED' in log and source in log and topic in log, log
        assert '/robot, /robot' in log and 'stop all but one' in log, log
        bench.wait_for(lambda: 'INPUT_DOUBLED' in robot.state(), 3.0, 'it in diagnostics, too')
    finally:
        robot.node.destroy_publisher(second)
    bench.wait_for(robot.activate, 5.0, 'activation with one publisher')
    robot.say('lift')
    robot.wait_state('RUN')
    second = robot.node.create_publisher(kind, topic, 1)
    try:
        robot.wait_state('HOLD', 'INPUT_DOUBLED', source, topic)
        line = 'camera head' if message == 'Image' else 'joints body'
        level, text, _ = robot.diagnostics[f'safe_pruner: {line}']
        assert level == 2 and 'INPUT_DOUBLED' in text
        before = robot.sent()
        bench.wait_for(lambda: robot.sent() >= before + 8, 3.0, 'commands in HOLD')
        held = [list(m.points[0].positions) for m in robot.received['/arm_left/command'][-3:]]
        assert held[0] == held[-1], 'a hold repeats the last command'
    finally:
        robot.node.destroy_publisher(second)
    robot.wait_state('RUN')


def test_a_camera_that_nobody_looks_at_may_have_two_publishers(bench) -> None:
    from sensor_msgs.msg import CompressedImage

    yaml = bench.yaml.replace(
        '  state_sources:',
        '    - {name: belly, topic: /belly, transport: compressed, encodings: [jpeg], '
        'required: false}\n  state_sources:',
    )
    topics = [bench.robot.node.create_publisher(CompressedImage, '/belly', 1) for _ in range(2)]
    try:
        bench.start(yaml)
        assert bench.robot.configure() and bench.robot.activate()
        bench.robot.say('lift')
        bench.robot.wait_state('RUN')
    finally:
        for publisher in topics:
            bench.robot.node.destroy_publisher(publisher)


def test_two_spellings_of_one_topic_are_one(bench, capfd) -> None:
    yaml = bench.yaml.replace('/wrist/image/compressed, transport: compressed, encodings: [jpeg]',
                              'head/image')  # fmt: skip
    assert yaml != bench.yaml
    bench.start(yaml)
    assert not bench.robot.configure()
    log = capfd.readouterr().err
    assert "'head' and 'wrist' have the same topic '/head/image'" in log, log


@pytest.mark.parametrize(
    ('topic', 'wrong', 'entry'),
    [
        ('/arm_right/command', '/arm_right/com mand', "sink 'arm_right'"),
        ('/wrist/image/compressed', '/wrist/ima-ge', "camera 'wrist'"),
        ('/joint_states', '/joint_states/', "state source 'body'"),
    ],
)
def test_what_is_no_topic_is_named(bench, capfd, topic, wrong, entry) -> None:
    bench.start(bench.yaml.replace(topic, wrong))
    assert not bench.robot.configure()
    log = capfd.readouterr().err
    assert f"{entry}: topic '{wrong}' is no name of a ROS 2 topic" in log, log
    assert 'Correct it in the robot file' in log and 'Traceback' not in log


def test_a_second_commander_is_refused(bench, capfd) -> None:
    from trajectory_msgs.msg import JointTrajectory

    robot = bench.robot
    rival = robot.node.create_publisher(JointTrajectory, '/arm_left/command', 1)
    try:
        bench.start()
        assert robot.configure()
        assert not robot.activate()
        log = capfd.readouterr().err
        assert '/arm_left/command' in log and '/robot' in log
        assert robot.sent() == 0
    finally:
        robot.node.destroy_publisher(rival)
    bench.wait_for(robot.activate, 5.0, 'activation without a rival')
    robot.say('lift')
    robot.wait_state('RUN')


def test_two_sinks_of_one_topic_are_no_rivals_of_each_other(bench) -> None:
    """A controller of both arms; a third publisher, of whatever name, is one."""
    from trajectory_msgs.msg import JointTrajectory

    shared = bench.yaml.replace(
        'topic: /arm_right/command\n      adapter: float64_multiarray',
        'topic: /arm_left/command',
    )
    assert shared.count('/arm_left/command') == 2
    bench.start(shared)
    robot = bench.robot
    assert robot.configure() and robot.activate()
    rival = robot.node.create_publisher(JointTrajectory, '/arm_left/command', 1)
    try:
        robot.wait_state('HOLD', 'COMMAND_RIVAL', '/robot', '/arm_left/command')
    finally:
        robot.node.destroy_publisher(rival)


def test_a_rival_silences_the_node_until_resume(bench) -> None:
    """Not even a hold: two streams of positions would tear at the arm. And whoever took over does
    not expect the arms to move when it ends, or crashes."""
    from trajectory_msgs.msg import JointTrajectory

    robot = bench.run()
    rival = robot.node.create_publisher(JointTrajectory, '/arm_left/command', 1)
    try:
        robot.wait_state('HOLD', 'COMMAND_RIVAL', '/robot', '/arm_left/command')
        assert robot.diagnostics['safe_pruner: commands'][0] == 2
        assert '/robot' in robot.diagnostics['safe_pruner: commands'][1]
        assert bench.is_silent()
        answer = robot.trigger('resume')
        assert not answer.success and '/robot' in answer.message
        assert robot.diagnostics['safe_pruner: node'][0] == 0, 'a refusal is no failure'
        assert robot.trigger('reset').success
        robot.wait_state('COMMAND_RIVAL')
    finally:
        robot.node.destroy_publisher(rival)
    robot.wait_state('HOLD', 'COMMAND_RIVAL', 'is gone', '~/resume')
    assert bench.is_silent()
    assert robot.trigger('resume').success
    robot.wait_state('RUN')
    bench.wait_for(lambda: not bench.is_silent(0.1), 3.0, 'commands')


def test_a_rival_is_forgotten_by_deactivate(bench) -> None:
    from trajectory_msgs.msg import JointTrajectory

    robot = bench.run()
    rival = robot.node.create_publisher(JointTrajectory, '/arm_left/command', 1)
    try:
        robot.wait_state('COMMAND_RIVAL')
    finally:
        robot.node.destroy_publisher(rival)
    robot.wait_state('is gone')
    assert robot.transition(4) and robot.activate()
    robot.wait_state('RUN')


def test_a_rival_is_noticed_however_rarely_diagnostics_are_sent(bench) -> None:
    from trajectory_msgs.msg import JointTrajectory

    bench.start(diagnostics_rate_hz=0.1)
    robot = bench.robot
    assert robot.configure() and robot.activate()
    robot.say('lift')
    bench.wait_for(lambda: robot.sent() > 5, 5.0, 'commands')
    rival = robot.node.create_publisher(JointTrajectory, '/arm_left/command', 1)
    try:
        bench.wait_for(lambda: bench.is_silent(0.3), 2.0, 'silence')
    finally:
        robot.node.destroy_publisher(rival)


def listens_to(robot, topic):
    """The subscription of the robot's controller, to take away, and how to bring it back."""
    (found,) = [s for s in robot.node.subscriptions if s.topic_name == topic]
    kind, callback = found.msg_type, found.callback
    return found, lambda: robot.node.create_subscription(kind, topic, callback, 50)


def test_a_controller_that_dies_ends_sending_until_it_is_back(bench) -> None:
    """Otherwise commands run ahead, and the arm jumps after them."""
    robot = bench.run()
    bench.wait_for(lambda: robot.sent() > 20, 5.0, 'commands')
    controller, come_back = listens_to(robot, '/arm_left/command')
    robot.node.destroy_subscription(controller)
    try:
        robot.wait_state('HOLD', 'COMMAND_UNHEARD', '/arm_left/command', 'controller')
        assert bench.is_silent(), 'the other arm waits, too'
        level, text, _ = robot.diagnostics['safe_pruner: commands']
        assert level == 1 and 'nothing is sent' in text
        stands_at, sent = robot.positions['left_1'], robot.sent()
    finally:
        come_back()
    robot.wait_state('RUN')
    bench.wait_for(lambda: robot.sent() > sent + 5, 3.0, 'commands')
    later = robot.received['/arm_left/command'][sent:]
    first = later[0].points[0].positions[0]
    assert abs(first - stands_at) < 0.02, 'a start from where the arm is'


def test_the_node_may_come_up_before_the_controller(bench) -> None:
    controller, come_back = listens_to(bench.robot, '/arm_right/command')
    bench.robot.node.destroy_subscription(controller)
    try:
        bench.start()
        assert bench.robot.configure() and bench.robot.activate()
        bench.robot.say('lift')
        bench.robot.wait_state('HOLD', 'COMMAND_UNHEARD', '/arm_right/command')
        assert bench.robot.sent() == 0
    finally:
        come_back()
    bench.robot.wait_state('RUN')
