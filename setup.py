"""For `pip install -e .`: the half of the package that needs no ROS. Settings are in setup.cfg."""

from setuptools import setup

setup()
