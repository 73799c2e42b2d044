"""Definition text and type hash of any message that this workspace knows, for writing bags."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from safe_pruner_ros.ros.resources import PACKAGE, share_directory

_FIELD_TYPE = re.compile(r'^\s*([A-Za-z][\w/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+[A-Za-z]\w*', re.M)
_PRIMITIVE = re.compile(r'bool|byte|char|w?string|u?int(8|16|32|64)|float(32|64)')


class UnknownMessage(ValueError):
    """No definition was found; the text says where it was looked for."""


class MessageDefinitions:
    """A growing set of types. What is installed counts; the rest is as Jazzy ships it.

    ``store`` is a rosbags typestore that holds every type that was asked for.
    """

    def __init__(self) -> None:
        self.store = get_typestore(Stores.EMPTY)
        self._shipped = get_typestore(Stores.ROS2_JAZZY)

    def add(self, kind: str) -> None:
        """Make 'package/msg/Name' and all that it contains known to `store`.

        Raises UnknownMessage.
        """
        if kind in self.store.fielddefs:
            return
        path = _definition_file(kind)
        if path is not None:
            text = path.read_text()
            for part in _parts(text, kind.split('/')[0]):
                self.add(part)
            self.store.register(get_types_from_msg(text, kind))
        elif kind in self._shipped.fielddefs:
            fields = self._shipped.fielddefs[kind]
            for part in _names_in(fields[1]):
                self.add(part)
            self.store.register({kind: fields})
        else:
            raise UnknownMessage(
                f'{kind}: no definition is installed (share/{kind.split("/")[0]}/msg); build that '
                'package and source its workspace'
            )

    def type_hash(self, kind: str) -> str:
        """RIHS01 of the type, as rosidl computes it."""
        self.add(kind)
        return self.store.hash_rihs01(kind)


def _definition_file(kind: str) -> Path | None:
    """Installed ones count, ours too: that is what the loaded message classes were made of."""
    package, _, name = kind.split('/')
    folders = []
    try:
        from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
    except ImportError:  # bags can be written without ROS, too
        pass
    else:
        with suppress(PackageNotFoundError):
            folders.append(Path(get_package_share_directory(package)))
    if package == PACKAGE:
        folders.append(share_directory())
    files = (folder / 'msg' / f'{name}.msg' for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _parts(text: str, package: str) -> set[str]:
    """Message types that a definition contains, with full names."""
    code = '\n'.join(line.split('#', 1)[0] for line in text.splitlines())
    found = set()
    for name in _FIELD_TYPE.findall(code):
        if _PRIMITIVE.fullmatch(name):
            continue
        parts = name.split('/')
        found.add(f'{parts[0] if len(parts) > 1 else package}/msg/{parts[-1]}')
    return found


def _names_in(value: Any) -> set[str]:
    """'package/msg/Name' anywhere in a rosbags field description."""
    if isinstance(value, str):
        return {value} if '/msg/' in value else set()
    if isinstance(value, list | tuple):
        return set().union(*map(_names_in, value))
    return set()
