"""OpenVLA-OFT at a tiny size: equal to plain torch on the official tensors, and strict."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, build_pruner
from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout, absolute
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla_oft import (
    OFTModel,
    OpenVLAOFTPolicy,
    build,
    load_oft_model,
    oft_layout,
)
from safe_pruner_ros.policies.policy import InstructionError, PolicyOutputError
from safe_pruner_ros.policies.pruned_decoder import run_pruned
from safe_pruner_ros.types import ArmState, CameraImage, Observation

VIEWS = ('head', 'wrist')
JOINTS = ('a', 'b', 'c', 'd', 'e', 'f', 'grip')
CHUNK = 4
HEAD, PROPRIO = 'action_head--150000_checkpoint.pt', 'proprio_projector--150000_checkpoint.pt'
CPU = torch.device('cpu')


def deployment(tiny: SimpleNamespace, **changes: object) -> Deployment:
    base = Deployment(
        VIEWS,
        absolute(JOINTS),
        tiny.statistics_key,
        0.1,
        dtype='float32',
        chunk_size=CHUNK,
        proprioception=JOINTS,
    )
    return replace(base, **changes)


def policy(
    tiny: SimpleNamespace,
    method: str = 'safe_pruner',
    folder: Path | None = None,
    settings: dict[str, object] | None = None,
    **changes: object,
) -> OpenVLAOFTPolicy:
    return build(
        folder or tiny.oft,
        deployment(tiny, **changes),
        method,
        settings or {},
        vision_sizes=tiny.vision_sizes,
    )


def observation(
    instruction: str = 'pick up the red block', seed: int = 0, views: tuple[str, ...] = VIEWS
) -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        name: CameraImage(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8), name, 7)
        for name in views
    }
    return Observation(images, ArmState(np.linspace(-0.5, 0.8, 7), 7), instruction, 7)


@pytest.fixture(scope='module')
def model(openvla_tiny: SimpleNamespace) -> OFTModel:
    return load_oft_model(openvla_tiny.oft, CPU, torch.float32, openvla_tiny.vision_sizes)


def pixels_of(tiny: SimpleNamespace, seen: Observation) -> torch.Tensor:
    views = []
    for image in seen.images.values():
        rgb = torch.from_numpy(image.rgb).permute(2, 0, 1).float() / 255
        towers = zip(tiny.means, tiny.stds, strict=True)
        views.append(
            torch.cat(
                [
                    (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
                    for mean, std in towers
                ]
            )
        )
    return torch.stack(views)


IDS = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 8, 16, 18, 12, 13, 4, 29871]])


def reference_embeddings(tiny: SimpleNamespace, seen: Observation) -> torch.Tensor:
    reference = tiny.reference
    state = torch.from_numpy((2 * (seen.state.positions + 1) / 2.5 - 1).astype(np.float32))
    text, end = reference.embed(IDS), reference.embed(torch.tensor([[2]]))
    visual = reference.visual(pixels_of(tiny, seen))
    token = reference.proprio(state[None])[None]
    blank = torch.zeros(1, CHUNK * 7, text.shape[2])
    return torch.cat([text[:, :1], visual, token, text[:, 1:], blank, end], dim=1)


def reference_hidden(
    tiny: SimpleNamespace,
    embeddings: torch.Tensor,
    *,
    causal: bool = False,
    masked: list[int] | None = None,
    masked_from: int = 0,
) -> torch.Tensor:
    """Every layer with an explicit mask, every token kept; keys ``masked`` are invisible from
    layer ``masked_from`` on."""
    llama, length = tiny.reference.llama(), embeddings.shape[1]
    mask = torch.zeros(length, length)
    if causal:
        mask = torch.full_like(mask, -torch.inf).triu(1)
    cos_sin = llama.rotary_emb(embeddings, torch.arange(length)[None])
    hidden = embeddings
    for index, layer in enumerate(llama.layers):
        if index == masked_from and masked:
            mask[:, masked] = -torch.inf
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=cos_sin)
    return llama.norm(hidden)


def physical(tiny: SimpleNamespace, actions: torch.Tensor) -> np.ndarray:
    q01 = np.array([-0.5 - 0.1 * k for k in range(7)])
    q99 = np.array([0.5 + 0.2 * k for k in range(7)])
    targets = 0.5 * (actions.double().numpy() + 1) * (q99 - q01 + 1e-8) + q01
    targets[:, 6] = actions[:, 6].double().numpy()
    return targets


# -- exactness ------------------------------------------------------------------------------------


def test_vision_equals_timms_vision_transformers(
    openvla_tiny: SimpleNamespace, model: OFTModel
) -> None:
    pixels = pixels_of(openvla_tiny, observation())
    expected = openvla_tiny.reference.visual(pixels)
    got = model.network.encode_images(pixels)
    assert got.shape == (1, 2 * openvla_tiny.n_patches, 32)
    assert (got - expected).abs().max() < 1e-5
    swapped = torch.cat([pixels[:, 3:], pixels[:, :3]], dim=1)  # SigLIP first would be wrong
    assert (model.network.encode_images(swapped) - expected).abs().max() > 1e-2


def test_actions_equal_the_reference_and_the_read_out_is_one_row_early(
    openvla_tiny: SimpleNamespace,
) -> None:
    seen = observation()
    hidden = reference_hidden(openvla_tiny, reference_embeddings(openvla_tiny, seen))[0]
    n, n_action = len(hidden), CHUNK * 7
    head = openvla_tiny.reference.action_head
    expected = physical(openvla_tiny, head(hidden[n - 2 - n_action : n - 2]))
    got = policy(openvla_tiny, 'unpruned').predict(seen).chunk
    assert got.positions.shape == (CHUNK, 7) and got.joint_names == JOINTS
    np.testing.assert_allclose(got.positions, expected, atol=1e-5)
    placeholders = physical(openvla_tiny, head(hidden[n - 1 - n_action : n - 1]))
    assert np.abs(got.positions - placeholders).max() > 1e-2


def test_a_causal_mask_gives_other_actions(
    openvla_tiny: SimpleNamespace,
) -> None:
    seen = observation()
    embeddings = reference_embeddings(openvla_tiny, seen)
    hidden = reference_hidden(openvla_tiny, embeddings, causal=True)[0]
    rows = hidden[len(hidden) - 2 - CHUNK * 7 : len(hidden) - 2]
    causal = physical(openvla_tiny, openvla_tiny.reference.action_head(rows))
    got = policy(openvla_tiny, 'unpruned').predict(seen).chunk.positions
    assert np.abs(got - causal).max() > 1e-2


@pytest.mark.parametrize('method', METHODS)
def test_retention_one_equals_unpruned_bit_for_bit(
    openvla_tiny: SimpleNamespace, method: str
) -> None:
    settings = {'retention_ratio': 1.0} if 'retention_ratio' in accepted_settings(method) else {}
    tested = policy(openvla_tiny, method, settings=settings)
    full = policy(openvla_tiny, 'unpruned')
    for seed in range(2):
        a, b = tested.predict(observation(seed=seed)), full.predict(observation(seed=seed))
        assert np.array_equal(a.chunk.positions, b.chunk.positions)


def test_vla_cache_answers_alike_while_nothing_moves(openvla_tiny: SimpleNamespace) -> None:
    settings = {'retention_ratio': 0.25, 'relevant_share': 0.0, 'schedule': 'uniform'}
    cached = policy(openvla_tiny, 'vla_cache', settings=settings)
    full = policy(openvla_tiny, 'unpruned').predict(observation())
    for step in range(3):
        got = cached.predict(observation())
        np.testing.assert_allclose(got.chunk.positions, full.chunk.positions, atol=1e-4)
        assert got.trace.n_retained == (8 if step else 32)


# VLA-Cache lets nothing leave: it reuses keys and values of earlier steps.
PRUNERS = [name for name in METHODS if name not in ('unpruned', 'vla_cache')]


@pytest.mark.parametrize(
    ('method', 'queries'), [('fastv', 'readout'), *((name, 'placeholders') for name in PRUNERS)]
)
def test_leaving_equals_being_masked(
    openvla_tiny: SimpleNamespace, model: OFTModel, method: str, queries: str
) -> None:
    views = tuple(ViewGrid(view, 4, 4) for view in VIEWS)
    layout = oft_layout(views, IDS.shape[1], CHUNK * 7, has_proprio=True, queries=queries)
    settings = {'retention_ratio': 0.25, 'pruning_layer': 3}
    if 'similarity_threshold' in accepted_settings(method):
        settings['similarity_threshold'] = 0.0
    pruner = build_pruner(method, openvla_tiny.n_layers, **settings)
    for step in range(8):  # some methods look at several timesteps before they prune
        embeddings = reference_embeddings(openvla_tiny, observation(seed=step))
        out, actions = model.decode(embeddings, layout, pruner, instruction_key='x', step=step)
        kept = set(out.kept_positions.tolist())
        masked = sorted(set(range(layout.tokens.length)) - kept)
        if masked:
            break
    assert len(masked) == 24
    hidden = reference_hidden(openvla_tiny, embeddings, masked=masked, masked_from=3)[0]
    rows = hidden[layout.readout.start : layout.readout.stop]
    assert (out.rows(layout.readout) - rows).abs().max() < 1e-5
    expected = openvla_tiny.reference.action_head(rows)
    assert (actions - expected).abs().max() < 1e-5
    unpruned = reference_hidden(openvla_tiny, embeddings)[0]
    assert (unpruned[layout.readout.start : layout.readout.stop] - rows).abs().max() > 1e-2


def test_layout_is_that_of_the_paper() -> None:
    """512 visual tokens, LIBERO's mean prompt of 28.5 tokens: 598.5 in all."""
    views = tuple(ViewGrid(view, 16, 16) for view in VIEWS)
    layout = oft_layout(views, 28, 56, has_proprio=True)
    n = layout.tokens.length
    assert n == 598
    assert (layout.readout.start, layout.readout.stop) == (n - 58, n - 2)
    assert (layout.tokens.action.start, layout.tokens.action.stop) == (n - 57, n - 1)
    assert layout.tokens.text.start == 514 and layout.tokens.text.stop == n - 57
    assert oft_layout(views, 28, 56, has_proprio=False).tokens.length == 597


