"""Which other nodes this process can see: what to compare when nobody seems to be there."""

from __future__ import annotations

import os
from collections.abc import Mapping

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
