"""Off-screen pictures of the views: colour and segmentation. Knows nothing about tasks."""

from __future__ import annotations

import mujoco
import numpy as np
import numpy.typing as npt

from safe_pruner_ros.sim.scene import N_SLOTS
from safe_pruner_ros.types import UInt8Array

BACKGROUND, RECEPTACLE, ROBOT, LID = -1, -2, -3, -4


def _labels(model: mujoco.MjModel) -> npt.NDArray[np.int64]:
    """Segmentation label of every geom [ngeom], and of "no geom" in the last entry."""
    labels = np.full(model.ngeom + 1, BACKGROUND)
    roots = {'torso': ROBOT, 'receptacle': RECEPTACLE}
    roots |= {f'object_{slot}': slot for slot in range(N_SLOTS)}
    for geom in range(model.ngeom):
        root = model.body_rootid[model.geom_bodyid[geom]]
        labels[geom] = roots.get(model.body(root).name, BACKGROUND)
        if model.body(model.geom_bodyid[geom]).name == 'lid':
            labels[geom] = LID
    assert labels.max() == N_SLOTS - 1
    return labels


class ViewRenderer:
    """Renders named cameras of one model. First use makes the GL context, close() frees it."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        self._model = model
        self._size = (height, width)
        self._labels = _labels(model)
        self._renderer: mujoco.Renderer | None = None

    def _scene(self, data: mujoco.MjData, camera: str) -> mujoco.Renderer:
        if self._renderer is None:
            try:
                self._renderer = mujoco.Renderer(self._model, *self._size)
            except mujoco.FatalError as error:
                raise RuntimeError(
                    'no off-screen OpenGL: set MUJOCO_GL to osmesa or egl (and install it), or '
                    'import safe_pruner_ros.sim before mujoco, which then chooses one'
                ) from error
        self._renderer.update_scene(data, camera)
        return self._renderer

    def colour(self, data: mujoco.MjData, camera: str) -> UInt8Array:
        """RGB image, uint8 [H, W, 3]."""
        image: UInt8Array = self._scene(data, camera).render()
        return image

    def segmentation(self, data: mujoco.MjData, camera: str) -> npt.NDArray[np.int64]:
        """Labels [H, W]: object index, -1 background or table, -2 receptacle, -3 robot, -4 lid."""
        renderer = self._scene(data, camera)
        renderer.enable_segmentation_rendering()
        try:
            ids = renderer.render()
        finally:
            renderer.disable_segmentation_rendering()
        is_geom = ids[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM)
        return self._labels[np.where(is_geom, ids[..., 0], -1)]

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
