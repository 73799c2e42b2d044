"""Rendering without a display: the package chooses MUJOCO_GL, so it is imported before mujoco."""

import safe_pruner_ros.sim  # noqa: F401
