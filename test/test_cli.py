"""The command line: wrong requests are one clear line and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from safe_pruner_ros import cli, cli_common


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one error line of a refused command."""
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and error.startswith(f'safe-pruner {arguments[0]}: error: ')
    return error


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--methods', 'magic'], 'unknown pruning method'),
        (['--methods', ''], 'no method given'),
        (['--methods', 'random,random'], "given twice: ['random']"),
        (['--retention', '1.4'], '(0, 1], got 1.4'),
        (['--retention', 'little'], "numbers like 0.3,0.1, got 'little'"),
        (['--seeds', '900200:900000'], 'empty'),
        (['--seeds', '7:9'], 'in no evaluation split'),
        (['--seeds', '500000:500009', '--split', 'test'], 'not all in the test split'),
        (['--set', 'alpha'], 'name=value'),
        (['--set', 'alhpa=0.3'], "none of the methods takes the setting ['alhpa']"),
        (['--task', 'juggle'], "unknown task 'juggle'"),
        (['--policy-file', 'enbedded'], "no 'enbedded' in"),
        (['--baseline', 'magic'], 'unknown pruning method'),
        (['--baseline', 'divprune'], '--baseline divprune is not among --methods'),
        (['--jobs', '-1'], '--jobs must be at least 0'),
        (['--checkpoint', '/nowhere.safetensors'], 'no embedded-policy weights at /nowhere'),
        (['--max-policy-steps', '0'], 'max_policy_steps'),
        (['--methods', 'safe_pruner:alpah=1'], "'safe_pruner' has no setting ['alpah']"),
        (['--methods', 'safe_pruner:tau=2'], 'similarity_threshold must be in [0, 1], got 2'),
        (['--methods', 'fastv', 'fastv'], "given twice: ['fastv']"),
        (['--retention', '0'], '(0, 1], got 0.0'),
        (['--retention', 'nan'], '(0, 1], got nan'),
        (['--plan', 'grit'], "did you mean 'grid'"),
        (['--plan', 'grid', '--methods', 'fastv'], 'leave out --methods'),
        (['--plan', 'sweeps', '--task', 'pack_doll'], "no run of task 'pack_doll'"),
        (['--plan', 'sweeps', '--task', 'juggle'], "unknown task 'juggle'"),
        (['--episodes', '3'], '--episodes shortens a --plan'),
        (['--backend', 'spark'], "a backend is 'local', 'dask:tcp"),
    ],
)
def test_evaluate_refuses(capsys, tmp_path, arguments: list[str], message: str) -> None:
    assert message in fails(capsys, 'evaluate', '--out', str(tmp_path / 'out'), *arguments)
    assert not (tmp_path / 'out').exists()


