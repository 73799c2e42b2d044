"""Files of a run folder: written whole or not at all, mapped without being kept open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` at the end: a killed run leaves the old file or
    the new one. After an error ``path`` is what it was."""
    partial = path.with_name(f'{path.stem}.partial{path.suffix}')  # np.savez insists on its suffix
    yield partial
    partial.replace(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder that is not there yet; what a killed run left of it is thrown away."""
    partial = path.with_suffix('.partial')
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(path)


def map_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped read-only.

    `np.load` with ``mmap_mode`` keeps a descriptor of each file open, and a run has more arrays
    than the usual limit of 1,024 allows; a mapping of torch's keeps none.
    """
    header = np.load(path, mmap_mode='r')
    size = path.stat().st_size
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    order = 'C' if header.flags.c_contiguous else 'F'
    array: np.ndarray = np.ndarray(header.shape, header.dtype, content, header.offset, order=order)
    array.flags.writeable = False
    return array
