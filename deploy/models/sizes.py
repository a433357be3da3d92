"""How many classes a task has and how many channels its images have: from the task, or as a person says."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from common.config import Config
from deploy.datasets.tasks import task_of_config

_Function = TypeVar("_Function", bound=Callable[..., Any])


def size_options(function: _Function) -> _Function:
    """Add ``--classes`` and ``--channels``."""
    classes = click.option(
        "--classes", type=click.IntRange(2, 256), metavar="N", show_default="the task's", help="Of the task."
    )
    channels = click.option(
        "--channels", type=click.IntRange(1, 4), metavar="N", show_default="the task's", help="Of an image."
    )
    return classes(channels(function))


def classes_and_channels(config: Config, classes: int | None, channels: int | None) -> tuple[int, int]:
    """Return what was said, else what the configured task has.

    Raises:
        ConfigError: there is no such task.
    """
    if classes is not None and channels is not None:
        return classes, channels
    task = task_of_config(config)
    return classes or len(task.classes), channels or task.channels