@pytest.mark.parametrize('n_views', [1, 2, 3])
def test_one_to_three_images(openvla_tiny: SimpleNamespace, n_views: int) -> None:
    views = ('head', 'wrist', 'left')[:n_views]
    tested = policy(
        openvla_tiny,
        settings={'retention_ratio': 0.25, 'similarity_threshold': 0.0},
        views=views,
    )
    tested.predict(observation(views=views))
    second = tested.predict(observation(seed=1, views=views))
    assert second.trace.n_visual == 16 * n_views
    assert second.trace.n_retained == 4 * n_views
    assert set(second.latency_ms) >= {'preprocess', 'vision', 'shallow', 'deep', 'head', 'total'}


def test_bfloat16_stays_close(openvla_tiny: SimpleNamespace) -> None:
    exact = policy(openvla_tiny, 'unpruned').predict(observation()).chunk.positions
    rounded = policy(openvla_tiny, 'unpruned', dtype='bfloat16')
    assert rounded.model.network.dtype is torch.bfloat16
    assert rounded.model.network.decoder.rotary_emb.inv_freq.dtype is torch.float32
    got = rounded.predict(observation()).chunk.positions
    assert 0 < np.abs(got - exact).max() < 0.3


def test_an_audit_is_unpruned_and_leaves_no_trace(openvla_tiny: SimpleNamespace) -> None:
    settings = {'retention_ratio': 0.25, 'similarity_threshold': 0.0}
    audited, alone = (policy(openvla_tiny, settings=settings) for _ in range(2))
    for seed in range(3):
        seen = observation(seed=seed)
        pruned, unpruned = audited.predict(seen), audited.predict_unpruned(seen)
        assert unpruned.trace.n_retained == unpruned.trace.n_visual
        expected = policy(openvla_tiny, 'unpruned').predict(seen).chunk.positions
        assert np.array_equal(unpruned.chunk.positions, expected)
        assert np.array_equal(pruned.chunk.positions, alone.predict(seen).chunk.positions)


