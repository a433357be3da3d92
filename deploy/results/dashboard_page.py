"""The page that ``confide dashboard`` serves; Streamlit runs this file again at each refresh."""

import math
import sys
from pathlib import Path

import streamlit as st

from common.errors import RunError
from common.evaluation.metrics import HEADLINES, METRICS
from common.privacy.mechanism import mechanism_of
from common.run.guarantee import Guarantee, shown_epsilon
from common.run.words import EXACT_COUNTS, SPENT, admitted, evaluation_cost
from common.telemetry.events import RoundDone
from deploy.results.history import RunHistory
from deploy.results.intervals import Interval, of_round, of_test

POLL_SECONDS = 2.0

ROUND = "round"

Table = dict[str, list[float | None]]

_MEASURES = {name: METRICS[name].heading for name in HEADLINES}


def history_of(run: Path) -> RunHistory | None:
    """Return the run so far, None before its first event."""
    try:
        return RunHistory.read(run)
    except RunError as error:
        st.info(str(error))
        return None


def learning_table(history: RunHistory) -> Table:
    """Return the measures after each finished round, a column each; None where a round was not measured."""
    columns: Table = {ROUND: [done.step for done in history.rounds]}
    for name, label in _MEASURES.items():
        columns[label] = [_or_none(getattr(done, name)) for done in history.rounds]
    return columns


def full_table(history: RunHistory) -> Table:
    """Return the same with the intervals of accuracy and AUC, and what measuring has cost."""
    columns = learning_table(history)
    for name in ("auc", "accuracy"):
        ends = [done.intervals.get(name, (math.nan, math.nan)) for done in history.rounds]
        columns[f"{_MEASURES[name]}, at least"] = [_or_none(low) for low, _ in ends]
        columns[f"{_MEASURES[name]}, at most"] = [_or_none(high) for _, high in ends]
    columns["ε of evaluation"] = [_or_none(done.evaluation_epsilon) for done in history.rounds]
    return {label: column for label, column in columns.items() if any(value is not None for value in column)}


def privacy_table(history: RunHistory) -> Table:
    """Return each hospital's ε after each round, and the smallest budget of any hospital beside it, as "budget"."""
    columns: Table = {ROUND: [done.step for done in history.rounds]}
    for hospital in history.started.hospitals:
        columns[hospital] = [_or_none(done.epsilon_spent.get(hospital, math.nan)) for done in history.rounds]
    columns["budget"] = [_or_none(min(done.epsilon_budget.values(), default=math.nan)) for done in history.rounds]
    return {label: column for label, column in columns.items() if any(value is not None for value in column)}


def notes_of(history: RunHistory) -> list[str]:
    """Return what went otherwise than planned, in the order of rounds."""
    noted = [
        *((item.round, f"{item.hospital} dropped out at {item.phase}") for item in history.dropouts),
        *((item.round, f"{item.hospital} refuses: {item.reason}") for item in history.refusals),
        *((item.round, f"{item.hospital} refused an attack: {item.code}") for item in history.attacks),
    ]
    return [f"round {number}: {text}" for number, text in sorted(noted)]


def show_head(history: RunHistory) -> None:
    """Say what runs on what, how far it is, and what must be admitted."""
    started = history.started
    st.title(f"{started.task} on {started.data_set}")
    state = history.finished.reason if history.finished else "running"
    st.caption(f"run {started.run_id[:12]} · {len(started.hospitals)} hospitals · {state}")
    for caveat in admitted(started):
        st.warning(caveat)
    st.progress(min(1.0, len(history.rounds) / started.rounds), f"round {len(history.rounds)} of {started.rounds}")


def figures_of(history: RunHistory) -> tuple[str, dict[str, Interval]]:
    """Return the newest figures that there are, and whose records they are of."""
    exact = f", {EXACT_COUNTS}" if history.started.config.evaluation.exact else ""
    tested, measured = history.tested, history.measured
    if tested is not None:
        return f"the last model, test{exact}", of_test(tested)
    if not measured:
        return "no round's model was measured yet", dict.fromkeys(_MEASURES, Interval(math.nan))
    part = "test" if exact else "validation"
    return f"{part}, after round {measured[-1].step}{exact}", of_round(measured[-1])


def show_figures(history: RunHistory, last: RoundDone) -> None:
    """Show the newest model's measures and what they cost."""
    whose, figures = figures_of(history)
    columns = st.columns(len(_MEASURES) + 1)
    for column, (name, label) in zip(columns, _MEASURES.items(), strict=False):
        column.metric(label, figures[name].short)
    columns[-1].metric("ε spent by training", shown_epsilon(last.epsilon))
    st.caption(whose)
    if history.finished is not None and history.tested is None:
        st.warning(f"test: not measured: {history.why_not_tested}")
    st.caption(Guarantee.of(history.started.config).of_epsilon())
    if mechanism_of(history.started.config).is_private:
        st.caption(SPENT)
    for line in costs_of(history):
        st.caption(line)


def costs_of(history: RunHistory) -> list[str]:
    """Return what measuring has cost, a line each for validation and test records."""
    lines = [evaluation_cost(history.started, history.measured[-1])] if history.measured else []
    tested = history.tested
    return [*lines, f"test: {tested.claim}"] if tested is not None and not tested.exact else lines


def show_curves(history: RunHistory) -> None:
    """Draw what was learnt and what was spent, by round."""
    left, right = st.columns(2)
    left.subheader("How good the model is")
    part = "test" if history.started.config.evaluation.exact else "validation"
    left.line_chart(learning_table(history), x=ROUND, y_label=f"{part}, after round r")
    right.subheader("Privacy spent by training")
    privacy = privacy_table(history)
    if len(privacy) > 1:
        right.line_chart(privacy, x=ROUND, y_label="ε")
    else:
        right.text("nothing bounds ε in this run")


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


@st.fragment(run_every=POLL_SECONDS)
def page(run: Path) -> None:
    """Draw everything; called again every few seconds."""
    history = history_of(run)
    if history is None:
        return
    show_head(history)
    if not history.rounds:
        st.info("no round is finished yet")
        return
    show_figures(history, history.rounds[-1])
    show_curves(history)
    if notes := notes_of(history):
        st.subheader("What went otherwise than planned")
        for note in notes:
            st.text(note)  # as it is: a hospital's words are no markup
    if history.started.evaluation_plan:
        st.subheader("When the model is measured")
        st.text("\n".join(history.started.evaluation_plan))
    st.subheader("Every round")
    st.dataframe(full_table(history), hide_index=True)


if __name__ == "__main__":
    st.set_page_config("Confide", layout="wide")
    page(Path(sys.argv[1]))
