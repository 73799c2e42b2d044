"""The statistics of pi0.5: which file counts, what the numbers mean, and whose they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.pi05_folder import LEROBOT_MODES, STATE_FILE, preprocessor, write
from helpers.tiny_pi05 import TINY_PI05
from safetensors.numpy import load_file, save_file

from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.pi05.model import Pi05
from safe_pruner_ros.policies.pi05.statistics import Statistics, load_statistics


@pytest.fixture(scope='module')
def model() -> Pi05:
    torch.manual_seed(0)
    return Pi05(TINY_PI05).eval()


def test_quantiles_map_to_minus_one_and_one():
    both = Range(np.array([2.0, 5.0]), np.array([6.0, 5.0]), np.ones(2, bool))
    np.testing.assert_allclose(both.normalise([2.0, 5.0]), [-1, -1])
    np.testing.assert_allclose(both.normalise([8.0, 5.0], clip=False), [2, -1])
    np.testing.assert_allclose(both.unnormalise([0.5, 0.5]), [5, 5])


def padded(n: int, zero: float = 0.0) -> Range:
    """Of ``n`` joints, the fourth of which never moved, padded to 32."""
    low, high = np.full(32, -zero), np.full(32, zero)
    low[:n], high[:n] = -0.5, 0.7
    low[3] = high[3] = 0
    return Range(low, high, np.ones(32, bool))


@pytest.mark.parametrize('zero', [0.0, 1e-10])
def test_padding_does_not_hide_the_robot_of_the_statistics(zero):
    """Joints 15 and 16 would be commanded to 0 rad for good."""
    for statistics in (
        Statistics(padded(14, zero), padded(14, zero)),
        Statistics(padded(7, zero), padded(14, zero)),  # fewer numbers of state than of action
        Statistics(padded(14, zero).first(14), padded(14, zero)),
    ):
        assert len(statistics.for_joints(14, 32).action) == 14
        for n in (7, 16):
            with pytest.raises(ValueError, match=rf'have 14 values, .* {n} joints; give one'):
                statistics.for_joints(n, 32)
    whole = Statistics(padded(14), padded(14))
    assert len(whole.for_joints(32, 32).action) == 32
    with pytest.raises(ValueError, match='have 14 values, and zeros up to 32, the robot'):
        whole.for_joints(16, 32)


def test_missing_statistics_list_the_available_ones(tmp_path, model):
    folder = write(tmp_path, model)
    with pytest.raises(ValueError, match=r"'libero'; choose from \['lab/robot'\]"):
        load_statistics(folder, 'libero')
    path = folder / 'assets' / 'lab' / 'robot' / 'norm_stats.json'
    other = folder / 'assets' / 'libero'
    other.mkdir()
    (other / 'norm_stats.json').write_text(path.read_text())
    with pytest.raises(ValueError, match=r"several .* from \['lab/robot', 'libero'\]"):
        load_statistics(folder)
    assert len(load_statistics(folder, 'libero').state) == 2
    path.write_text(json.dumps({'norm_stats': {'state': {'q01': [0], 'q99': [1]}}}))
    with pytest.raises(ValueError, match=r"'actions', only \['state'\]"):
        load_statistics(folder, 'lab/robot')
    bare = {'mean': [0], 'std': [1]}
    path.write_text(json.dumps({'norm_stats': {'state': bare, 'actions': bare}}))
    with pytest.raises(ValueError, match=r"miss \['q01', 'q99'\], they have \['mean', 'std'\]"):
        load_statistics(folder, 'lab/robot')
    with pytest.raises(FileNotFoundError, match='no normalisation statistics'):
        load_statistics(folder / 'assets')


@pytest.mark.parametrize(
    ('content', 'complaint'),
    [
        ({'norm_stats': []}, r'"norm_stats" must be an object, got \[\]'),
        ({'norm_stats': None}, '"norm_stats" must be an object, got None'),
        ({}, '"norm_stats" must be an object, got None'),
        ([], 'must hold a JSON object, got list'),
        ({'norm_stats': {'state': [], 'actions': {}}}, "no 'state', only"),
    ],
)
def test_malformed_statistics_are_refused(tmp_path, model, content, complaint):
    folder = write(tmp_path, model)
    path = folder / 'assets' / 'lab' / 'robot' / 'norm_stats.json'
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=complaint):
        load_statistics(folder)


NEWER = STATE_FILE.replace('step_2', 'step_10')  # sorts before step_2


def test_lerobot_says_which_statistics_count(tmp_path, model):
    """A folder that two releases saved into: the step of the normaliser moved between them."""
    folder = write(tmp_path, model, 'lerobot')
    older = load_file(folder / STATE_FILE)
    save_file({name: 2 * value for name, value in older.items()}, folder / NEWER)
    pipeline = folder / 'policy_preprocessor.json'
    for named, high in ((STATE_FILE, [1, 3]), (NEWER, [2, 6])):
        pipeline.write_text(json.dumps(preprocessor(named, norm_map=LEROBOT_MODES)))
        assert load_statistics(folder).action.high.tolist() == high
    pipeline.unlink()
    with pytest.raises(ValueError, match=rf"several statistics \['{NEWER}', '{STATE_FILE}'\]"):
        load_statistics(folder)
    (folder / NEWER).unlink()
    assert load_statistics(folder).action.high.tolist() == [1, 3]
    with pytest.raises(ValueError, match="one data set without a name.* empty, got 'robot'"):
        load_statistics(folder, 'robot')


@pytest.mark.parametrize(
    ('pipeline', 'error', 'complaint'),
    [
        (preprocessor('gone.safetensors'), FileNotFoundError, 'names gone.safetensors, which is'),
        (preprocessor('../' + STATE_FILE), ValueError, r"in this folder, got \['\.\./policy_"),
        (preprocessor(None), ValueError, r'one state_file of normalizer_processor .* got \[\]'),
        ({'name': 'x'}, ValueError, 'no list of "steps"'),
        (
            preprocessor(norm_map={**LEROBOT_MODES, 'ACTION': 'MEAN_STD'}),
            ValueError,
            r"preprocessor\.json normalises .*'MEAN_STD'} .*only QUANTILES",
        ),
        (
            preprocessor(norm_map={**LEROBOT_MODES, 'VISUAL': 'MEAN_STD'}),
            ValueError,
            r"preprocessor\.json normalises images with 'MEAN_STD'",
        ),
        (preprocessor(norm_map=None), ValueError, 'must say how STATE and ACTION .* got None'),
    ],
)
def test_a_pipeline_of_lerobot_that_does_not_fit_is_refused(
    tmp_path, model, pipeline, error, complaint
):
    """Config.json says how the policy was trained, the pipeline what is done at inference."""
    folder = write(tmp_path, model, 'lerobot')
    (folder / 'policy_preprocessor.json').write_text(json.dumps(pipeline))
    with pytest.raises(error, match=complaint):
        load_statistics(folder)


def test_a_base_model_of_lerobot_takes_statistics_beside_it(tmp_path, model):
    """Its pipeline was saved before there were any; those of openpi are then read."""
    folder = write(tmp_path, model)
    (folder / 'policy_preprocessor.json').write_text(json.dumps(preprocessor(None)))
    assert len(load_statistics(folder).state) == 2
