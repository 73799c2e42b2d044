"""Image chain, statistics and configuration of the big policies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from safe_pruner_ros.policies.action_statistics import read_range
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.policies.deployment import read_deployment
from safe_pruner_ros.policies.openvla.images import (
    ALOHA_CHAIN,
    LIBERO_CHAIN,
    ImageChain,
    ImageProcessor,
    centre_crop,
    jpeg_round_trip,
    read_image_processor,
    resize_lanczos3,
)
from safe_pruner_ros.runtime.config_yaml import load_config

CONFIG = Path(__file__).parents[3] / 'config'
HALF = (0.5, 0.5, 0.5)
VALUES = {
    'views': ['head'],
    'actions': ['a', {'joint': 'grip', 'scale': -1.0, 'offset': 1.0}],
    'statistics_key': 'x',
    'period_s': 0.1,
}


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 / width, y * 255 / height, (x + y) * 255 / (height + width)]
    return np.stack(planes, axis=2).astype(np.uint8)


def test_the_right_size_is_only_normalised() -> None:
    rgb = smooth(56, 56)
    got = ImageProcessor(56, (HALF, (0.1, 0.2, 0.3)), (HALF, HALF))(rgb)
    plain = torch.from_numpy(rgb).permute(2, 0, 1) / 255
    assert torch.equal(got[:3], (plain - 0.5) / 0.5)
    assert torch.equal(got[3:], (plain - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.5)


def test_other_sizes_are_squeezed_bicubically_without_bars() -> None:
    rgb = smooth(100, 60)
    got = ImageProcessor(56, (HALF, HALF), (HALF, HALF))(rgb)
    resized = np.array(Image.fromarray(rgb).resize((56, 56), Image.Resampling.BICUBIC))
    expected = (torch.from_numpy(resized).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.equal(got[:3], expected)


def test_lanczos_keeps_constants_and_is_close_to_pillows() -> None:
    assert (resize_lanczos3(np.full((256, 200, 3), 77, np.uint8), 224) == 77).all()
    for size in (56, 224, 300):
        rgb = smooth(256, 256)
        pillow = np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.LANCZOS))
        difference = np.abs(resize_lanczos3(rgb, size).astype(int) - pillow)
        assert difference.max() <= 3 and difference.mean() < 0.5


def test_centre_crop_takes_the_middle() -> None:
    rgb = np.zeros((224, 224, 3), np.uint8)
    rgb[:5], rgb[-5:] = 255, 255  # 0.9 of the area leaves out 5.7 px at each side
    assert (centre_crop(rgb, 0.9) == 0).all()
    assert (centre_crop(np.full((224, 224, 3), 200, np.uint8), 0.9) == 200).all()
    assert np.array_equal(centre_crop(smooth(224, 224), 1.0), smooth(224, 224))


def test_libero_chain_turns_the_image_over() -> None:
    rgb = smooth(256, 256)
    assert np.abs(jpeg_round_trip(rgb).astype(int) - rgb).max() < 20
    plain = ImageProcessor(56, (HALF, HALF), (HALF, HALF))(rgb)
    chained = ImageProcessor(56, (HALF, HALF), (HALF, HALF), LIBERO_CHAIN)(rgb)
    assert chained.shape == plain.shape
    turned, upright = plain.flip(1, 2), plain
    assert (chained - turned).abs().mean() < 0.1 < (chained - upright).abs().mean()


def test_the_shipped_aloha_file_has_the_chain_of_upstreams_aloha_robot() -> None:
    """Camera picture -> 256 px, JPEG, Lanczos to 224 px, centre crop (openvla-oft 213c5ff,
    experiments/robot: aloha/aloha_utils.py:39-49, openvla_utils.py:520-543 and 596-630)."""
    shipped = load_config(CONFIG / 'robots/aloha.yaml', CONFIG / 'policies/openvla_oft_aloha.yaml')
    chain = read_deployment(shipped.policy.deployment_values()).image_chain
    assert chain == ALOHA_CHAIN
    rgb = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    squashed = np.array(Image.fromarray(rgb).resize((256, 256), Image.Resampling.BICUBIC))
    expected = centre_crop(resize_lanczos3(jpeg_round_trip(squashed), 224), 0.9)
    tested = ImageProcessor(224, (HALF, HALF), (HALF, HALF), chain)
    assert np.array_equal(tested.resize(rgb), expected)
    plain = ImageProcessor(224, (HALF, HALF), (HALF, HALF)).resize(rgb)
    assert np.abs(plain.astype(int) - expected).mean() > 5


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'means': None}, r"misses \['means'\]"),
        ({'image_resize_strategy': 'letterbox'}, "'letterbox' .*; only 'resize-naive'"),
        ({'means': [[0.5] * 3]}, 'means must be RGB of two towers'),
        ({'stds': [[0.0] * 3] * 2}, 'stds must be RGB of two towers'),
        ({'input_sizes': [[3, 56, 56], [3, 224, 224]]}, 'one square size'),
        ({'input_sizes': 224}, 'one square size'),
        ({'input_sizes': [224, 224]}, 'one square size'),
        ({'input_sizes': []}, 'one square size'),
        ({'input_sizes': [[3, '56', '56']] * 2}, "input_sizes must be a whole number .*'56'"),
        ({'input_sizes': [[3, 0, 0]] * 2}, 'whole number of at least 1, got 0'),
        ({'means': ['a', 'b']}, r"means must be RGB of two towers, got \['a', 'b'\]"),
        ({'image_resize_strategy': None}, 'letterbox where it names none'),
        ({'image_resize_strategy': ['resize-naive']}, r"strategy \['resize-naive'\] \("),
        ({'interpolations': ['bicubic', 'nearest']}, "'nearest'.; only 'bicubic'"),
        ({'interpolations': 'nearest'}, "'nearest'; only 'bicubic'"),
    ],
)
def test_preprocessor_files_that_do_not_fit_are_refused(
    change: dict[str, object], complaint: str
) -> None:
    good = {
        'means': [HALF] * 2,
        'stds': [HALF] * 2,
        'input_sizes': [[3, 56, 56]] * 2,
        'image_resize_strategy': 'resize-naive',
        'interpolations': ['bicubic'] * 2,
    }
    assert read_image_processor(good, ImageChain(), Path('preprocessor_config.json')).size == 56
    config = {k: v for k, v in {**good, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=complaint):
        read_image_processor(config, ImageChain(), Path('preprocessor_config.json'))


def test_normalise_undoes_unnormalise() -> None:
    entry = {'action': {'q01': [-2.0, 0.0], 'q99': [4.0, 1.0], 'mask': [True, False]}}
    both = read_range(entry, 'action')
    np.testing.assert_allclose(both.unnormalise([[-1, 0.3], [1, 0.7]]), [[-2, 0.3], [4, 0.7]])
    np.testing.assert_allclose(both.normalise(both.unnormalise([0.5, 0.3])), [0.5, 0.3])
    np.testing.assert_allclose(both.normalise([99.0, -7.0]), [1, -1])
    with pytest.raises(ValueError, match=r"miss \['min', 'max'\].*\['mask', 'q01', 'q99'\]"):
        read_range(entry, 'action', 'min_max')
    with pytest.raises(ValueError, match='finite'):
        read_range({'action': {'q01': [float('nan')], 'q99': [1.0]}}, 'action')
    with pytest.raises(ValueError, match="no 'proprio'"):
        read_range(entry, 'proprio')


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'mask': ['false', 'true']}, r"true and false, got \['false', 'true'\]"),
        ({'mask': [float('nan'), True]}, 'true and false, got .nan, True'),
        ({'mask': [1, 0]}, 'true and false'),
        ({'mask': None}, 'true and false, got None'),
        ({'mask': [True]}, r'disagree in size: .* mask \[1\]'),
        ({'q01': ['a', 'b']}, r"lists of numbers, got q01 \['a', 'b'\]"),
        ({'q99': {}}, 'lists of numbers, .* and q99 {}'),
        ({'q99': [[1.0], 2.0]}, 'lists of numbers'),
        ({'q99': [None, 1.0]}, 'must be finite'),
    ],
)
def test_statistics_that_are_no_numbers_are_refused(
    change: dict[str, object], complaint: str
) -> None:
    action = {'q01': [-2.0, 0.0], 'q99': [4.0, 1.0], 'mask': [True, False]}
    with pytest.raises(ValueError, match=complaint):
        read_range({'action': {**action, **change}}, 'action')


def test_deployment_is_read_from_plain_values() -> None:
    got = read_deployment({**VALUES, 'image_chain': {'crop_area': 0.9}})
    assert got.actions.joint_names == ('a', 'grip')
    assert got.image_chain == ImageChain(crop_area=0.9)
    targets = got.actions.targets(np.array([[0.5, 1.0]]), np.zeros(2))
    np.testing.assert_allclose(targets, [[0.5, 0.0]])


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'view': 1}, r"unknown \['view'\]"),
        ({'views': ['a', 'a']}, 'unique'),
        ({'period_s': 0.0}, 'positive'),
        ({'dtype': 'int8'}, "got 'int8'"),
        ({'actions': ['a', 'a']}, 'each joint once'),
        ({'actions': [{'joint': 'a', 'speed': 1}]}, 'speed'),
        ({'actions': [{'joint': 'a', 'semantics': 'velocity'}]}, "got 'velocity'"),
        ({'proprioception': ['z']}, r"\['z'\], which no action drives"),
        ({'image_chain': {'crop_area': 0}}, 'use 1.0'),
        ({'image_chain': {'stored_px': -1}}, 'stored_px must be at least 0, got -1'),
        ({'execution_horizon': 0}, 'at least 1, got 0'),
        ({'chunk_size': 0}, 'at least 1, got 0'),
        ({'period_s': float('inf')}, 'finite'),
    ],
)
def test_deployments_that_make_no_sense_are_refused(
    change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_deployment({**VALUES, **change})


def test_catalog_says_what_a_big_policy_needs(openvla_tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match='give the folder'):
        build_policy('openvla_oft', 'unpruned', {})
    with pytest.raises(ValueError, match='needs a deployment'):
        build_policy('openvla_oft', 'unpruned', {}, str(openvla_tiny.oft))
    with pytest.raises(ValueError, match='says how many actions'):
        build_policy('openvla_oft', 'unpruned', {}, str(openvla_tiny.oft), deployment=VALUES)
    values = {**VALUES, 'chunk_size': 4, 'execution_horizon': 5}
    with pytest.raises(ValueError, match=r'in \[1, 4\], the actions in a chunk'):
        build_policy('openvla_oft', 'unpruned', {}, str(openvla_tiny.oft), deployment=values)
    with pytest.raises(ValueError, match="'embedded' .* takes no deployment"):
        build_policy('embedded', 'unpruned', {}, deployment=VALUES)
    values = {**VALUES, 'actions': list('abcdefg'), 'statistics_key': openvla_tiny.statistics_key}
    values['chunk_size'] = 4
    with pytest.raises(ValueError, match='vision_backbone_id'):  # found, read, and not official
        build_policy('openvla_oft', 'unpruned', {}, str(openvla_tiny.oft), deployment=values)
