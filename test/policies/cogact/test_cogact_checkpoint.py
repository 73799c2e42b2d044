"""What is read from a CogACT run folder, and what is refused with the next move."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.policies.checkpoint_check import check_all
from safe_pruner_ros.policies.cogact.checkpoint import BASE_VLMS, find_files
from safe_pruner_ros.policies.cogact.diffusion import (
    DDIMSampler,
    DiffusionSettings,
    ddim_timesteps,
)
from safe_pruner_ros.policies.cogact.dit import DIT_SIZES, DiT
from safe_pruner_ros.policies.cogact.policy import CogACTPolicy, backend
from safe_pruner_ros.policies.deployment import Deployment, read_deployment
from safe_pruner_ros.policies.openvla.network import OpenVLANetwork

WEIGHTS = 'checkpoints/step-000010-epoch-00-loss=0.1.pt'
VALUES = {
    'views': ['head'],
    'actions': list('abcdefg'),
    'statistics_key': 'fractal20220817_data',
    'period_s': 0.2,
    'dtype': 'float32',
}


def load(tiny: SimpleNamespace, checkpoint: Path) -> CogACTPolicy:
    deployment = Deployment(
        ('head',), absolute('abcdefg'), tiny.statistics_key, 0.2, dtype='float32'
    )
    return backend.build(checkpoint, deployment, 'unpruned', {}, **tiny.sizes)


@pytest.fixture
def run(cogact_tiny: SimpleNamespace, tmp_path: Path) -> Path:
    copy = tmp_path / 'run'
    shutil.copytree(cogact_tiny.run, copy)
    return copy


def change(run: Path, part: str, old: str, new: str | None = None, value: object = None) -> None:
    """Rename, replace or (``new`` None) remove a tensor."""
    content = torch.load(run / WEIGHTS, weights_only=True)
    tensor = content['model'][part].pop(old)
    if new is not None:
        content['model'][part][new] = tensor if value is None else value
    torch.save(content, run / WEIGHTS)


# -- accepted -------------------------------------------------------------------------------------


def test_a_run_or_one_of_its_files(cogact_tiny: SimpleNamespace, run: Path) -> None:
    assert load(cogact_tiny, run).spec.chunk_size == 16
    other = run / 'checkpoints' / 'step-000020.pt'
    shutil.copy(run / WEIGHTS, other)
    with pytest.raises(ValueError, match=r'several .*step-000010.*step-000020.pt.* whole path'):
        load(cogact_tiny, run)
    assert find_files(other) == (run, other)
    load(cogact_tiny, other)


def test_the_averaged_copy_is_neither_needed_nor_read(
    cogact_tiny: SimpleNamespace, run: Path
) -> None:
    content = torch.load(run / WEIGHTS, weights_only=True)
    averaged = {name: tensor + 1 for name, tensor in content['model']['action_model'].items()}
    content['model']['ema_diffusion'] = averaged
    torch.save(content, run / WEIGHTS)
    tested = load(cogact_tiny, run)
    expected = content['model']['action_model']['net.final_layer.linear.bias']
    assert torch.equal(tested.model.dit.final_layer.linear.bias, expected)


def test_weights_are_views_of_the_mapped_file(cogact_tiny: SimpleNamespace) -> None:
    """float32 on the CPU moves nothing: qkv of a tower still share one storage."""
    layer = load(cogact_tiny, cogact_tiny.run).model.network.vision.dino.model.encoder.layer[0]
    attention = layer.attention
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1


@pytest.mark.parametrize(
    'name, size, billions',
    [('DiT-S', (6, 4), 7.554), ('DiT-B', (12, 12), 7.630), ('DiT-L', (24, 16), 7.849)],
)
def test_full_sizes_have_the_published_parameters(
    name: str, size: tuple[int, int], billions: float
) -> None:
    """On the meta device; less what is never run (openvla's test says what) and lm_head. Depth
    and heads: CogACT b174a1b, action_model/action_model.py."""
    dit_size = DIT_SIZES[name]
    assert (dit_size.depth, dit_size.n_heads) == size
    network_size = BASE_VLMS['prism-dinosiglip-224px+7b']
    assert network_size.decoder.rms_norm_eps == 1e-5
    with torch.device('meta'):
        network = OpenVLANetwork(network_size, with_lm_head=False)
        dit = DiT(dit_size, network_size.decoder.hidden_size, 16, 7)
    total = sum(p.numel() for module in (network, dit) for p in module.parameters())
    never_run = 12.6e6 + 15.2e6 + 15.2e6 + 0.01e6 + 131.3e6
    assert abs(total + never_run - billions * 1e9) < 3e6


def test_settings_come_from_plain_values(cogact_tiny: SimpleNamespace) -> None:
    sampling = {'n_steps': 5, 'guidance_scale': 3.0, 'ensemble_horizon': 7, 'seed': 3}
    deployment = read_deployment({**VALUES, 'diffusion': sampling})
    assert deployment.diffusion == DiffusionSettings(5, 3.0, 7, seed=3)
    for wrong, complaint in [
        ({'n_steps': 3, 'steps': 1}, 'steps'),
        ({'n_steps': 21}, r'n_steps must be one of \[1, 2, 3, 4, 5, 6.*got 21'),
        ({'guidance_scale': 0.5}, 'guidance_scale must be at least 1, got 0.5'),
        ({'guidance_scale': float('nan')}, 'guidance_scale .* got nan'),
        ({'ensemble_horizon': 0}, 'ensemble_horizon must be at least 1'),
        ({'ensemble_alpha': -1}, r'ensemble_alpha must be in \[0, 100\], got -1'),
        ({'ensemble_alpha': float('nan')}, 'ensemble_alpha .* got nan'),
        ({'seed': -1}, 'seed must be at least 0'),
    ]:
        with pytest.raises(ValueError, match=complaint):
            read_deployment({**VALUES, 'diffusion': wrong})


def test_timesteps_are_those_of_upstream() -> None:
    assert ddim_timesteps(10) == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert ddim_timesteps(5) == [80, 60, 40, 20, 0]
    assert ddim_timesteps(3) == [68, 34, 0]
    assert ddim_timesteps(1) == [50]
    assert len(ddim_timesteps(100)) == 100


def test_the_catalog_knows_the_policy(cogact_tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"built on 'tiny'; supported: .*dinosiglip-224px"):
        build_policy('cogact', 'unpruned', {}, str(cogact_tiny.run), deployment=VALUES)


# -- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'part, name, ours',
    [
        ('action_model', 'net.blocks.2.attn.qkv.bias', 'blocks.2.attn.qkv.bias'),
        ('projector', 'projector.2.bias', 'vision.projector.fc2.bias'),
        ('llm_backbone', 'llm.model.norm.weight', 'decoder.norm.weight'),
        (
            'vision_backbone',
            'dino_featurizer.blocks.0.ls1.gamma',
            'vision.dino.model.encoder.layer.0.layer_scale1.lambda1',
        ),
    ],
)
def test_missing_and_unexpected_weights_are_named(
    cogact_tiny: SimpleNamespace, run: Path, part: str, name: str, ours: str
) -> None:
    change(run, part, name, f'{name}.foreign')
    foreign = rf'{name.removeprefix("net.")}.foreign'
    with pytest.raises(ValueError, match=rf"missing \['{ours}'\], unexpected \[.*{foreign}'\]"):
        load(cogact_tiny, run)


def test_wrong_shapes_and_sizes_are_named(cogact_tiny: SimpleNamespace, run: Path) -> None:
    name = 'net.blocks.0.mlp.fc1.weight'
    change(run, 'action_model', name, name, torch.zeros(3, 48))
    with pytest.raises(ValueError, match=r'fc1.weight is \[3, 48\], expected \[192, 48\]'):
        load(cogact_tiny, run)
    change(run, 'action_model', name, name, torch.zeros(192, 48))
    change(
        run,
        'action_model',
        'net.positional_embedding',
        'net.positional_embedding',
        torch.zeros(17, 99),
    )
    with pytest.raises(ValueError, match=r"99 wide; supported: {'tiny': 48}"):
        load(cogact_tiny, run)
    change(run, 'action_model', 'net.positional_embedding')
    with pytest.raises(ValueError, match=r"misses the matrices \['net.positional_embedding'\]"):
        load(cogact_tiny, run)


def test_a_checkpoint_without_a_part_is_refused(cogact_tiny: SimpleNamespace, run: Path) -> None:
    """Upstream would take timm's weights for the towers in silence, or a new action model."""
    content = torch.load(run / WEIGHTS, weights_only=True)
    for part in ('vision_backbone', 'action_model'):
        left = {name: state for name, state in content['model'].items() if name != part}
        torch.save({'model': left}, run / WEIGHTS)
        with pytest.raises(ValueError, match=rf"missing parts \['{part}'\].* save all parts"):
            load(cogact_tiny, run)
    torch.save({**content, 'optimizer': {}}, run / WEIGHTS)
    with pytest.raises(ValueError, match=r"unexpected \['\(beside model\) optimizer'\]"):
        load(cogact_tiny, run)
    for content in ([1, 2], {'state': {}}, {'model': {'projector': 3}}):
        torch.save(content, run / WEIGHTS)
        with pytest.raises(ValueError, match='dictionary|missing parts'):
            load(cogact_tiny, run)


def test_a_pickle_with_a_payload_is_refused_and_never_run(
    cogact_tiny: SimpleNamespace, run: Path
) -> None:
    canary = run / 'canary'

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (canary,))

    content = torch.load(run / WEIGHTS, weights_only=True)
    content['model']['projector']['payload'] = Payload()
    torch.save(content, run / WEIGHTS)
    with pytest.raises(ValueError, match='more than tensors'):
        load(cogact_tiny, run)
    assert not canary.exists()


