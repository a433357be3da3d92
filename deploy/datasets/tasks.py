"""What ``experiment.task`` and the section ``task`` stand for: presets, and a consortium's own tasks.

The classes of MedMNIST's sets are MedMNIST's, but for RetinaMNIST's, which are the grades of the international scale of
diabetic retinopathy (Wilkinson et al. 2003). MedMNIST says of no class that it is the one looked for; that stands here.
"""

import importlib.util
import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.config import Config, replace
from common.errors import DataError
from common.task import Counts, ImageKindName, TaskConfig, TaskKind

TASK_DATA_SETS = {"pneumonia": "pneumoniamnist", "retina": "retinamnist"}

RETINA_GRADES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")

_POSITIVE = {
    "pneumoniamnist": ("pneumonia",),
    "breastmnist": ("malignant",),
    "retinamnist": RETINA_GRADES[2:],  # From here on a patient is referred to an ophthalmologist.
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen"),
    "dermamnist": ("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "melanoma"),
    "pathmnist": ("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
}

_IMAGES = {
    "pneumoniamnist": ImageKindName.CHEST_RADIOGRAPH,
    "chestmnist": ImageKindName.CHEST_RADIOGRAPH,
    "retinamnist": ImageKindName.FUNDUS_PHOTOGRAPH,
}

_KINDS = {
    "binary-class": TaskKind.BINARY,
    "multi-class": TaskKind.MULTICLASS,
    "ordinal-regression": TaskKind.ORDINAL,
    "multi-label, binary-class": TaskKind.MULTILABEL,
}


@dataclass(frozen=True)
class Task:
    """A task, and MedMNIST's data set for it; '' for a consortium's own."""

    name: str
    data_set: str
    title: str
    terms: TaskConfig

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their places."""
        return self.terms.classes

    @property
    def channels(self) -> int:
        """The channels of an image."""
        return self.terms.channels


def task_named(name: str) -> Task:
    """Look a task up by its own name or that of a MedMNIST data set, with or without the ending ``mnist``.

    Raises:
        DataError: MedMNIST has no such 2D data set.
    """
    candidates = (TASK_DATA_SETS.get(name, name), f"{name}mnist")
    known = {flag: entry for flag, entry in medmnist().items() if not flag.endswith("3d")}
    for flag in candidates:
        if flag in known:
            return Task(name, flag, known[flag]["python_class"], _preset(flag, known[flag]))
    allowed = ", ".join([*TASK_DATA_SETS, *known])
    raise DataError(
        f"experiment.task must be one of {allowed}, or the section task must say what is learnt; got {name!r}"
    )


def task_of_config(config: Config) -> Task:
    """Return the task that a configuration asks for: its own section, or the preset that ``experiment.task`` names.

    Raises:
        DataError: there is no such preset.
    """
    if not config.task.is_preset:
        return Task(config.experiment.task, "", config.experiment.task, config.task.normal())
    found = task_named(config.experiment.task)
    counts = {"uncertain": config.task.uncertain, "empty": config.task.empty}
    return Task(
        found.name, found.data_set, found.title, TaskConfig.model_validate({**found.terms.model_dump(), **counts})
    )


def with_task(config: Config) -> Config:
    """Return a configuration whose section ``task`` says everything, so that hospitals can agree to it.

    Raises:
        DataError: there is no such preset.
    """
    return replace(config, task=task_of_config(config).terms.model_dump())


@cache
def medmnist() -> dict[str, dict[str, Any]]:
    """Return MedMNIST's list of its data sets.

    The list is run by itself: the package around it imports PyTorch, pandas and scikit-learn, which takes seconds.
    """
    spec = importlib.util.find_spec("medmnist")
    if spec is None or spec.origin is None:
        raise DataError("the package medmnist must be installed, which requirements.lock names; run ./confide again")
    return dict(runpy.run_path(str(Path(spec.origin).with_name("info.py")))["INFO"])


def _preset(flag: str, entry: Mapping[str, Any]) -> TaskConfig:
    kind = _KINDS[entry["task"]]
    classes = tuple(entry["label"][str(index)] for index in range(len(entry["label"])))
    return TaskConfig(
        kind=kind,
        classes=RETINA_GRADES if flag == "retinamnist" else classes,
        positive=_POSITIVE.get(flag, ()),
        empty=Counts.REFUSE,
        channels=entry["n_channels"],
        images=_IMAGES.get(flag, ImageKindName.ANY),
    ).normal()
