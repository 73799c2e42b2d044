"""OpenVLA and OpenVLA-OFT against numbers of upstream's own code, from picture to action.

OpenVLA: github.com/openvla/openvla c8f03f4, `prismatic.extern.hf` (transformers 4.40.1, timm
0.9.10). OpenVLA-OFT: github.com/moojink/openvla-oft 213c5ff on its fork of transformers
(moojink/transformers-openvla-oft bc339d9), with the constants of LIBERO (8 actions of 7) and of
ALOHA (25 of 14, bounds min and max). Both with torch 2.13.0 on a CPU, float32.

The structure is whole and the sizes tiny: timm's vit_large_patch14_reg4_dinov2 at width 64, 5
blocks, 4 heads and vit_so400m_patch14_siglip_224 at width 48, 4 blocks, 4 heads; 224 px, 256
patches; Llama at width 64, 6 layers, 4 heads, the real vocabulary of 32064. See conftest.py for
the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.action_statistics import read_range
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla.network import OpenVLANetwork
from safe_pruner_ros.policies.openvla.oft_policy import (
    OFTModel,
    load_oft_model,
    oft_layout,
)
from safe_pruner_ros.policies.openvla.oft_policy import backend as oft_backend
from safe_pruner_ros.policies.openvla.policy import backend as openvla_backend
from safe_pruner_ros.policies.openvla.policy import decode_actions, openvla_layout
from safe_pruner_ros.policies.openvla.vision import TowerSize, VisionSize
from safe_pruner_ros.types import ArmState, CameraImage, Observation

SIZES = {
    'dinosiglip-vit-so-224px': VisionSize(
        TowerSize(64, 5, 4, 256, n_registers=4), TowerSize(48, 4, 4, 179)
    )
}
# Seen where the numbers were made: 0 for pixels, vision, projector, hidden states and action ids,
# 4.8e-6 for the logits of decoded tokens (up to 10.8), 2.6e-7 for OFT's actions. Another CPU adds
# up in another order.
TOLERANCE = 1e-5
TASK = 'put the red cube into the box'
WORDS = f'In : What action should the robot take to {TASK} ? Out :'.split()
PICTURES = {'picture 2': (256, 256), 'picture 15': (120, 200), 'picture 10': (224, 224)}
EMPTY_WORD = 29871


def write_checkpoint(golden: SimpleNamespace, folder: Path, platform: str = '') -> None:
    """As `save_pretrained` and, for OFT, its training script leave it."""
    info = golden.read_json('openvla')
    folder.mkdir()
    state = {name: golden.filled(name, tuple(shape)) for name, shape in info['shapes'].items()}
    names = sorted(state)
    shards: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f'model-{number + 1:05d}-of-00002.safetensors'
        save_file({name: state[name] for name in part}, folder / file, {'format': 'pt'})
        shards |= dict.fromkeys(part, file)
    index = {'metadata': {}, 'weight_map': shards}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    config = {
        'model_type': 'openvla',
        'vision_backbone_id': 'dinosiglip-vit-so-224px',
        'text_config': info['text_config'],
        'pad_to_multiple_of': 64,
        'n_action_bins': 256,
        'norm_stats': info['norm_stats'],
    }
    (folder / 'config.json').write_text(json.dumps(config))
    preprocessor = {
        'means': info['means'],
        'stds': info['stds'],
        'input_sizes': [[3, 224, 224]] * 2,
        'image_resize_strategy': 'resize-naive',
    }
    (folder / 'preprocessor_config.json').write_text(json.dumps(preprocessor))
    vocabulary = {
        word: 300 + int((golden.uniform(f'word {word}', ()) + 1) / 2 * 31000) for word in WORDS
    }
    vocabulary |= {'<unk>': 0, '<s>': 1, '</s>': 2, '▁': EMPTY_WORD}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / 'tokenizer.json'))
    if platform:
        oft = info['oft'][platform]
        (folder / 'dataset_statistics.json').write_text(json.dumps(oft['stats']))
        for part, name in (('head', 'action_head'), ('proprio', 'proprio_projector')):
            component = {
                key: golden.filled(f'{platform} {name} {key}', tuple(shape))
                for key, shape in oft[part].items()
            }
            torch.save(component, folder / f'{name}--150000_checkpoint.pt')


@pytest.fixture(scope='module')
def checkpoints(golden: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('golden')
    for name in ('', 'libero', 'aloha'):
        write_checkpoint(golden, root / (name or 'openvla'), name)
    return root


def prompt_ids(folder: Path) -> torch.Tensor:
    tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
    return torch.tensor([[1, *tokenizer.encode(' '.join(WORDS)).ids, EMPTY_WORD]])


# -- OpenVLA --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def openvla(checkpoints: Path) -> object:
    deployment = Deployment(('head',), absolute('abcdefg'), 'seeded', 0.2, dtype='float32')
    return openvla_backend.build(
        checkpoints / 'openvla', deployment, 'unpruned', {}, vision_sizes=SIZES
    )


def observed(
    images: dict[str, np.ndarray], joints: np.ndarray, names: Sequence[str] = 'abcdefg'
) -> Observation:
    cameras = {name: CameraImage(rgb, name, 7) for name, rgb in images.items()}
    return Observation(cameras, ArmState(joints, tuple(names), 7), TASK, 7)


@torch.inference_mode()
def tower_features(network: OpenVLANetwork, pixels: torch.Tensor) -> torch.Tensor:
    dino, siglip = pixels.split(3, dim=1)
    return torch.cat([network.vision.dino(dino), network.vision.siglip(siglip)], dim=2)


@pytest.mark.parametrize('name', PICTURES)
@torch.inference_mode()
def test_openvla_stage_by_stage(
    golden: SimpleNamespace, checkpoints: Path, openvla: object, name: str
) -> None:
    numbers, network = golden.Numbers('openvla'), openvla.network
    rgb = golden.picture(name, *PICTURES[name])
    pixels = openvla._pixels(openvla._pictures(observed({'head': rgb}, np.zeros(7))))
    assert numbers.difference(f'{name}/pixels', pixels) < 1e-12
    features = tower_features(network, pixels)
    assert numbers.difference(f'{name}/vision', features) < TOLERANCE
    visual = network.encode_images(pixels)
    assert numbers.difference(f'{name}/projector', visual) < TOLERANCE

    ids = prompt_ids(checkpoints / 'openvla')
    text = network.embed_ids(ids)
    embeddings = torch.cat([text[:, :1], visual, text[:, 1:]], dim=1)
    layout = openvla_layout((ViewGrid('head', 16, 16),), ids.shape[1])
    logits: list[torch.Tensor] = []
    hook = network.lm_head.register_forward_hook(lambda *call: logits.append(call[2][0, -1]))
    out, action_ids = decode_actions(
        network,
        embeddings,
        layout,
        build_pruner('unpruned', 6),
        7,
        instruction_key='x',
        step=0,
    )
    hook.remove()
    assert numbers.difference(f'{name}/hidden', out.hidden) < TOLERANCE
    assert numbers.difference(f'{name}/logits', torch.stack(logits)) < TOLERANCE
    assert action_ids.tolist() == numbers[f'{name}/ids'].tolist()


@pytest.mark.parametrize('name', PICTURES)
def test_openvla_from_picture_to_action(
    golden: SimpleNamespace, openvla: object, name: str
) -> None:
    """Prompt, picture, seven tokens, bins and statistics: upstream's `predict_action`."""
    seen = observed({'head': golden.picture(name, *PICTURES[name])}, np.zeros(7))
    actions = openvla.predict(seen).chunk.positions
    assert golden.Numbers('openvla').difference(f'{name}/actions', actions[0]) < 1e-12


