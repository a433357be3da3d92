"""``confide hospital report --alone``: whether joining paid, found out at home; nothing leaves and nothing is kept.

The run's final model, as this hospital received it, is compared with models of this hospital's own records alone by the
run's recipe (:mod:`client.alone`), on the same test records of its own. Neither the ledger nor the audit chain, nor
anything that an exporter or the server reads, is touched.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from client.alone import OwnRecords, seed_of
from client.data.contract import DataContract
from client.data.hospital_data import HospitalData, open_data
from client.data.watch import held
from client.kept_runs import ReceivedRun, folder_of
from client.received_run import model_hash_of
from common.audit.chain import AUDIT_FILE, read_chain
from common.audit.entries import Began
from common.config import RunDescription, load_config
from common.errors import AuditError, DataError, RunError
from common.evaluation.paired import CONFIDENCE, FIGURES, Difference, Scored, differences, figures
from common.identity.certificates import load_certificate
from common.keystream import Keystream
from common.privacy.mechanism import mechanism_of
from common.run.delivery import AUTHORITY_FILE, DELIVERY_FILE, chain_head, read_delivery
from common.settings import CACHE_FOLDER, HOSPITAL_SETTINGS_FILE, HospitalSettings
from common.task import TaskKind
from deploy.results.model_file import load_model
from deploy.terminal import filled
from server.initial_model import initial_model

DECIDES = "auc"
"""The figure by which joining is said to have paid; it depends on no threshold."""

_WIDE = 0.05
"""An interval of the difference that is wider says little of what hospitals gain by joining."""

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Rival:
    """A model of this hospital's own records alone, against the run's.

    Attributes:
        epsilon: that its noise keeps; None where it has none.
        figures: of it, by name.
        gained: the run's model less it, by name.
    """

    epsilon: float | None
    figures: dict[str, float] = field(repr=False)
    gained: dict[str, Difference] = field(repr=False)

    @property
    def name(self) -> str:
        """Say which it is, for a table."""
        return "alone, no noise" if self.epsilon is None else f"alone, ε = {self.epsilon:g}"


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        run: the run's description.
        trained: records of this hospital's training part.
        records: of its test part.
        patients: that these are of.
        sick: of the records, of the second class.
        changed: whether the images are others than the run began with; None where that is not known any more.
        together: figures of the run's final model, by name.
        rivals: the models of the records alone; the one without noise first.
    """

    run: RunDescription = field(repr=False)
    trained: int = field(repr=False)
    records: int = field(repr=False)
    patients: int = field(repr=False)
    sick: int = field(repr=False)
    changed: bool | None
    together: dict[str, float] = field(repr=False)
    rivals: tuple[Rival, ...] = field(repr=False)


def compare_alone(state: Path, received: ReceivedRun, fewest: int, console: Console) -> Comparison:
    """Train alone by a run's recipe and compare; takes as long as this hospital's part in the run took.

    Args:
        state: the hospital's state folder, in which nothing is written.
        received: the run.
        fewest: test records of each class that there must be.
        console: where progress is shown.

    Raises:
        RunError: the task has other than two classes.
        AuditError: what is kept of the run is not what the server signed.
        DataError: the images cannot be used, or there are too few test records of a class.
        PrivacyError: no noise keeps the run's ε.
    """
    run, model = kept_run(state, received)
    if run.task.kind != TaskKind.BINARY:
        raise RunError(
            f"--alone compares models of tasks with two classes, and run {run.run_id[:12]} is {run.task.kind}; its "
            "rounds are shown without --alone"
        )
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    policy = load_config(settings.config).hospital
    with _scratch_cache(state / CACHE_FOLDER) as cache, _progress(console) as bar:
        with _stage(bar, "reading this hospital's images"):
            data = _opened(settings.data, run, cache)
            require_cases(np.asarray(data.test.labels) == 1, run, fewest)
            records = OwnRecords.of(run, data, policy, cache)
        truth, patients = records.test_labels == 1, records.test_patients
        require_cases(truth, run, fewest)
        first, together = initial_model(run), records.scored(model)
        rivals = []
        for epsilon in (None, run.privacy.target_epsilon) if mechanism_of(run).is_private else (None,):
            random = Keystream(seed_of(run, data)).draw if epsilon is None else os.urandom
            with _stage(bar, f"training alone, {'no noise' if epsilon is None else f'ε = {epsilon:g}'}") as told:
                alone = records.scored(records.train_alone(first, random, told, noise=epsilon is not None))
            with _stage(bar, "comparing on the test records"):
                rivals.append(_rival(epsilon, together, alone, truth, patients))
    began_with = held(state, run.run_id)
    return Comparison(
        run=run,
        trained=len(records.train),
        records=len(truth),
        patients=len(np.unique(patients)),
        sick=int(truth.sum()),
        changed=began_with != data.key if began_with else None,
        together=figures(together, truth),
        rivals=tuple(rivals),
    )


