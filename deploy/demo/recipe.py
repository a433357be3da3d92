"""The recipe that the demo trains by where the user names no model of their own: the best that its time allows.

A recipe is a model with the settings that suit it, so it is taken whole or not at all: whoever names a model gets what
``config.yaml`` says. The settings are those of ``./confide experiment accuracy``; nothing is chosen by a demo's data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.config import Config, Warp
from common.config import replace as replaced
from common.task import TaskKind


@dataclass(frozen=True)
class Recipe:
    """A model on frozen features, and how it is trained in full batches.

    Attributes:
        model: its name.
        rounds: T, one step each.
        length: learning rate times T; half of it is taken at half the rounds' number as well.
        copies: of each image.
        warp: how they differ.
        mean_share: of the budget, for the mean of features.
    """

    model: str
    rounds: int
    length: float
    copies: int
    warp: Warp
    mean_share: float


RECIPES = {
    "pneumonia": Recipe("scattering_efficientnet_linear", 20, 400.0, 3, Warp.CHEST, 0.04),
    "retina": Recipe("efficientnet_linear", 20, 160.0, 2, Warp.MIRROR, 0.06),
}
"""The settings by task. 20 steps learn as much as 30 and leave time; the noise that ε asks for is the same for both."""

OWN_RECIPE = Recipe("scattering_linear", 10, 200.0, 1, Warp.NONE, 0.04)
"""For a person's own images, whatever they show: features that take some milliseconds an image, no copies of it, and
few rounds, so that a first report is there within minutes. A network's features would be computed for longer."""

_OF_RECIPES = ("experiment.rounds", "model.name", "training.sample_rate", "training.learning_rate", "training.copies",
               "training.warp", "privacy.mean_share", "privacy.alone_share", "privacy.max_grad_norm")  # fmt: skip
"""Keys that a recipe sets."""

ALONE_SHARE = 0.5
"""The share of the budget for each hospital's model of its own records, so that a demo says whether joining paid. With
one half the run's model and a hospital's own, its threshold included, have the same ε."""


def with_recipe(
    config: Config, given: Sequence[str], *, own: bool = False, kind: str | None = TaskKind.BINARY
) -> Config:
    """Return a demo's configuration with its task's recipe, where that has one and the user names no model.

    Args:
        config: as the file and the command line make it.
        given: the ``section.key=value`` of the command line, which a recipe leaves alone.
        own: the task is of a person's own images, not a preset.
        kind: of the task, where it is known.
    """
    recipe = OWN_RECIPE if own else RECIPES.get(config.experiment.task)
    named = {override.partition("=")[0] for override in given}
    if recipe is None or "model.name" in named or _differs(config, named):
        return config
    rounds = config.experiment.rounds if "experiment.rounds" in named else recipe.rounds
    settings: dict[str, dict[str, object]] = {
        "experiment": {"rounds": rounds},
        "model": {"name": recipe.model},
        "training": {
            "sample_rate": 1.0,
            "learning_rate": recipe.length / rounds,
            "copies": recipe.copies,
            "warp": recipe.warp,
        },
        "privacy": {
            "mean_share": recipe.mean_share,
            "alone_share": 0.0 if config.evaluation.exact or kind == TaskKind.MULTILABEL else ALONE_SHARE,
            "max_grad_norm": 1.0,
        },
    }
    for section, values in settings.items():
        for key in tuple(values):
            if f"{section}.{key}" in named:
                del values[key]
    return replaced(config, **settings)


def _differs(config: Config, named: set[str]) -> bool:
    """Return whether the user's file says another thing than the shipped one about what a recipe sets."""
    shipped = Config()
    return any(_value(config, key) != _value(shipped, key) for key in _OF_RECIPES if key not in named)


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
