"""A tiny CogACT run folder whose names and shapes are upstream's own, and plain torch on it.

``golden_cogact/names.json`` is what upstream's modules save at this size, its DiT-S included;
every tensor is drawn from a generator seeded by its name, as it was when
``golden_cogact/outputs.npz`` was made (`test_cogact_golden.py` says how). What needs no golden
numbers has a smaller action model. Nothing here uses the package's own renaming.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from safe_pruner_ros.policies.cogact.checkpoint import BASE_VLMS
from safe_pruner_ros.policies.cogact.dit import DIT_SIZES, DiTSize
from safe_pruner_ros.policies.openvla.network import NetworkSize

POLICY_FILES = Path(__file__).parents[3] / 'config' / 'policies'
GOLDEN = Path(__file__).parents[1] / 'golden_cogact'
WIDTH, N_LAYERS = 32, 6
SMALL_DIT = DiTSize(48, 3, 4)
FROM_DIT_S = {384: 48, 1152: 144, 1536: 192}
LLAMA = {
    'vocab_size': 32064,
    'hidden_size': WIDTH,
    'intermediate_size': 64,
    'num_hidden_layers': N_LAYERS,
    'num_attention_heads': 4,
    'num_key_value_heads': 4,
    'rms_norm_eps': 1e-5,
    'pad_token_id': 32000,
}
EMBEDDINGS = ('embed_tokens.weight', 'pos_embed', '_token', 'positional_embedding')
EMBEDDINGS += ('uncondition', 'latent')
GAINS = ('norm.weight', 'norm1.weight', 'norm2.weight', 'layernorm.weight', '.gamma')
OPENVLA_NAMES = {
    'vision_backbone.dino_featurizer.': 'vision_backbone.featurizer.',
    'vision_backbone.siglip_featurizer.': 'vision_backbone.fused_featurizer.',
    'projector.projector.0.': 'projector.fc1.',
    'projector.projector.2.': 'projector.fc2.',
    'projector.projector.4.': 'projector.fc3.',
    'llm_backbone.llm.': 'language_model.',
}
Q01 = [-0.5 - 0.1 * k for k in range(7)]
Q99 = [0.5 + 0.2 * k for k in range(7)]


def seeded(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big')
    noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        noise = 1 + 0.1 * noise if name.endswith(GAINS) else 0.1 * noise
    elif name.endswith(EMBEDDINGS):
        noise = 0.5 * noise
    else:
        scale = 0.15 if 'final_layer' in name else 1.5
        noise = scale * noise / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(noise.astype(np.float32))


def official_state(*, is_small: bool, n_actions: int = 7) -> dict[str, dict[str, torch.Tensor]]:
    state: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in json.loads((GOLDEN / 'names.json').read_text()).items():
        part, _, rest = name.partition('.')
        if is_small and part == 'action_model':
            block = rest.split('.')[2] if rest.startswith('net.blocks.') else '0'
            if int(block) >= SMALL_DIT.depth:
                continue
            shape = [FROM_DIT_S.get(n, n_actions if n == 7 else n) for n in shape]
        state.setdefault(part, {})[rest] = seeded(name, tuple(shape))
    return state


@dataclass
class Reference:
    """float32, from the official names. ``vision``: OpenVLA's reference on the same tensors."""

    state: dict[str, torch.Tensor]
    vision: Any

    def llama(self) -> LlamaModel:
        model = LlamaModel(LlamaConfig(**LLAMA, attn_implementation='eager')).eval()
        prefix = 'llm_backbone.llm.model.'
        own = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        model.load_state_dict(own, strict=True)
        return model.requires_grad_(False)

    def embed(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` [1, T + 1] with the cognition token."""
        text = self.vision.embed(ids)
        return torch.cat([text[:, :1], self.vision.visual(pixels), text[:, 1:]], dim=1)

    @torch.no_grad()
    def hidden(
        self, embeddings: torch.Tensor, masked: tuple[int, ...] = (), *, causal: bool = True
    ) -> torch.Tensor:
        """[S, D] after the final norm; keys ``masked`` are invisible from layer 3 on."""
        llama, length = self.llama(), embeddings.shape[1]
        mask = torch.zeros(length, length)
        if causal:
            mask = torch.full_like(mask, torch.finfo(torch.float32).min).triu(1)
        cos_sin = llama.rotary_emb(embeddings, torch.arange(length)[None])
        hidden = embeddings
        for index, layer in enumerate(llama.layers):
            if index == 3:
                mask[:, list(masked)] = torch.finfo(torch.float32).min
            hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=cos_sin)
        return llama.norm(hidden)[0]

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        name = f'action_model.net.{name}'
        return F.linear(x, self.state[f'{name}.weight'], self.state[f'{name}.bias'])

    def noise(self, actions: torch.Tensor, timestep: int, feature: torch.Tensor) -> torch.Tensor:
        """What the action model sees in ``actions`` [H, n]; ``feature`` [D]."""
        frequencies = torch.tensor([10000 ** (-k / 128) for k in range(128)])
        waves = torch.cat([(timestep * frequencies).cos(), (timestep * frequencies).sin()])
        time = self._linear('t_embedder.mlp.2', F.silu(self._linear('t_embedder.mlp.0', waves)))
        first = time + self._linear('z_embedder.linear', feature)
        x = torch.cat([first[None], self._linear('x_embedder.linear', actions)])
        x = x + self.state['action_model.net.positional_embedding']
        width = x.shape[1]
        for index in range(SMALL_DIT.depth):
            qkv = self._linear(f'blocks.{index}.attn.qkv', F.layer_norm(x, (width,), eps=1e-6))
            heads = []
            for q, k, v in zip(
                *(y.chunk(SMALL_DIT.n_heads, 1) for y in qkv.chunk(3, 1)), strict=True
            ):
                heads.append((q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v)
            x = x + self._linear(f'blocks.{index}.attn.proj', torch.cat(heads, 1))
            mlp = self._linear(f'blocks.{index}.mlp.fc1', F.layer_norm(x, (width,), eps=1e-6))
            x = x + self._linear(f'blocks.{index}.mlp.fc2', F.gelu(mlp, approximate='tanh'))
        return self._linear('final_layer.linear', F.layer_norm(x, (width,), eps=1e-6))[1:]

    def sample(
        self,
        feature: torch.Tensor,
        noise: torch.Tensor,
        timesteps: tuple[int, ...],
        scale: float,
        shares: np.ndarray,
    ) -> torch.Tensor:
        """DDIM with guidance in two separate passes; ``shares``: upstream's alpha bars."""
        nothing = self.state['action_model.net.z_embedder.uncondition'][0]
        x = noise
        for timestep, following in zip(timesteps, (*timesteps[1:], None), strict=True):
            now, after = shares[timestep], 1.0 if following is None else shares[following]
            guess = self.noise(x, timestep, feature)
            if scale != 1:
                free = self.noise(x, timestep, nothing)
                guess = free + scale * (guess - free)
            clean = (x - math.sqrt(1 - now) * guess) / math.sqrt(now)
            x = math.sqrt(after) * clean + math.sqrt(1 - after) * guess
        return x


def write_run(
    run: Path,
    state: dict[str, dict[str, torch.Tensor]],
    tokenizer: Path,
    action: dict[str, list[float]] | None = None,
) -> Path:
    """The .pt file in it."""
    weights = run / 'checkpoints' / 'step-000010-epoch-00-loss=0.1.pt'
    weights.parent.mkdir(parents=True)
    torch.save({'model': state}, weights)
    (run / 'config.json').write_text(json.dumps({'vla': {'base_vlm': 'tiny'}, 'seed': 42}))
    action = action or {'q01': Q01, 'q99': Q99, 'mask': [True] * 6 + [False]}
    statistics = {'fractal20220817_data': {'action': action, 'num_transitions': 3}}
    (run / 'dataset_statistics.json').write_text(json.dumps(statistics))
    shutil.copy(tokenizer, run)
    return weights


@pytest.fixture(scope='session')
def cogact_tiny(
    tmp_path_factory: pytest.TempPathFactory, openvla_tiny: SimpleNamespace
) -> SimpleNamespace:
    """``run``: a folder (read-only: copy before a change); ``golden_weights``: a .pt with a whole
    DiT-S; what `build` takes; the reference."""
    root, tokenizer = tmp_path_factory.mktemp('cogact'), openvla_tiny.oft / 'tokenizer.json'
    state = official_state(is_small=True)
    write_run(root / 'run', state, tokenizer)

    flat = {f'{part}.{name}': value for part, own in state.items() for name, value in own.items()}
    openvla = {}
    for name, value in flat.items():
        for theirs, official in OPENVLA_NAMES.items():
            if name.startswith(theirs):
                official_name = name.replace(theirs, official, 1)
                openvla[official_name.replace('.gamma', '.scale_factor')] = value
    decoder = LlamaConfig(**LLAMA, attn_implementation='sdpa', use_cache=False)
    size = NetworkSize(openvla_tiny.vision_sizes['tiny'], decoder)
    return SimpleNamespace(
        run=root / 'run',
        golden_weights=write_run(root / 'dit_s', official_state(is_small=False), tokenizer),
        golden=dict(np.load(GOLDEN / 'outputs.npz')),
        sizes={'base_vlms': {'tiny': size}, 'dit_sizes': {'tiny': SMALL_DIT}},
        reference=Reference(flat, type(openvla_tiny.reference)(openvla)),
        n_layers=N_LAYERS,
        q01=np.array(Q01),
        q99=np.array(Q99),
        statistics_key='fractal20220817_data',
    )


@pytest.fixture
def two_arms(
    tmp_path: Path, cogact_tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """``run``: a checkpoint of sixteen actions, two of them grippers; ``policy_file``: the shipped
    one for it. The tiny sizes count as published ones."""
    monkeypatch.setitem(BASE_VLMS, 'tiny', cogact_tiny.sizes['base_vlms']['tiny'])
    monkeypatch.setitem(DIT_SIZES, 'tiny', SMALL_DIT)
    is_gripper = [k in (7, 15) for k in range(16)]
    action = {
        'q01': [0.0 if gripper else -1.0 for gripper in is_gripper],
        'q99': [1.0 if gripper else 1.2 for gripper in is_gripper],
        'mask': [not gripper for gripper in is_gripper],
    }
    state, tokenizer = official_state(is_small=True, n_actions=16), cogact_tiny.run
    write_run(tmp_path / 'run', state, tokenizer / 'tokenizer.json', action)
    text = (POLICY_FILES / 'cogact.yaml').read_text()
    assert "checkpoint: ''" in text
    policy_file = tmp_path / 'cogact.yaml'
    policy_file.write_text(text.replace("checkpoint: ''", f'checkpoint: {tmp_path / "run"}'))
    return SimpleNamespace(run=tmp_path / 'run', policy_file=policy_file, is_gripper=is_gripper)
