"""Parts of the training schedule that can be checked without training."""

from __future__ import annotations

import itertools
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from safe_pruner_ros.policies.embedded_model import EmbeddedConfig, EmbeddedVLA
from safe_pruner_ros.policies.instructions import encode_words
from safe_pruner_ros.policies.policy import InstructionError
from safe_pruner_ros.policies.vision_tower import VisionTower
from safe_pruner_ros.ros.demo.demo import DEMO_SEEDS
from safe_pruner_ros.sim.tasks.catalog import TASKS
from safe_pruner_ros.training import recipe
from safe_pruner_ros.training.dataset import DemonstrationSet, save_shard
from safe_pruner_ros.training.demonstrations import Frame, Label
from safe_pruner_ros.training.imitation import (
    AuxiliaryHeads,
    DepthStage,
    grow,
    losses,
    multiplier,
    new_learner,
)
from safe_pruner_ros.training.labels import patch_labels
from safe_pruner_ros.training.optimizer import orthogonalise
from safe_pruner_ros.training.picture_set import PictureSet, split_shards
from safe_pruner_ros.training.run import policy_config
from safe_pruner_ros.training.vision_pretraining import describe

CONFIG = EmbeddedConfig(
    ('head', 'left_wrist', 'right_wrist'),
    ('a', 'grip'),
    ('grip',),
    ('<pad>', 'take', 'red', 'blue', 'ball', 'block'),
    width=32,
    mlp_width=48,
    n_layers=12,
    n_heads=4,
    vision_width=16,
)


def test_no_scene_serves_two_purposes() -> None:
    ranges = (
        recipe.TRAINING_SEEDS, recipe.VALIDATION_SEEDS, recipe.DEMO_SEEDS, recipe.TEST_SEEDS,
    )  # fmt: skip
    for a, b in itertools.pairwise(ranges):
        assert a.stop <= b.start
    assert set(DEMO_SEEDS) < set(recipe.DEMO_SEEDS)


def test_no_training_scene_serves_two_purposes() -> None:
    for make in recipe.RECIPES.values():
        used: list[int] = []
        for seed in (0, 1, 9):
            plan = make(seed)
            widest = [max(n) for n in zip(*(astuple(t)[1:] for t in plan.tasks), strict=True)]
            rounds = len(plan.dagger_before_stages)
            used += plan.seeds(recipe.PICTURES, widest[0])
            used += plan.seeds(recipe.PICTURE_EPISODES, widest[1])
            used += plan.seeds(recipe.DEMONSTRATIONS, widest[2])
            for number in range(rounds):
                used += plan.seeds(recipe.CORRECTIONS, widest[3], skip=widest[3] * number)
        assert len(used) == len(set(used)) and set(used) <= set(recipe.TRAINING_SEEDS)
    with pytest.raises(ValueError, match='holds 2000 scenes'):
        plan.seeds(recipe.CORRECTIONS, 1, skip=2000)
    with pytest.raises(ValueError, match=r'must be in 0\.\.9'):
        recipe.all_tasks_recipe(10)


def test_the_policy_of_all_tasks_follows_all_their_sentences() -> None:
    config = policy_config(recipe.all_tasks_recipe())
    sentences = {s for task in TASKS.values() for s in task.sentences}
    assert config.sentences == sentences and len(sentences) == 6 * (12 + 12 + 16)
    codes = {encode_words(sentence, config).tobytes() for sentence in sentences}
    assert len(codes) == len(sentences), 'no two sentences look alike to the policy'
    assert [task.name for task in config.tasks] == list(TASKS)
    with pytest.raises(InstructionError, match='never trained on'):
        encode_words('put the red doll in the tray', config)  # no tray scene has dolls


@pytest.mark.parametrize('depth', [5, 8, 12])
def test_growing_keeps_the_function(depth: int) -> None:
    torch.manual_seed(0)
    small = EmbeddedVLA(CONFIG, 4).eval()
    large = grow(small, depth).eval()
    embeddings = torch.randn(2, small.layout.length, CONFIG.width)
    with torch.inference_mode():
        difference = small.decode_full(embeddings) - large.decode_full(embeddings)
    assert len(large.layers) == depth
    assert difference.abs().max() < 1e-5


def test_grown_layers_learn() -> None:
    """A zero-initialised layer that gets no gradient would stay the identity for ever."""
    torch.manual_seed(0)
    large = grow(EmbeddedVLA(CONFIG, 4), 12)
    large.decode_full(torch.randn(1, large.layout.length, CONFIG.width)).square().mean().backward()
    new = [layer for layer in large.layers if not layer.mlp.down_proj.weight.any()]
    assert len(new) == 8
    for layer in new:
        assert layer.mlp.down_proj.weight.grad.abs().max() > 0
        assert layer.self_attn.o_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize('shape', [(3, 16, 16), (2, 24, 16), (2, 16, 40)])
