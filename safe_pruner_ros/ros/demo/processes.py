"""Child processes that never outlive their parent, and a DDS domain of their own.

Knows nothing about what the children do.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_pruner_ros.ros.resources import fastdds_profile

FIRST_DOMAIN, LAST_DOMAIN = 1, 100  # higher ones collide with Linux' ephemeral ports
STOP_S = (6.0, 2.0, 2.0)  # patience after SIGINT, SIGTERM, SIGKILL
PR_SET_PDEATHSIG = 1
LOG_TAIL_LINES = 12


class ChildDied(RuntimeError):
    """A child process ended on its own; the message has the end of its log."""


def private_domain() -> dict[str, str]:
    """Environment of a DDS domain that nobody uses, reachable on this machine only.

    A demo must never find, or be found by, a real robot in the network.
    """
    environment = {
        'ROS_DOMAIN_ID': str(_free_domain()),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
    }
    if os.environ.get('ROS_DISTRO') == 'humble':  # which does not know the range
        environment['ROS_LOCALHOST_ONLY'] = '1'
    for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        environment[name] = os.environ.get(name) or str(fastdds_profile())
    return environment


def _free_domain() -> int:
    domains = list(range(FIRST_DOMAIN, LAST_DOMAIN + 1))
    random.SystemRandom().shuffle(domains)
    for domain in domains:
        if _is_free(domain):
            return domain
    return domains[0]


def _is_free(domain: int) -> bool:
    """Whether no DDS participant listens: the unicast ports of the first two (RTPS 9.6.2.3)."""
    base = 7400 + 250 * domain
    for port in (base + 10, base + 12):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('', port))
            except OSError:
                return False
    return True


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Children:
    """Start Python modules as processes; leaving the context ends them all, whatever happened."""

    def __init__(self, log_folder: Path, environment: Mapping[str, str]) -> None:
        self._log_folder = log_folder
        # Each would lead out of the private domain.
        strays = {'ROS_STATIC_PEERS', 'ROS_DISCOVERY_SERVER', 'ROS_LOCALHOST_ONLY'}
        own = {name: value for name, value in os.environ.items() if name not in strays}
        self._environment = {**own, **environment, 'PYTHONUNBUFFERED': '1'}
        self._children: list[_Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Run ``python -m module arguments``; its output goes to ``<log folder>/<name>.log``."""
        self._log_folder.mkdir(parents=True, exist_ok=True)
        log = self._log_folder / f'{name}.log'
        with log.open('wb') as file:
            process = subprocess.Popen(
                [sys.executable, '-m', module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # Its own group: Ctrl-C in the terminal reaches only us, and we end them in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._children.append(_Child(name, process, log))

    def check(self) -> None:
        """Raise ChildDied if one of them ended."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise ChildDied(
                    f'the {child.name} process ended with code {code}; the end of {child.log}:\n'
                    f'{_tail(child.log)}'
                )

    def stop(self, name: str = '') -> None:
        """Ask, insist, kill: all of them, or the one of that name. Returns when they are gone."""
        chosen = [child for child in self._children if name in ('', child.name)]
        for number, patience_s in zip(
            (signal.SIGINT, signal.SIGTERM, signal.SIGKILL), STOP_S, strict=True
        ):
            for child in chosen:
                if child.process.poll() is None:
                    _signal_group(child.process.pid, number)
            deadline_s = time.monotonic() + patience_s
            for child in chosen:
                try:
                    child.process.wait(max(0.0, deadline_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
        for child in chosen:
            _signal_group(child.process.pid, signal.SIGKILL)  # what a child left behind
            self._children.remove(child)


def ros_arguments(**parameters: object) -> list[str]:
    """Node parameters as command line arguments."""
    arguments = ['--ros-args']
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ['-p', f'{name}:={text}']
    return arguments


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _die_with_parent() -> None:
    """In the child, before exec: end when the parent is killed and cannot end it (Linux)."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return


def _tail(log: Path) -> str:
    lines = log.read_text(errors='replace').splitlines()
    return '\n'.join(f'  {line}' for line in lines[-LOG_TAIL_LINES:]) or '  (empty)'
