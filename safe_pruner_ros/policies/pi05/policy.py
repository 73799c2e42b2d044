"""pi0.5 behind the Policy protocol: prefix pruned layer by layer, actions by flow matching.

Where this backend differs from upstream, all of it exact: absent cameras and padding never enter,
the last prefix layer computes keys and values only, the time modulation is computed once.

Pruning. The prefix is what is pruned; the action expert then reads, in layer l, the keys and
values that prefix layer l kept. The prefix has no action token, so early saliency is asked of the
end of the prompt (`Pi05.layout`); the deep saliency is that of the action rows in the expert,
averaged over the denoising steps (`action_stage.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import DynamicCache

from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.policies.action_stage import ActionStage
from safe_pruner_ros.policies.checkpoint_check import Backend
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.patches import image_patches
from safe_pruner_ros.policies.pi05.checkpoint import load_model
from safe_pruner_ros.policies.pi05.files import Pi05Files
from safe_pruner_ros.policies.pi05.images import to_pixels
from safe_pruner_ros.policies.pi05.model import Pi05, cached_keys_values
from safe_pruner_ros.policies.pi05.prompt import PromptEncoder
from safe_pruner_ros.policies.pi05.statistics import Statistics
from safe_pruner_ros.policies.policy import PolicyOutputError, PolicySpec, ViewSpec
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput, run_pruned
from safe_pruner_ros.policies.pruned_policy import PrunedPolicy
from safe_pruner_ros.types import ActionChunk, Observation


class Pi05Policy(PrunedPolicy):
    """One fine-tune on one robot. ``seed`` fixes the noise of every step of every episode."""

    def __init__(
        self,
        model: Pi05,
        prompt: PromptEncoder,
        statistics: Statistics,
        deployment: Deployment,
        method: str,
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """``statistics``: of the joints of ``deployment``; ``method`` and ``settings`` as
        `core.catalog.build_pruner` takes them."""
        config = model.config
        self._model, self._prompt, self._statistics = model, prompt, statistics
        self._deployment, self._joints = deployment, deployment.actions
        self._device = self.device = model.projector.weight.device
        # Seams for `graphed_decoder.use_graphs`; None is `run_pruned`.
        self.encode_images, self.denoise = model.embed_images, model.denoise
        self.run_decoder: Callable[..., DecoderOutput] | None = None
        self._seed = seed
        self._layers, self._final_norm = model.prefix_layers(), nn.Identity()
        with torch.inference_mode():
            self._modulations = model.modulations()
        super().__init__(method, settings, len(self._layers))
        size, grid = config.vision.image_size, config.vision.grid
        self.spec = PolicySpec(
            name='pi05',
            views=tuple(ViewSpec(name, size, size, grid, grid) for name in deployment.views),
            joint_names=self._joints.joint_names,
            chunk_size=config.action_horizon,
            period_s=deployment.period_s,
            execution_horizon=deployment.horizon(config.action_horizon),
        )

    @property
    def model(self) -> Pi05:
        return self._model

    def with_pruner(self, method: str, settings: Mapping[str, Any] | None = None) -> Pi05Policy:
        return Pi05Policy(
            self._model,
            self._prompt,
            self._statistics,
            self._deployment,
            method,
            settings,
            self._seed,
        )

    def check_instruction(self, instruction: str) -> None:
        n_state = max(len(self.spec.joint_names), self._deployment.prompt_state_dim)
        self._prompt.check(instruction, n_state)

    @torch.inference_mode()
    def _run(
        self, observation: Observation, pruner: Pruner, step: int
    ) -> tuple[DecoderOutput, ActionChunk, dict[str, float]]:
        """Actions and latency by stage; nothing of the policy changes."""
        model = self._model
        began = perf_counter_ns()
        positions = self._positions(observation)
        tokens = self._prompt.encode(observation.instruction, self._prompt_state(positions))
        pixels = self._pixels(observation).to(self._device)
        prepared = perf_counter_ns()

        visual = self.encode_images(pixels)
        text = model.embed_text(torch.from_numpy(tokens).to(self._device))
        embeddings = torch.cat([visual, text])[None]
        layout = model.layout(self._deployment.views, len(tokens))
        cache = DynamicCache()
        self._wait()
        encoded = perf_counter_ns()

        out = (self.run_decoder or run_pruned)(
            self._layers,
            model.language_model.rotary_emb,
            self._final_norm,
            embeddings,
            torch.arange(layout.length, device=self._device)[None],
            layout,
            pruner,
            instruction_key=observation.instruction,  # the prompt changes with the state too
            step=step,
            features=visual.float(),
            patches=self._patches(pixels),
            past_key_values=cache,
            observe=False,
        )
        decoded = perf_counter_ns()
        stage = ActionStage(out, pruner, model.config.expert.head_dim**-0.5)
        actions = self.denoise(
            self._noise_of(step),
            cached_keys_values(cache),
            layout.length,
            self._modulations,
            stage if stage.layers else None,
        )
        chunk = self._chunk(actions[0], positions, observation.stamp_ns)
        finished = perf_counter_ns()

        out = stage.answered()
        latency = {
            'preprocess': (prepared - began) / 1e6,
            'vision': (encoded - prepared) / 1e6,
            **out.latency_ms,
            'head': (finished - decoded) / 1e6,
            'total': (finished - began) / 1e6,
        }
        return out, chunk, latency

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """RGB 0 to 255 behind each visual token, from what the tower reads."""
        grid = self._model.config.vision.grid
        return image_patches((pixels.permute(0, 2, 3, 1) + 1) * 127.5, grid, grid)

    def _noise_of(self, step: int) -> torch.Tensor:
        """Standard normal [1, A, N]. A function of seed and step alone: a step that fails and is
        run again gets the same noise, and pruned and unpruned runs can be compared."""
        config = self._model.config
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        shape = (1, config.action_horizon, config.action_dim)
        return torch.randn(shape, generator=generator).to(self._device)

    def _prompt_state(self, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        state = self._statistics.state.normalise(self._joints.to_checkpoint(positions), clip=False)
        return np.pad(state, (0, max(0, self._deployment.prompt_state_dim - len(state))))

    def _positions(self, observation: Observation) -> npt.NDArray[np.float64]:
        return observation.state.ordered(self.spec.joint_names).astype(np.float64)

    def _pixels(self, observation: Observation) -> torch.Tensor:
        """float32 [views, 3, size, size] in [-1, 1]; ValueError names a missing view."""
        names, config = self._deployment.views, self._model.config
        missing = [name for name in names if name not in observation.images]
        if missing:
            raise ValueError(
                f'this pi0.5 checkpoint needs the views {list(names)}; the observation misses '
                f'{missing}'
            )
        size, framework = config.vision.image_size, config.framework
        images = (observation.images[name].rgb for name in names)
        return torch.stack([to_pixels(rgb, size, framework) for rgb in images])

    def _chunk(
        self, actions: torch.Tensor, positions: npt.NDArray[np.float64], stamp_ns: int
    ) -> ActionChunk:
        array = actions[:, : len(self.spec.joint_names)].double().cpu().numpy()
        if not np.isfinite(array).all():
            raise PolicyOutputError('the action expert returned NaN or infinite actions')
        targets = self._joints.targets(self._statistics.action.unnormalise(array), positions)
        return ActionChunk(
            targets, self.spec.joint_names, stamp_ns, round(self.spec.period_s * 1e9)
        )

    def _wait(self) -> None:
        """A GPU runs behind the host; stage times are taken when it is done."""
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)


def load(files: Pi05Files, method: str, settings: Mapping[str, Any]) -> Pi05Policy:
    model = load_model(files.folder, files.base, files.device, files.dtype)
    return Pi05Policy(model, files.prompt, files.statistics, files.deployment, method, settings)


backend = Backend(Pi05Files, load)