def test_a_truncated_file_is_refused(cogact_tiny: SimpleNamespace, run: Path) -> None:
    whole = (run / WEIGHTS).read_bytes()
    for keep in (0, 10, 3000, len(whole) - 100):
        (run / WEIGHTS).write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=f'{Path(WEIGHTS).name} is refused'):
            load(cogact_tiny, run)


def test_missing_files_are_named_with_the_next_move(
    cogact_tiny: SimpleNamespace, run: Path
) -> None:
    for name, complaint in [
        ('tokenizer.json', 'tokenizer.json; take it from'),
        ('config.json', 'no config.json'),
        ('dataset_statistics.json', 'no dataset_statistics.json'),
        (WEIGHTS, r'no checkpoints/\*.pt; give the folder of a CogACT run'),
    ]:
        saved = (run / name).read_bytes()
        (run / name).unlink()
        with pytest.raises(FileNotFoundError, match=complaint):
            load(cogact_tiny, run)
        (run / name).write_bytes(saved)
    stray = run / 'stray.pt'
    with pytest.raises(FileNotFoundError, match='no checkpoint .*stray.pt'):
        load(cogact_tiny, stray)
    stray.write_bytes(b'')
    with pytest.raises(ValueError, match='must lie in <run>/checkpoints'):
        load(cogact_tiny, stray)


