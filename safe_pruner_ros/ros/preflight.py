"""`safe-pruner preflight`: robot file, policy file, checkpoint and, with ROS up, live topics."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from safe_pruner_ros.ros.resources import config_file
from safe_pruner_ros.runtime.config import Config, ConfigError
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.runtime.preflight import Finding, Level, as_values, check_config, is_good


def main(arguments: argparse.Namespace) -> int:
    """0 when nothing stands in the way, else 1."""
    findings: list[Finding] = []

    def add(found: Iterator[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            if not arguments.json:
                print(finding, flush=True)

    changes = {'policy.checkpoint': arguments.checkpoint, 'policy.device': arguments.device}
    config = None
    try:
        config = load_config(
            config_file('robots', arguments.robot_file),
            config_file('policies', arguments.policy_file),
            {name: text for name, text in changes.items() if text},
        )
    except ConfigError as error:
        add(iter([Finding('problem', 'files', str(error))]))
    if config is not None:
        add(check_config(config))
        if arguments.topics != 'off':
            add(check_topics(config, arguments))
    if arguments.json:
        print(json.dumps(as_values(findings, config), indent=2))
    else:
        count = sum(finding.level == 'problem' for finding in findings)
        plural = '' if count == 1 else 's'
        print(f'{count} problem{plural}' if count else 'nothing stands in the way')
    return 0 if is_good(findings) else 1


def check_topics(config: Config, arguments: argparse.Namespace) -> Iterator[Finding]:
    """Of the graph this process sees. Without one: a note with --topics auto, else a problem."""
    level: Level = 'note' if arguments.topics == 'auto' else 'problem'
    try:
        from safe_pruner_ros.ros.topic_watcher import watch_topics
    except ImportError as error:
        yield Finding(level, 'topics', f'not checked, ROS 2 is not set up ({error})')
        return
    found = watch_topics(config, arguments.seconds, arguments.sim_time)
    if found is None:
        yield Finding(
            level,
            'topics',
            'not checked, no other node is up in this ROS domain; start the drivers (same '
            'ROS_DOMAIN_ID and discovery range) and ask again',
        )
        return
    yield from found
