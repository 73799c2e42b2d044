"""Golden replay: two recordings through a policy with seeded weights; every number as it was.

Exactly equal: key timesteps, their reasons, retained sets, observation times. Actions: within
ACTION_TOLERANCE (other processors round matrix products differently). After an intended change:

    UPDATE_GOLDEN=1 scripts/with_env python -m pytest test/ros/bags/test_golden.py

It refuses to store numbers that another rounding could tip over (see `margins`).
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from safe_pruner_ros.evaluation.replay.replay import Lane, replay
from safe_pruner_ros.policies.embedded import EmbeddedPolicy, load_weights

DATA = Path(__file__).parents[4] / 'shared' / 'data' / 'g1_dual_arm'  # beside the checkout
FOLDER = Path(__file__).parent / 'golden'
BAG, NUMBERS = FOLDER / 'episode', FOLDER / 'golden.json'
ACTION_TOLERANCE = 2e-4  # rad, closed fraction
MIN_SIMILARITY_MARGIN = 2e-3
MIN_SCORE_MARGIN = 1e-5  # of the largest score
UPDATE = bool(os.environ.get('UPDATE_GOLDEN'))
SAFE = {'retention_ratio': 0.3, 'similarity_threshold': 0.6, 'norm': 'l1', 'alpha': 0.5}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    'unpruned': ('unpruned', {}),
    'safe_pruner 0.3': ('safe_pruner', {**SAFE, 'pruning_layer': 2, 'max_keyframe_age': 4}),
    'safe_pruner code 0.5': (
        'safe_pruner', {'variant': 'code', 'retention_ratio': 0.5, 'similarity_threshold': 0.7},
    ),
    'fastv 0.3': ('fastv', {'retention_ratio': 0.3, 'queries': 'last'}),
    'vla_pruner 0.3': ('vla_pruner', {'retention_ratio': 0.3}),
}  # fmt: skip


def small_bag(episode: list[Any], kit: Any) -> None:
    """The simulator's episode as lossless pictures; the renderer has no part in later runs."""
    entries = []
    for number, entry in enumerate(episode):
        if entry.kind == kit.IMAGE:
            rgb = entry.values['data'].reshape(64, 64, 3)
            rgb = cv2.resize(rgb, (48, 48), interpolation=cv2.INTER_AREA)
            options = [cv2.IMWRITE_PNG_COMPRESSION, 9]
            data = cv2.imencode('.png', rgb[:, :, ::-1], options)[1].reshape(-1)
            values = {'format': 'rgb8; png compressed bgr8', 'data': data}
            entry = replace(entry, kind=kit.COMPRESSED, values=values)
        elif entry.kind == kit.TRAJECTORY or (entry.kind == kit.JOINTS and number % 2):
            continue
        elif entry.kind == kit.STRING:
            entry = replace(entry, values={'data': kit.INSTRUCTION})
        entries.append(entry)
    kit.write_bag(BAG, entries)


def g1_bag(path: Path, kit: Any, robot: Any) -> Path:
    """Head pictures of a real G1 on all three views; the joints move slowly, invented."""
    import av

    entries = [kit.Entry('/instruction', kit.STRING, kit.START_NS, kit.START_NS,
                         {'data': kit.INSTRUCTION})]  # fmt: skip
    lower, upper = robot.layout.lower, robot.layout.upper
    with av.open(str(DATA / 'episode_000010.cam_high.mp4')) as film:
        for number, frame in zip(range(90), film.decode(video=0), strict=False):
            stamp_ns = kit.START_NS + number * 33_333_333
            # AV1 decodes to the same bits everywhere; libswscale's conversion to RGB need not.
            rgb = cv2.cvtColor(frame.to_ndarray(format='yuv420p'), cv2.COLOR_YUV2RGB_I420)
            rgb = cv2.resize(rgb, (320, 240), interpolation=cv2.INTER_AREA)
            entries += [
                kit.image(camera.topic, stamp_ns + 1_000_000 + k, stamp_ns, rgb)
                for k, camera in enumerate(robot.cameras)
            ]
            share = 0.5 + 0.2 * np.sin(0.02 * number)
            values = {
                'name': list(robot.layout.names),
                'position': lower + share * (upper - lower),
            }
            entries.append(
                kit.Entry('/joint_states', kit.JOINTS, stamp_ns + 500_000, stamp_ns, values)
            )
    return kit.write_bag(path, sorted(entries, key=lambda entry: entry.log_ns))