def test_a_foreign_config_is_refused(cogact_tiny: SimpleNamespace, run: Path) -> None:
    for config, complaint in [
        ({'model_type': 'openvla'}, r"no vla.base_vlm, only \['model_type'\]"),
        (
            {'vla': {'base_vlm': 'prism-clip+7b'}},
            r"built on 'prism-clip\+7b'; supported: \['tiny'",
        ),
    ]:
        (run / 'config.json').write_text(json.dumps(config))
        with pytest.raises(ValueError, match=complaint):
            load(cogact_tiny, run)


def test_a_vlm_with_another_language_model_is_refused(run: Path) -> None:
    """Vicuna v1.5 has Llama-2's shapes and another prompt (prismatic, conf/models.py)."""
    base = 'dinosiglip-224px-resize-naive+7b'
    (run / 'config.json').write_text(json.dumps({'vla': {'base_vlm': base}}))
    with pytest.raises(
        ValueError, match=f"built on '{re.escape(base)}'; supported: .*'prism-dino"
    ):
        backend.build(run, read_deployment(VALUES), 'unpruned', {})


@pytest.mark.parametrize(
    ('entries', 'said'),
    [
        ({'image_aug': True, 'run_id': 'x--image_aug'}, 'image_aug true'),
        ({'image_aug': False, 'run_id': 'x--image_aug'}, "run_id 'x--image_aug'"),
        ({'image_aug': False, 'run_id': 'x'}, ''),
        ({'run_id': None}, ''),
    ],
)
def test_config_says_whether_the_training_cropped(
    cogact_tiny: SimpleNamespace, run: Path, entries: dict[str, object], said: str
) -> None:
    """Whatever the folder is called."""
    values = json.loads((run / 'config.json').read_text())
    (run / 'config.json').write_text(json.dumps({**values, **entries}))
    crop = {'image_chain': {'crop_area': 0.9}}
    whole, cropped = (
        backend.files(run, read_deployment({**VALUES, **extra}), **cogact_tiny.sizes)
        for extra in ({}, crop)
    )
    if said:
        with pytest.raises(ValueError, match=f'config.json has {said}: .*crop_area to 0.9'):
            check_all(whole)
    else:
        check_all(whole)
    check_all(cropped)
    first, second = (
        next(check for check in files.checks() if check.is_note).run()
        for files in (whole, cropped)
    )
    assert first == ''
    is_false = entries.get('image_aug') is False and not said
    assert ('has image_aug false, the training saw whole pictures' in second) == is_false


