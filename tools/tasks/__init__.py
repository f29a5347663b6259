"""Small tasks of different kinds, from demonstrations that leave room to learn: what the defaults are measured on."""

from tasks import animals, level, paths, snippets, sums
from tasks.task import Task

TASKS: dict[str, Task] = {topic.TASK.name: topic.TASK for topic in (paths, sums, animals, level, snippets)}
