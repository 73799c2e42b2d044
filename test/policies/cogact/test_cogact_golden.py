"""Numbers of upstream's own code, reproduced.

``golden_cogact/outputs.npz`` holds outputs of microsoft/CogACT b174a1b on arnoldland/openvla
5603207 (its vision towers and VLM), torch 2.13 (CPU, float32), transformers 4.40.1, timm 0.9.10.
Tiny sizes: DINOv2 32 wide, 4 blocks; SigLIP 48 wide, 3 blocks, MLP 80; 56 px; Llama 32 wide, 6
layers, 4 heads, MLP 64, rms_norm_eps 1e-5; DiT-S whole (384 wide, 6 blocks), the width of its
unconditional feature set to the decoder's (upstream has 4096 in any case). Weights as in
``conftest.py``, loaded by upstream's ``CogACT.from_pretrained``; a constant noise in place of
``torch.randn``; an image of 70 x 90 random bytes; the instruction below.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.cogact.checkpoint import CogACTModel, CogACTWeights
from safe_pruner_ros.policies.cogact.diffusion import DDIMSampler, signal_shares
from safe_pruner_ros.policies.cogact.ensemble import AdaptiveEnsemble
from safe_pruner_ros.policies.cogact.files import MEAN, STD
from safe_pruner_ros.policies.cogact.policy import cogact_layout, read_cognition, to_physical
from safe_pruner_ros.policies.openvla.images import ImageProcessor
from safe_pruner_ros.policies.openvla.prompt import EOS, read_prompt_encoder

INSTRUCTION = 'Pick up the red block'
TOLERANCE = 1e-5
SAMPLING = {'guided': (10, 1.5), 'plain': (10, 1.0), 'five': (5, 3.0)}


@pytest.fixture(scope='module')
def model(cogact_tiny: SimpleNamespace) -> CogACTModel:
    size = cogact_tiny.sizes['base_vlms']['tiny']
    weights = CogACTWeights(cogact_tiny.golden_weights)
    return weights.load(size, torch.device('cpu'), torch.float32)


def pixels() -> torch.Tensor:
    rgb = np.random.RandomState(7).randint(0, 256, (70, 90, 3)).astype(np.uint8)
    return ImageProcessor(56, MEAN, STD)(rgb)


def noise() -> torch.Tensor:
    values = 0.1 * np.random.RandomState(11).standard_normal((1, 16, 7))
    return torch.from_numpy(values.astype(np.float32))


def difference(got: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """The largest, in units of the largest expected value, if that is above 1."""
    got = np.asarray(got)
    assert got.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(got - expected).max()) / scale


def test_pixels(cogact_tiny: SimpleNamespace) -> None:
    got = pixels()
    assert got.shape == (6, 56, 56)
    assert difference(got[:, ::5, ::5], cogact_tiny.golden['pixels_every_5th']) < 1e-6


def test_vision_features_and_projector(cogact_tiny: SimpleNamespace, model: CogACTModel) -> None:
    vision, images = model.network.vision, pixels()[None]
    features = torch.cat([vision.dino(images[:, :3]), vision.siglip(images[:, 3:])], dim=2)
    assert difference(features[0], cogact_tiny.golden['features']) < TOLERANCE
    projected = model.network.encode_images(images)[0]
    assert difference(projected, cogact_tiny.golden['projected']) < TOLERANCE


def test_prompt_and_cognition_feature(cogact_tiny: SimpleNamespace, model: CogACTModel) -> None:
    ids = read_prompt_encoder(cogact_tiny.run)(INSTRUCTION)
    assert [*ids, EOS] == cogact_tiny.golden['prompt_ids'].tolist()
    visual = model.network.encode_images(pixels()[None])
    layout = cogact_layout((ViewGrid('head', 4, 4),), len(ids))
    pruner = build_pruner('unpruned', cogact_tiny.n_layers)
    _, cognition = read_cognition(
        model, visual, torch.tensor([ids]), layout, pruner, instruction_key='x', step=0
    )
    assert difference(cognition[0], cogact_tiny.golden['cognition']) < TOLERANCE


def test_noise_schedule(cogact_tiny: SimpleNamespace) -> None:
    assert difference(np.array(signal_shares()), cogact_tiny.golden['alpha_bar']) < 1e-12


@torch.no_grad()
def test_action_model(cogact_tiny: SimpleNamespace, model: CogACTModel) -> None:
    """At timesteps 90 with the cognition feature and 40 without."""
    dit = model.dit
    cognition = torch.from_numpy(cogact_tiny.golden['cognition'])[None]
    features = torch.stack([cognition, dit.uncondition])
    times = dit.embed_time(torch.tensor([90, 40]))[:, None]
    got = dit(noise().expand(2, -1, -1), times + dit.embed_condition(features))
    assert difference(got, cogact_tiny.golden['dit_at_90_and_40']) < TOLERANCE


@pytest.mark.parametrize('name', SAMPLING)
def test_ddim_with_guidance(cogact_tiny: SimpleNamespace, model: CogACTModel, name: str) -> None:
    cognition = torch.from_numpy(cogact_tiny.golden['cognition'])[None]
    with torch.inference_mode():
        got = DDIMSampler(model.dit, *SAMPLING[name]).sample(cognition, noise())
    assert difference(got, cogact_tiny.golden[f'samples_{name}']) < TOLERANCE
    mask = np.array([True] * 6 + [False])
    actions = to_physical(got.numpy(), Range(cogact_tiny.q01, cogact_tiny.q99, mask))
    assert difference(actions, cogact_tiny.golden[f'actions_{name}']) < TOLERANCE
    inside = np.abs(got.numpy()[:, :6]) < 1
    assert inside.mean() > 0.3 and set(actions[:, 6]) == {0.0, 1.0}  # clipping hides little


@pytest.mark.parametrize('horizon, alpha', [(2, 0.1), (7, 0.1), (7, 2.0)])
def test_adaptive_ensemble(cogact_tiny: SimpleNamespace, horizon: int, alpha: float) -> None:
    """One query per action, as upstream asks: the first action of every query."""
    chunks = np.random.RandomState(13).standard_normal((9, 16, 7))
    ensemble, got = AdaptiveEnsemble(horizon, alpha, period_ns=100), []
    for step, chunk in enumerate(chunks):
        got.append(ensemble.average(chunk, 100 * step)[0])
        ensemble.remember(chunk, 100 * step)
    expected = cogact_tiny.golden[f'ensemble_{horizon}_{alpha}']
    assert difference(np.stack(got), expected) < 1e-12
