"""Where the statistics of a pi0.5 checkpoint lie, in either layout.

- openpi: ``assets/<asset id>/norm_stats.json`` with {"norm_stats": {"state": {...}, "actions":
  {...}}}; quantiles: 2 (x - q01) / (q99 - q01 + 1e-6) - 1 (openpi `transforms.py`).
- lerobot: ``policy_preprocessor_step_<n>_normalizer_processor.safetensors`` with tensors
  ``observation.state.q01``, ``action.q01``, ...; the same without the 1e-6, but 1e-8 in place of a
  span of zero (lerobot `processor/normalize_processor.py`). ``policy_preprocessor.json`` names the
  file: n is the place of the step, which differs between releases, and a folder that was saved
  into twice holds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from safe_pruner_ros.policies.action_statistics import Range, choose_key, read_range
from safe_pruner_ros.policies.checkpoint_files import read_json

LEROBOT_PIPELINE = 'policy_preprocessor.json'
LEROBOT_PATTERN = 'policy_preprocessor_step_*_normalizer_processor.safetensors'
OPENPI_EPSILON = 1e-6


@dataclass(frozen=True)
class Statistics:
    state: Range
    action: Range

    def for_joints(self, n: int, padded_to: int) -> Statistics:
        """For a robot of ``n`` joints. Statistics padded to the network's own width
        ``padded_to`` count as wide as what is not 0 in them. Raises ValueError for those of
        another robot."""
        used = max(_n_used(self.state), _n_used(self.action))
        for what, values in (('state', self.state), ('action', self.action)):
            is_padded = len(values) == padded_to != n
            width = used if is_padded else len(values)
            if width != n:
                zeros = f', and zeros up to {padded_to}' if is_padded else ''
                raise ValueError(
                    f'the {what} statistics of the checkpoint have {width} values{zeros}, the '
                    f'robot configuration drives {n} joints; give one joint for each, or take a '
                    'checkpoint fine-tuned on this robot'
                )
        return Statistics(self.state.first(n), self.action.first(n))


def _n_used(values: Range) -> int:
    """One past the last number that is not padding. openpi's histograms leave 1e-10 where the
    data are 0 (15a9616, `shared/normalize.py`); no joint moves by a thousand times that."""
    used = np.flatnonzero((np.abs(values.low) > 1e-7) | (np.abs(values.high) > 1e-7))
    return int(used[-1]) + 1 if used.size else 0


def load_statistics(folder: Path, key: str = '') -> Statistics:
    """Statistics of a checkpoint in either layout; ``key`` chooses among several of openpi.

    Raises FileNotFoundError or ValueError that lists the available ones.
    """
    lerobot = None if key else _lerobot_file(folder)
    if lerobot:
        return _read_lerobot(lerobot)
    assets = folder / 'assets'
    found = {
        path.parent.relative_to(assets).as_posix(): path
        for path in sorted(assets.rglob('norm_stats.json'))
    }
    if not found:
        if any(folder.glob(LEROBOT_PATTERN)):
            raise ValueError(
                f'{folder} has statistics of lerobot, of one data set without a name; leave '
                f'statistics_key empty, got {key!r}'
            )
        raise FileNotFoundError(
            f'no normalisation statistics in {folder}: neither assets/<asset id>/norm_stats.json '
            f'(openpi; its converter copies the assets only when they lie beside the parameters) '
            f'nor {LEROBOT_PATTERN} (lerobot); copy them there'
        )
    return _read_openpi(found[choose_key(found, key, str(assets))])


def check_modes(path: Path, modes: Any) -> None:
    """Raise ValueError unless ``modes``, which lerobot wrote into ``path`` by kind of feature, is
    what pi0.5 is implemented with. lerobot leaves as it is what they do not name."""
    if not isinstance(modes, Mapping):
        raise ValueError(f'{path} must say how STATE and ACTION are normalised, got {modes!r:.80}')
    asked = {name: modes.get(name, 'IDENTITY') for name in ('STATE', 'ACTION')}
    if any(mode != 'QUANTILES' for mode in asked.values()):
        raise ValueError(
            f'{path} normalises {asked} (IDENTITY where it names none); only QUANTILES is '
            'implemented for pi0.5'
        )
    if modes.get('VISUAL', 'IDENTITY') != 'IDENTITY':
        raise ValueError(
            f'{path} normalises images with {modes["VISUAL"]!r}; only IDENTITY is implemented for '
            'pi0.5, take a checkpoint that was trained so'
        )


def _lerobot_file(folder: Path) -> Path | None:
    """The one that lerobot would load, None where there is none."""
    files, path = sorted(folder.glob(LEROBOT_PATTERN)), folder / LEROBOT_PIPELINE
    if not path.is_file():
        if len(files) > 1:
            raise ValueError(
                f'{folder} has several statistics {[file.name for file in files]} and no '
                f'{path.name} that would name one; copy it from the same checkpoint, or leave the '
                'file that belongs to the weights'
            )
        return files[0] if files else None
    steps = read_json(folder, path.name).get('steps')
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise ValueError(f'{path} has no list of "steps"; copy it anew')
    normalisers = [s for s in steps if s.get('registry_name') == 'normalizer_processor']
    for step in normalisers:
        config = step.get('config')
        if isinstance(config, Mapping) and 'norm_map' in config:
            check_modes(path, config['norm_map'])
    named = [step['state_file'] for step in normalisers if step.get('state_file')]
    if not named and not files:  # a base model: it was saved without statistics
        return None
    if len(named) != 1 or not isinstance(named[0], str) or Path(named[0]).name != named[0]:
        raise ValueError(
            f'{path} must name the statistics, one state_file of normalizer_processor in this '
            f'folder, got {named}; take it and {LEROBOT_PATTERN} from one checkpoint'
        )
    if not (folder / named[0]).is_file():
        raise FileNotFoundError(
            f'{path} names {named[0]}, which is not there, only {[file.name for file in files]}; '
            'copy it from the same checkpoint'
        )
    return folder / named[0]


def _read_openpi(path: Path) -> Statistics:
    groups = read_json(path.parent, path.name).get('norm_stats')
    if not isinstance(groups, dict):
        raise ValueError(
            f'{path} is not an openpi statistics file: "norm_stats" must be an object, got '
            f'{groups!r:.80}; copy it from the assets of the training'
        )
    return _statistics(path, groups, 'state', 'actions', OPENPI_EPSILON)


def _read_lerobot(path: Path) -> Statistics:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a readable safetensors file: {error}') from error
    groups: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        group, _, entry = name.rpartition('.')
        groups.setdefault(group, {})[entry] = value.ravel()
    return _statistics(path, groups, 'observation.state', 'action', 0.0)


def _statistics(
    path: Path, groups: Mapping[str, Any], state: str, action: str, epsilon: float
) -> Statistics:
    try:
        return Statistics(
            *(read_range(groups, group, 'q99', epsilon) for group in (state, action))
        )
    except ValueError as error:
        raise ValueError(
            f'{path}: {error}; pi0.5 is normalised with the quantiles q01 and q99 of state and '
            'actions, compute them from the training data'
        ) from error