def test_a_new_instruction_is_a_keyframe_and_reset_forgets(openvla_tiny: SimpleNamespace) -> None:
    tested = policy(openvla_tiny, settings={'similarity_threshold': 0.0})
    tested.predict(observation())
    changed = tested.predict(observation('pick up the blue block'))
    assert changed.trace.keyframe_reason == 'instruction changed'
    tested.reset()
    assert tested.predict(observation()).trace.keyframe_reason == 'first step'


def test_delta_actions_start_at_the_measured_joints(openvla_tiny: SimpleNamespace) -> None:
    seen = observation()
    plain = policy(openvla_tiny, 'unpruned').predict(seen).chunk.positions
    for semantics, moved in (('delta', plain.cumsum(axis=0)), ('delta_from_state', plain)):
        arm = tuple(ActionDimension(name, semantics) for name in JOINTS[:6])
        layout = ActionLayout((*arm, ActionDimension('grip')))
        got = policy(openvla_tiny, 'unpruned', actions=layout).predict(seen).chunk.positions
        np.testing.assert_allclose(got[:, :6], seen.state.positions[:6] + moved[:, :6])
        np.testing.assert_allclose(got[:, 6], plain[:, 6])


def test_proprioception_arrives_in_the_units_of_the_checkpoint(
    openvla_tiny: SimpleNamespace,
) -> None:
    """A checkpoint that counts openness sees openness, and its answer is turned back."""
    closedness = observation()
    openness = closedness.state.positions.copy()
    openness[6] = 1 - openness[6]
    plain = policy(openvla_tiny, 'unpruned')
    answer = plain.predict(replace(closedness, state=ArmState(openness, 7))).chunk.positions
    grip = ActionDimension('grip', scale=-1.0, offset=1.0)
    layout = ActionLayout((*absolute(JOINTS[:6]).dimensions, grip))
    turned = policy(openvla_tiny, 'unpruned', actions=layout).predict(closedness).chunk.positions
    np.testing.assert_allclose(turned[:, :6], answer[:, :6])
    np.testing.assert_allclose(turned[:, 6], 1 - answer[:, 6])
    assert np.abs(plain.predict(closedness).chunk.positions - answer).max() > 1e-3