def test_evaluate_says_what_it_would_run(capsys, tmp_path) -> None:
    out = ('--dry-run', '--out', str(tmp_path / 'out'))
    assert (
        cli.main(
            ['evaluate', '--plan', 'ablations', '--task', 'pick_place', '--episodes', '2', *out]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert 'pick_place, 13 cells x 2 episodes, split test' in text
    assert 'safe_pruner:keyframe_interval=4 at 0.1' in text and '32 episodes; how long' in text
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['analyse', 'keyframes'], 'reads evaluation results'),
        (['analyse', 'keyframes', '/nowhere'], 'no evaluation results at /nowhere'),
        (['analyse', 'forecast', '/nowhere'], 'reads recordings'),
        (['analyse', 'forecast', '--seeds', '3'], 'in no evaluation split'),
        (['analyse', 'forecast', '--max-lag', '0'], '--max-lag'),
        (['analyse', 'forecast', '--cohort-lag', '0'], '--cohort-lag'),
        (['analyse', 'core-tokens', '--set', 'forecast=False'], 'leave out forecast=False'),
        (['analyse', 'subtasks', '--tolerance', '-1'], '--tolerance'),
        (['analyse', 'subtasks', '--method', 'fastv'], 'sees no subtasks'),
        (['analyse', 'forecast', '--method', 'fastv'], 'for subtasks on recordings only'),
        (['analyse', 'forecast', '--task', 'juggle'], "unknown task 'juggle'"),
        (['table', '/nowhere'], 'no evaluation results at /nowhere'),
        (['table', '/nowhere', '--baseline', 'magic'], 'unknown pruning method'),
    ],
)
def test_table_and_analyse_refuse(capsys, tmp_path, arguments: list[str], message: str) -> None:
    assert message in fails(capsys, *arguments, '--out', str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_others_refuse(capsys, tmp_path) -> None:
    out = ('--out', str(tmp_path))
    assert '640by480' in fails(capsys, 'benchmark', '--ros', '--image-px', '640by480', *out)
    assert '--rate must be in' in fails(capsys, 'demo', '--rate', '2', *out)
    assert "unknown task 'juggle'" in fails(capsys, 'demo', '--task', 'juggle', *out)
    assert "got '0'" in fails(capsys, 'benchmark', '--threads', '0', *out)
    assert '--rounds' in fails(capsys, 'benchmark', '--rounds', '0', *out)
    assert '--processes' in fails(capsys, 'train', '--processes', '0', *out)
    assert "called 'gpu'" in fails(capsys, 'train', '--device', 'gpu', '--smoke', *out)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--dtype', 'float16'], '--dtype is for a benchmark of --model and would be ignored'),
        (['--size', 'full'], '--size is for a benchmark of --model'),
        (['--graphs'], '--graphs is for a benchmark of --model'),
        (['--keyframe-share', '0.2'], '--keyframe-share is for a benchmark of --model'),
        (['--ros', '--size', 'full'], 'ignored with --ros'),
        (['--ros', '--method', 'fastv'], '--method is for a benchmark of --model'),
        (['--ros', '--model', 'pi05'], 'leave out --model'),
        (['--camera-rate', '30'], '--camera-rate is for a benchmark of --ros'),
        (['--model', 'pi05', '--set', 'tau=0.5'], '--set is for a benchmark of a policy file'),
        (['--model', 'pi05', '--policy-file', 'pi05'], 'ignored with --model'),
        (['--model', 'pi05', '--episodes', '2'], 'ignored with --model'),
        (['--model', 'pi05', '--dtype', 'bf16'], "auto, float32, bfloat16, float16, got 'bf16'"),
    ],
)
def test_benchmark_refuses_what_it_would_ignore(
    capsys, tmp_path, arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, 'benchmark', *arguments, '--out', str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match='unknown pruning method'):
        cli.main(['--debug', 'evaluate', '--methods', 'magic'])


def test_missing_ros_is_explained(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'rclpy'")

    monkeypatch.setattr(cli_common, 'import_module', missing)
    assert "No module named 'rclpy'" in fails(capsys, 'demo')


@pytest.mark.parametrize(
    'arguments', [['demo'], ['benchmark', '--ros'], ['record', '--duration', '1'], ['play', '.']]
)
def test_without_the_environment_is_explained(tmp_path, arguments: list[str]) -> None:
    """The program of .venv/bin started by itself: rclpy may be there, our messages are not."""
    root = str(Path(__file__).parents[1])
    kept = {name: os.environ[name] for name in ('PATH', 'HOME', 'TMPDIR') if name in os.environ}
    done = subprocess.run(
        [sys.executable, '-m', 'safe_pruner_ros.cli', *arguments],
        env={**kept, 'PYTHONPATH': root}, cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    assert '"scripts/with_env safe-pruner ..."' in done.stderr.splitlines()[-1]


def test_interrupt_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, '_train', interrupted)
    assert cli.main(['train']) == 130


COMMANDS = [
    'demo', 'train', 'evaluate', 'table', 'analyse', 'benchmark', 'flops', 'preflight',
    'replay', 'calibrate', 'record', 'repair', 'play',
]  # fmt: skip


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_help(capsys, command: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, '--help'])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f'usage: safe-pruner {command}') and '(default: )' not in text
    writes = command not in ('flops', 'preflight', 'repair', 'play')
    assert ('--out' in text) is writes


def test_help_imports_nothing_heavy() -> None:
    script = (
        'import sys\nfrom safe_pruner_ros import cli\ncli.build_parser()\n'
        'print([m for m in ("torch", "numpy", "mujoco", "rclpy") if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr
