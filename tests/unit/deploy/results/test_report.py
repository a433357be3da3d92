import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common.config import Config, replace
from common.errors import RunError
from common.models import registry
from common.models.flat import flat_parameters
from common.telemetry.events import Evaluated, Event, Refusal
from deploy.results.model_file import save_model
from deploy.results.outputs import RunOutputs, model_facts
from deploy.results.report import main
from deploy.results.report_facts import RunFacts, changed_keys, compare, what_each_learns
from tests.support.example_run import HOSPITALS, example_of_three_classes, example_run

EXACT = replace(Config(), evaluation={"exact": True}, privacy={"mode": "none"})


def _run(folder: Path, events: list[Event], with_model: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(event.to_line() for event in events), encoding="utf-8")
    outputs = RunOutputs(folder)
    for event in events:
        outputs.add(event)
    if with_model:
        history = outputs.history()
        spent = history.rounds[-1].epsilon_spent
        facts = model_facts(history, ("malignant", "benign"), 1, 0.37, last_epsilon=spent)
        save_model(folder, flat_parameters(registry.build("cnn", 2, 1, 28, seed=1)), facts)
    return folder


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _run(tmp_path_factory.mktemp("run"), example_run(6))
    assert main(["report", str(folder)]) == 0
    return folder


class _Page(HTMLParser):
    """What a page would fetch, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.long
def test_the_page_is_one_file_that_fetches_nothing(reported: Path) -> None:
    page = _Page((reported / "report.html").read_text())
    assert len(page.sources) >= 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe"}


def test_every_image_of_the_markdown_exists(reported: Path) -> None:
    images = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (reported / "report.md").read_text())
    assert len(images) >= 5
    assert all((reported / image).stat().st_size > 0 for image in images)


@pytest.mark.long
@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_a_report_answers_what_it_must(reported: Path, name: str) -> None:
    text = (reported / name).read_text()
    shown = _Page(text).text if name.endswith("html") else text.replace("\\", "")
    tested = next(event for event in example_run(6) if isinstance(event, Evaluated))
    for expected in (
        "breast cancer (scikit-learn)",
        "isn't a medical device",
        f"{tested.auc:.2f} (",
        "noise alone",
        "Validation, after round r",
        "ε = 1.000 at δ = 0.0001 for each record of the part that was measured (zero-out",
        "(zero-out: against an empty one; how many there are is public)",
        "test: the last model, once (noise multiplier 3.51)",
        "that difference is covered by ε, and not by the masks",
        "was fixed on the pooled validation parts before the test parts were asked",
        "95 % interval",
        "δ=0.0001",
        "RDP accountant",
        *HOSPITALS,
        "a curious server",
        "whoever holds the model",
        "dropped out at masked_input",
        "above this hospital's budget of 10",
        "./confide demo",
        "1.39.0",
        "0.370",
    ):
        assert expected in shown, expected


def test_a_model_card_comes_with_it(reported: Path) -> None:
    card = (reported / "model_card.md").read_text()
    for heading in ("Model details", "Intended use", "Factors", "Metrics", "Training and evaluation data", "Privacy",
                    "Ethical considerations", "Caveats and recommendations"):  # fmt: skip
        assert f"## {heading}" in card
    assert "malignant, benign" in card
    assert re.search(r"SHA-256 `[0-9a-f]{64}`", card)


@pytest.mark.long
def test_a_foreign_text_is_shown_letter_for_letter_and_never_becomes_markup(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> [x](javascript:alert(2)) | ![y](http://evil/z.png) `code` &amp;"
    events = example_run(2)
    events.insert(-1, Refusal(time=1.0, round=2, hospital="hospital-1", reason=hostile, code="policy"))
    main(["report", str(_run(tmp_path, events, with_model=False))])
    page = _Page((tmp_path / "report.html").read_text())
    assert hostile in page.text
    assert "script" not in page.tags
    assert all(source.startswith("data:") for source in page.sources)


@pytest.mark.long
def test_a_run_without_masks_noise_or_real_data_says_so_at_the_top(tmp_path: Path) -> None:
    config = replace(Config(), privacy={"mode": "none"}, aggregation={"mode": "plain"}, evaluation={"exact": True})
    main(["report", str(_run(tmp_path, example_run(2, "phantom", config)))])
    for name in ("report.md", "model_card.md"):
        top = (tmp_path / name).read_text()[:900]
        assert "NO differential privacy" in top
        assert "saw every hospital's update" in top
        assert "procedural images" in top


@pytest.mark.long
def test_several_runs_are_compared_with_intervals_over_seeds(tmp_path: Path) -> None:
    folders = []
    for seed, rounds, epsilon in ((1, 3, 8.0), (2, 3, 8.0), (3, 3, 1.0)):
        config = replace(Config(), experiment={"seed": seed}, privacy={"target_epsilon": epsilon})
        events = example_run(rounds, config=config)
        named = [event.model_copy(update={"run_id": f"{seed:032x}"}) if event.kind == "run_started" else event
                 for event in events]  # fmt: skip
        folders.append(_run(tmp_path / str(seed), named, with_model=False))
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "all")]) == 0
    assert "## All runs together" in (tmp_path / "all" / "report.md").read_text()
    assert (tmp_path / "all" / "report_plots" / "auc_of_runs.png").exists()
    runs = [RunFacts.read(folder) for folder in folders]
    first, second = compare(runs)
    assert (first[1], second[1]) == (2, 1)
    assert first[2]["auc"].value == pytest.approx(runs[0].metrics["auc"].value)
    assert "privacy.target_epsilon=1.0" in second[0]


def test_the_command_to_do_it_again_sets_what_differs_from_the_defaults() -> None:
    config = replace(Config(), privacy={"target_epsilon": 3.0}, hospital={"allow_plain": True})
    assert changed_keys(config) == {"privacy.target_epsilon": "3.0", "hospital.allow_plain": "true"}
    assert changed_keys(Config()) == {}


def test_a_run_without_a_finished_round_is_refused(tmp_path: Path) -> None:
    folder = _run(tmp_path, example_run(2)[:1], with_model=False)
    with pytest.raises(RunError, match="must hold a finished round to report on"):
        main(["report", str(folder)])


@pytest.mark.long
def test_a_run_that_left_no_summary_is_reported_without_versions(tmp_path: Path) -> None:
    folder = _run(tmp_path, example_run(2), with_model=False)
    (folder / "summary.json").unlink()
    assert main(["report", str(folder)]) == 0
    assert "not recorded" in (folder / "report.md").read_text()


def test_what_was_left_out_of_the_data_is_told_as_it_is(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run", example_run(2), with_model=False)
    (folder / "data-notes.json").write_text(
        '["26 of 4708 records of <train> left out: the same image is there already"]'
    )
    facts = RunFacts.read(folder)
    assert facts.data_notes == ("26 of 4708 records of <train> left out: the same image is there already",)
    assert main(["report", str(folder)]) == 0
    for name in ("report.html", "model_card.md"):
        told = (folder / name).read_text()
        assert "26 of 4708 records of" in told
        assert "<train>" not in told
    (folder / "data-notes.json").write_text("{")
    with pytest.raises(RunError, match=r"data-notes\.json must be readable JSON"):
        _ = facts.data_notes


def test_a_broken_summary_is_refused_by_name(tmp_path: Path) -> None:
    folder = _run(tmp_path, example_run(2), with_model=False)
    (folder / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json must be readable JSON"):
        main(["report", str(folder)])


def _server(config: Config) -> dict[str, str]:
    return {row.adversary: f"{row.learns} / {row.cannot}" for row in what_each_learns(config, 4)}


def test_the_statement_for_each_adversary_follows_the_configuration() -> None:
    active = _server(Config())
    assert "sums over at least 3 of 4 hospitals" in active["a curious server"]
    assert any("get two sums of one round that differ in one hospital" in row for row in active.values())
    assert "of validation and test records than their ε allow" in active["a curious server"]
    exact = _server(EXACT)
    assert "exact evaluation counts" in exact["a curious server"]
    assert "what differs between two rounds' sums, nothing covers" in exact["a curious server"]
    semi = _server(replace(Config(), aggregation={"adversary": "semi-honest"}))
    assert any("possibly a single hospital's update" in row for row in semi.values())
    plain = _server(replace(Config(), aggregation={"mode": "plain"}, evaluation={"exact": True}))
    assert "nothing was masked" in plain["a curious server"]
    assert "ε and δ=0.0001 allow" in plain["a curious server"]


def test_without_noise_nobody_is_said_to_be_limited_by_epsilon() -> None:
    rows = _server(
        replace(Config(), privacy={"mode": "none"}, aggregation={"mode": "plain"}, evaluation={"exact": True})
    )
    assert "nothing is out of reach by proof" in rows["whoever holds the model"]
    assert "nothing is out of reach by proof" in rows["a curious server"]
    assert not any("ε and δ" in row for row in rows.values())


def _report(folder: Path, events: list[Event], classes: tuple[str, ...] = ("malignant", "benign")) -> str:
    """Return the report and the model card of a run."""
    _run(folder, events, with_model=False)
    history = RunFacts.read(folder).history
    facts = model_facts(history, classes, 1, None, last_epsilon=history.rounds[-1].epsilon_spent)
    save_model(folder, flat_parameters(registry.build("cnn", len(classes), 1, 28, seed=1)), facts)
    assert main(["report", str(folder)]) == 0
    return (folder / "report.md").read_text() + (folder / "model_card.md").read_text()


@pytest.mark.long
def test_a_report_of_exact_counts_says_so_and_claims_no_epsilon_for_them(tmp_path: Path) -> None:
    text = _report(tmp_path, example_run(3, config=EXACT))
    assert text.count("exact counts: not differentially private") >= 4
    assert "Test, after round r" in text
    assert "percentile bootstrap intervals" in text
    assert "covered by nothing in this run" in text
    assert "noise alone" not in text


def test_a_report_of_a_run_whose_test_failed_says_why_and_keeps_its_validation_curve(tmp_path: Path) -> None:
    events = example_run(4, tested=False)
    refusal = Refusal(time=1.0, round=5, hospital="hospital-2", reason="its budget is spent", code="evaluation_spent")
    text = _report(tmp_path, [*events[:-1], refusal, events[-1]])
    assert "not measured: no round that asks the test parts gave a result: hospital-2 refused" in text
    assert "Validation, after round r" in text
    assert "confusion.png" not in text
    assert not re.search(r"\bnan\b", text)


@pytest.mark.long
def test_a_report_of_three_classes_without_auc_has_dashes_and_no_roc(tmp_path: Path) -> None:
    text = _report(tmp_path, example_of_three_classes(3, has_auc=False), ("first", "second", "third"))
    assert "| AUC | – | – |" in text
    assert "roc.png" not in text
    assert "decision threshold" not in text


@pytest.mark.long
def test_a_server_that_holds_the_authoritys_key_is_told_where_the_guarantee_is(tmp_path: Path) -> None:
    text = _report(tmp_path, example_run(2, authority_on_server=True))
    assert "could certify hospitals of its own invention, and a sum over them and one real hospital is" in text
    assert "hospitals that it invents count among them" in text
    assert "> **The server holds the authority's key" in text


def test_the_first_screen_says_how_many_are_missed_how_sure_and_for_whom_not(reported: Path) -> None:
    text = (reported / "report.md").read_text()
    first = text[: text.index("## For whom this is")]
    for question in ("How many of the sick does it miss?", "How sure are these figures?", "For whom does it not work?"):
        assert question in first
    assert "in words: whoever holds the model" in first


@pytest.mark.long
def test_other_thresholds_are_given_at_the_prevalence_that_the_reader_names(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run", example_run(6))
    assert main(["report", str(folder), "--prevalence", "0.02"]) == 0
    text = (folder / "report.md").read_text()
    assert "where 2.0 % are sick" in text
    assert "specificity at least 95 %" in text
    assert "reliability.png" in text
    assert "These rows are rough" in text
    exact = _run(tmp_path / "exact", example_run(6, config=EXACT))
    assert main(["report", str(exact)]) == 0
    told = (exact / "report.md").read_text()
    assert "These rows are rough" not in told
    assert "over the sampling of records. They are read off" in told


def test_the_page_has_a_dark_side_and_tables_that_scroll_on_a_phone(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert page.count("<table>") == page.count('<div class="wide"><table>')
