"""The page that ``confide dashboard`` serves; Streamlit runs this file again at each refresh."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from common.errors import RunError
from common.evaluation.metrics import HEADLINES, METRICS
from common.privacy.mechanism import mechanism_of
from common.run.guarantee import Guarantee, shown_epsilon
from common.run.words import EXACT_COUNTS, SPENT, admitted, evaluation_cost
from deploy.results.against_alone import gain_in_words
from deploy.results.history import RunHistory
from deploy.results.intervals import Interval, of_round, of_test
from deploy.results.live_table import as_time
from deploy.results.plots import BLUE, GREEN, ORANGE, SERIES, VERMILION
from deploy.results.site_spread import spread_in_words

POLL_SECONDS = 2.0

ROUND = "round"

BUDGET = "budget"

Table = dict[str, list[float | None]]

Row = dict[str, float | str]

_COLOURS = (BLUE, ORANGE, GREEN)  # of the report's curves, in the order of HEADLINES

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
    columns[BUDGET] = [_or_none(min(done.epsilon_budget.values(), default=math.nan)) for done in history.rounds]
    return {label: column for label, column in columns.items() if any(value is not None for value in column)}


def curve_of(history: RunHistory) -> list[Row]:
    """Return a row for each measured round and figure, with its 95 % interval where there is one."""
    rows: list[Row] = []
    for done in history.measured:
        for name, sure in of_round(done).items():
            if name not in _MEASURES or math.isnan(sure.value):
                continue
            row: Row = {ROUND: done.step, "figure": _MEASURES[name], "value": sure.value}
            if not math.isnan(sure.low):
                row |= {"low": sure.low, "high": sure.high}
            rows.append(row)
    return rows


def spent_by_round(history: RunHistory) -> list[Row]:
    """Return a row for each round and hospital with its ε, and for each round the smallest budget of any."""
    table = privacy_table(history)
    return [
        {ROUND: step, "figure": label, "value": value}
        for label, column in table.items()
        if label != ROUND
        for step, value in zip(table[ROUND], column, strict=True)
        if step is not None and value is not None
    ]


def chart(rows: Sequence[Row], colours: dict[str, str], title: str) -> dict[str, Any]:
    """Return lines by round, in the report's colours, with their intervals as bands, as a Vega-Lite specification.

    Args:
        rows: with ``figure``, ``value`` and the round; ``low`` and ``high`` where there is an interval.
        colours: of each figure.
        title: of the vertical axis.
    """
    steps = max((float(row[ROUND]) for row in rows), default=1.0)
    along = {
        "field": ROUND, "type": "quantitative", "scale": {"domain": [0, steps + 1]},
        "axis": {"tickMinStep": 1, "format": "d"},
    }  # fmt: skip
    colour = {
        "field": "figure", "type": "nominal", "title": None, "legend": {"orient": "bottom", "symbolOpacity": 1},
        "scale": {"domain": list(colours), "range": list(colours.values())},
    }  # fmt: skip

    def up(field: str) -> dict[str, Any]:
        return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}}

    return {
        "data": {"values": list(rows)},
        "encoding": {"x": along, "color": colour},
        "layer": [
            {"transform": [{"filter": "isValid(datum.low)"}], "mark": {"type": "area", "opacity": 0.18},
             "encoding": {"y": up("low"), "y2": {"field": "high"}}},
            {"mark": {"type": "line", "point": True, "tooltip": True}, "encoding": {"y": up("value")}},
        ],
    }  # fmt: skip


def participants(history: RunHistory) -> list[dict[str, str | float | None]]:
    """Return a row for each hospital: how often its vector was in a sum, what it did last, and what it has spent."""
    missing = [(item.round, item.hospital, f"dropped out in round {item.round}") for item in history.dropouts]
    missing += [(item.round, item.hospital, f"refused round {item.round}") for item in history.refusals]
    last = history.rounds[-1] if history.rounds else None
    rows: list[dict[str, str | float | None]] = []
    for hospital in history.started.hospitals:
        own = sorted(item for item in missing if item[1] == hospital)
        is_out = bool(own) and (last is None or own[-1][0] >= last.round)
        spent = math.nan if last is None else last.epsilon_spent.get(hospital, math.nan)
        if history.compared is not None:
            spent = history.compared.epsilon_spent.get(hospital, spent)
        budget = math.nan if last is None else last.epsilon_budget.get(hospital, math.nan)
        rows.append(
            {
                "hospital": hospital,
                "now": own[-1][2] if is_out else "takes part",
                "rounds missed": float(len({item[0] for item in own})),
                "ε spent": _or_none(spent),
                "ε budget": _or_none(budget),
            }
        )
    return rows


def confusion_of(history: RunHistory) -> list[dict[str, str | int]]:
    """Return the newest confusion matrix that there is, a row for each true class; empty where there is none."""
    told = history.tested or (history.measured[-1] if history.measured else None)
    if told is None or not told.confusion:
        return []
    terms = history.started.terms
    named = terms.classes if len(terms.classes) == len(told.confusion) else map(str, range(len(told.confusion)))
    names = list(named)
    return [
        {"truly": true, **{f"called {name}": count for name, count in zip(names, row, strict=True)}}
        for true, row in zip(names, told.confusion, strict=True)
    ]


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
    st.progress(min(1.0, len(history.rounds) / started.rounds), progress_of(history))


def progress_of(history: RunHistory) -> str:
    """Say how many rounds are done, and about how long the others take."""
    done, rounds = len(history.rounds), history.started.rounds
    left = history.seconds_left
    is_on = history.finished is None and done < rounds and math.isfinite(left)
    return f"round {done} of {rounds}" + (f", about {as_time(left)} left" if is_on else "")


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


def show_figures(history: RunHistory) -> None:
    """Show the newest model's measures and what they cost."""
    whose, figures = figures_of(history)
    columns = st.columns(len(_MEASURES) + 1)
    for column, (name, label) in zip(columns, _MEASURES.items(), strict=False):
        column.metric(label, figures[name].short)
    columns[-1].metric("ε spent by training", shown_epsilon(history.training_epsilon))
    st.caption(whose)
    if history.finished is not None and history.tested is None:
        st.warning(f"test: not measured: {history.why_not_tested}")
    st.caption(Guarantee.of(history.started.config).of_epsilon())
    if mechanism_of(history.started.config).is_private:
        st.caption(SPENT)
    for line in costs_of(history):
        st.caption(line)
    if history.compared is not None:
        st.caption(gain_in_words(history, history.compared))
    if history.spread is not None:
        st.caption(spread_in_words(history.spread))


