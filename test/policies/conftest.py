"""A tiny OpenVLA(-OFT) checkpoint in the official layout, and what plain torch makes of it.

Nothing here uses the package's own renaming: names and shapes are those of the official files
(openvla c8f03f4 and openvla-oft 213c5ff), and every tensor is drawn from a generator seeded by
its name.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from safe_pruner_ros.policies.openvla.vision import TowerSize, VisionSize

SIZE = VisionSize(TowerSize(32, 4, 4, 128, n_registers=4), TowerSize(48, 3, 4, 80), image_size=56)
WIDTH, N_LAYERS, VOCAB = 32, 6, 32064
N_ACTIONS, N_PROPRIO = 7, 7
TEXT = {
    'vocab_size': VOCAB,
    'hidden_size': WIDTH,
    'intermediate_size': 64,
    'num_hidden_layers': N_LAYERS,
    'num_attention_heads': 4,
    'num_key_value_heads': 4,
    'rms_norm_eps': 1e-6,
    'pad_token_id': 32000,
}
MEANS = [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
STDS = [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]


@pytest.fixture(autouse=True, scope='session')
def one_thread() -> None:
    torch.set_num_threads(1)


def tensor(name: str, *shape: int) -> torch.Tensor:
    """Norm weights near 1, LayerScale large enough to show, matrices that keep the scale."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        is_gain = ('norm' in name and name.endswith('weight')) or 'scale_factor' in name
        return 1 + 0.1 * noise if is_gain else 0.1 * noise
    if name.endswith(('embed_tokens.weight', 'embed', 'token')):
        return 0.5 * noise
    return 1.5 * noise / math.sqrt(math.prod(shape[1:]))


def linear(name: str, n_out: int, n_in: int) -> dict[str, torch.Tensor]:
    weight, bias = f'{name}.weight', f'{name}.bias'
    return {weight: tensor(weight, n_out, n_in), bias: tensor(bias, n_out)}


def norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f'{name}.{kind}': tensor(f'{name}.{kind}', width) for kind in ('weight', 'bias')}


def vit(prefix: str, size: TowerSize, n_patches: int, *, is_dino: bool) -> dict[str, torch.Tensor]:
    width, state = size.width, {}
    names = {'pos_embed': (1, n_patches, width), 'patch_embed.proj.weight': (width, 3, 14, 14)}
    if is_dino:
        names |= {'cls_token': (1, 1, width), 'reg_token': (1, 4, width)}
    names['patch_embed.proj.bias'] = (width,)
    for name, shape in names.items():
        state[prefix + name] = tensor(prefix + name, *shape)
    for index in range(size.n_blocks):
        block = f'{prefix}blocks.{index}.'
        for name in ('norm1', 'norm2'):
            state |= norm(block + name, width)
        state |= linear(f'{block}attn.qkv', 3 * width, width)
        state |= linear(f'{block}attn.proj', width, width)
        state |= linear(f'{block}mlp.fc1', size.mlp_width, width)
        state |= linear(f'{block}mlp.fc2', width, size.mlp_width)
        if is_dino:
            for name in ('ls1', 'ls2'):
                key = f'{block}{name}.scale_factor'
                state[key] = tensor(key, width)
    return state | norm(f'{prefix}norm', width)


