"""What a configuration can name: the first check and the help read the tables that the programs themselves read."""

from textwrap import wrap

from common.config import Config
from common.models import registry
from common.run import strategies
from deploy.command import WIDTH


def check_names(config: Config) -> None:
    """Check, before anything is set up, that the tables hold what a configuration names.

    Raises:
        ConfigError: there is no such model or strategy, and names those that there are; or images are too small for it.
    """
    registry.require(config.model.architecture)
    registry.require_size(config.model.architecture, config.model.image_size)
    strategies.require(config.aggregation.strategy)


def names_in_words() -> str:
    """Return a line for each name, under the key that takes it, for the end of a command's help."""
    tables = {
        "model.name": {name: entry.words for name, entry in registry.MODELS.items()},
        "aggregation.strategy": {name: entry.words for name, entry in strategies.STRATEGIES.items()},
    }
    lines = []
    for key, words in tables.items():
        widest = max(map(len, words))
        lines.append(f"{key} is one of:")
        for name, said in words.items():
            lines += wrap(
                said,
                WIDTH,
                initial_indent=f"  {name:<{widest}}  ",
                subsequent_indent=" " * (widest + 4),
                break_on_hyphens=False,
            )
    return "\n".join(lines)