def test_grippers_are_clipped_and_may_be_binary() -> None:
    layout = ActionLayout(
        (
            ActionDimension('left', gripper=True),
            ActionDimension('right', scale=-1.0, offset=1.0, gripper=True, binary=True),
        )
    )
    got = layout.targets(np.array([[1.2, 0.7], [-0.1, 0.2]]), np.zeros(2))
    np.testing.assert_array_equal(got, [[1, 0], [0, 1]])
    with pytest.raises(ValueError, match='binary is for grippers'):
        ActionDimension('elbow', binary=True)


# -- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def folder(openvla_tiny: SimpleNamespace, tmp_path: Path) -> Path:
    copy = tmp_path / 'checkpoint'
    shutil.copytree(openvla_tiny.oft, copy)
    return copy


def shard_with(folder: Path, key: str) -> Path:
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    return folder / index['weight_map'][key]


@pytest.mark.parametrize('key', ['projector.fc2.bias', 'language_model.model.norm.weight'])
def test_missing_and_unexpected_weights_are_named(
    openvla_tiny: SimpleNamespace, folder: Path, key: str
) -> None:
    shard = shard_with(folder, key)
    state = load_file(shard)
    state['vision_backbone.film.weight'] = state.pop(key)
    save_file(state, shard)
    with pytest.raises(ValueError, match=rf"missing \['{key}'\].*\['vision_backbone.film.weight"):
        policy(openvla_tiny, folder=folder)
    index_path = folder / 'model.safetensors.index.json'
    index = json.loads(index_path.read_text())
    index['weight_map']['vision_backbone.film.weight'] = index['weight_map'].pop(key)
    index_path.write_text(json.dumps(index))
    ours = {'projector.fc2.bias': 'vision.projector.fc2.bias'}.get(key, 'decoder.norm.weight')
    with pytest.raises(ValueError, match=rf"missing \['{ours}'\], unexpected .*film.weight"):
        policy(openvla_tiny, folder=folder)


def test_a_missing_or_truncated_shard_is_named(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    shard = folder / 'model-00002-of-00003.safetensors'
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match='00002-of-00003.safetensors is not a readable'):
        policy(openvla_tiny, folder=folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"misses the shards \['model-00002"):
        policy(openvla_tiny, folder=folder)


def test_an_index_cannot_lead_out_of_its_folder(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    index_path = folder / 'model.safetensors.index.json'
    index = json.loads(index_path.read_text())
    index['weight_map']['projector.fc1.bias'] = '../other.safetensors'
    index_path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match='outside its folder'):
        policy(openvla_tiny, folder=folder)


def test_a_wrong_shape_is_named(openvla_tiny: SimpleNamespace, folder: Path) -> None:
    state = torch.load(folder / HEAD, weights_only=True)
    state['module.model.fc1.weight'] = torch.zeros(32, 3)
    torch.save(state, folder / HEAD)
    with pytest.raises(ValueError, match=r'model.fc1.weight is \[32, 3\], expected \[32, 224\]'):
        policy(openvla_tiny, folder=folder)


@pytest.mark.parametrize('name', [HEAD, PROPRIO])
def test_a_pickle_with_a_payload_is_refused_and_never_run(
    openvla_tiny: SimpleNamespace, folder: Path, name: str
) -> None:
    canary = folder / 'canary'

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (canary,))

    state = torch.load(folder / name, weights_only=True)
    torch.save({**state, 'payload': Payload()}, folder / name)
    with pytest.raises(ValueError, match='more than tensors'):
        policy(openvla_tiny, folder=folder)
    assert not canary.exists()