def test_orthogonalise_evens_out_singular_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.4 and values.max() < 1.4


def test_patch_labels_count_pixels_and_point_to_the_centroid() -> None:
    segmentation = np.full((64, 64), -1)
    segmentation[4:12, 4:12] = 0  # straddles four 8 x 8 patches, centroid (8, 8)
    segmentation[56:64, 56:64] = -2  # the receptacle fills the last patch
    segmentation[56:60, 48:56] = -4  # its lid half of the one before
    labels = patch_labels(segmentation, n_objects=1, grid=8)
    assert labels.coverage[0, 0] == pytest.approx(16 / 64)
    assert labels.coverage[:, 0].sum() == pytest.approx(1.0)
    np.testing.assert_allclose(labels.offset[0, 0], [0.5, 0.5])
    np.testing.assert_allclose(labels.offset[9, 0], [-0.5, -0.5])
    assert labels.coverage[63, 1] == 1.0 and labels.coverage[:, 3].sum() == 0
    assert labels.coverage[62, 2] == 0.5
    np.testing.assert_allclose(labels.offset[63, 1], [0, 0], atol=1e-6)
    np.testing.assert_allclose(labels.offset[62, 2], [-0.25, 0], atol=1e-6)


def test_learning_rate_warms_up_and_decays() -> None:
    stage = DepthStage(4, 110, 1.0, 1.0, warmup_steps=10, final_multiplier=0.1)
    values = [multiplier(stage, step) for step in range(111)]
    assert values[0] == pytest.approx(0.1) and values[10] == pytest.approx(1.0)
    assert values[110] == pytest.approx(0.1) and min(values[10:]) > 0.099


def _frames() -> list[Frame]:
    rng = np.random.default_rng(0)
    frames = []
    for number in range(3):
        labels = (
            Label(0, np.full((8, 2), number, np.float32)),
            Label(1, np.full((8, 2), 10 + number, np.float32)),
        )
        coverage = np.zeros((192, 2), np.uint8)
        coverage[number, 0], coverage[number + 5, 1] = 255, 255
        frames.append(
            Frame(
                rng.integers(0, 255, (3, 256, 256, 3), dtype=np.uint8),
                np.array([number, 0.5], np.float32),
                coverage,
                ('red ball', 'blue block'),
                np.ones((2, 3), np.float32) * number,
                np.array([0.4, 0.0, number], np.float32),
                labels,
            )
        )
    return frames


def test_a_sample_holds_the_label_of_the_object_it_names(tmp_path: Path) -> None:
    tokens = [np.zeros((192, 16), np.float16)] * 3
    save_shard(tmp_path / 'shard', _frames(), tokens, {'task': 'taking'})
    data = DemonstrationSet(tmp_path, CONFIG, {'taking': ('take {object}',)})
    assert len(data) == 3, 'frames'
    batch = data.batch(np.random.default_rng(0), 64)
    red = batch['words'][:, 1] == CONFIG.vocabulary.index('red')
    assert 16 < red.sum() < 48, 'each frame asks for its instructed object half the time'
    assert (batch['chunk'][red] < 10).all() and (batch['chunk'][~red] >= 10).all()
    number = batch['proprioception'][:, 0].long()
    row = torch.where(red, number, number + 5)
    shown = batch['shows_object'] & batch['shows_named'].bool()
    assert (shown.int().argmax(1) == row).all() and (shown.sum(1) == 1).all()
    assert (batch['places'][:, :3] == number[:, None]).all()
    assert (batch['places'][:, 5] == number).all() and (batch['places'][:, 3] == 0.4).all()


def test_each_task_is_asked_for_in_its_own_words(tmp_path: Path) -> None:
    tokens = [np.zeros((192, 16), np.float16)] * 3
    for task in ('taking', 'packing'):
        frames = [replace(f, receptacle=np.full(3, len(task), np.float32)) for f in _frames()]
        save_shard(tmp_path / task, frames, tokens, {'task': task})
    templates = {'taking': ('take {object}',), 'packing': ('{object}', 'ball {object}')}
    batch = DemonstrationSet(tmp_path, CONFIG, templates).batch(np.random.default_rng(0), 96)
    packing, first = batch['places'][:, 3] == len('packing'), batch['words'][:, 0]
    assert 20 < packing.sum() < 76
    take, ball, red, blue = (CONFIG.vocabulary.index(w) for w in ('take', 'ball', 'red', 'blue'))
    assert (first[~packing] == take).all()
    assert set(first[packing].tolist()) == {ball, red, blue}


