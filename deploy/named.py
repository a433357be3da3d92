"""What a configuration can name: the first check and the help read the tables that the programs themselves read."""

from common.config import Config
from common.models import registry
from server import strategies


def check_names(config: Config) -> None:
    """Check, before anything is set up, that the tables hold what a configuration names.

    Raises:
        ConfigError: there is no such model or strategy; names those that there are.
    """
    registry.require(config.model.name)
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
        lines += [f"{key} is one of:", *(f"  {name:<{widest}}  {said}" for name, said in words.items())]
    return "\n".join(lines)
