"""Writes a sampled scene into the compiled model: shapes, receptacle, colours, light, table.

Every field that is ever changed is set absolutely on every reset, so that a scene depends on its
seed alone and not on the scenes before it.
"""

from __future__ import annotations

import mujoco
import numpy as np

from safe_pruner_ros.sim.objects import GEOM_TYPES, OBJECT_MASS_KG, SKIN_RGB, SceneObject
from safe_pruner_ros.sim.scene import TABLE_MATERIALS, TABLE_TOP_M
from safe_pruner_ros.types import FloatArray

PAINTS = ((0.34, 0.37, 0.42), (0.16, 0.17, 0.19), (0.55, 0.57, 0.60), (0.46, 0.42, 0.38))


def _inertia(item: SceneObject) -> FloatArray:
    """Principal moments [3] of the solid, kg m^2."""
    radius, half = item.radius_m, item.half_height_m
    if item.shape == 'block':
        side = (radius**2 + half**2) / 3
        moments = (side, side, 2 * radius**2 / 3)
    elif item.shape in ('cylinder', 'doll'):
        side = (3 * radius**2 + 4 * half**2) / 12
        moments = (side, side, radius**2 / 2)
    else:
        moments = (0.4 * radius**2,) * 3
    return OBJECT_MASS_KG * np.array(moments)


def _extent(item: SceneObject) -> FloatArray:
    return np.array([item.radius_m, item.radius_m, item.half_height_m])


def apply_objects(
    model: mujoco.MjModel, objects: tuple[SceneObject, ...], receptacle_xy: tuple[float, float]
) -> None:
    """Give the object slots their shapes and masses and move the receptacle."""
    for slot, item in enumerate(objects):
        body, geom = model.body(f'object_{slot}').id, model.geom(f'object_{slot}').id
        extent = _extent(item)
        model.geom_type[geom] = GEOM_TYPES[item.shape]
        model.geom_size[geom] = item.geom_size
        model.geom_rbound[geom] = (
            item.radius_m if item.shape == 'ball' else float(np.linalg.norm(extent))
        )
        model.geom_aabb[geom] = np.concatenate([np.zeros(3), extent])
        model.geom_rgba[geom] = (*item.rgb, 1.0)
        model.geom_friction[geom, 2] = item.rolling_friction_m
        if _has_head(model, slot):
            _apply_head(model, slot, item)
        model.body_mass[body] = OBJECT_MASS_KG
        model.body_inertia[body] = _inertia(item)
    model.body('receptacle').pos[:] = (*receptacle_xy, TABLE_TOP_M)
    mujoco.mj_setConst(model, mujoco.MjData(model))


def _has_head(model: mujoco.MjModel, slot: int) -> bool:
    return bool(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, f'head_{slot}') >= 0)


def _apply_head(model: mujoco.MjModel, slot: int, item: SceneObject) -> None:
    """Set the head upon the body, or make it nothing where the object is no doll."""
    geom, head = model.geom(f'object_{slot}').id, model.geom(f'head_{slot}').id
    radius, is_doll = item.head_radius_m, item.shape == 'doll'
    model.geom_sameframe[[geom, head]] = 0  # MuJoCo skips the offset of geoms compiled without one
    model.geom_pos[geom] = (0.0, 0.0, -radius)
    model.geom_pos[head] = (0.0, 0.0, item.half_height_m - radius)
    model.geom_size[head] = (max(radius, 1e-3), 0.0, 0.0)
    model.geom_rbound[head] = max(radius, 1e-3)
    model.geom_aabb[head] = (0.0, 0.0, 0.0, *(radius,) * 3)
    model.geom_rgba[head] = (*SKIN_RGB, float(is_doll))
    model.geom_contype[head], model.geom_conaffinity[head] = (2, 3) if is_doll else (0, 0)


def apply_jitter(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Draw table material and tint, receptacle and wall colour, light direction and brightness."""
    table = TABLE_MATERIALS[rng.integers(len(TABLE_MATERIALS))]
    material = model.material(table).id
    model.geom('table').matid[:] = material
    base = (0.70, 0.70, 0.70) if table == 'plain' else (1.0, 1.0, 1.0)
    tint = np.array(base) * rng.uniform(0.78, 1.0) + rng.uniform(-0.04, 0.04, size=3)
    model.mat_rgba[material, :3] = np.clip(tint, 0.0, 1.0)
    paint = np.array(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.85, 1.15)
    model.mat_rgba[model.material('receptacle').id, :3] = np.clip(paint, 0.0, 1.0)
    model.mat_rgba[model.material('wall').id, :3] = rng.uniform(0.72, 0.88) + rng.uniform(
        -0.03, 0.03, size=3
    )
    key, fill = model.light('key').id, model.light('fill').id
    model.light_dir[key] = _unit(np.array([0.2, -0.3, -1.0]) + rng.uniform(-0.25, 0.25, size=3))
    model.light_diffuse[key] = rng.uniform(0.36, 0.52) + rng.uniform(-0.02, 0.02, size=3)
    model.light_diffuse[fill] = rng.uniform(0.10, 0.20)
    model.vis.headlight.ambient[:] = rng.uniform(0.26, 0.38)


def _unit(vector: FloatArray) -> FloatArray:
    return vector / np.linalg.norm(vector)
