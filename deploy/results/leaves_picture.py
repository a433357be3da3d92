"""One picture of what leaves a hospital, and under which protection; drawn from the run's own settings."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.config import AggregationMode, Config
from common.privacy.mechanism import mechanism_of
from common.run.guarantee import shown_epsilon
from deploy.results.history import RunHistory

LEAVES_FILE = "leaves.png"

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"
_STYLE = Path(__file__).with_name("plots.mplstyle")


@mpl.rc_context(fname=_STYLE)
def leaves(history: RunHistory) -> Figure:
    """Draw hospital, server and reader, and what goes from one to the next."""
    config = history.started.config
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 15), ylim=(0, 7.2))
    axes.axis("off")
    axes.set_title("What leaves a hospital, and under which protection")
    _box(axes, 0.1, "each hospital", "stays: images, labels,\nidentities, gradients,\nits own model and counts")
    _box(axes, 5.6, "the server", _server_reads(config, len(history.started.hospitals)))
    _box(axes, 11.1, "whoever gets the model", "the model, pooled figures\nand this report")
    _arrow(axes, 4.0, 5.5, "one vector\na round", _on_the_way(config), _protects(config))
    _arrow(axes, 9.5, 11.0, "model,\nfigures", _noise(config, history), mechanism_of(config).is_private)
    axes.text(
        0.1, 0.2, "Orange: without protection. Who learns what stands in the table below.", fontsize=8, color=_GREY
    )
    return figure


def _protects(config: Config) -> bool:
    return config.aggregation.mode is not AggregationMode.PLAIN


def _server_reads(config: Config, hospitals: int) -> str:
    if not _protects(config):
        return "reads every hospital's\nown vector"
    return f"reads the sum over\n{config.aggregation.min_hospitals} to {hospitals} hospitals,\nno single vector"


def _on_the_way(config: Config) -> str:
    return "masked" if _protects(config) else "not masked"


def _noise(config: Config, history: RunHistory) -> str:
    if not mechanism_of(config).is_private or not history.rounds:
        return "no noise"
    return f"noise:\nε = {shown_epsilon(history.training_epsilon)}"


def _box(axes: Axes, left: float, title: str, words: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((left, 1.6), 3.7, 4.2, boxstyle="round,pad=0.1", fc="#f3f6f8", ec=_BLUE))
    axes.text(left + 1.85, 5.3, title, ha="center", va="top", fontsize=9, weight="bold")
    axes.text(left + 1.85, 3.4, words, ha="center", va="center", fontsize=8)


def _arrow(axes: Axes, start: float, end: float, above: str, below: str, is_protected: bool) -> None:
    colour = _BLUE if is_protected else _ORANGE
    axes.annotate("", (end, 3.7), (start, 3.7), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
    middle = (start + end) / 2
    axes.text(middle, 4.0, above, ha="center", va="bottom", fontsize=7.5)
    axes.text(middle, 3.4, below, ha="center", va="top", fontsize=7.5, color=colour, weight="bold")
