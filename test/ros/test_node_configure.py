"""A configure that fails leaves nothing on the graph; an activation that waits says for what."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

pytestmark = pytest.mark.ros


def on_graph(node) -> Counter[str]:
    found = Counter(f'publishes {publisher.topic_name}' for publisher in node.publishers)
    found.update(f'hears {subscription.topic_name}' for subscription in node.subscriptions)
    return found


def may_start(bench, node, before: Counter[str]) -> None:
    assert on_graph(node) == before
    assert bench.robot.configure() and bench.robot.activate()
    bench.robot.say('lift')
    bench.robot.wait_state('RUN')


@pytest.mark.parametrize(
    ('maker', 'topic'),
    [
        ('create_lifecycle_publisher', '/arm_right/command'),
        ('create_publisher', '~/saliency/wrist'),
        ('create_subscription', '/instruction'),
        ('create_publisher', '~/overlay/wrist/compressed'),
    ],
)
def test_whatever_cannot_be_made_takes_the_rest_with_it(bench, monkeypatch, maker, topic) -> None:
    node = bench.start()
    before, make = on_graph(node), getattr(node, maker)

    def fail(kind, name, *more, **named):
        if name == topic:
            raise RuntimeError('no memory for it')
        return make(kind, name, *more, **named)

    monkeypatch.setattr(node, maker, fail)
    assert not bench.robot.configure()
    monkeypatch.undo()
    may_start(bench, node, before)


def test_messages_that_are_not_installed(bench, capfd, tmp_path) -> None:
    topic = 'topic: /joint_states'
    node = bench.start(bench.yaml.replace(topic, f'{topic}\n      adapter: astribot_state'))
    before = on_graph(node)
    assert not bench.robot.configure()
    assert 'astribot_msgs' in capfd.readouterr().err
    (tmp_path / 'robot.yaml').write_text(bench.yaml)
    may_start(bench, node, before)


def test_two_types_on_one_command_topic(bench, capfd, tmp_path) -> None:
    wrong = bench.yaml.replace('/arm_right/command', 'arm_left/command')  # the same, resolved
    node = bench.start(wrong.replace('float64_multiarray', 'joint_state'))
    before = on_graph(node)
    assert not bench.robot.configure()
    log = capfd.readouterr().err
    assert "sinks 'arm_left' and 'arm_right' have the same topic '/arm_left/command'" in log, log
    assert 'joint_trajectory and joint_state' in log and 'Traceback' not in log
    (tmp_path / 'robot.yaml').write_text(bench.yaml)
    may_start(bench, node, before)


def test_diagnostics_say_what_activation_waits_for(bench) -> None:
    robot = bench.robot
    robot.cameras = {'head'}
    bench.start(activation_timeout_s=8.0)
    assert robot.configure()
    bench.wait_for(lambda: 'inactive' in robot.state(), 5.0, 'diagnostics')
    answers: list[bool] = []
    waits = threading.Thread(target=lambda: answers.append(robot.activate()))
    waits.start()
    time.sleep(0.5)  # the request is on its way, the executor in it
    for _ in range(2):
        robot.diagnostics.clear()
        robot.wait_state('inactive', "'wrist'", timeout_s=3.0)
    assert not answers, 'it still waits'
    robot.cameras = {'head', 'wrist'}
    waits.join(10.0)
    assert answers == [True]
