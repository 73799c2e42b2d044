"""rosdep installs what package.xml names: whatever the launch files start must be in it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def test_package_xml_names_what_the_launch_files_start() -> None:
    started = set()
    for path in (ROOT / 'launch').glob('*.launch.py'):
        started |= set(re.findall(r"package='(\w+)'", path.read_text()))
    named = {item.text for item in ElementTree.parse(ROOT / 'package.xml').iter('exec_depend')}
    assert {'rviz2', 'robot_state_publisher'} <= started <= named
