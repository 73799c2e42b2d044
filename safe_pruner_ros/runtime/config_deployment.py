"""How a big policy's checkpoint meets a robot, as settings. Values: config/policies/*.yaml.

Mirrors `policies/deployment.py`, which says what each setting does and checks them together.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field
from typing import Any, Literal

from safe_pruner_ros.runtime.config_schema import ConfigError, check_bounds, setting


@dataclass(frozen=True)
class ActionDimensionConfig:
    """One number of the checkpoint's action and the joint it drives.

    robot value = ``scale`` * checkpoint value + ``offset``; rad, or closed fraction (0 open).
    """

    joint: str = setting(MISSING, 'joint of the robot file that this number drives')
    semantics: Literal['absolute', 'delta', 'delta_from_state'] = setting(
        'absolute',
        'a target; a step from the target before it; or a step from the measured position',
    )
    scale: float = setting(1.0, 'rad, or closed fraction, per unit of the checkpoint')
    offset: float = setting(0.0, 'robot value at checkpoint value 0', 'rad or closed fraction')
    gripper: bool = setting(False, 'clip the target to 0..1')
    binary: bool = setting(False, 'grippers that are open or closed: round the target')
    state: Literal['linear', 'aloha_gripper'] = setting(
        'linear',
        'measured position for the checkpoint: inverse of scale and offset, or the angle that '
        'openpi makes of an ALOHA gripper',
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.scale == 0.0:
            raise ConfigError(f'scale of joint {self.joint!r} must not be 0')


@dataclass(frozen=True)
class ImageChainConfig:
    """What happens to an image before OpenVLA, OpenVLA-OFT or CogACT resize it."""

    rotate_180: bool = setting(False, 'turn it upside down, as LIBERO cameras hang')
    stored_px: int = setting(
        0, 'side of the square that the training data were squashed to (ALOHA: 256); 0: not',
        'px', 0, 4096,
    )  # fmt: skip
    jpeg_lanczos: bool = setting(
        False, 'JPEG and Lanczos round trip of the training data (LIBERO, ALOHA)'
    )
    crop_area: float = setting(
        1.0, 'centre crop to this share of the area; 0.9 after random-crop training',
        maximum=1.0, above=0.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class DiffusionConfig:
    """How CogACT samples actions and joins them over policy steps."""

    n_steps: int = setting(10, 'DDIM steps, an even stride over 100 timesteps', '', 1, 100)
    guidance_scale: float = setting(1.5, 'classifier-free guidance; 1: none', '', 1.0, 100.0)
    ensemble_horizon: int = setting(
        1,
        'chunks averaged where they meet in time, this one included; 1: none, more: only with '
        'execution_horizon 1',
        '',
        1,
        100,
    )
    ensemble_alpha: float = setting(
        0.1, 'how much likeness to the newest chunk counts; 0: a plain mean', '', 0.0, 100.0
    )
    seed: int = setting(0, 'of the noise, the same in every episode', '', 0, 1_000_000)

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class DeploymentConfig:
    """What no file of a big policy's checkpoint says. Unused by the embedded policy."""

    views: tuple[str, ...] = setting(
        (), 'cameras of the robot file in the order of the training, main view first'
    )
    actions: tuple[ActionDimensionConfig, ...] = setting(
        (), 'one joint for each number of the action, in its order'
    )
    statistics_key: str = setting(
        '', 'data set whose statistics give actions their unit; empty: the only one'
    )
    period_s: float = setting(0.0, 'time between two actions of a chunk', 's', 0.0, 10.0)
    execution_horizon: int = setting(
        0, 'actions executed before the next chunk replaces them; 0: all', '', 0, 1000
    )
    bounds: Literal['q99', 'min_max'] = setting(
        'q99', 'what -1 and 1 stand for: 1 % and 99 % quantiles, or extremes (OFT on ALOHA)'
    )
    image_chain: ImageChainConfig = field(default_factory=ImageChainConfig)
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = setting(
        'auto', 'of all weights; auto: bfloat16 on a GPU, float32 on a CPU'
    )
    chunk_size: int = setting(
        0, 'OpenVLA-OFT: actions a query, as trained; 0: as the checkpoint says', '', 0, 1000
    )
    proprioception: tuple[str, ...] = setting(
        (), 'OpenVLA-OFT: joints it reads, in the order of its training; empty: none'
    )
    prompt: Literal['', 'text', 'state'] = setting('', 'pi0.5: form of its training')
    prompt_state_dim: int = setting(
        0, 'pi0.5: the state in the prompt is padded with zeros to this length', '', 0, 1000
    )
    max_prompt_tokens: int = setting(
        200, 'pi0.5: longest prompt of its training', 'tokens', 1, 10000
    )
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        check_bounds(self)

    def values(self) -> dict[str, Any]:
        """Plain values for `policies.catalog.build_policy`; {} when nothing was set."""
        if self == DeploymentConfig():
            return {}
        plain = asdict(self)
        for name in ('execution_horizon', 'chunk_size'):
            plain[name] = plain[name] or None
        return plain