def kept_run(state: Path, received: ReceivedRun) -> tuple[RunDescription, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """Return a kept run's description and final model, once they are seen to be what the server signed.

    Raises:
        AuditError, IdentityError, RunError: they are not.
    """
    folder, authority = folder_of(state, received.run_id), load_certificate(state / AUTHORITY_FILE)
    try:
        delivery = read_delivery((folder / DELIVERY_FILE).read_bytes(), authority)
        content = (folder / AUDIT_FILE).read_bytes()
    except OSError as error:
        raise RunError(f"the kept run {received.run_id[:12]} must be readable: {error.strerror}") from None
    chain = read_chain(content, f"the server's {AUDIT_FILE}", authority)
    begun = [entry.body for entry in chain.entries if isinstance(entry.body, Began)]
    signed = chain_head(content) == delivery.chain_head and delivery.run_id == received.run_id
    if not begun or not signed or model_hash_of(folder) != delivery.model_hash:
        raise AuditError(
            f"the kept run {received.run_id[:12]} must be the one that the server signed; a file of it was changed. "
            f"Move {folder} elsewhere, and it is fetched anew"
        )
    model, _ = load_model(folder)
    return RunDescription.from_json(begun[-1].description.encode()), model


def require_cases(truth: np.ndarray[tuple[int], np.dtype[np.bool_]], run: RunDescription, fewest: int) -> None:
    """Refuse a test part with too few records of a class.

    Raises:
        DataError: says how many there are of which.
    """
    for name, there in zip(run.classes, (int((~truth).sum()), int(truth.sum())), strict=True):
        if there < fewest:
            raise DataError(
                f"--alone needs at least {fewest} test records of each class, this hospital has {there} of {name}; "
                "with fewer, chance alone decides which model is ahead"
            )


def show(found: Comparison, console: Console) -> None:
    """Print the comparison, in 80 columns."""
    console.print(table_of(found))
    for line in (*verdict(found), *remarks(found)):
        console.print(filled(line), markup=False, highlight=False, soft_wrap=True)


def table_of(found: Comparison) -> Table:
    """Return the figures of each model, and by how much the run's is ahead."""
    table = Table(title=f"run {found.run.run_id[:12]}: together against alone", title_justify="left")
    table.add_column("model")
    for name in FIGURES:
        table.add_column(name, justify="right")
    table.add_row("together", *(f"{found.together[name]:.3f}" for name in FIGURES))
    for rival in found.rivals:
        table.add_section()
        table.add_row(rival.name, *(f"{rival.figures[name]:.3f}" for name in FIGURES))
        gained = [rival.gained[name] for name in FIGURES]
        table.add_row("together − alone", *(f"{each.value:+.3f}" for each in gained))
        table.add_row(f"  {CONFIDENCE:.0%} from".replace("%", " %"), *(f"{each.low:+.3f}" for each in gained))
        table.add_row("       to", *(f"{each.high:+.3f}" for each in gained))
    return table


def verdict(found: Comparison) -> Iterator[str]:
    """Say in words whether joining paid, or that these records cannot tell."""
    strongest, *others = found.rivals
    gained = strongest.gained[DECIDES]
    yield {
        1: "Joining paid here: the run's model is better on these test records than what this hospital's own records "
        f"give alone without any noise ({_said(gained)}).",
        0: f"These {found.records} test records cannot tell whether joining paid: between the run's model and this "
        f"hospital's own records alone without any noise the difference may be chance ({_said(gained)}).",
        -1: "Joining did not pay here: this hospital's own records alone, without any noise, give a better model on "
        f"these test records than the run's ({_said(gained)}).",
    }[gained.says]
    for rival in others:
        told = {1: "the run's model is better", 0: "these records cannot tell", -1: "the run's model is worse"}
        yield (
            f"Against what this hospital could publish by itself at the run's ε = {rival.epsilon:g}, "
            f"{told[rival.gained[DECIDES].says]} ({_said(rival.gained[DECIDES])})."
        )
    if gained.high - gained.low > _WIDE:
        yield (
            f"The interval is wide: of {found.records} test records, {found.sick} are {found.run.classes[1]} and "
            f"{found.records - found.sick} are not. A difference of AUC below about "
            f"{(gained.high - gained.low) / 2:.2f} would not show."
        )


def remarks(found: Comparison) -> Iterator[str]:
    """Say what the figures rest on, what they are not, and where they stay."""
    run = found.run
    if found.changed is not False:
        yield (
            "This hospital's images have changed since the run began: all models are measured on what is there now, "
            "and those alone were trained on it."
            if found.changed
            else "Whether this hospital's images are still those of the run is not known here; what is there now was "
            "used."
        )
    yield (
        f"Alone is the run's recipe on this hospital's {found.trained} training records: its model, first weights, "
        f"{_steps(run)}. Settings that were tuned for one hospital might do better. Each threshold is chosen on this "
        "hospital's own validation records. "
        + (
            "The noise is one draw: another gives another model, and the interval does not know of it."
            if len(found.rivals) > 1
            else "Another training gives another model, and the interval does not know of it."
        )
    )
    drawn = (
        f"{found.patients} patients, each with all test records"
        if found.patients < found.records
        else f"{found.records} test records"
    )
    yield (
        f"The intervals are of {CONFIDENCE:.0%}, by a paired bootstrap over {drawn}.".replace("%", " %")
        + " The verdict goes by AUC, which needs no threshold."
    )
    yield (
        "This run's sums were proved, so its server could not choose the final model."
        if run.aggregation.proved_sums
        else "This run's sums were not proved: a lying server could have chosen the final model, one that does well "
        "or badly here included."
    )
    yield (
        "All of this stays in this hospital: exact counts without any privacy. Nothing was sent, booked in the ledger "
        "or entered in the audit chain, and the models that were trained alone are not kept. To publish one of them, "
        "or these figures, would cost privacy that no ledger knows of."
    )


def _steps(run: RunDescription) -> str:
    parts = [f"{run.experiment.rounds} rounds of steps", "learning rate"]
    if run.training.copies > 1:
        parts.append(f"{run.training.copies} copies of each image")
    if run.privacy.mean_share:
        parts.append("centre")
    if mechanism_of(run).is_private:
        parts.append("clipping")
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _said(gained: Difference) -> str:
    return f"AUC {gained.value:+.3f}, {CONFIDENCE:.0%}: {gained.low:+.3f} to {gained.high:+.3f}".replace("%", " %")


def _rival(
    epsilon: float | None,
    together: Scored,
    alone: Scored,
    truth: np.ndarray[tuple[int], np.dtype[np.bool_]],
    patients: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Rival:
    return Rival(epsilon, figures(alone, truth), differences(together, alone, truth, patients))


def _opened(folder: Path, run: RunDescription, cache: Path) -> HospitalData:
    """Return the images that are there now, as the run wants them.

    Raises:
        DataError: they cannot be used.
    """
    try:
        return open_data(folder, DataContract.of_run(run), cache)
    except DataError:
        raise DataError(
            f"this hospital's images must be usable to train on them alone; what is wrong: "
            f"./confide hospital check-data {folder}"
        ) from None


@contextmanager
def _scratch_cache(kept: Path) -> Iterator[Path]:
    """Give a cache that has what the agent's has, and into which what is missing can be written.

    The agent takes it that nobody else writes into its own: it removes what another process has not finished, and the
    other process would remove what it has not.
    """
    with tempfile.TemporaryDirectory(prefix="confide-alone-") as temporary:
        scratch = Path(temporary)
        for pattern in ("prepared-*", "features-*.npy", "features-*.images"):
            for path in kept.glob(pattern):
                (scratch / path.name).symlink_to(path.resolve())
        yield scratch


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns: Sequence[TextColumn | BarColumn | TimeElapsedColumn] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield bar


@contextmanager
def _stage(bar: Progress, words: str) -> Iterator[Told]:
    """Show one stage while it lasts; what is given tells how much of it is done."""
    task = bar.add_task(words, total=None)
    try:
        yield lambda done, whole: bar.update(task, completed=done, total=whole)
    finally:
        bar.remove_task(task)