def costs_of(history: RunHistory) -> list[str]:
    """Return what measuring has cost, a line each for validation and test records."""
    lines = [evaluation_cost(history.started, history.measured[-1])] if history.measured else []
    if history.tested is None or history.tested.exact:
        return lines
    return [*lines, f"test: {history.test_claim}"]


def show_curves(history: RunHistory) -> None:
    """Draw what was learnt and what was spent, by round."""
    left, right = st.columns(2)
    left.subheader("How good the model is")
    part = "test" if history.started.config.evaluation.exact else "validation"
    headings = dict(zip(_MEASURES.values(), _COLOURS, strict=True))
    left.vega_lite_chart(spec=chart(curve_of(history), headings, f"{part}, after round r"), width="stretch")
    right.subheader("Privacy spent by training")
    spent = spent_by_round(history)
    if spent:
        hospitals = history.started.hospitals
        colours = {name: SERIES[place % len(SERIES)] for place, name in enumerate(hospitals)}
        right.vega_lite_chart(spec=chart(spent, {**colours, BUDGET: VERMILION}, "ε"), width="stretch")
    else:
        right.text("nothing bounds ε in this run")


def show_who_and_what(history: RunHistory) -> None:
    """Show the hospitals, and where the newest model errs."""
    left, right = st.columns(2)
    left.subheader("Who takes part")
    left.dataframe(participants(history), hide_index=True)
    if rows := confusion_of(history):
        right.subheader("Where it errs")
        right.dataframe(rows, hide_index=True)
        exact = history.started.config.evaluation.exact
        right.caption(f"{figures_of(history)[0]}" + ("" if exact else "; noisy counts, rounded"))


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
    show_figures(history)
    show_curves(history)
    show_who_and_what(history)
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
