"""Files of a run folder: none half written, none kept open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_training

from safe_pruner_ros.training.files import map_array, whole_file, whole_folder

TOO_MANY_SHARDS = 24  # nine arrays each
MANY_SHARDS_FEW_DESCRIPTORS = """
import resource, sys
from pathlib import Path
from helpers import tiny_training
from safe_pruner_ros.training.picture_set import PictureSet
run = Path(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))
sets = [tiny_training.demonstrations(run) for _ in range(2)]
pictures = PictureSet(sorted((run / 'pictures').iterdir()))
print(len(sets[1]), len(pictures))
"""


def test_more_arrays_than_descriptors_can_be_mapped(tmp_path: Path) -> None:
    for number in range(TOO_MANY_SHARDS):
        tiny_training.write_shard(tmp_path / 'demonstrations' / f'expert_{number}', n_frames=2)
        tiny_training.write_pictures(tmp_path / 'pictures' / f'scene_{number}')
    command = [sys.executable, '-c', MANY_SHARDS_FEW_DESCRIPTORS, str(tmp_path)]
    tests = str(Path(tiny_training.__file__).parents[1])
    path = {'PYTHONPATH': ':'.join((tests, *filter(None, sys.path)))}
    done = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.split() == [str(2 * TOO_MANY_SHARDS), str(4 * TOO_MANY_SHARDS)]


@pytest.mark.parametrize(
    'array',
    [
        np.arange(24, dtype=np.float16).reshape(2, 3, 4),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.array([('red ball', 'blue block')]),
        np.empty((0, 3), np.float32),
    ],
    ids=['float16', 'columns first', 'words', 'empty'],
)
def test_a_mapped_array_is_the_saved_one_and_read_only(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / 'a.npy', array)
    mapped = map_array(tmp_path / 'a.npy')
    assert mapped.dtype == array.dtype
    np.testing.assert_array_equal(mapped, array)
    with pytest.raises(ValueError, match='read-only'):
        mapped[...] = mapped


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / 'note.json'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), whole_file(path) as partial:
        partial.write_text('ne')
        raise KeyboardInterrupt
    assert path.read_text() == 'old'
    with whole_file(path) as partial:
        partial.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'
    assert [p.name for p in tmp_path.iterdir()] == ['note.json']


def test_what_a_killed_run_left_of_a_folder_is_not_in_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / 'shard'
    with pytest.raises(KeyboardInterrupt), whole_folder(path) as partial:
        (partial / 'half.npy').write_text('')
        raise KeyboardInterrupt
    assert not path.exists()
    with whole_folder(path) as partial:
        (partial / 'whole.npy').write_text('')
    assert [p.name for p in path.iterdir()] == ['whole.npy']
    assert [p.name for p in tmp_path.iterdir()] == ['shard']
