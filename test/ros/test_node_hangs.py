"""A control thread that sends nothing can say nothing itself: /diagnostics must say it."""

from __future__ import annotations

import threading

import pytest

pytestmark = pytest.mark.ros

LINES = ('safe_pruner: state', 'safe_pruner: commands')


def complains(robot) -> bool:
    found = [robot.diagnostics.get(name, (0, '', {})) for name in LINES]
    return all(level == 2 and 'no command for' in text for level, text, _ in found)


def run(bench, **parameters):
    node, robot = bench.start(**parameters), bench.robot
    assert robot.configure() and robot.activate()
    robot.say('lift')
    robot.wait_state('RUN')
    return node._session, robot


@pytest.mark.parametrize('dry_run', [False, True])
def test_a_send_that_hangs_is_an_error(bench, monkeypatch, capfd, dry_run) -> None:
    session, robot = run(bench, robot__dry_run=dry_run)
    free = threading.Event()
    monkeypatch.setattr(session._commands, 'send', lambda command: free.wait(20.0))
    try:
        bench.wait_for(lambda: complains(robot), 2.0, lambda: f'{robot.diagnostics}')
        _, text, values = robot.diagnostics[LINES[0]]
        assert 'CONTROL_GAP' in text and 'restart the node' in text
        assert (values['state'], values['codes']) == ('HOLD', 'CONTROL_GAP')
        assert capfd.readouterr().err.count('no command for') == 1
    finally:
        monkeypatch.undo()
        free.set()
    robot.wait_state('RUN')


def test_a_tick_that_raises_every_time_is_an_error(bench, monkeypatch) -> None:
    session, robot = run(bench)

    def fail(now_ns: int) -> None:
        raise RuntimeError('on purpose')

    monkeypatch.setattr(session._control, '_tick', fail)
    bench.wait_for(lambda: complains(robot), 2.0, lambda: f'{robot.diagnostics}')
    monkeypatch.undo()
    robot.wait_state('RUN')


def test_a_tick_without_a_command_is_no_error(bench) -> None:
    """Nor is a start after a rest."""
    bench.start()
    robot = bench.robot
    assert robot.configure() and robot.activate()
    for _ in range(2):
        robot.wait_state('HOLD', 'INSTRUCTION_EMPTY')
        assert bench.is_silent(0.8)
        assert robot.transition(4)
        bench.wait_for(lambda: 'inactive' in robot.state(), 3.0, 'inactive')
        assert bench.is_silent(0.8)
        robot.diagnostics.clear()
        assert robot.activate()
        levels = []
        for _ in range(20):
            bench.is_silent(0.0)
            levels += [robot.diagnostics.get(name, (0,))[0] for name in LINES]
        assert 2 not in levels
