"""Every tensor of the published sizes, as upstream's own classes name and shape it.

full_size.json holds the state dicts of upstream's models built at full size without memory, the
number of a layer written as ``*`` ([shape, layers], 0 where there is no layer): OpenVLA of
openvla c8f03f4 with timm 0.9.10 and transformers 4.40.1 (OpenVLA-OFT 213c5ff has the same names),
pi0.5 of openpi 15a9616 with transformers 4.53.2 and of lerobot 7427f31 with transformers 5.5.4.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from safe_pruner_ros.policies.openvla.keys import rename_openvla
from safe_pruner_ros.policies.openvla.network import OpenVLANetwork, read_size
from safe_pruner_ros.policies.pi05.checkpoint import _renamed
from safe_pruner_ros.policies.pi05.config import Pi05Config
from safe_pruner_ros.policies.pi05.model import Pi05


def official(golden: SimpleNamespace, name: str) -> dict[str, torch.Tensor]:
    """On the meta device."""
    state = {}
    for template, (shape, n_layers) in golden.read_json('full_size')[name].items():
        for layer in range(n_layers or 1):
            state[template.replace('*', str(layer))] = torch.empty(shape, device='meta')
    return state


def shapes(state: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def own(build: type[nn.Module], *arguments: object, **options: object) -> dict[str, list[int]]:
    with torch.device('meta'):
        return shapes(build(*arguments, **options).state_dict())


def test_openvla(golden: SimpleNamespace) -> None:
    config = {
        'model_type': 'openvla',
        'vision_backbone_id': 'dinosiglip-vit-so-224px',
        'text_config': {'vocab_size': 32064, 'pad_token_id': 32000},
    }
    size = read_size(Path('folder'), config)
    state = official(golden, 'openvla')
    assert len(state) == 982
    renamed = rename_openvla(state, size.vision)
    assert renamed.unexpected == []
    assert shapes(renamed.state) == own(OpenVLANetwork, size, with_lm_head=True)


@pytest.mark.parametrize('layout', ['openpi', 'lerobot'])
def test_pi05(golden: SimpleNamespace, layout: str) -> None:
    state = official(golden, layout)
    assert len(state) == {'openpi': 812, 'lerobot': 813}[layout]  # openpi's embedding is tied
    assert shapes(_renamed(state)) == own(Pi05, Pi05Config())