def test_a_truncated_head_is_refused(openvla_tiny: SimpleNamespace, folder: Path) -> None:
    for keep in (0, 10, 3000):
        data = (openvla_tiny.oft / HEAD).read_bytes()
        (folder / HEAD).write_bytes(data[:keep])
        with pytest.raises(ValueError, match=HEAD):
            policy(openvla_tiny, folder=folder)


def test_missing_files_are_named_with_the_next_move(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    for name, complaint in [
        ('tokenizer.json', 'tokenizer.json; take it from'),
        (HEAD, 'action_head--<step>_checkpoint.pt'),
        ('preprocessor_config.json', 'no preprocessor_config.json'),
        ('config.json', 'no config.json'),
    ]:
        saved = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=complaint):
            policy(openvla_tiny, folder=folder)
        (folder / name).write_bytes(saved)


def test_two_heads_and_foreign_variants_are_refused(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    second = folder / 'action_head--50000_checkpoint.pt'
    shutil.copy(folder / HEAD, second)
    with pytest.raises(ValueError, match='several action_head files'):
        policy(openvla_tiny, folder=folder)
    second.rename(folder / 'vision_backbone--50000_checkpoint.pt')
    with pytest.raises(ValueError, match='FiLM'):
        policy(openvla_tiny, folder=folder)


def test_missing_statistics_key_lists_those_there(openvla_tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"'bridge'; choose from \['libero_spatial_no_noops'\]"):
        policy(openvla_tiny, statistics_key='bridge')


def test_a_foreign_config_is_refused(openvla_tiny: SimpleNamespace, folder: Path) -> None:
    config = json.loads((folder / 'config.json').read_text())
    for change, complaint in [
        ({'model_type': 'llava'}, "model_type is 'llava'"),
        ({'vision_backbone_id': 'clip'}, r"'clip'; supported: \['tiny'\]"),
    ]:
        (folder / 'config.json').write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=complaint):
            policy(openvla_tiny, folder=folder)


def test_a_robot_of_another_size_is_refused_with_both_sides_named(
    openvla_tiny: SimpleNamespace,
) -> None:
    with pytest.raises(ValueError, match=r"7 dimensions.* drives 3 joints \['a', 'b', 'c'\]"):
        policy(openvla_tiny, actions=absolute('abc'), proprioception=())
    with pytest.raises(ValueError, match='reads 7 numbers of proprioception.*names 2 joints'):
        policy(openvla_tiny, proprioception=('a', 'b'))
    with pytest.raises(ValueError, match='reads 1 to 3 images'):
        policy(openvla_tiny, views=('a', 'b', 'c', 'd'))


def test_proprioception_is_optional_but_never_ignored(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    (folder / PROPRIO).unlink()
    with pytest.raises(ValueError, match='no proprioception projector'):
        policy(openvla_tiny, folder=folder)
    without = policy(openvla_tiny, folder=folder, proprioception=())
    assert np.isfinite(without.predict(observation()).chunk.positions).all()


def test_bad_observations_are_refused(openvla_tiny: SimpleNamespace) -> None:
    tested, seen = policy(openvla_tiny), observation()
    with pytest.raises(InstructionError, match='empty'):
        tested.check_instruction(' \n')
    with pytest.raises(InstructionError, match='say it shorter'):
        tested.predict(replace(seen, instruction='pick ' * 500))
    with pytest.raises(ValueError, match=r"misses \['wrist'\]"):
        tested.predict(observation(views=('head',)))
    with pytest.raises(ValueError, match='reads 7 joints'):
        tested.predict(replace(seen, state=ArmState(np.zeros(3), 7)))


def test_a_failed_step_leaves_no_keyframe_behind(openvla_tiny: SimpleNamespace) -> None:
    tested = policy(openvla_tiny)
    bias = tested.model.head.model.fc2.bias
    saved = bias.clone()
    bias.fill_(float('nan'))
    with pytest.raises(PolicyOutputError, match='NaN'):
        tested.predict(observation())
    bias.copy_(saved)
    assert tested.predict(observation()).trace.keyframe_reason == 'first step'


def test_run_pruned_is_told_that_all_see_all(
    openvla_tiny: SimpleNamespace, model: OFTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}

    def spy(*args: object, **kwargs: object) -> object:
        told.update(kwargs)
        return run_pruned(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr('safe_pruner_ros.policies.openvla_oft.run_pruned', spy)
    policy(openvla_tiny).predict(observation())
    assert told['causal'] is False
