"""Checkpoint folders of a tiny pi0.5 as openpi and lerobot leave them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from safe_pruner_ros.policies.pi05.model import Pi05

SHARED = 'paligemma_with_expert.'
LEROBOT_MODES = {'VISUAL': 'IDENTITY', 'STATE': 'QUANTILES', 'ACTION': 'QUANTILES'}
STATE_FILE = 'policy_preprocessor_step_2_normalizer_processor.safetensors'


def official(model: Pi05, outer: str = '') -> dict[str, torch.Tensor]:
    """The tensors under the names of the official converters, ``outer`` before each."""
    state = {}
    for name, value in model.state_dict().items():
        head, _, rest = name.partition('.')
        name = {
            'vision_tower': f'{SHARED}paligemma.model.vision_tower.vision_model.{rest}',
            'projector': f'{SHARED}paligemma.model.multi_modal_projector.linear.{rest}',
            'language_model': f'{SHARED}paligemma.model.language_model.{rest}',
            'expert': f'{SHARED}gemma_expert.model.{rest}',
        }.get(head, name)
        if rest == 'embed_tokens.weight':  # tied: only one of the two names is saved
            name = f'{SHARED}paligemma.lm_head.weight'
        state[outer + name] = value.clone().contiguous()
    state[f'{outer}{SHARED}gemma_expert.lm_head.weight'] = torch.zeros(4, 8)
    return state


def write(folder: Path, model: Pi05, layout: str = 'openpi') -> Path:
    """``layout``: 'openpi' or 'lerobot'. Quantiles of two joints."""
    quantiles = {'q01': [-1.0, -1.0], 'q99': [1.0, 3.0]}
    if layout == 'openpi':
        save_file(official(model), folder / 'model.safetensors')
        config = {'action_dim': 32, 'action_horizon': 3, 'precision': 'bfloat16'}
        assets = folder / 'assets' / 'lab' / 'robot'
        assets.mkdir(parents=True)
        statistics = {'norm_stats': {'state': quantiles, 'actions': quantiles}}
        (assets / 'norm_stats.json').write_text(json.dumps(statistics))
    else:
        save_file(official(model, 'model.'), folder / 'model.safetensors')
        config = {'type': 'pi05', 'chunk_size': 3, 'max_action_dim': 32}
        config['normalization_mapping'] = LEROBOT_MODES
        tensors = {
            f'{group}.{name}': torch.tensor(value)
            for group in ('observation.state', 'action')
            for name, value in quantiles.items()
        }
        save_file(tensors, folder / STATE_FILE)
        pipeline = preprocessor(norm_map=LEROBOT_MODES)
        (folder / 'policy_preprocessor.json').write_text(json.dumps(pipeline))
    (folder / 'config.json').write_text(json.dumps(config))
    characters().save(str(folder / 'tokenizer.json'))
    return folder


def preprocessor(state_file: str | None = STATE_FILE, **config: object) -> dict[str, object]:
    """lerobot's policy_preprocessor.json, with the steps that matter here."""
    normaliser: dict[str, object] = {'registry_name': 'normalizer_processor', 'config': config}
    if state_file is not None:
        normaliser['state_file'] = state_file
    first = {'registry_name': 'to_batch_processor', 'config': {}}
    return {'name': 'policy_preprocessor', 'steps': [first, normaliser]}


def characters() -> Tokenizer:
    """One token per character, the special ones where PaliGemma has them."""
    names = ['<pad>', '<eos>', '<bos>', '\n', *map(chr, range(32, 127))]
    vocabulary = {name: index for index, name in enumerate(names)}
    vocabulary |= {'<loc0000>': 256000, '<seg127>': 257151}
    return Tokenizer(BPE(vocab=vocabulary, merges=[]))
