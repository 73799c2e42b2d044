"""Parameter names of official OpenVLA and OpenVLA-OFT checkpoints -> names of our modules.

The towers come in timm's naming (one fused ``qkv``, ``ls1.scale_factor`` in the Hugging Face
conversion and ``ls1.gamma`` before it). Every official name is either renamed, known to be unused,
or reported; nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from safe_pruner_ros.policies.openvla.vision import VisionSize

State = dict[str, torch.Tensor]

_DINO_BLOCK = {
    'norm1': 'norm1',
    'attn.proj': 'attention.o_proj',
    'ls1.scale_factor': 'layer_scale1.lambda1',
    'ls1.gamma': 'layer_scale1.lambda1',
    'norm2': 'norm2',
    'mlp.fc1': 'mlp.fc1',
    'mlp.fc2': 'mlp.fc2',
    'ls2.scale_factor': 'layer_scale2.lambda1',
    'ls2.gamma': 'layer_scale2.lambda1',
}
_SIGLIP_BLOCK = {
    'norm1': 'layer_norm1',
    'attn.proj': 'self_attn.out_proj',
    'norm2': 'layer_norm2',
    'mlp.fc1': 'mlp.fc1',
    'mlp.fc2': 'mlp.fc2',
}


@dataclass
class Renamed:
    """``state`` under our names, views of the tensors read; ``unexpected`` official names."""

    state: State = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


def rename_openvla(official: Mapping[str, torch.Tensor], size: VisionSize) -> Renamed:
    """Whole state dict of `OpenVLAForActionPrediction` -> that of `OpenVLANetwork`."""
    renamed = Renamed()
    for name, tensor in official.items():
        ours = _rename(name, tensor, size)
        if ours is None:
            renamed.unexpected.append(name)
        else:
            renamed.state.update(ours)
    return renamed


def _rename(name: str, tensor: torch.Tensor, size: VisionSize) -> State | None:
    """{} for a tensor that is known and not needed, None for an unknown one."""
    if name.startswith('vision_backbone.featurizer.'):
        rest = name.removeprefix('vision_backbone.featurizer.')
        return _prefix('vision.dino.model.', _rename_dino(rest, tensor, size.dino.n_blocks))
    if name.startswith('vision_backbone.fused_featurizer.'):
        rest = name.removeprefix('vision_backbone.fused_featurizer.')
        return _prefix('vision.siglip.model.', _rename_siglip(rest, tensor, size.siglip.n_blocks))
    if name.startswith('projector.'):
        return {f'vision.{name}': tensor}
    if name.endswith('.rotary_emb.inv_freq'):
        return {}  # computed; older transformers stored it
    if name.startswith('language_model.model.'):
        return {name.replace('language_model.model.', 'decoder.', 1): tensor}
    if name == 'language_model.lm_head.weight':
        return {'lm_head.weight': tensor}
    return None


def _prefix(prefix: str, state: State | None) -> State | None:
    return None if state is None else {prefix + name: value for name, value in state.items()}


def _rename_dino(name: str, tensor: torch.Tensor, n_blocks: int) -> State | None:
    if name.startswith('blocks.'):
        layer = ('encoder.layer.', 'attention.')
        return _rename_block(name, tensor, n_blocks, _DINO_BLOCK, *layer)
    if name == 'pos_embed':
        # timm has no position for the class token (it is added into cls_token beforehand).
        none_for_class = torch.zeros_like(tensor[:, :1])
        return {'embeddings.position_embeddings': torch.cat([none_for_class, tensor], dim=1)}
    known = {
        'cls_token': 'embeddings.cls_token',
        'reg_token': 'embeddings.register_tokens',
        'patch_embed.proj.weight': 'embeddings.patch_embeddings.projection.weight',
        'patch_embed.proj.bias': 'embeddings.patch_embeddings.projection.bias',
    }
    if name in known:
        return {known[name]: tensor}
    return {} if name in ('norm.weight', 'norm.bias') else None


def _rename_siglip(name: str, tensor: torch.Tensor, n_blocks: int) -> State | None:
    if name.startswith('blocks.'):
        layer = ('encoder.layers.', 'self_attn.')
        return _rename_block(name, tensor, n_blocks, _SIGLIP_BLOCK, *layer)
    if name == 'pos_embed':
        return {'embeddings.position_embedding.weight': tensor[0]}
    if name.startswith('patch_embed.proj.'):
        return {name.replace('patch_embed.proj', 'embeddings.patch_embedding'): tensor}
    is_unused = name in ('norm.weight', 'norm.bias') or name.startswith('attn_pool.')
    return {} if is_unused else None


def _rename_block(
    name: str,
    tensor: torch.Tensor,
    n_blocks: int,
    names: Mapping[str, str],
    layer: str,
    attention: str,
) -> State | None:
    found = re.fullmatch(r'blocks\.(\d+)\.(.+)', name)
    if found is None or int(found[1]) >= n_blocks:
        return None
    if int(found[1]) == n_blocks - 1:
        return {}  # its output is never read
    place, rest = f'{layer}{found[1]}.', found[2]
    if rest in ('attn.qkv.weight', 'attn.qkv.bias'):
        kind = rest.rpartition('.')[2]
        parts = zip('qkv', tensor.chunk(3), strict=True)
        return {f'{place}{attention}{part}_proj.{kind}': value for part, value in parts}
    if rest in names:
        return {place + names[rest]: tensor}
    module, _, kind = rest.rpartition('.')
    return {f'{place}{names[module]}.{kind}': tensor} if module in names else None
