"""``confide model initial``: the model that a run begins with, for a server without PyTorch or the model's package."""

from pathlib import Path

import click

from common.config import Config, load_config
from common.models.first_model import FIRST_MODEL_FILE, FirstModel
from deploy.command import command, config_options
from deploy.datasets.tasks import with_task
from deploy.models.sizes import classes_and_channels, size_options
from deploy.results.preparation import preparation_of
from server.initial_model import make_first_model


@command(
    "initial",
    "Make the model that a run begins with, where PyTorch is installed (and the model's package, where it has one).\n\n"
    "./confide run propose --first-model takes the file, so that the server needs neither. It depends on the settings "
    "alone, so everybody can make it again and compare.",
    f"./confide model initial --config config.yaml --out {FIRST_MODEL_FILE}",
)
@config_options("the run")
@size_options
@click.option("--out", type=click.Path(path_type=Path), default=FIRST_MODEL_FILE, metavar="FILE", help="Where to.")
def main(config_file: Path, overrides: tuple[str, ...], classes: int | None, channels: int | None, out: Path) -> int:
    """Write one file."""
    config = with_task(load_config(config_file, overrides))
    made = first_model_of(config, *classes_and_channels(config, classes, channels))
    made.write(out)
    print(f"{out}: {len(made.flat):,} parameters of {config.model.name}")
    return 0


def first_model_of(config: Config, classes: int, channels: int) -> FirstModel:
    """Return the first model of a run, with what is done around it.

    Raises:
        ConfigError: PyTorch or the model's package is missing, or the model cannot take such images.
    """
    made = make_first_model(config.model, classes, channels, config.experiment.seed)
    facts = made.facts
    preparation = preparation_of(facts.architecture, classes, channels, facts.image_size).model_dump(mode="json")
    return FirstModel(facts.model_copy(update={"preparation": preparation}), made.shapes, made.flat)
