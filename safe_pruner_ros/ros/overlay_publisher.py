"""~/overlay/<view> and ~/overlay/<view>/compressed: drawn in a thread of their own, newest only.

Neither the policy nor the control timer waits for a picture, and nobody draws one that nobody
asked for. A report that comes while another is being drawn replaces the one that waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from sensor_msgs.msg import CompressedImage, Image

from safe_pruner_ros.policies.policy import PolicySpec, PruningTrace, ViewSpec
from safe_pruner_ros.ros import report_messages as messages
from safe_pruner_ros.ros.conversions import camera_image_to_compressed, camera_image_to_message
from safe_pruner_ros.ros.lifecycle import undone_on_error
from safe_pruner_ros.runtime.overlay import overlay
from safe_pruner_ros.runtime.overlay_caption import with_caption
from safe_pruner_ros.runtime.step_report import StepReport
from safe_pruner_ros.types import CameraImage

JPEG_QUALITY = 85
STOP_S = 1.0


class OverlayPublishers:
    """``frame_ids`` names the frame of each view's last image; ``on_error`` hears what drawing
    raised."""

    def __init__(
        self,
        node: LifecycleNode,
        spec: PolicySpec,
        frame_ids: Mapping[str, str],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._node, self._views, self._frame_ids = node, spec.views, frame_ids
        self._on_error = on_error
        self._slices = messages.view_slices(spec.views)
        self._raw: dict[str, Publisher] = {}
        self._compressed: dict[str, Publisher] = {}
        with undone_on_error(self._destroy_publishers):
            for view in spec.views:
                topic = f'~/overlay/{view.name}'
                self._raw[view.name] = node.create_publisher(Image, topic, 2)
                self._compressed[view.name] = node.create_publisher(
                    CompressedImage, f'{topic}/compressed', 2
                )
        self._waiting: StepReport | None = None
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='overlay', daemon=True)
        self._thread.start()

    def destroy(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(STOP_S)
        self._destroy_publishers()

    def _destroy_publishers(self) -> None:
        for publisher in (*self._raw.values(), *self._compressed.values()):
            self._node.destroy_publisher(publisher)

    def submit(self, report: StepReport) -> None:
        """Draw ``report`` if anybody listens. Never blocks."""
        if report.trace is None or not any(map(self._is_wanted, self._views)):
            return
        with self._wake:
            self._waiting = report
            self._wake.notify()

    def _is_wanted(self, view: ViewSpec) -> bool:
        publishers = (self._raw[view.name], self._compressed[view.name])
        return any(publisher.get_subscription_count() for publisher in publishers)

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._waiting is None and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                report, self._waiting = self._waiting, None
            try:
                self._publish(report)
            except Exception as error:
                self._on_error(error)

    def _publish(self, report: StepReport | None) -> None:
        if report is None or report.trace is None:
            return
        for view in self._views:
            if not self._is_wanted(view) or view.name not in report.observation.images:
                continue
            image = self._draw(report, report.trace, view)
            frame_id = self._frame_ids.get(view.name, '')
            raw, compressed = self._raw[view.name], self._compressed[view.name]
            if raw.get_subscription_count():
                raw.publish(camera_image_to_message(image, frame_id))
            if compressed.get_subscription_count():
                coded = camera_image_to_compressed(image, JPEG_QUALITY, frame_id)
                compressed.publish(coded)

    def _draw(self, report: StepReport, trace: PruningTrace, view: ViewSpec) -> CameraImage:
        """Stamped as the picture that the policy saw."""
        image, tokens = report.observation.images[view.name], self._slices[view.name]
        saliency = trace.fused if trace.fused is not None else trace.early
        drawn = overlay(
            image.rgb,
            view.rows,
            view.cols,
            None if saliency is None else saliency[tokens],
            messages.retained_mask(trace)[tokens],
            trace.is_key_timestep,
        )
        captioned = with_caption(drawn, trace, report.latency_ms['total'])
        return CameraImage(captioned, view.name, image.stamp_ns)