# -- OpenVLA-OFT ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def oft_models(checkpoints: Path) -> dict[str, OFTModel]:
    cpu = torch.device('cpu')
    return {
        platform: load_oft_model(checkpoints / platform, cpu, torch.float32, SIZES)
        for platform in ('libero', 'aloha')
    }


def views_of(golden: SimpleNamespace, n_images: int) -> dict[str, np.ndarray]:
    return {
        f'view {index}': golden.picture(f'view {index}', 240, 320) for index in range(n_images)
    }


OFT_CASES = [
    (platform, n_images, with_proprio)
    for platform, counts in (('libero', (1, 2, 3)), ('aloha', (3,)))
    for n_images in counts
    for with_proprio in (True, False)
]


@pytest.mark.parametrize(('platform', 'n_images', 'with_proprio'), OFT_CASES)
@torch.inference_mode()
def test_oft_stage_by_stage(
    golden: SimpleNamespace,
    checkpoints: Path,
    openvla: object,
    oft_models: dict[str, OFTModel],
    platform: str,
    n_images: int,
    with_proprio: bool,
) -> None:
    numbers, oft = golden.Numbers('openvla_oft'), golden.read_json('openvla')['oft'][platform]
    name = f'{platform}/{n_images}/{"proprio" if with_proprio else "plain"}'
    full = oft_models[platform]
    model = full if with_proprio else OFTModel(full.network, full.head, None)
    pictures = views_of(golden, n_images)
    pixels = torch.stack([openvla._processor(rgb) for rgb in pictures.values()])
    features = tower_features(model.network, pixels)
    assert numbers.difference(f'{name}/vision', features) < TOLERANCE
    visual = model.network.encode_images(pixels)
    assert numbers.difference(f'{name}/projector', visual) < TOLERANCE

    statistics, proprio = oft['stats']['seeded'], None
    bounds = 'min_max' if platform == 'aloha' else 'q99'
    if with_proprio:
        normalised = read_range(statistics, 'proprio', bounds, 1e-8).normalise(oft['state'])
        assert numbers.difference(f'{name}/proprio', normalised) < 1e-12
        proprio = torch.from_numpy(normalised.astype(np.float32))[None]
    ids = prompt_ids(checkpoints / platform)
    n_actions = oft['chunk'] * len(statistics['action']['mask'])
    layout = oft_layout(
        tuple(ViewGrid(view, 16, 16) for view in pictures),
        ids.shape[1],
        n_actions,
        has_proprio=with_proprio,
    )
    out, normalised_actions = model.decode(
        model.embed(visual, ids, proprio, n_actions),
        layout,
        build_pruner('unpruned', 6),
        instruction_key='x',
        step=0,
    )
    assert numbers.difference(f'{name}/states', out.rows(layout.readout)) < TOLERANCE
    scale = read_range(statistics, 'action', bounds, epsilon=1e-8)
    actions = scale.unnormalise(normalised_actions.double().numpy())
    assert numbers.difference(f'{name}/actions', actions) < TOLERANCE


def test_oft_from_pictures_to_actions(golden: SimpleNamespace, checkpoints: Path) -> None:
    """The policy as a robot runs it, on ALOHA's layout: 3 cameras, 14 joints read and moved."""
    oft = golden.read_json('openvla')['oft']['aloha']
    joints = tuple(f'joint_{index}' for index in range(14))
    pictures = views_of(golden, 3)
    deployment = Deployment(
        tuple(pictures),
        absolute(joints),
        'seeded',
        0.02,
        bounds='min_max',
        dtype='float32',
        chunk_size=oft['chunk'],
        proprioception=joints,
    )
    policy = oft_backend.build(
        checkpoints / 'aloha', deployment, 'unpruned', {}, vision_sizes=SIZES
    )
    chunk = policy.predict(observed(pictures, np.array(oft['state']), joints)).chunk
    numbers = golden.Numbers('openvla_oft')
    assert numbers.difference('aloha/3/proprio/actions', chunk.positions) < TOLERANCE
