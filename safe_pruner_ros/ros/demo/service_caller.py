"""Services that may as well be called twice, called again when an answer gets lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

READY_LIMIT_S = 15.0
PATIENCE_S = (3.0, 3.0, 9.0)  # for an answer, then the service is called again


class ServiceCaller:
    """Calls services of one node's peers from the thread that spins the node.

    On a loaded machine Fast DDS drops an answer for good if the server has not found the caller's
    reader within 100 ms (ros2/rmw_fastrtps#842): the request is carried out, its caller waits for
    ever. So clients are kept, which are found once, and what goes unanswered is asked again.

    Args:
        node: whose clients are used.
        step: spins the node for a short while; what it raises ends a call.
    """

    def __init__(self, node: Node, step: Callable[[], None]) -> None:
        self._node, self._step = node, step
        self._clients: dict[str, Any] = {}  # by service

    def call(
        self, kind: Any, service: str, request: Any, patience_s: tuple[float, ...] = PATIENCE_S
    ) -> Any:
        """The response to `request`, which may have been carried out more than once.

        Raises:
            TimeoutError: nobody offers the service, or no request was answered in time.
        """
        if service not in self._clients:
            self._clients[service] = self._node.create_client(kind, service)
        client = self._clients[service]
        if not self._until(client.service_is_ready, READY_LIMIT_S):
            raise TimeoutError(f'{service} is not offered')
        for limit_s in patience_s:
            future = client.call_async(request)
            if self._until(future.done, limit_s):
                return future.result()
            client.remove_pending_request(future)
        raise TimeoutError(f'{service} did not answer, called {len(patience_s)} times')

    def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        end_s = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end_s:
                return False
            self._step()
        return True