def test_losses_reach_every_trained_weight_and_no_tower_weight(tmp_path: Path) -> None:
    tokens = [np.ones((192, 16), np.float16)] * 3
    save_shard(tmp_path / 'shard', _frames(), tokens, {'task': 'taking'})
    data = DemonstrationSet(tmp_path, CONFIG, {'taking': ('take {object}',)})
    statistics = {k: torch.from_numpy(v).float() for k, v in data.statistics().items()}
    learner = new_learner(
        EmbeddedVLA(CONFIG, 4), AuxiliaryHeads(CONFIG.width), DepthStage(4, 10, 1e-3, 1e-3)
    )
    sum(losses(learner, data.batch(np.random.default_rng(0), 8), statistics).values()).backward()
    silent = [
        n for n, p in learner.trained.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert silent == []
    assert all(p.grad is None for p in learner.model.vision.parameters())


def _picture_shard(folder: Path, seed: int) -> None:
    """Pictures whose red level says the patch, so that a window shows where it was cut."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    level = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(32, axis=0).repeat(32, axis=1)
    images = np.zeros((4, 256, 256, 3), np.uint8)
    images[..., 0] = level
    coverage = np.zeros((4, 64, 6), np.uint8)
    for row, patch in enumerate(rng.permutation(64)[:4]):
        coverage[row, patch, row % 3] = 100
    offset = np.zeros((4, 64, 5, 2), np.float16)
    offset[..., 0], offset[..., 1] = 0.25, 0.5
    for name, array in (('images', images), ('coverage', coverage), ('offset', offset)):
        np.save(folder / f'{name}.npy', array)


@pytest.mark.parametrize('window', [3, 8])
def test_windows_show_their_object_and_flip_with_their_labels(tmp_path: Path, window: int) -> None:
    for number in range(2):
        _picture_shard(tmp_path / f'scene_{number}', number)
    data = PictureSet([tmp_path / 'scene_0', tmp_path / 'scene_1'])
    batch = data.batch(np.random.default_rng(0), 64, window)
    assert batch.images.shape == (64, 3, 32 * window, 32 * window)
    assert batch.coverage.shape == (64, window**2, 6)
    assert (batch.coverage[..., :3].amax((1, 2)) > 0.3).all(), 'every window shows an object'
    corners = (batch.images[:, 0, ::32, ::32] * 255).round().long()
    flipped = corners[:, 0, 0] > corners[:, 0, 1]
    assert flipped.any() and not flipped.all()
    side = torch.where(flipped, -0.5, 0.5)
    assert (batch.offset[..., 0] == 0.25).all()
    assert (batch.offset[..., 1] == side[:, None, None]).all()
    # The patch under a label is the patch the label was made for.
    shown = batch.coverage[..., :3].amax(-1) > 0.3
    original = np.concatenate(
        [np.argmax(np.load(tmp_path / f'scene_{n}' / 'coverage.npy').max(-1), 1) for n in (0, 1)]
    )
    assert set(corners.flatten(1)[shown].tolist()) <= set(original.tolist())


def test_scenes_are_held_out_of_every_task(tmp_path: Path) -> None:
    for task, count in (('a', 20), ('b', 6)):
        for number in range(count):
            (tmp_path / task / f'scene_{number:03d}').mkdir(parents=True)
        (tmp_path / task / 'episode_000').mkdir()
        (tmp_path / task / 'scene_999.partial').mkdir()
    learn, held_out = split_shards(tmp_path, ['a', 'b'])
    assert [p.name for p in held_out['a']] == [f'scene_{n:03d}' for n in range(16, 20)]
    assert [p.name for p in held_out['b']] == ['scene_005']
    assert len(learn) == 17 + 6
    assert not set(learn) & {p for own in held_out.values() for p in own}


def test_accuracy_is_told_by_shape() -> None:
    kinds = ('red ball', 'blue ball', 'red block')
    counts = np.array([[3, 1, 0], [0, 4, 0], [2, 0, 0]])
    assert describe(counts, kinds) == '0.700 (ball 0.875, block 0.000)'


def test_the_tower_makes_one_token_a_patch_that_sees_its_neighbours() -> None:
    torch.manual_seed(0)
    tower = VisionTower(16).eval()
    images = torch.rand(2, 3, 256, 256)
    tokens = tower(images)
    assert tokens.shape == (2, 64, 16)
    changed = images.clone()
    changed[0, :, 0:32, 0:32] = 0
    difference = (tower(changed) - tokens).abs().amax(-1)
    assert difference[0, 0] > 0 and difference[0, 1] > 0 and difference[1].max() == 0


@pytest.mark.parametrize('count', [1, 2, 3])
def test_too_few_shards_to_hold_one_out_are_refused(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / 'a' / f'scene_{number:03d}').mkdir(parents=True)
    with pytest.raises(ValueError, match=f'a needs 4 shards .* has {count}; use a recipe with'):
        split_shards(tmp_path, ['a'])
