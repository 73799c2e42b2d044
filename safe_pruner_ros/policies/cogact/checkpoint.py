"""A run folder of CogACT -> its network. The layout upstream's training leaves behind:

- ``config.json``: of all that only ``vla.base_vlm`` describes the network;
- ``dataset_statistics.json``;
- ``checkpoints/*.pt``: ``{'model': {part: state dict}}``, the parts vision_backbone, projector,
  llm_backbone, action_model and, where asked for, ema_diffusion (CogACT b174a1b, vla/load.py and
  vla/cogactvla.py). Upstream acts by action_model; the averaged copy beside it is not read.

Upstream fetches Llama-2's tokenizer from elsewhere: put a ``tokenizer.json`` beside config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from safe_pruner_ros.policies.checkpoint_files import check_fit, load_strict, read_torch_file
from safe_pruner_ros.policies.cogact.dit import DIT_SIZES, DiT, DiTSize
from safe_pruner_ros.policies.device import check_memory, needed_bytes
from safe_pruner_ros.policies.openvla.keys import Renamed, rename_openvla
from safe_pruner_ros.policies.openvla.network import NetworkSize, OpenVLANetwork
from safe_pruner_ros.policies.openvla.vision import VISION_SIZES

Parts = Mapping[str, Mapping[str, torch.Tensor]]

# Llama-2-7B as meta-llama/Llama-2-7b-hf configures it (rms_norm_eps 1e-5, where OpenVLA's
# conversion has 1e-6), its vocabulary padded to a multiple of 64.
_LLAMA_2_7B = LlamaConfig(
    vocab_size=32064,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    pad_token_id=32000,
    attn_implementation='sdpa',
    use_cache=False,
)
_DINO_SIGLIP_7B = NetworkSize(VISION_SIZES['dinosiglip-vit-so-224px'], _LLAMA_2_7B)

# config.json's vla.base_vlm -> sizes. All that prismatic/conf/models.py (openvla c8f03f4) has on
# these towers and Llama-2; they differ in training only. "dinosiglip-224px-resize-naive+7b" has
# the same shapes, but its language model is Vicuna v1.5, with another prompt.
BASE_VLMS: Mapping[str, NetworkSize] = {
    'prism-dinosiglip-224px+7b': _DINO_SIGLIP_7B,
    'prism-dinosiglip-224px-controlled+7b': _DINO_SIGLIP_7B,
}

PARTS = ('vision_backbone', 'projector', 'llm_backbone', 'action_model')
_UNUSED_PARTS = ('ema_diffusion',)
_OPENVLA_NAMES = {
    'vision_backbone.dino_featurizer.': 'vision_backbone.featurizer.',
    'vision_backbone.siglip_featurizer.': 'vision_backbone.fused_featurizer.',
    'projector.projector.0.': 'projector.fc1.',
    'projector.projector.2.': 'projector.fc2.',
    'projector.projector.4.': 'projector.fc3.',
    'llm_backbone.llm.': 'language_model.',
}


@dataclass(frozen=True)
class CogACTModel:
    """Both on one device and in eval mode; ``dit`` is float32 whatever the network is, as
    upstream runs it."""

    network: OpenVLANetwork
    dit: DiT


def find_files(checkpoint: Path) -> tuple[Path, Path]:
    """(run folder, .pt file) of a run folder with one .pt, or of ``<run>/checkpoints/<file>.pt``.

    Raises FileNotFoundError or ValueError with the next move.
    """
    if checkpoint.suffix == '.pt' and not checkpoint.is_dir():
        if not checkpoint.is_file():
            raise FileNotFoundError(f'there is no checkpoint {checkpoint}')
        if checkpoint.parent.name != 'checkpoints':
            raise ValueError(
                f'{checkpoint} must lie in <run>/checkpoints, with config.json and '
                'dataset_statistics.json in <run>'
            )
        return checkpoint.parents[1], checkpoint
    files = sorted((checkpoint / 'checkpoints').glob('*.pt'))
    if not files:
        raise FileNotFoundError(
            f'{checkpoint} has no checkpoints/*.pt; give the folder of a CogACT run or a .pt in it'
        )
    if len(files) > 1:
        raise ValueError(
            f'{checkpoint} holds several checkpoints {[f.name for f in files]}; give one of them '
            'by its whole path'
        )
    return checkpoint, files[0]


def read_size(
    folder: Path, config: Mapping[str, Any], base_vlms: Mapping[str, NetworkSize] = BASE_VLMS
) -> NetworkSize:
    vla = config.get('vla')
    base = vla.get('base_vlm') if isinstance(vla, Mapping) else None
    if not isinstance(base, str):
        raise ValueError(
            f'{folder / "config.json"} has no vla.base_vlm, only {sorted(config)}; give a run of '
            "CogACT's training"
        )
    if base not in base_vlms:
        raise ValueError(f'{folder} is built on {base!r}; supported: {sorted(base_vlms)}')
    return base_vlms[base]


def read_parts(path: Path) -> Parts:
    """State dicts by part, memory-mapped. Raises ValueError for anything but that."""
    content = read_torch_file(path)
    model = content.get('model') if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise ValueError(f"{path} must hold a dictionary under 'model', found {found}")
    missing = [part for part in PARTS if part not in model]
    unexpected = sorted(map(str, set(model) - {*PARTS, *_UNUSED_PARTS}))
    unexpected += sorted(f'(beside model) {name}' for name in set(content) - {'model'})
    if missing or unexpected:
        raise ValueError(
            f'{path} is no whole CogACT checkpoint: missing parts {missing}, unexpected '
            f'{unexpected}. Training with a frozen part leaves that out; save all parts'
        )
    for part in PARTS:
        state = model[part]
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor)
            for name, tensor in state.items()
        ):
            raise ValueError(f'{path}: {part} must be a dictionary of tensors by name')
    return model


class CogACTWeights:
    """One ``.pt`` file, mapped; no weight is moved before `load`. Everything here raises
    ValueError naming all that is missing, unexpected or of a wrong shape."""

    def __init__(self, path: Path, dit_sizes: Mapping[str, DiTSize] = DIT_SIZES) -> None:
        self.path, self._dit_sizes = path, dit_sizes

    @cached_property
    def _parts(self) -> Parts:
        return read_parts(self.path)

    @cached_property
    def _dit_state(self) -> dict[str, torch.Tensor]:
        state = {
            name.removeprefix('net.'): tensor
            for name, tensor in self._parts['action_model'].items()
            if not name.startswith('net.history_embedder.')  # upstream never feeds it
        }
        needed = ('positional_embedding', 'x_embedder.linear.weight')
        bad = [name for name in needed if name not in state or state[name].ndim != 2]
        if bad:
            raise ValueError(
                f'{self.path}: action_model misses the matrices {[f"net.{n}" for n in bad]}; it '
                f'has {sorted(self._parts["action_model"])}'
            )
        return state

    @property
    def chunk_size(self) -> int:
        return self._dit_state['positional_embedding'].shape[0] - 1  # one place is the condition's

    @property
    def n_actions(self) -> int:
        return self._dit_state['x_embedder.linear.weight'].shape[1]

    def dit(self, feature_width: int) -> DiT:
        """On the meta device, checked against the file."""
        width = self._dit_state['positional_embedding'].shape[1]
        by_width = {size.width: size for size in self._dit_sizes.values()}
        if width not in by_width:
            known = {name: size.width for name, size in self._dit_sizes.items()}
            raise ValueError(f'{self.path}: the action model is {width} wide; supported: {known}')
        with torch.device('meta'):
            dit = DiT(by_width[width], feature_width, self.chunk_size, self.n_actions)
        check_fit(dit, self._dit_state, self.path)
        return dit

    def network(self, size: NetworkSize) -> OpenVLANetwork:
        """On the meta device, checked against the file."""
        with torch.device('meta'):
            network = OpenVLANetwork(size, with_lm_head=False)
        renamed = self._renamed(network)
        check_fit(network, renamed.state, self.path, renamed.unexpected)
        return network

    def _renamed(self, network: OpenVLANetwork) -> Renamed:
        """Under our names; ``unexpected`` as in the file."""
        found, own = Renamed(), {*network.state_dict(), 'lm_head.weight'}
        for part in ('vision_backbone', 'projector', 'llm_backbone'):
            for name, tensor in self._parts[part].items():
                openvla = {_openvla_name(f'{part}.{name}'): tensor}
                renamed = rename_openvla(openvla, network.size.vision)
                if renamed.unexpected or not own.issuperset(renamed.state):
                    found.unexpected.append(f'{part}.{name}')
                else:
                    found.state |= renamed.state
        found.state.pop('lm_head.weight', None)  # no word is ever decoded
        return found

    def needed_bytes(self, size: NetworkSize, device: torch.device, dtype: torch.dtype) -> int:
        dit = self.dit(size.decoder.hidden_size)
        n_dit = sum(weight.numel() for weight in dit.parameters())
        network = needed_bytes([self.network(size)], device, dtype)
        return network + n_dit * torch.float32.itemsize

    def load(self, size: NetworkSize, device: torch.device, dtype: torch.dtype) -> CogACTModel:
        """Each weight is copied at most once. Raises ValueError when ``device`` has not the
        memory, before anything is moved."""
        check_memory(self.needed_bytes(size, device, dtype), device, dtype, str(self.path))
        dit, network = self.dit(size.decoder.hidden_size), self.network(size)
        load_strict(dit, self._dit_state, self.path, device=device, dtype=torch.float32)
        state = self._renamed(network).state
        load_strict(network, state, self.path, device=device, dtype=dtype)
        network.fill_buffers(device)
        return CogACTModel(network.eval(), dit.eval())


def _openvla_name(name: str) -> str:
    for theirs, openvla in _OPENVLA_NAMES.items():
        if name.startswith(theirs):
            return openvla + name.removeprefix(theirs)
    return name
