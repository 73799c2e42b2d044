"""What a big policy refuses, the node refuses at configure: one clear line, no arm that moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.ros

HEAD = 'action_head--150000_checkpoint.pt'


@pytest.fixture
def configure(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[Any], tuple[bool, str]]]:
    """(whether the node was configured, its log)."""
    import rclpy
    from rclpy.lifecycle import TransitionCallbackReturn
    from rclpy.parameter import Parameter

    from safe_pruner_ros.ros.node import SafePrunerNode

    context = rclpy.Context()
    rclpy.init(context=context)
    nodes: list[Any] = []

    def configure(policy: Any, **parameters: Any) -> tuple[bool, str]:
        values = {'robot_file': 'sim', 'policy_file': str(policy.file)} | parameters
        node = SafePrunerNode(
            context=context,
            parameter_overrides=[Parameter(n, value=v) for n, v in values.items()],
        )
        nodes.append(node)
        capfd.readouterr()
        done = node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert done == (node._session is not None)
        return done, capfd.readouterr().err

    yield configure
    for node in nodes:
        node.end()
        node.destroy_node()
    nodes.clear()
    rclpy.shutdown(context=context)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remove_last_joint(policy: Any) -> None:
    policy.edit('      - {joint: astribot_gripper_right_joint_L1, gripper: true}\n', '')
    if policy.name == 'openvla_oft':
        policy.edit(', astribot_gripper_right_joint_L1]', ']')


OFT: dict[str, tuple[Callable[[Any], object], list[str]]] = {
    'truncated weights': (
        lambda p: truncate(p.folder / 'model-00002-of-00003.safetensors'),
        ['model-00002-of-00003.safetensors is not a readable safetensors file', 'copied in part'],
    ),
    'truncated head': (lambda p: truncate(p.folder / HEAD), [HEAD, 'damaged or holds more']),
    'foreign checkpoint': (
        lambda p: edit_json(p.folder / 'config.json', model_type='llava'),
        ["model_type is 'llava'", "expected 'openvla'"],
    ),
    'statistics key': (
        lambda p: p.edit('period_s: 0.1', 'period_s: 0.1\n    statistics_key: bridge'),
        ["no statistics for 'bridge'", "choose from ['lab_robot']"],
    ),
    'image count': (
        lambda p: p.edit('[head, left_wrist, right_wrist]', '[a, b, c, d]'),
        ['openvla_oft reads 1 to 3 images', "['a', 'b', 'c', 'd']"],
    ),
    'a view the robot lacks': (
        lambda p: p.edit('[head, left_wrist, right_wrist]', '[belly]'),
        ["needs the views ['belly']", "['head', 'left_wrist', 'right_wrist']"],
    ),
    'wrong units': (
        lambda p: p.edit('left_joint_L1, gripper: true', 'left_joint_L1, scale: 100.0'),
        ["'astribot_gripper_left_joint_L1' from 0 to 100", 'correct scale and offset'],
    ),
    'no tokenizer': (
        lambda p: (p.folder / 'tokenizer.json').unlink(),
        ['has no tokenizer.json', 'take it from an official OpenVLA checkpoint'],
    ),
    'action size': (
        remove_last_joint,
        ['acts in 16 dimensions', 'drives 15 joints', 'fine-tuned on this robot'],
    ),
    'no chunk size': (
        lambda p: p.edit('    chunk_size: 8\n', ''),
        ['says how many actions it gives', '8 for LIBERO'],
    ),
    'no folder': (
        lambda p: p.edit(f'checkpoint: {p.folder}', 'checkpoint: /no/such/folder'),
        ['/no/such/folder does not exist', 'give the folder of a openvla_oft checkpoint'],
    ),
    'a setting of another policy': (
        lambda p: p.edit('period_s: 0.1', 'period_s: 0.1\n    prompt: state'),
        ["policy 'openvla_oft' reads no prompt, got 'state'", 'remove it'],
    ),
}
PI05: dict[str, tuple[Callable[[Any], object], list[str]]] = {
    'truncated weights': (
        lambda p: truncate(p.folder / 'model.safetensors'),
        ['model.safetensors is not a readable safetensors file', 'copied in part'],
    ),
    'foreign checkpoint': (
        lambda p: edit_json(p.folder / 'config.json', type='smolvla'),
        ["'smolvla' policy", 'convert_jax_model_to_pytorch.py or lerobot'],
    ),
    'statistics key': (
        lambda p: p.edit('period_s: 0.1', 'period_s: 0.1\n    statistics_key: bridge'),
        ["no statistics for 'bridge'", "choose from ['lab_robot']"],
    ),
    'image count': (
        lambda p: p.edit('[head, left_wrist, right_wrist]', '[a, b, c, d]'),
        ['pi05 reads 1 to 3 images', "['a', 'b', 'c', 'd']"],
    ),
    'no tokenizer': (
        lambda p: (p.folder / 'tokenizer.json').unlink(),
        ['no tokenizer at', 'copy tokenizer.json of google/paligemma-3b-pt-224'],
    ),
    'action size': (
        remove_last_joint,
        ['statistics of the checkpoint have 16 values', 'drives 15 joints'],
    ),
    'prompt form': (
        lambda p: p.edit('    prompt: state\n', ''),
        ["prompt must be one of ['text', 'state']", 'pi05_libero'],
    ),
}


def refused(configure: Any, policy: Any, words: list[str], **parameters: Any) -> None:
    done, log = configure(policy, **parameters)
    assert not done
    assert 'configure refused' in log and 'Traceback' not in log, log
    assert all(word in log for word in words), log


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('openvla.oft_policy.load_oft_model', 'pi05.policy.load_model'):
        target = f'safe_pruner_ros.policies.{name}'
        monkeypatch.setattr(target, lambda *_: pytest.fail('a weight was moved'))


@pytest.mark.usefixtures('never_loads')
@pytest.mark.parametrize('case', OFT)
def test_openvla_oft(configure, tiny_oft, case) -> None:
    spoil, words = OFT[case]
    spoil(tiny_oft)
    refused(configure, tiny_oft, words)


@pytest.mark.usefixtures('never_loads')
@pytest.mark.parametrize('case', PI05)
def test_pi05(configure, tiny_pi05, case) -> None:
    spoil, words = PI05[case]
    spoil(tiny_pi05)
    refused(configure, tiny_pi05, words)


def test_a_gpu_that_is_not_there_or_too_small(configure, tiny_policy, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (10_000_000, 10**9))
    words = ['GB on cuda:0 as bfloat16, 0.01 GB are free', "or device 'cpu'"]
    refused(configure, tiny_policy, words, **{'policy.device': 'cuda:0'})
    words = ["device 'cuda:7' asks for a GPU and torch finds 1"]
    refused(configure, tiny_policy, words, **{'policy.device': 'cuda:7'})


@pytest.mark.parametrize('part', ['action_head', 'proprio_projector'])
def test_a_pickle_with_a_payload_is_never_run(configure, tiny_oft, part) -> None:
    canary = tiny_oft.folder / 'canary'

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (canary,))

    (path,) = tiny_oft.folder.glob(f'{part}--*.pt')
    torch.save({**torch.load(path, weights_only=True), 'payload': Payload()}, path)
    refused(configure, tiny_oft, [path.name, 'is refused', 'more than tensors'])
    assert not canary.exists()


def test_a_repaired_checkpoint_is_configured_without_a_restart(configure, tiny_oft) -> None:
    tokenizer = tiny_oft.folder / 'tokenizer.json'
    text = tokenizer.read_text()
    tokenizer.unlink()
    refused(configure, tiny_oft, ['tokenizer.json'])
    tokenizer.write_text(text)
    done, log = configure(tiny_oft)
    assert done, log
    assert "policy 'openvla_oft', safe_pruner at retention_ratio 0.25" in log
