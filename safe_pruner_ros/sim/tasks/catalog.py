"""Task names. A new task is a file beside this one and a line here."""

from __future__ import annotations

from safe_pruner_ros.sim.tasks.pack_doll import PACK_DOLL
from safe_pruner_ros.sim.tasks.pick_place import PICK_PLACE
from safe_pruner_ros.sim.tasks.task import Task
from safe_pruner_ros.sim.tasks.throw_basketball import THROW_BASKETBALL

TASKS: dict[str, Task] = {task.name: task for task in (PICK_PLACE, THROW_BASKETBALL, PACK_DOLL)}


def get_task(name: str) -> Task:
    """The task of that name; ValueError lists the known ones."""
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(f'unknown task {name!r}; known: {sorted(TASKS)}') from None