def official_state() -> dict[str, torch.Tensor]:
    dino, siglip = SIZE.dino, SIZE.siglip
    vision, n_patches = SIZE.width, SIZE.grid**2
    fused = 'vision_backbone.fused_featurizer.'
    state = vit('vision_backbone.featurizer.', dino, n_patches, is_dino=True)
    state |= vit(fused, siglip, n_patches, is_dino=False)
    state |= linear(f'{fused}attn_pool.q', siglip.width, siglip.width)
    state[f'{fused}attn_pool.latent'] = tensor(f'{fused}attn_pool.latent', 1, 1, siglip.width)
    state |= linear('projector.fc1', 4 * vision, vision)
    state |= linear('projector.fc2', WIDTH, 4 * vision)
    state |= linear('projector.fc3', WIDTH, WIDTH)
    matrices = {'model.embed_tokens': (VOCAB, WIDTH), 'lm_head': (VOCAB, WIDTH)}
    for index in range(N_LAYERS):
        layer = f'model.layers.{index}.'
        for part in 'qkvo':
            matrices[f'{layer}self_attn.{part}_proj'] = (WIDTH, WIDTH)
        matrices |= {f'{layer}mlp.{p}_proj': (64, WIDTH) for p in ('gate', 'up')}
        matrices[f'{layer}mlp.down_proj'] = (WIDTH, 64)
        for part in ('input_layernorm', 'post_attention_layernorm'):
            matrices[layer + part] = (WIDTH,)
    matrices['model.norm'] = (WIDTH,)
    for name, shape in matrices.items():
        key = f'language_model.{name}.weight'
        state[key] = tensor(key, *shape)
    rows = state['language_model.lm_head.weight']  # it answers with the 256 action tokens
    rows[:31744] *= 0.1
    rows[32000:] *= 0.1
    return state


def head_state() -> dict[str, torch.Tensor]:
    wide = WIDTH * N_ACTIONS
    state = norm('module.model.layer_norm1', wide) | linear('module.model.fc1', WIDTH, wide)
    for index in range(2):
        block = f'module.model.mlp_resnet_blocks.{index}.ffn.'
        state |= norm(f'{block}0', WIDTH) | linear(f'{block}1', WIDTH, WIDTH)
    state |= norm('module.model.layer_norm2', WIDTH)
    return state | linear('module.model.fc2', N_ACTIONS, WIDTH)


def proprio_state() -> dict[str, torch.Tensor]:
    return linear('module.fc1', WIDTH, N_PROPRIO) | linear('module.fc2', WIDTH, WIDTH)


def statistics() -> dict[str, object]:
    action = {
        'q01': [-0.5 - 0.1 * k for k in range(N_ACTIONS)],
        'q99': [0.5 + 0.2 * k for k in range(N_ACTIONS)],
        'mask': [True] * 6 + [False],
    }
    proprio = {'q01': [-1.0] * N_PROPRIO, 'q99': [1.5] * N_PROPRIO}
    return {'libero_spatial_no_noops': {'action': action, 'proprio': proprio}}


def write_tokenizer(folder: Path) -> None:
    words = ['<unk>', '<s>', '</s>', 'In', ':', 'What', 'action', 'should', 'the', 'robot', 'take']
    words += ['to', '?', 'Out', 'pick', 'up', 'red', 'blue', 'block']
    vocabulary = {word: index for index, word in enumerate(words)} | {'▁': 29871}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / 'tokenizer.json'))


