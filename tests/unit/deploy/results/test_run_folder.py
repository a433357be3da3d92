from pathlib import Path

import pytest

from common.audit.chain import AUDIT_FILE
from common.errors import IdentityError, RunError
from common.identity.certificates import load_certificate
from common.run.delivery import DELIVERY_FILE, NEEDED_FILES, file_fact, read_delivery
from common.run.flat_model import hash_model
from common.telemetry.events import EVENTS_FILE, RunFinished
from deploy.audit.verify import find_authority, find_chains, verify
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, load_model
from deploy.results.outputs import METRICS_FILE, SUMMARY_FILE
from deploy.results.run_folder import ResultsKeeper, RunFolder, is_complete
from server.events import EventLog
from tests.support.audited_run import EPSILON, NAMES
from tests.support.example_run import example_run
from tests.support.finished_run import finished_run, goes_on_for_one_step

WRITTEN = (METRICS_FILE, SUMMARY_FILE, TENSORS_FILE, CARD_FILE, "report.html", "report.md", "model_card.md", "ca.pem")


def ended_run(state: Path) -> Path:
    """Return the folder of a run that has just ended, with what its server leaves there and nothing else."""
    return finished_run(state).folder


def _rows(folder: Path) -> int:
    return len((folder / METRICS_FILE).read_text().splitlines()) - 1


def test_metrics_grow_while_a_run_goes_on_and_a_restart_writes_them_again(tmp_path: Path) -> None:
    events = [event for event in example_run(4) if not isinstance(event, RunFinished)]
    with EventLog(tmp_path / "run") as log:
        folder = RunFolder(tmp_path / "run", tmp_path)
        for event in events:
            log.append(event)
        assert folder.bring_up_to_date() == tuple(events)
        assert _rows(tmp_path / "run") == 4
    again = RunFolder(tmp_path / "run", tmp_path)
    assert _rows(tmp_path / "run") == 0
    again.bring_up_to_date()
    assert _rows(tmp_path / "run") == 4
    assert not again.has_ended


def test_a_run_that_has_ended_leaves_all_its_files_and_they_verify(tmp_path: Path) -> None:
    folder = ended_run(tmp_path / "state")
    assert ResultsKeeper(tmp_path / "state").keep() == (folder,)
    assert {*WRITTEN, DELIVERY_FILE} <= {path.name for path in folder.iterdir()}
    assert (folder / "plots" / "learning.png").stat().st_size > 0
    verdict = verify(folder, find_chains(folder), find_authority(folder))
    assert (verdict.has_model, verdict.has_figures, verdict.is_complete) == (True, True, True)


def test_its_results_are_written_once_and_again_when_it_goes_on(tmp_path: Path) -> None:
    folder = ended_run(tmp_path / "state")
    keeper = ResultsKeeper(tmp_path / "state")
    assert keeper.keep() == (folder,)
    written = (folder / DELIVERY_FILE).stat().st_mtime_ns
    assert keeper.keep() == ()
    ResultsKeeper(tmp_path / "state").keep()
    assert (folder / DELIVERY_FILE).stat().st_mtime_ns == written
    assert is_complete(folder)
    with EventLog(folder) as log:
        log.append(RunFinished(time=9.0, reason="ended again", rounds_done=2))
    assert not is_complete(folder)
    keeper.keep()
    assert is_complete(folder)
    assert "ended again" in (folder / SUMMARY_FILE).read_text()


def test_what_is_signed_names_each_file_the_chain_head_and_who_may_have_it(tmp_path: Path) -> None:
    folder = ended_run(tmp_path / "state")
    run = RunFolder(folder, tmp_path / "state")
    run.bring_up_to_date()
    run.finish()
    authority = load_certificate(tmp_path / "state" / "ca.pem")
    delivery = read_delivery((folder / DELIVERY_FILE).read_bytes(), authority)
    assert set(NEEDED_FILES) == delivery.files.keys()
    assert all(file_fact(folder / name) == fact for name, fact in delivery.files.items())
    lines = (folder / AUDIT_FILE).read_bytes().count(b"\n")
    assert delivery.chain_head.startswith(f"{lines}:")
    assert delivery.hospitals == NAMES
    assert delivery.model_hash == hash_model(load_model(folder)[0]).hex()
    changed = delivery.model_copy(update={"chain_head": "1:" + 64 * "0"})
    with pytest.raises(IdentityError, match="it was changed"):
        read_delivery(changed.encode(), authority)


def test_a_run_that_ended_before_it_began_leaves_no_model(tmp_path: Path) -> None:
    with EventLog(tmp_path / "state" / "runs" / "early") as log:
        log.append(RunFinished(time=1.0, reason="too few hospitals", rounds_done=0))
    assert ResultsKeeper(tmp_path / "state").keep() == ()
    assert not (tmp_path / "state" / "runs" / "early" / TENSORS_FILE).exists()


def test_a_run_whose_files_are_damaged_says_so_and_does_not_end_the_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = ended_run(tmp_path / "state")
    chain = folder / AUDIT_FILE
    chain.write_bytes(chain.read_bytes()[:-1])
    keeper = ResultsKeeper(tmp_path / "state")
    assert keeper.keep() == ()
    assert "the last line must end in a newline" in capfd.readouterr().err
    with pytest.raises(RunError, match="a model is a folder"):
        load_model(folder)
    assert keeper.keep() == ()
    assert capfd.readouterr().err == ""


def test_of_a_stopped_run_report_and_model_card_say_what_the_step_cost_that_nobody_has_measured(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "state")
    run.write_results()
    pages = [run.folder / name for name in ("report.md", "model_card.md")]
    assert not any("a step after these figures" in page.read_text() for page in pages)
    goes_on_for_one_step(run, EPSILON + 1)
    run.write_results()
    said = f"a step after these figures, with which its ε is {EPSILON + 1:.2f}"
    assert all(said in page.read_text() for page in pages)


def test_an_unfinished_run_is_not_handed_to_anybody(tmp_path: Path) -> None:
    folder = ended_run(tmp_path / "state")
    lines = (folder / EVENTS_FILE).read_bytes().splitlines(keepends=True)
    (folder / EVENTS_FILE).write_bytes(b"".join(lines[:-1]))
    run = RunFolder(folder, tmp_path / "state")
    run.bring_up_to_date()
    assert run.finish()
    assert (folder / TENSORS_FILE).exists()
    assert not (folder / DELIVERY_FILE).exists()
