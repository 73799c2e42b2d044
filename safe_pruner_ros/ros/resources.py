"""Files that travel with the package, in the installed share folder or in the source tree."""

from __future__ import annotations

from pathlib import Path

from safe_pruner_ros.runtime.config import ConfigError

PACKAGE = 'safe_pruner_ros'


def share_directory() -> Path:
    """The folder that holds config/ and launch/. The source tree wins while it is in use."""
    source = Path(__file__).resolve().parents[2]
    if (source / 'config').is_dir():
        return source
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory(PACKAGE))


def config_file(kind: str, name: str) -> Path:
    """``name`` is a path to a YAML file, or the name of one in config/<kind>.

    Raises ConfigError listing what exists.
    """
    if '/' in name or name.endswith(('.yaml', '.yml')):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f'no file {str(path)!r} ({kind}); give the full path of a YAML file')
        return path
    folder = share_directory() / 'config' / kind
    path = folder / f'{name}.yaml'
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob('*.yaml'))
        raise ConfigError(
            f'no {name!r} in {folder}; it has {known}; or give the path of a YAML file'
        )
    return path


def urdf_file(name: str) -> Path:
    """``name`` is a path, or the name of a file in config/robots."""
    path = Path(name).expanduser()
    return path if '/' in name else share_directory() / 'config' / 'robots' / name


def fastdds_profile() -> Path:
    """The Fast DDS profile with a shared memory segment that holds raw images."""
    return share_directory() / 'config' / 'fastdds_profile.xml'
