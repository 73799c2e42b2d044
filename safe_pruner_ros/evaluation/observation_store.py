"""Observations on disk, to go through them many times without decoding a recording again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from safe_pruner_ros.types import ArmState, CameraImage, Observation

IMAGE, STAMP = 'image:', 'stamp:'


class ObservationStore:
    """One uncompressed .npz an observation in ``folder``, which its owner removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def fill(self, observations: Iterable[Observation]) -> None:
        for observation in observations:
            arrays: dict[str, object] = {}
            for view, image in observation.images.items():
                arrays[IMAGE + view], arrays[STAMP + view] = image.rgb, image.stamp_ns
            np.savez(
                self._file(self._count),
                positions=observation.state.positions,
                joint_names=observation.state.joint_names,
                state_stamp=observation.state.stamp_ns,
                stamp=observation.stamp_ns,
                instruction=observation.instruction,
                **arrays,
            )
            self._count += 1

    def __iter__(self) -> Iterator[Observation]:
        for number in range(self._count):
            with np.load(self._file(number), allow_pickle=False) as data:
                views = [name[len(IMAGE) :] for name in data.files if name.startswith(IMAGE)]
                images = {
                    view: CameraImage(data[IMAGE + view], view, int(data[STAMP + view]))
                    for view in views
                }
                joints = tuple(map(str, data['joint_names']))
                state = ArmState(data['positions'], joints, int(data['state_stamp']))
                yield Observation(images, state, str(data['instruction']), int(data['stamp']))

    def _file(self, number: int) -> Path:
        return self._folder / f'{number:06d}.npz'