def compressed_robot(robot: Any) -> Any:
    cameras = tuple(
        replace(camera, transport='compressed', encodings=('png',)) for camera in robot.cameras
    )
    return replace(robot, cameras=cameras)


def margins(trace: Any) -> tuple[float, float]:
    """How far the similarity is from its threshold, and the lowest retained score from the
    highest pruned one (relative, per view where every view keeps the same share)."""
    similarity = abs(trace.attention_similarity - trace.similarity_threshold)
    if trace.fused is None or trace.n_retained == trace.n_visual:
        return similarity, float('inf')
    kept = np.zeros(trace.n_visual, bool)
    kept[trace.retained_index] = True
    views = kept.reshape(3, -1), trace.fused.reshape(3, -1)
    if len(set(views[0].sum(axis=1))) > 1:
        views = kept[None], trace.fused[None]
    gaps = [scores[k].min() - scores[~k].max() for k, scores in zip(*views, strict=True)]
    return similarity, float(min(gaps) / np.abs(trace.fused).max())


def run(observations: list[Any], layout: Any, checkpoint: Path) -> dict[str, Any]:
    """Steps by method: what is stored and compared."""
    lanes = []
    for name, (method, settings) in METHODS.items():
        policy = EmbeddedPolicy(load_weights(checkpoint), method, settings)
        lanes.append(Lane(name, method, settings.get('retention_ratio', 1.0), policy))
    found: dict[str, list[Any]] = {name: [] for name in METHODS}

    def keep(observation: Any, outputs: Any) -> None:
        for name, output in outputs.items():
            trace = output.trace
            if UPDATE:
                similarity, score = margins(trace)
                assert not similarity < MIN_SIMILARITY_MARGIN, (name, similarity)
                assert not score < MIN_SCORE_MARGIN, (name, score)
            found[name].append({
                'stamp_ms': (observation.stamp_ns - observations[0].stamp_ns) / 1e6,
                'reason': trace.keyframe_reason,
                'retained': trace.retained_index.tolist()
                if trace.n_retained < trace.n_visual else 'all',
                'first': np.round(output.chunk.positions[0], 6).tolist(),
                'last': np.round(output.chunk.positions[-1], 6).tolist(),
            })  # fmt: skip

    replay(observations, layout, lanes, on_step=keep)
    return found


def check(name: str, found: dict[str, Any]) -> None:
    if UPDATE:
        stored = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
        lines = json.dumps({**stored, name: found}, indent=0, separators=(',', ':'))
        NUMBERS.write_text(lines.replace(',\n', ',').replace('},{', '},\n{') + '\n')
    stored = json.loads(NUMBERS.read_text())[name]
    assert set(stored) == set(found)
    for method, steps in stored.items():
        assert len(steps) == len(found[method])
        for number, (was, now) in enumerate(zip(steps, found[method], strict=True)):
            where = (method, number)
            for key in ('stamp_ms', 'reason', 'retained'):
                assert was[key] == now[key], (*where, key)
            for key in ('first', 'last'):
                apart = np.abs(np.array(was[key]) - np.array(now[key])).max()
                assert apart <= ACTION_TOLERANCE, (*where, key, apart)


def test_simulated_episode(episode, kit, sim_config, source_of, seeded_checkpoint) -> None:
    if UPDATE and not BAG.exists():
        small_bag(episode, kit)
    observations, *_ = source_of(BAG, compressed_robot(sim_config.robot))
    found = run(observations, sim_config.robot.layout, seeded_checkpoint)
    check('simulator', found)
    # Numbers that say something: pruned and key timesteps, different sets, different actions.
    safe, plain = found['safe_pruner 0.3'], found['unpruned']
    assert safe[0]['reason'] == 'first step' and any(not step['reason'] for step in safe)
    assert any(a['last'] != b['last'] for a, b in zip(safe, plain, strict=True))


@pytest.mark.skipif(not DATA.is_dir(), reason=f'the G1 recording is not in {DATA}')
def test_real_g1(tmp_path, kit, sim_config, source_of, seeded_checkpoint) -> None:
    path = g1_bag(tmp_path / 'g1', kit, sim_config.robot)
    observations, *_ = source_of(path)
    assert len(observations) >= 7
    check('g1', run(observations, sim_config.robot.layout, seeded_checkpoint))


def test_the_committed_bag_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob('*') if file.is_file()) < 400_000