def test_statistics_of_another_size_are_refused(cogact_tiny: SimpleNamespace, run: Path) -> None:
    action = {'q01': [-1.0] * 8, 'q99': [1.0] * 8}
    statistics = {'fractal20220817_data': {'action': action}}
    (run / 'dataset_statistics.json').write_text(json.dumps(statistics))
    deployment = Deployment(('head',), absolute('abcdefgh'), 'fractal20220817_data', 0.2)
    with pytest.raises(ValueError, match='gives 7 numbers, the action statistics .* have 8'):
        backend.build(run, deployment, 'unpruned', {}, **cogact_tiny.sizes)


def test_a_gpu_that_is_too_small_is_refused_before_loading(
    cogact_tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr('safe_pruner_ros.policies.device.free_bytes', lambda device: 0.5e9)
    deployment = read_deployment(VALUES)
    with pytest.raises(ValueError, match=r'needs 0.51 GB on cuda as float32, 0.50 GB are free'):
        backend.build(cogact_tiny.run, deployment, 'unpruned', {}, 'cuda', **cogact_tiny.sizes)


def test_the_checks_say_what_was_found(cogact_tiny: SimpleNamespace) -> None:
    files = backend.files(cogact_tiny.run, read_deployment(VALUES), 'cpu', **cogact_tiny.sizes)
    found = {check.subject: check.run() for check in files.checks()}
    assert '16 of 16 actions every 3.2 s' in found['deployment']
    assert found['actions'].startswith('7 values') and '16 tokens a view' in found['config']
    n_weights = sum(w.numel() for module in files.modules() for w in module.parameters())
    assert found['weights'].startswith(f'{n_weights / 1e9:.3f} B')
    low, high = files.action_span()
    np.testing.assert_allclose((low, high), (cogact_tiny.q01, cogact_tiny.q99))


def test_time_embeddings_are_computed_once(cogact_tiny: SimpleNamespace) -> None:
    dit, calls = load(cogact_tiny, cogact_tiny.run).model.dit, []
    dit.t_embedder.mlp.register_forward_hook(lambda *_: calls.append(1))
    sampler = DDIMSampler(dit, 4, 1.5)
    for _ in range(2):
        sampler.sample(torch.zeros(1, 32), torch.zeros(1, 16, 7))
    assert len(calls) == 1
