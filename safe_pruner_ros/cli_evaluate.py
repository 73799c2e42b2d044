"""`safe-pruner` commands about closed loops: evaluate, table and analyse."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from safe_pruner_ros.cli_common import (
    FAILED,
    PROGRAM,
    add_command,
    add_method_arguments,
    add_policy_arguments,
    at_least,
    read_policy_file,
)


def add_commands(commands: Any) -> None:
    _add_evaluate(commands)
    _add_table(commands)
    _add_analyse(commands)


def _add_baseline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--baseline', nargs='+', default=['unpruned'], metavar='METHOD', help='what differences '
        'are taken to, METHOD@RATIO: to that one cell; each after the first gets a table of '
        'paired tests'
    )  # fmt: skip


def _add_evaluate(commands: Any) -> None:
    parser = add_command(
        commands,
        'evaluate',
        _evaluate,
        'closed-loop success of pruning methods on the same scenes, with confidence',
        'A run that was stopped goes on where it was when the command is repeated; a run with '
        'more methods, ratios or seeds adds to the same folder.',
    )
    parser.add_argument(
        '--plan', default='', help='a named set of runs (safe_pruner_ros/evaluation/plans, or a '
        '.yaml) instead of --task, --methods, --retention and --seeds'
    )  # fmt: skip
    parser.add_argument('--task', default='', help='task; empty: pick_place')
    methods = 'unpruned diverse_forecast safe_pruner random fastv'
    add_method_arguments(parser, methods, '0.3')
    parser.add_argument(
        '--seeds', default='', help='scenes: 900000:900200 (end excluded) or 900000,900007; '
        'empty: the first 200 of the split'
    )  # fmt: skip
    parser.add_argument('--episodes', type=int, default=0, help='first scenes of a --plan only')
    parser.add_argument(
        '--split', default='', help='validation (for choices) or test (for reported numbers '
        'only); empty: as the seeds or the plan say, else validation'
    )  # fmt: skip
    parser.add_argument(
        '--each-object', action='store_true', help='name each object of each scene in turn'
    )
    _add_baseline(parser)
    parser.add_argument(
        '--max-policy-steps', type=int, help='give up after; none: as long as the task allows'
    )
    parser.add_argument(
        '--execution-horizon', type=int, default=0, help="actions of a chunk used; 0: the policy's"
    )
    parser.add_argument(
        '--latency-ticks', type=int, default=0, help='control ticks from picture to first action'
    )
    parser.add_argument('--jobs', type=int, default=0, help='episodes at a time; 0: one a core')
    parser.add_argument(
        '--backend', default='local', help='joblib backend: local processes, dask:tcp://HOST:PORT '
        'or ray[:ADDRESS]'
    )  # fmt: skip
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='only print what would run, and how many episodes that is, after one policy step of '
        'each cell; how long they take depends on this machine',
    )
    parser.add_argument(
        '--retry-errors',
        action='store_true',
        help='run episodes again that ended in an error, and replace their records',
    )
    parser.add_argument('--out', type=Path, default=Path('out/evaluate'), help='results folder')
    add_policy_arguments(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    at_least('--jobs', arguments.jobs, 0)
    at_least('--episodes', arguments.episodes, 0)
    policy, configured = read_policy_file(arguments)
    command = import_module('safe_pruner_ros.evaluation.evaluate_command')
    try:
        return int(command.main(arguments, policy, configured, _splits()))
    except command.WorkerDied as error:
        print(f'{PROGRAM} evaluate: {error}', file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f'\nfinished episodes are in {arguments.out}; repeat the command to go on')
        raise


def _splits() -> dict[str, range]:
    recipe = import_module('safe_pruner_ros.training.recipe')
    return {'validation': recipe.VALIDATION_SEEDS, 'test': recipe.TEST_SEEDS}


def _add_table(commands: Any) -> None:
    parser = add_command(
        commands,
        'table',
        _table,
        'one table and its plots from any number of evaluation results',
        'Writes the cells as JSON, the table as Markdown beside it, and the plots.',
    )
    parser.add_argument(
        'results',
        nargs='+',
        type=Path,
        help='episodes.jsonl (.xz) files, or folders with such files',
    )
    _add_baseline(parser)
    parser.add_argument(
        '--plots', type=Path, help="folder of the plots; none: the JSON file's folder"
    )
    parser.add_argument(
        '--out', type=Path, default=Path('out/table/closed_loop.json'), help='JSON file'
    )


def _table(arguments: argparse.Namespace) -> int:
    return int(import_module('safe_pruner_ros.evaluation.closed_loop').main(arguments))


def _add_analyse(commands: Any) -> None:
    parser = add_command(
        commands,
        'analyse',
        _analyse,
        'what attention does over an episode: forecasts, core tokens, subtasks, key timesteps',
        'forecast: accuracy over lag. core-tokens: how often pruning early drops what others '
        "need. subtasks: detection against the expert's subtasks, of results or by threshold on "
        'recordings. keyframes: rate, reasons and gaps, of results. What is read off unpruned '
        'episodes is recorded first, once.',
    )
    parser.add_argument('question', choices=('forecast', 'core-tokens', 'subtasks', 'keyframes'))
    parser.add_argument(
        'results', nargs='*', type=Path, help='results of evaluate, for subtasks and keyframes'
    )
    parser.add_argument('--task', default='pick_place', help='task of the recordings')
    parser.add_argument('--seeds', default='', help='scenes to record; empty: the first 50')
    parser.add_argument('--split', default='', help='as for evaluate; empty: validation')
    parser.add_argument(
        '--recordings', type=Path, default=Path('out/attention'), help='where recordings are kept'
    )
    parser.add_argument(
        '--method',
        default='',
        help='whose tau is varied for subtasks on recordings; empty: safe_pruner',
    )
    parser.add_argument('--max-lag', type=int, default=10, help='of a forecast, policy steps')
    parser.add_argument(
        '--cohort-lag',
        type=int,
        default=4,
        help='forecast: steps with every lag up to this one are shown by themselves as well',
    )
    parser.add_argument('--tolerance', type=int, default=1, help='of a detection, policy steps')
    parser.add_argument('--jobs', type=int, default=0, help='episodes at a time; 0: one a core')
    parser.add_argument('--backend', default='local', help='joblib backend, as for evaluate')
    parser.add_argument('--out', type=Path, default=Path('out/analysis'), help='results folder')
    add_policy_arguments(parser)


def _analyse(arguments: argparse.Namespace) -> int:
    at_least('--max-lag', arguments.max_lag, 1)
    at_least('--cohort-lag', arguments.cohort_lag, 1)
    at_least('--tolerance', arguments.tolerance, 0)
    at_least('--jobs', arguments.jobs, 0)
    policy, configured = read_policy_file(arguments)
    command = import_module('safe_pruner_ros.evaluation.analysis.command')
    return int(command.main(arguments, policy, configured, _splits()))