def write_checkpoint(folder: Path, *, is_oft: bool) -> None:
    """Three shards and their index, as ``save_pretrained`` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    state, shards = official_state(), {}
    for number in range(3):
        name = f'model-{number + 1:05d}-of-00003.safetensors'
        part = {key: state[key] for key in sorted(state)[number::3]}
        save_file(part, folder / name, {'format': 'pt'})
        shards |= dict.fromkeys(part, name)
    index = {'metadata': {'total_size': 0}, 'weight_map': shards}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    config = {
        'model_type': 'openvla',
        'vision_backbone_id': 'tiny',
        'llm_backbone_id': 'llama2-7b-pure',
        'text_config': TEXT,
        'pad_to_multiple_of': 64,
        'n_action_bins': 256,
        'norm_stats': {} if is_oft else statistics(),
    }
    (folder / 'config.json').write_text(json.dumps(config))
    preprocessor = {
        'means': MEANS,
        'stds': STDS,
        'input_sizes': [[3, 56, 56], [3, 56, 56]],
        'image_resize_strategy': 'resize-naive',
    }
    (folder / 'preprocessor_config.json').write_text(json.dumps(preprocessor))
    write_tokenizer(folder)
    if is_oft:
        torch.save(head_state(), folder / 'action_head--150000_checkpoint.pt')
        torch.save(proprio_state(), folder / 'proprio_projector--150000_checkpoint.pt')
        (folder / 'dataset_statistics.json').write_text(json.dumps(statistics()))


# -- the same network in plain torch, from the official names -------------------------------------


@dataclass
class Reference:
    """float32. ``state`` by official name."""

    state: dict[str, torch.Tensor]

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.state[f'{name}.weight'], self.state[f'{name}.bias'])

    def _norm(self, name: str, x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def tower(self, prefix: str, size: TowerSize, pixels: torch.Tensor) -> torch.Tensor:
        """timm's ViT: positions on patches only, then class and register tokens before them;
        output of the last block but one, without them."""
        state = self.state
        weight = state[f'{prefix}patch_embed.proj.weight']
        x = F.conv2d(pixels, weight, state[f'{prefix}patch_embed.proj.bias'], stride=14)
        x = x.flatten(2).transpose(1, 2) + state[f'{prefix}pos_embed']
        n_patches = x.shape[1]
        for name in ('reg_token', 'cls_token'):
            if prefix + name in state:
                x = torch.cat([state[prefix + name].expand(len(x), -1, -1), x], dim=1)
        for index in range(size.n_blocks - 1):
            block = f'{prefix}blocks.{index}.'
            qkv = self._linear(f'{block}attn.qkv', self._norm(f'{block}norm1', x))
            q, k, v = qkv.unflatten(2, (3, size.n_heads, -1)).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
            mixed = (weights @ v).transpose(1, 2).flatten(2)
            mixed = self._linear(f'{block}attn.proj', mixed)
            x = x + mixed * state.get(f'{block}ls1.scale_factor', 1)
            mlp = F.gelu(self._linear(f'{block}mlp.fc1', self._norm(f'{block}norm2', x)))
            mlp = self._linear(f'{block}mlp.fc2', mlp)
            x = x + mlp * state.get(f'{block}ls2.scale_factor', 1)
        return x[:, -n_patches:]

    def visual(self, pixels: torch.Tensor) -> torch.Tensor:
        """[views, 6, H, W] -> [1, V, D]."""
        dino = self.tower('vision_backbone.featurizer.', SIZE.dino, pixels[:, :3])
        siglip = self.tower('vision_backbone.fused_featurizer.', SIZE.siglip, pixels[:, 3:])
        x = F.gelu(self._linear('projector.fc1', torch.cat([dino, siglip], dim=2)))
        x = self._linear('projector.fc3', F.gelu(self._linear('projector.fc2', x)))
        return x.flatten(0, 1)[None]

    def llama(self) -> LlamaModel:
        model = LlamaModel(LlamaConfig(**TEXT, attn_implementation='eager')).eval()
        prefix = 'language_model.model.'
        own = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        model.load_state_dict(own, strict=True)
        return model.requires_grad_(False)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.state['language_model.model.embed_tokens.weight'][ids]

    def action_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[chunk * n, D] -> [chunk, n]."""
        name, eps = 'module.model.', 1e-5
        x = self._norm(f'{name}layer_norm1', hidden.reshape(-1, N_ACTIONS * WIDTH), eps)
        x = self._linear(f'{name}fc1', x).relu()
        for index in range(2):
            block = f'{name}mlp_resnet_blocks.{index}.ffn.'
            x = x + self._linear(f'{block}1', self._norm(f'{block}0', x, eps)).relu()
        return self._linear(f'{name}fc2', self._norm(f'{name}layer_norm2', x, eps))

    def proprio(self, values: torch.Tensor) -> torch.Tensor:
        return self._linear('module.fc2', F.gelu(self._linear('module.fc1', values)))


@pytest.fixture(scope='session')
def openvla_tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders ``oft`` and ``openvla`` (read-only: copy before a change), ``reference``, sizes."""
    root = tmp_path_factory.mktemp('openvla')
    write_checkpoint(root / 'oft', is_oft=True)
    write_checkpoint(root / 'openvla', is_oft=False)
    return SimpleNamespace(
        oft=root / 'oft',
        openvla=root / 'openvla',
        reference=Reference(official_state() | head_state() | proprio_state()),
        vision_sizes={'tiny': SIZE},
        n_layers=N_LAYERS,
        n_patches=SIZE.grid**2,
        statistics_key='libero_spatial_no_noops',
        means=MEANS,
        stds=STDS,
    )
