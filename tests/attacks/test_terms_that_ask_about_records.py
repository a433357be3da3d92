"""A server that asks for one run after the other learns from no refusal what a hospital's records are.

The terms of a run say how large images are, which colours and which kind of image they have, whom privacy protects,
and what labels mean. A hospital whose data is in order joins under all of them, and so does its twin with one record
that the terms would tell apart. (At 30890c7, and until 0.2.0 was nearly done, each of these terms told a bit: whether
the smallest image is below a size, whether one image is coloured, whether a patient has two findings, and so on.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.run.messages import KeysReply, Reply
from tests.support.asking_server import AskingServer, Terms
from tests.support.hospital_folder import Hospital, chest_images, dicom, healthy, png
from tests.support.planted_mistakes import another_chest

Change = Callable[[Hospital], None]


def smaller(hospital: Hospital) -> None:
    hospital.add("new.png", png(another_chest(29)))


def coloured(hospital: Hospital) -> None:
    grey = another_chest(32)
    hospital.add("new.png", png(np.stack([grey, grey // 2, grey // 4], axis=2)))


def of_nobody_known(hospital: Hospital) -> None:
    hospital.add("new.png", png(another_chest(32)), ("normal", "", "train"))


def negative(hospital: Hospital) -> None:
    hospital.add("new.png", png(255 - another_chest(32)))


def of_another_kind(hospital: Hospital) -> None:
    hospital.add("new.dcm", dicom(another_chest(32), Modality="CT", BodyPartExamined="KNEE"))


def with_another_finding(hospital: Hospital) -> None:
    hospital.change(0, "label", "effusion")


def alike_when_small(hospital: Hospital) -> None:
    picture = chest_images()[0].copy()
    picture[0, 0] ^= 1
    hospital.add("new.png", png(picture))


def often_there(hospital: Hospital) -> None:
    for number in range(12):
        hospital.add(f"new-{number}.png", png(another_chest(32, 100 + number)), ("effusion", "p-often", "train"))


def _task(classes: tuple[str, str], labels: dict[str, str]) -> dict[str, Any]:
    return {"kind": "binary", "classes": classes, "positive": classes[1:], "labels": labels}


@dataclass(frozen=True)
class Question:
    """Terms of a server's choice, and a record that would be told by who refuses them."""

    terms: Terms
    change: Change


QUESTIONS = {
    "is an image below this size?": Question({"model": {"image_size": 32}}, smaller),
    "is every image below this size?": Question({"model": {"image_size": 64}}, smaller),
    "is an image coloured?": Question({}, coloured),
    "is every image grey?": Question({"task": {**_task(("normal", "pneumonia"), {}), "channels": 3}}, coloured),
    "is an image of nobody known?": Question({"privacy": {"unit": "patient"}}, of_nobody_known),
    "is an image a negative?": Question(
        {"task": {**_task(("normal", "pneumonia"), {}), "images": "chest_radiograph"}}, negative
    ),
    "does a header name another kind?": Question(
        {"task": {**_task(("normal", "pneumonia"), {}), "images": "chest_radiograph"}}, of_another_kind
    ),
    "has a patient two findings?": Question(
        {"task": _task(("other", "effusion"), {"normal": "other", "pneumonia": "other"})}, with_another_finding
    ),
    "are two pictures alike at this size?": Question({"model": {"image_size": 28}}, alike_when_small),
    "has one patient most of a finding?": Question(
        {"task": _task(("other", "effusion"), {"normal": "", "pneumonia": ""})}, often_there
    ),
}


def joins(folder: Path, terms: Terms, change: Change | None) -> Reply:
    """Return what a hospital answers a server that begins a run of these terms."""
    folder.mkdir()
    hospital = healthy(folder / "data")
    if change is not None:
        change(hospital)
    server = AskingServer()
    return server.ask(server.agent(folder, hospital.folder), terms)


@pytest.mark.parametrize("asked", QUESTIONS)
def test_no_term_of_a_run_is_refused_for_what_a_record_is(tmp_path: Path, asked: str) -> None:
    question = QUESTIONS[asked]
    replies = [
        joins(tmp_path / str(number), question.terms, change) for number, change in enumerate((None, question.change))
    ]
    assert [type(reply) for reply in replies] == [KeysReply, KeysReply], replies
