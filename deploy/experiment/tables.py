"""The tables of studies, in Markdown."""

from collections.abc import Mapping, Sequence

from common.config import Config
from common.evaluation.metrics import HEADLINES
from common.run.words import RELATION
from common.telemetry.events import RoundDone
from deploy.experiment.methods import Method
from deploy.experiment.study import Outcomes, Study, Training
from deploy.results.intervals import TWO_CLASSES, over_runs, over_test_records

Kind = tuple[Method, float | None]
"""A method and the ε it is calibrated for, None without privacy."""

_CELLS = (
    "Each cell: AUC, accuracy and F1 on the official test part, decided at the threshold of the pooled validation "
    "counts; mean and 95 % t interval over seeds, of a hospital alone over hospitals and seeds. Where all records are "
    "in one place the split means nothing."
)

_ADVERSARIES = (
    "The ε of central DP holds against whoever has the model, if all trust the centre; that of distributed DP against "
    "the server, too; that of local DP against the server and all other hospitals together."
)


def baselines_table(study: Study, outcomes: Outcomes, splits: Sequence[str]) -> str:
    """Return one row a method and ε, one column a split, each with AUC, accuracy and F1 over the seeds."""
    config = next(iter(outcomes)).config
    seeds = len({training.config.experiment.seed for training in outcomes})
    lines = [
        f"# Baselines: {study.data.name}, {config.model.name} at {config.model.image_size} pixels",
        "",
        f"By `./confide experiment baselines --seeds {seeds}`: {config.experiment.num_clients} hospitals. {_CELLS}",
        "",
        f"ε is for each {config.privacy.unit} ({RELATION}) at δ = {config.privacy.delta:g}. {_ADVERSARIES}",
        *_notes(study),
        "",
        "| method | ε | " + " | ".join(splits) + " |",
        "|---|---|" + "---|" * len(splits),
    ]
    for method, epsilon in _kinds(outcomes):
        cells = [_cell(finals(outcomes, method, epsilon, split)) for split in splits]
        lines.append(f"| {method} | {'–' if epsilon is None else f'{epsilon:g}'} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def accuracy_table(study: Study, outcomes: Outcomes, aims: Mapping[Kind, tuple[float | None, float | None]]) -> str:
    """Return one row a method and ε: the figures with both kinds of interval, and the aim for AUC and accuracy."""
    config = next(iter(outcomes)).config
    seeds = len({training.config.experiment.seed for training in outcomes})
    split = next(training.split for training in outcomes if not training.method.is_pooled)
    has_grades = len(study.data.classes) > TWO_CLASSES
    lines = [
        f"# Accuracy: {study.data.name}, {config.model.name} at {config.model.image_size} pixels",
        "",
        _terms(study, config, split, seeds),
        *_notes(study),
        "",
        "| method | ε | AUC over seeds | AUC over test records | accuracy over seeds | "
        + ("quadratic kappa | " if has_grades else "F1 | ")
        + "ECE | aim: AUC, accuracy | reached |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = (
        _accuracy_row(kind, finals(outcomes, *kind, split), aims.get(kind, (None, None)), has_grades)
        for kind in _kinds(outcomes)
    )
    return "\n".join([*lines, *rows, ""])


def _terms(study: Study, config: Config, split: str, seeds: int) -> str:
    privacy = config.privacy
    return (
        f"By `./confide experiment accuracy --seeds {seeds}`: {config.experiment.num_clients} hospitals ({split}), "
        f"masks on, settings chosen on the public validation part; official test part of "
        f"{len(study.data.parts['test'])} images, at the threshold of the pooled validation counts. ε for each "
        f"{privacy.unit} ({RELATION}), δ = {privacy.delta:g}, {privacy.accountant.upper()} accountant, against the "
        f"server and whoever has the model, {privacy.colluders} hospitals colluding and "
        f"{privacy.tolerated_dropouts} dropping out."
    )


def _notes(study: Study) -> list[str]:
    """Return what a reader must know of the data, each as a paragraph."""
    return [f"\n{note.removesuffix('.')}." for note in study.data.notes]


def _accuracy_row(
    kind: Kind, measured: Sequence[RoundDone], aim: tuple[float | None, float | None], has_grades: bool
) -> str:
    auc, accuracy, last, ece = (
        over_runs([float(getattr(done, name)) for done in measured])
        for name in (*HEADLINES[:2], "kappa" if has_grades else HEADLINES[2], "ece")
    )
    over_records = over_test_records(measured[0]).get("auc")
    reached = [value.value >= least for value, least in zip((auc, accuracy), aim, strict=True) if least is not None]
    cells = [
        str(kind[0]),
        "–" if kind[1] is None else f"{kind[1]:g}",
        str(auc),
        "–" if over_records is None else f"{over_records.low:.3f} to {over_records.high:.3f}",
        str(accuracy),
        str(last),
        f"{ece.value:.3f}",
        ", ".join("–" if least is None else f"≥ {least:.3f}" for least in aim) if reached else "none",
        ("yes" if all(reached) else "no") if reached else "",
    ]
    return "| " + " | ".join(cells) + " |"


def finals(outcomes: Outcomes, method: Method, epsilon: float | None, split: str) -> list[RoundDone]:
    """Return the final measures of a method at one ε and split, over seeds and, alone, over hospitals."""
    return [
        rounds[-1]
        for training, rounds in outcomes.items()
        if training.method is method and training.epsilon == epsilon and is_of(training, split)
    ]


def is_of(training: Training, split: str) -> bool:
    """Return whether a training depends on a split."""
    return training.method.is_pooled or training.split == split


def _kinds(outcomes: Outcomes) -> list[Kind]:
    """Return each method with each of its ε, in the order of the methods."""
    found = {(training.method, training.epsilon) for training in outcomes}
    return sorted(found, key=lambda kind: (list(Method).index(kind[0]), kind[1] or 0.0))


def _cell(measured: Sequence[RoundDone]) -> str:
    if not measured:
        return "not run"
    return "<br>".join(str(over_runs([float(getattr(done, score)) for done in measured])) for score in HEADLINES)
