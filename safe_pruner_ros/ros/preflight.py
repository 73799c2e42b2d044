"""`safe-pruner preflight`: robot file, policy file, checkpoint and, with ROS up, live topics."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable

from safe_pruner_ros.ros.discovery import describe_discovery
from safe_pruner_ros.ros.resources import config_file
from safe_pruner_ros.ros.startup import build_configured_policy, build_kinematics, warm_up
from safe_pruner_ros.runtime.config import Config, ConfigError
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.runtime.finding import Finding, Level, ask, is_good
from safe_pruner_ros.runtime.policy_timing import timing_findings
from safe_pruner_ros.runtime.preflight import as_values, check_config, read_timing


def main(arguments: argparse.Namespace) -> int:
    """0 when nothing stands in the way, else 1."""
    findings: list[Finding] = []

    def add(found: Iterable[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            if not arguments.json:
                print(finding, flush=True)

    changes = {'policy.checkpoint': arguments.checkpoint, 'policy.device': arguments.device}
    config = None
    topics_checked = False
    try:
        config = load_config(
            config_file('robots', arguments.robot_file),
            config_file('policies', arguments.policy_file),
            {name: text for name, text in changes.items() if text},
        )
    except ConfigError as error:
        add([Finding('problem', 'files', str(error))])
    if config is not None:
        add(check_config(config))
        if config.robot.urdf:
            add([ask('urdf', lambda: _describe_urdf(config))])
        files_fit, picture_age_s = is_good(findings), None
        if arguments.topics != 'off':
            found, picture_age_s, topics_checked = _look_at_topics(config, arguments)
            add(found)
        step_s = None
        if arguments.measure and files_fit:
            finding, step_s = _measure(config)
            add([finding])
        timing = read_timing(config)
        if timing is not None:
            add(timing_findings(timing, picture_age_s, step_s))
    if arguments.json:
        print(json.dumps(as_values(findings, config, topics_checked), indent=2))
    else:
        print(_verdict(findings, topics_checked))
    return 0 if is_good(findings) else 1


def _verdict(findings: list[Finding], topics_checked: bool) -> str:
    """The last line; it promises nothing that nobody looked at."""
    count = sum(finding.level == 'problem' for finding in findings)
    if count:
        text = f'{count} problem{"" if count == 1 else "s"}'
        return text if topics_checked else f'{text}; topics not checked'
    return 'nothing stands in the way' if topics_checked else 'files fit; topics not checked'


def _describe_urdf(config: Config) -> str:
    build_kinematics(config)
    return f'{config.robot.urdf} has the links {list(config.robot.end_effectors)}'


def _measure(config: Config) -> tuple[Finding, float | None]:
    """Load the weights and time the step after warm-up, s, on an invented observation."""
    try:
        ms = warm_up(build_configured_policy(config), config.robot.layout, '')
    except Exception as error:  # what a network raises is told, and the other questions go on
        text = f'{type(error).__name__}: {error}; so it would fail when the node is configured'
        return Finding('problem', 'policy step', text), None
    if math.isnan(ms):
        text = 'not measured: the policy accepts no instruction that is known here'
        return Finding('note', 'policy step', text), None
    return Finding('ok', 'policy step', f'{ms:.0f} ms on {config.policy.device}'), 1e-3 * ms


def _look_at_topics(
    config: Config, arguments: argparse.Namespace
) -> tuple[list[Finding], float | None, bool]:
    """(findings, age of pictures, whether topics were looked at) of the graph this process sees.
    Without one: a note with --topics auto, else a problem."""
    level: Level = 'note' if arguments.topics == 'auto' else 'problem'
    try:
        from safe_pruner_ros.ros.topic_watcher import watch_topics
    except ImportError as error:
        text = (
            f'not checked, ROS 2 is not set up ({error}); start this as "scripts/with_env '
            'safe-pruner preflight"'
        )
        return [Finding(level, 'topics', text)], None, False
    watched = watch_topics(config, arguments.seconds, arguments.sim_time)
    if watched is None:
        text = (
            'not checked, no other node is up; start the drivers and ask again, or '
            f'{describe_discovery()}'
        )
        return [Finding(level, 'topics', text)], None, False
    return watched.findings, watched.picture_age_s, True
