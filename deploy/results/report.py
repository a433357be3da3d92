"""``confide report``: what was trained on what, how good it is, what it cost in privacy, and how to do it again."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import click
import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from common.errors import RunError
from common.evaluation import METRICS
from common.files import replace_file
from common.run.guarantee import shown_epsilon
from common.run.words import SPENT
from deploy.command import FILE, command, out_option
from deploy.results import plots
from deploy.results.leaves_picture import LEAVES_FILE, leaves
from deploy.results.report_facts import RunFacts, compare

REPORT_HTML = "report.html"
REPORT_MARKDOWN = "report.md"
MODEL_CARD = "model_card.md"
PLOTS_FOLDER = "report_plots"

_TEMPLATES = Path(__file__).with_name("templates")
_MARKUP = re.compile(r"([\\`*_\[\]<>|~&])")
_BYTES_A_STEP = 1000


@command(
    "report",
    "Write what was trained on what, how good it is, what it cost in privacy, and how to do it again.\n\n"
    "RUN is a run's folder; several are compared.",
    "./confide report runs/0123456789ab",
)
@click.argument("runs", nargs=-1, required=True, type=FILE, metavar="RUN...")
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    show_default="that of the test parts",
    metavar="SHARE",
    help="How many are sick where the model would be used, 0 to 1; for how often an alarm is right.",
)
@out_option(shown="the first run's folder", help="Where to write.")
def main(runs: tuple[Path, ...], prevalence: float | None, out: Path | None) -> int:
    """Write the report."""
    facts = [replace(RunFacts.read(folder), prevalence=prevalence) for folder in runs]
    for file in write_report(facts, out or runs[0]):
        print(file)
    return 0


def write_report(
    runs: Sequence[RunFacts], folder: Path, plotted: Mapping[str, bytes] | None = None
) -> tuple[Path, ...]:
    """Write ``report.html`` (self-contained), ``report.md`` with its plots, and a model card for each run.

    Args:
        runs: one, or several to compare.
        folder: made when it does not exist.
        plotted: what :func:`deploy.results.plots.plot_run` has drawn of the only run, by name, so that it is not drawn
            again.

    Returns:
        The files a person opens.

    Raises:
        RunError: the folder cannot be written.
    """
    images = _images(runs, plotted)
    files = {folder / name: content for name, content in pages(runs, images).items()}
    try:
        (folder / PLOTS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} must be a folder that can be written: {error.strerror}") from None
    for name, image in images.items():
        replace_file(folder / PLOTS_FOLDER / name, image)
    for path, content in files.items():
        replace_file(path, content.encode())
    return tuple(files)


def pages(runs: Sequence[RunFacts], images: dict[str, bytes]) -> dict[str, str]:
    """Return the report's files of text by name; ``images`` are PNG files by name, which the HTML one holds."""
    environment = _markdown_environment()
    title = f"Confide report: {runs[0].started.task} on {runs[0].started.data_set}"
    template = environment.get_template("report.md.j2")
    markdown = _tidy(
        template.render(title=_text(title), runs=runs, metrics=METRICS, comparison=compare(runs), plots=PLOTS_FOLDER)
    )
    return {
        REPORT_HTML: _as_html(title, markdown, images),
        REPORT_MARKDOWN: markdown,
        **_model_cards(runs, environment),
    }


def _model_cards(runs: Sequence[RunFacts], environment: jinja2.Environment) -> dict[str, str]:
    template = environment.get_template("model_card.md.j2")
    cards = {}
    for run in runs:
        name = MODEL_CARD if len(runs) == 1 else f"{run.started.run_id[:8]}-{MODEL_CARD}"
        cards[name] = _tidy(template.render(run=run))
    return cards


def _images(runs: Sequence[RunFacts], plotted: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """Return the report's plots as PNG files."""
    images = {}
    if len(runs) > 1:
        images["auc_of_runs.png"] = plots.png(plots.auc_of_runs([run.history for run in runs]))
    for run in runs:
        figures = plots.figures_of_run(run.history, run.classes) if plotted is None else {}
        figures[LEAVES_FILE] = leaves(run.history)
        if run.calibration is not None:
            figures[plots.RELIABILITY_FILE] = plots.reliability(run.history, run.calibration)
        drawn = {**(plotted or {}), **{name: plots.png(figure) for name, figure in figures.items()}}
        images |= {f"{run.started.run_id[:8]}-{name}": image for name, image in drawn.items()}
    return images


def _as_html(title: str, markdown: str, images: dict[str, bytes]) -> str:
    """Return the report as one page with the images inside it."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    # A table that is wider than a phone scrolls by itself, and not the page.
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    for name, image in images.items():
        data = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        body = body.replace(f'src="{PLOTS_FOLDER}/{name}"', f'src="{data}"')
    # The body is safe: whatever HTML stood in the Markdown has been escaped by its renderer.
    return _html_environment().get_template("report.html.j2").render(title=title, body=Markup(body))  # noqa: S704 - see above


@cache
def _html_environment() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True)


@cache  # It keeps its templates, which take longer to compile than to fill.
def _markdown_environment() -> jinja2.Environment:
    environment = jinja2.Environment(  # noqa: S701 - for Markdown; see _text and _as_html
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["spent_means"] = SPENT
    environment.filters.update(text=_text, epsilon=_epsilon, bytes=_bytes, rate=_rate)
    return environment


def _tidy(markdown: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n"


def _text(value: object) -> str:
    """Return a foreign text (a hospital's reason, a data set's name) as Markdown that shows it letter for letter."""
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))


def _rate(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _epsilon(value: float | None) -> str:
    return "∞" if value is None else shown_epsilon(value)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < _BYTES_A_STEP:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= _BYTES_A_STEP
    return f"{size:.1f} TB"
