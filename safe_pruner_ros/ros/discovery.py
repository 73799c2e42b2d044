"""Which other nodes this process can see, and what to compare when nobody seems to be there."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rclpy.node import Node

DOMAIN, RANGE = 'ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE'
LOCALHOST_ONLY = 'ROS_LOCALHOST_ONLY'  # of Humble, which does not know the range


def describe_discovery(environment: Mapping[str, str] = os.environ) -> str:
    """The settings that decide it, as they are, where they come from and what to do: the end of
    a sentence."""
    domain, reach = environment.get(DOMAIN) or '0', environment.get(RANGE) or 'SUBNET'
    if environment.get('ROS_DISTRO') == 'humble':
        local = environment.get(LOCALHOST_ONLY) or '0'
        return (
            f'set {DOMAIN} and {LOCALHOST_ONLY} as the drivers have them (0: other machines, '
            f'too); here they are {domain} and {local}'
        )
    only = ''
    if reach == 'LOCALHOST':
        only = ', this machine only: scripts/with_env says so unless it is set before'
    elif reach == 'OFF':
        only = ', nobody'
    return (
        f'set {DOMAIN} and {RANGE} as the drivers have them (SUBNET: other machines, too); here '
        f'they are {domain} and {reach}{only}'
    )


def publishers_of(node: Node, topic: str) -> list[str]:
    """Full names (/namespace/node) of the publishers of ``topic``, a name after remapping; one
    for each publisher, sorted.

    rclpy remaps the topic that it is asked about, a second time here: where two topics are
    exchanged, or one takes the name of another, it would answer about the other one. So such a
    topic is asked for by the name that DDS has for it, which rclpy leaves alone. A middleware that
    names topics in another way answers with nobody then.
    """
    if node.resolve_topic_name(topic) == topic:
        found = node.get_publishers_info_by_topic(topic)
    else:
        found = node.get_publishers_info_by_topic(f'rt{topic}', no_mangle=True)
    return sorted(full_name(info.node_namespace, info.node_name) for info in found)


def full_name(namespace: str, name: str) -> str:
    return f'{namespace.rstrip("/")}/{name}'
