"""The embedded policy: `EmbeddedVLA` behind the Policy protocol, pruned like the big backends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.policies.device import choose_device
from safe_pruner_ros.policies.embedded_model import EmbeddedConfig, EmbeddedVLA
from safe_pruner_ros.policies.instructions import encode_words
from safe_pruner_ros.policies.patches import image_patches
from safe_pruner_ros.policies.policy import (
    PolicyOutputError,
    PolicySpec,
    ViewSpec,
)
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput, run_pruned
from safe_pruner_ros.policies.pruned_policy import PrunedPolicy
from safe_pruner_ros.types import ActionChunk, Observation

SHIPPED_WEIGHTS = Path(__file__).parent / 'weights' / 'embedded.safetensors'
FORMAT = 'safe_pruner_ros/embedded/1'


class EmbeddedPolicy(PrunedPolicy):
    """Three 256 px views, an instruction and 16 joint positions -> 8 targets, 0.1 s apart."""

    def __init__(
        self,
        model: EmbeddedVLA,
        method: str,
        settings: Mapping[str, Any] | None = None,
        device: str = 'cpu',
    ) -> None:
        """``method`` and ``settings`` as `core.catalog.build_pruner` takes them; ``device``
        'auto' takes a GPU where there is one."""
        super().__init__(method, settings, len(model.layers))
        self._device = choose_device(device)
        self._model = model.to(self._device).eval().requires_grad_(False)
        config = model.config
        size, grid = config.image_size, config.grid
        self.spec = PolicySpec(
            name='embedded',
            views=tuple(ViewSpec(name, size, size, grid, grid) for name in config.views),
            joint_names=config.joint_names,
            chunk_size=config.chunk_size,
            period_s=config.period_s,
            execution_horizon=config.execution_horizon,
        )

    @property
    def model(self) -> EmbeddedVLA:
        return self._model

    def with_pruner(
        self, method: str, settings: Mapping[str, Any] | None = None
    ) -> EmbeddedPolicy:
        return EmbeddedPolicy(self._model, method, settings, str(self._device))

    def check_instruction(self, instruction: str) -> None:
        encode_words(instruction, self._model.config)

    @torch.inference_mode()
    def _run(
        self, observation: Observation, pruner: Pruner, step: int
    ) -> tuple[DecoderOutput, ActionChunk, dict[str, float]]:
        """Actions and latency by stage; nothing of the policy changes."""
        config = self._model.config
        began = perf_counter_ns()
        words = encode_words(observation.instruction, config)
        layout = config.layout(np.count_nonzero(words))  # 0 is padding
        images = torch.from_numpy(self._images(observation)).to(self._device)
        joints = self._joints(observation)
        prepared = perf_counter_ns()

        visual = self._model.vision(images.permute(0, 3, 1, 2).float() / 255)
        embeddings = self._model.embed(
            visual.reshape(1, config.n_visual, -1),
            joints,
            torch.from_numpy(words)[None].to(self._device),
        )
        positions = torch.arange(layout.length, device=self._device)[None]
        encoded = perf_counter_ns()

        out = run_pruned(
            self._model.layers,
            self._model.rotary,
            self._model.norm,
            embeddings,
            positions,
            layout,
            pruner,
            instruction_key=words.tobytes(),
            step=step,
            features=self._model.projector(visual.reshape(config.n_visual, -1)),
            patches=image_patches(images, config.grid, config.grid),
            observe=False,
        )
        decoded = perf_counter_ns()
        targets = self._model.actions(out.rows(layout.action)[None], joints)[0]
        chunk = self._chunk(targets, observation.stamp_ns)
        finished = perf_counter_ns()
        return (
            out,
            chunk,
            {
                'preprocess': (prepared - began) / 1e6,
                'vision': (encoded - prepared) / 1e6,
                **out.latency_ms,
                'head': (finished - decoded) / 1e6,
                'total': (finished - began) / 1e6,
            },
        )

    def _images(self, observation: Observation) -> npt.NDArray[np.uint8]:
        """uint8 [views, size, size, 3]; ValueError names a missing view."""
        config, size = self._model.config, self._model.config.image_size
        missing = [name for name in config.views if name not in observation.images]
        if missing:
            raise ValueError(
                f'the embedded policy needs the views {list(config.views)}; the observation '
                f'misses {missing}'
            )
        images = np.empty((len(config.views), size, size, 3), np.uint8)
        for image, name in zip(images, config.views, strict=True):
            rgb = observation.images[name].rgb
            if rgb.shape[:2] == (size, size):
                image[:] = rgb
            else:
                shrink = rgb.shape[0] >= size
                method = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
                image[:] = cv2.resize(rgb, (size, size), interpolation=method)
        return images

    def _joints(self, observation: Observation) -> torch.Tensor:
        positions = observation.state.ordered(self.spec.joint_names)
        return torch.from_numpy(positions.astype(np.float32))[None].to(self._device)

    def _chunk(self, targets: torch.Tensor, stamp_ns: int) -> ActionChunk:
        array = targets.double().cpu().numpy()
        if not np.isfinite(array).all():
            raise PolicyOutputError('the action head returned NaN or infinite joint targets')
        grippers = [name in self._model.config.gripper_names for name in self.spec.joint_names]
        array[:, grippers] = array[:, grippers].clip(0.0, 1.0)
        return ActionChunk(array, self.spec.joint_names, stamp_ns, round(self.spec.period_s * 1e9))


def save_weights(model: EmbeddedVLA, path: Path, card: dict[str, str]) -> None:
    """Write float16 safetensors; ``card`` (short facts) joins the metadata."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    metadata = {'format': FORMAT, 'config': json.dumps(model.config.as_dict()), **card}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata)


def load_weights(path: Path | None = None) -> EmbeddedVLA:
    """Read a checkpoint written by `save_weights`; None reads the shipped one.

    Raises FileNotFoundError, or ValueError saying what is missing, unexpected or not finite.
    """
    path = SHIPPED_WEIGHTS if path is None else path
    if not path.is_file():
        raise FileNotFoundError(
            f'no embedded-policy weights at {path}; run "safe-pruner train" or give the path of '
            'a .safetensors file'
        )
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a readable safetensors file: {error}') from error
    if metadata.get('format') != FORMAT:
        raise ValueError(
            f'{path} is not an embedded-policy checkpoint: its format is '
            f'{metadata.get("format")!r}, expected {FORMAT!r}'
        )
    model = EmbeddedVLA(EmbeddedConfig.from_dict(json.loads(metadata['config'])))
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f'{path} does not fit its own config: missing {missing}, unexpected {unexpected}, '
            f'wrong shape {shapes}'
        )
    bad = [n for n, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise ValueError(f'{path} holds NaN or infinite weights in {bad}; train or copy it anew')
    model.load_state_dict(state)
    return model
