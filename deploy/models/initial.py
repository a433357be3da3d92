"""``confide model initial``: the first weights of a model out of a package, for a server without the package."""

import io
from pathlib import Path

import click
import numpy as np

from common.config import load_config
from common.files import replace_file
from common.models import registry
from common.models.flat import flat_parameters
from deploy.command import command, config_options
from deploy.models.sizes import classes_and_channels, size_options
from server.initial_model import INITIAL_MODEL_FILE


@command(
    "initial",
    "Make the model that a run begins with, where its package is installed.\n\n"
    f"Copied into the server's state folder as {INITIAL_MODEL_FILE}, it spares the server the package. It depends on "
    "the settings alone, so everybody who has the package can make it again and compare.",
    f"./confide model initial --config config.yaml --out {INITIAL_MODEL_FILE}",
)
@config_options("the run")
@size_options
@click.option("--out", type=click.Path(path_type=Path), default=INITIAL_MODEL_FILE, metavar="FILE", help="Where to.")
def main(config_file: Path, overrides: tuple[str, ...], classes: int | None, channels: int | None, out: Path) -> int:
    """Write one file."""
    config = load_config(config_file, overrides)
    classes, channels = classes_and_channels(config, classes, channels)
    model, seed = config.model, config.experiment.seed
    made = registry.build(model.architecture, classes, channels, model.image_size, seed)
    content = io.BytesIO()
    np.save(content, flat_parameters(made), allow_pickle=False)
    replace_file(out, content.getvalue())
    print(f"{out}: {sum(parameter.numel() for parameter in made.parameters()):,} parameters of {model.name}")
    return 0
