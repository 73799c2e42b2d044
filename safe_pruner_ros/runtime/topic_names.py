"""What ROS 2 takes as a topic, said without ROS: rclpy tells neither entry nor next move.

The rules: https://design.ros2.org/articles/topic_and_service_names.html
"""

from __future__ import annotations

import re

from safe_pruner_ros.runtime.config_schema import ConfigError

# ROS 2 also knows {ns}: "/" in the root namespace, where {ns}/image is no name any more.
_SUBSTITUTION = r'\{node\}'
_TOKEN = rf'(?:[A-Za-z_]|{_SUBSTITUTION})(?:[A-Za-z0-9_]|{_SUBSTITUTION})*'
_TOPIC = re.compile(rf'~|(?:~?/)?{_TOKEN}(?:/{_TOKEN})*')


def check_topic(what: str, topic: str) -> None:
    """Raise ConfigError, which begins with ``what``, unless ``topic`` may be the name of one."""
    if not _TOPIC.fullmatch(topic):
        raise ConfigError(
            f'{what} {topic!r} is no name of a ROS 2 topic: it has letters (a to z), digits and '
            "'_', in parts between '/' that are not empty and do not begin with a digit; '~/' may "
            "stand in front, {node} anywhere, and without '/' in front it lies in the node's own "
            'namespace. Correct it in the robot file'
        )
