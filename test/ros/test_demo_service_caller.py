"""An answer that gets lost does not end the demo."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.ros


class Peers:
    """A server that is slow to answer its first requests, and the node of a caller."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from std_srvs.srv import Trigger

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.server = rclpy.create_node('server', context=self.context)
        self.caller = rclpy.create_node('caller', context=self.context)
        self.server.create_service(Trigger, '/reset', self._answer)
        self.carried_out, self.slow = 0, 0
        self.let_go = threading.Event()
        self._executors = [SingleThreadedExecutor(context=self.context) for _ in range(2)]
        self._executors[0].add_node(self.server)
        self._executors[1].add_node(self.caller)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _answer(self, request: Any, response: Any) -> Any:
        self.carried_out += 1
        if self.carried_out <= self.slow:
            self.let_go.wait(0.5)  # longer than the caller is patient
        response.success, response.message = True, str(self.carried_out)
        return response

    def _serve(self) -> None:
        while not self.let_go.is_set():
            self._executors[0].spin_once(timeout_sec=0.05)

    def step(self) -> None:
        self._executors[1].spin_once(timeout_sec=0.02)

    def close(self) -> None:
        import rclpy

        self.let_go.set()
        self._thread.join(5.0)
        for executor in self._executors:
            executor.shutdown()
        self.server.destroy_node()
        self.caller.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def peers() -> Iterator[Peers]:
    both = Peers()
    yield both
    both.close()


def test_it_asks_again_and_takes_the_answer_to_that(peers: Peers) -> None:
    from std_srvs.srv import Trigger

    from safe_pruner_ros.ros.demo.service_caller import ServiceCaller

    services = ServiceCaller(peers.caller, peers.step)
    peers.slow = 1
    response = services.call(Trigger, '/reset', Trigger.Request(), patience_s=(0.2, 20.0))
    assert response.message == '2'  # not the late answer to the first
    assert services.call(Trigger, '/reset', Trigger.Request()).message == '3'


def test_it_gives_up_and_says_which_service(peers: Peers) -> None:
    from std_srvs.srv import Trigger

    from safe_pruner_ros.ros.demo.service_caller import ServiceCaller

    services = ServiceCaller(peers.caller, peers.step)
    peers.slow = 100
    with pytest.raises(TimeoutError, match=r'^/reset did not answer, called 2 times$'):
        services.call(Trigger, '/reset', Trigger.Request(), patience_s=(0.1, 0.1))


def test_what_ends_the_demo_ends_a_call(peers: Peers) -> None:
    from std_srvs.srv import Trigger

    from safe_pruner_ros.ros.demo.service_caller import ServiceCaller

    def step() -> None:
        raise RuntimeError('the simulator ended')

    with pytest.raises(RuntimeError, match='the simulator ended'):
        ServiceCaller(peers.caller, step).call(Trigger, '/nobody', Trigger.Request())
