"""The last few images of one camera, and whether that camera can be trusted right now."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import BufferConfig, CameraConfig
from safe_pruner_ros.runtime.source_statistics import SourceCounter
from safe_pruner_ros.runtime.stamps import seconds, usable_stamp
from safe_pruner_ros.types import CameraImage, FloatArray, UInt8Array

SAMPLE_SIDE = 24  # a sparse grid decides in microseconds that two pictures differ


@dataclass(frozen=True)
class StoredImage:
    image: CameraImage
    stamp_ns: int
    receive_ns: int


class ViewHistory:
    """Not thread safe: the ObservationBuffer locks. ``joint_mask`` [n] selects the joints whose
    motion must change the picture."""

    def __init__(self, camera: CameraConfig, config: BufferConfig, joint_mask: FloatArray) -> None:
        self.camera = camera
        self.counter = SourceCounter(camera.name)
        self._config = config
        self._mask = joint_mask
        self.clear()

    def clear(self) -> None:
        self._images: deque[StoredImage] = deque(maxlen=self._config.history)
        self._frames_to_resume = 0
        self._identical = 0
        self._uniform = 0
        self._joints_at_change: FloatArray | None = None
        self.counter.clear()

    @property
    def newest(self) -> StoredImage | None:
        return self._images[-1] if self._images else None

    def nearest(self, stamp_ns: int) -> StoredImage:
        """The stored image captured closest to ``stamp_ns``; the history must not be empty."""
        return min(self._images, key=lambda stored: abs(stored.stamp_ns - stamp_ns))

    # ---- storing

    def store(
        self, image: CameraImage, receive_ns: int, joints: FloatArray | None
    ) -> Reason | None:
        """Keep ``image`` or say why not. ``joints``: latest measured positions, if any."""
        source = f'camera {self.camera.name!r}'
        stamp = usable_stamp(image.stamp_ns, receive_ns, self._config, source)
        if isinstance(stamp, Reason):
            return self.counter.refuse(stamp)
        if reason := self._refusal(image, stamp, receive_ns):
            return self.counter.refuse(reason)
        self._count_frames_to_resume(stamp, receive_ns)
        self._watch_content(image.rgb, joints)
        if stamp != image.stamp_ns:
            image = CameraImage(image.rgb, image.view, stamp)
        self._images.append(StoredImage(image, stamp, receive_ns))
        while seconds(stamp - self._images[0].stamp_ns) > self._config.max_image_age_s:
            self._images.popleft()  # no set will need it: its view would be stale
        self.counter.accept(receive_ns)
        return None

    def _refusal(self, image: CameraImage, stamp_ns: int, receive_ns: int) -> Reason | None:
        height, width = image.rgb.shape[:2]
        camera, newest = self.camera, self.newest
        if camera.width and (width, height) != (camera.width, camera.height):
            return Reason(
                Code.IMAGE_SIZE,
                f'camera {camera.name!r}: {width} x {height} px, expected {camera.width} x '
                f'{camera.height}; correct the driver, or width and height in the robot file '
                f'(0: any)',
            )
        if height == 0 or width == 0:
            return Reason(Code.IMAGE_SIZE, f'camera {camera.name!r}: an image without pixels')
        if newest is not None and stamp_ns <= newest.stamp_ns:
            if self._is_stale(newest, receive_ns):
                self._images.clear()  # a restarted driver may begin anew with earlier stamps
            else:
                return Reason(
                    Code.IMAGE_REORDERED,
                    f'camera {camera.name!r}: an image '
                    f'{seconds(newest.stamp_ns - stamp_ns):.3f} s older than the last one, or the '
                    f'same again; check for two publishers on {camera.topic}',
                )
        return None

    def _is_stale(self, stored: StoredImage, now_ns: int) -> bool:
        return self._age_s(stored, now_ns) > self._config.max_image_age_s

    @staticmethod
    def _age_s(stored: StoredImage, now_ns: int) -> float:
        return seconds(now_ns - min(stored.stamp_ns, stored.receive_ns))

    def _count_frames_to_resume(self, stamp_ns: int, receive_ns: int) -> None:
        newest = self.newest
        if newest is not None and self._is_stale(newest, receive_ns):
            self._frames_to_resume = self._config.resume_frames
        if seconds(receive_ns - stamp_ns) <= self._config.max_image_age_s:
            self._frames_to_resume = max(0, self._frames_to_resume - 1)

    def _watch_content(self, rgb: UInt8Array, joints: FloatArray | None) -> None:
        sample = _sparse(rgb)
        contrast = float(sample.std(axis=(0, 1)).max())
        self._uniform = self._uniform + 1 if contrast < self._config.uniform_std else 0
        last = self._images[-1].image.rgb if self._images else None
        if (
            last is not None
            and last.shape == rgb.shape
            and np.array_equal(_sparse(last), sample)
            and np.array_equal(last, rgb)
        ):
            self._identical += 1
        else:
            self._identical, self._joints_at_change = 1, joints
        if self._joints_at_change is None:
            self._joints_at_change = joints

    # ---- judging

    def age_s(self, now_ns: int) -> float:
        """Seconds since the newest image was captured or received, whichever is longer ago."""
        return self._age_s(self._images[-1], now_ns) if self._images else float('nan')

    def problem(self, now_ns: int, joints: FloatArray | None) -> Reason | None:
        """Why this view cannot be used now."""
        name, config = self.camera.name, self._config
        if not self._images:
            last = self.counter.last_refusal
            why = f'; the last one was refused: {last}' if last else f' on {self.camera.topic}'
            return Reason(Code.IMAGE_MISSING, f'camera {name!r}: no image yet{why}')
        age_s = self.age_s(now_ns)
        if age_s > config.max_image_age_s:
            last = self.counter.last_refusal
            return Reason(
                Code.IMAGE_STALE,
                f'camera {name!r}: newest image is {age_s:.2f} s old (limit '
                f'{config.max_image_age_s} s); check the driver and the network'
                + (f'; last refusal: {last}' if last else ''),
            )
        if self._frames_to_resume:
            return Reason(
                Code.IMAGE_RECOVERING,
                f'camera {name!r}: back after a gap, waiting for {self._frames_to_resume} more '
                f'good images',
            )
        if self._identical >= config.frozen_frames and self._moved(joints):
            return Reason(
                Code.IMAGE_FROZEN,
                f'camera {name!r}: {self._identical} identical images while the arm moved more '
                f'than {config.frozen_motion_rad} rad; restart its driver',
            )
        if self._uniform >= config.frozen_frames:
            return Reason(
                Code.IMAGE_UNIFORM,
                f'camera {name!r}: {self._uniform} images without any contrast; uncover the lens, '
                f'check exposure and light',
            )
        return None

    def warning(self, now_ns: int) -> Reason | None:
        """What is worth reporting about a view that can be used."""
        name, config = self.camera.name, self._config
        age_s = self.age_s(now_ns)
        if config.max_image_age_warn_s < age_s <= config.max_image_age_s:
            return Reason(Code.IMAGE_OLD, f'camera {name!r}: newest image is {age_s:.2f} s old')
        if self._uniform:
            return Reason(Code.IMAGE_UNIFORM, f'camera {name!r}: an image without any contrast')
        return None

    def _moved(self, joints: FloatArray | None) -> bool:
        if joints is None or self._joints_at_change is None:
            return False
        moved = np.abs(joints - self._joints_at_change) * self._mask
        return bool(moved.max() > self._config.frozen_motion_rad)


def _sparse(rgb: UInt8Array) -> UInt8Array:
    """About SAMPLE_SIDE x SAMPLE_SIDE pixels, evenly spread."""
    down, right = (max(1, size // SAMPLE_SIDE) for size in rgb.shape[:2])
    return rgb[::down, ::right]
