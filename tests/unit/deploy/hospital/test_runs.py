"""What an operator sees of a proposal: all that decides what is learnt, on a page that its sender cannot deface."""

from pathlib import Path

import pytest

from client.agreement import KeptProposal, RunAgreements
from common.config import Config, replace
from common.task import MOST_SPELLINGS
from deploy.hospital import runs as runs_command
from deploy.hospital.runs import told
from deploy.terminal import fact_lines
from tests.support.proposed_run import CONFIG, NOW, Members

MEMBERS = Members.made()
WIDTH = 80
PAGE_LINES = 60
MANY = {f"finding {number}": "pneumonia" for number in range(20)}
TASK = {
    "kind": "binary", "classes": ("normal", "pneumonia"), "positive": ("pneumonia",), "uncertain": "positive",
    "empty": "leave_out", "labels": {**MANY, "HIV": "pneumonia", "old": ""}, "channels": 1, "images": "any",
}  # fmt: skip


def page(state: Path, config: Config, *, whole: bool = False) -> list[str]:
    proposal = MEMBERS.proposal(config)
    RunAgreements(state).keep(proposal, NOW)
    (kept,) = RunAgreements(state).all()
    assert isinstance(kept, KeptProposal)
    return list(fact_lines(told(kept, MEMBERS.hospital("st-mary", state), NOW, whole=whole), whole_words=False))


def said(lines: list[str], head: str) -> str:
    """Return the words under a head, on one line."""
    start = next(place for place, line in enumerate(lines) if line.startswith(f"{head:16}"))
    below = lines[start + 1 :]
    rest = next((place for place, line in enumerate(below) if line[:16].strip()), len(below))
    return " ".join(line[16:] for line in [lines[start], *below[:rest]])


def test_a_task_whose_name_is_free_text_is_shown_by_what_it_takes_labels_for(tmp_path: Path) -> None:
    lines = page(tmp_path, replace(CONFIG, task=TASK), whole=True)
    assert said(lines, "kind of task") == "binary"
    assert said(lines, "classes") == '"normal", "pneumonia"'
    assert said(lines, "positive") == '"pneumonia"'
    assert all(f'"{written}"' in said(lines, "label map") for written in (*MANY, "HIV"))
    assert 'is "pneumonia"' in said(lines, "label map")
    assert '"old" is nothing of this task' in said(lines, "label map")
    assert said(lines, "uncertain") == "labels are taken for positive"
    assert said(lines, "empty") == "labels are left out"
    assert max(map(len, lines)) <= WIDTH


def test_a_long_map_is_shortened_with_how_many_more_there_are(tmp_path: Path) -> None:
    lines = page(tmp_path, replace(CONFIG, task={**TASK, "labels": {**MANY, 120 * "x": "normal"}}))
    assert "and 12 more (--all)" in said(lines, "label map")
    assert f"{40 * 'x'}… (120 letters)" in said(lines, "label map")
    assert max(map(len, lines)) <= WIDTH


def test_a_model_from_outside_is_shown_with_its_hash_and_its_images(tmp_path: Path) -> None:
    model = {"name": "backbone_linear", "backbone": "lungs", "features": 64, "sha256": 64 * "a", "image_size": 224}
    lines = page(tmp_path, replace(CONFIG, model=model, training={"copies": 4, "warp": "chest"}))
    assert said(lines, "model").startswith("backbone_linear, images of 224 x 224 pixels, 1 channels, 4 copies of each")
    assert said(lines, "SHA-256") == 64 * "a"
    assert said(lines, "backbone").startswith("lungs, 64 features")
    assert max(map(len, lines)) <= WIDTH


def test_nothing_that_the_server_chose_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    evil = "\x1b[2Jnormal\r\u202e\nclasses         approved"
    lines = page(tmp_path, replace(CONFIG, task={**TASK, "labels": {evil: "pneumonia", '" is "normal"': "pneumonia"}}))
    assert all(line.isprintable() and len(line) <= WIDTH for line in lines)
    assert [line for line in lines if line.startswith("classes")] == ['classes         "normal", "pneumonia"']
    assert r'"\" is \"normal\""' in said(lines, "label map")
    assert r"\x1b[2Jnormal\r\u202e\nclasses" in said(lines, "label map")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("n\u043ermal", r'"n\u043ermal"'),
        ("norma\u0301l", r'"norma\u0301l"'),
        ("nor\u200bmal", r'"nor\u200bmal"'),
        ("nor\xa0mal", r'"nor\xa0mal"'),
        ("\uff4eormal", r'"\uff4eormal"'),
        ("Lungenentzündung, œdème", '"Lungenentzündung, œdème"'),
        ("a\\b", r'"a\\b"'),
    ],
)
def test_two_names_that_differ_look_different(tmp_path: Path, name: str, shown: str) -> None:
    lines = page(tmp_path, replace(CONFIG, task={**TASK, "labels": {name: "pneumonia"}}))
    assert shown in said(lines, "label map")
    assert max(map(len, lines)) <= WIDTH


def test_the_longest_map_fills_no_more_than_a_page(tmp_path: Path) -> None:
    labels = {f"{number:0119d}x": "pneumonia" for number in range(MOST_SPELLINGS)}
    assert len(page(tmp_path, replace(CONFIG, task={**TASK, "labels": labels}))) <= PAGE_LINES


def test_the_command_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    RunAgreements(tmp_path).keep(MEMBERS.proposal(replace(CONFIG, task=TASK)), NOW)
    hospital = MEMBERS.hospital("st-mary", tmp_path)
    monkeypatch.setattr("client.agreement.Hospital.read", lambda _state: hospital)
    assert runs_command.runs.main(["--state", str(tmp_path)], standalone_mode=False) == 1
    assert "20 more" not in (shown := capsys.readouterr().out)
    assert "and 13 more (--all)" in shown
    assert runs_command.runs.main(["--all", "--state", str(tmp_path)], standalone_mode=False) == 1
    assert '"HIV"' in capsys.readouterr().out
