"""A run's metrics for TensorBoard and MLflow, read from its event file: nothing of a run waits for them.

Neither library is a dependency of Confide; what is written are pooled figures that the event file holds already.
"""

import contextlib
import importlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from common.errors import ConfideError, RunError
from common.evaluation import METRICS
from common.telemetry.events import EVENTS_FILE, Evaluated, Event, RoundDone, RunFinished, RunStarted
from deploy.results.history import follow


class Sink(Protocol):
    """Where metrics go."""

    def settings(self, values: Mapping[str, str]) -> None:
        """Note what ran."""

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Note figures after a step."""


def record(event: Event, sink: Sink) -> None:
    """Give a sink what one event says; a figure that is undefined is left out."""
    match event:
        case RunStarted():
            tree = event.config.model_dump(mode="json")
            settings = {f"{section}.{key}": str(value) for section, keys in tree.items() for key, value in keys.items()}
            sink.settings({"run_id": event.run_id, "data_set": event.data_set, "task": event.task, **settings})
        case RoundDone():
            costs = {"epsilon": event.epsilon, "evaluation_epsilon": event.evaluation_epsilon,
                     "hospitals": float(event.hospitals), "seconds": event.seconds}  # fmt: skip
            _tell(sink, {**_measures(event, event.part), **costs}, event.step)
        case Evaluated():
            _tell(sink, _measures(event, "test"), event.step)
        case _:
            pass


def _measures(event: RoundDone | Evaluated, part: str) -> dict[str, float]:
    return {f"{part}/{name}": float(getattr(event, name)) for name in METRICS}


def _tell(sink: Sink, values: Mapping[str, float], step: int) -> None:
    sink.figures({name: value for name, value in values.items() if math.isfinite(value)}, step)


def write(run: Path, name: str, stop: threading.Event | None = None) -> None:
    """Write a run's metrics until it has finished.

    Args:
        run: its folder.
        name: of SINKS.
        stop: ends it before.

    Raises:
        RunError: the library is missing or cannot write, or the run's events cannot be read.
    """
    module, package, opened = SINKS[name]
    try:
        importlib.import_module(module)
    except ImportError:
        raise RunError(
            f"--log {name} needs the Python package {package}, which Confide does not install; "
            f"run pip install {package} in its environment"
        ) from None
    try:
        with opened(run) as sink:
            for event in follow(run / EVENTS_FILE, stop or threading.Event()):
                record(event, sink)
                if isinstance(event, RunFinished):
                    return
    except ConfideError:
        raise
    except Exception as error:  # noqa: BLE001 - an optional library's errors, of a store that it cannot write to
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"--log {name}: {package} must be able to write, and says: {first}") from None


class _TensorBoard:
    def __init__(self, writer: Any) -> None:  # noqa: ANN401 - an optional library's object
        self._writer = writer

    def settings(self, values: Mapping[str, str]) -> None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def figures(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


@contextlib.contextmanager
def _tensorboard(run: Path) -> Iterator[Sink]:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(log_dir=str(run / "tensorboard"))
    try:
        yield _TensorBoard(writer)
    finally:
        writer.close()


class _MlFlow:
    def __init__(self, mlflow: Any) -> None:  # noqa: ANN401 - an optional library's module
        self._mlflow = mlflow

    def settings(self, values: Mapping[str, str]) -> None:
        self._mlflow.log_params(dict(values))

    def figures(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)


@contextlib.contextmanager
def _mlflow(run: Path) -> Iterator[Sink]:
    """Write where MLFLOW_TRACKING_URI says, as every program of MLflow does."""
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_experiment("confide")
    with mlflow.start_run(run_name=run.name):
        yield _MlFlow(mlflow)


SINKS: Mapping[str, tuple[str, str, Callable[[Path], contextlib.AbstractContextManager[Sink]]]] = {
    "tensorboard": ("tensorboard", "tensorboard", _tensorboard),
    "mlflow": ("mlflow", "mlflow", _mlflow),
}
"""For each name: the module that must be there, the package that brings it, and what opens the sink."""
