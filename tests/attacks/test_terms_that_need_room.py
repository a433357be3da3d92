"""A server counts a hospital's records of one label by the room that a run takes, and trains on data of no ledger.

It chooses size, copies, channels and the label map, so how much memory and disk a run takes is a number of records
times what it likes. A hospital that refused when they ran out would tell that number. At 2a86673 each question was
answered: channels of 4 gave images of no shape that could be kept, so exactly a hospital with such a record refused; so
did one whose cache or memory was full, or whose accepted backbone failed on an image of a chosen kind.

A running agent kept its ledger for the next run, whatever images its folder held by then.
"""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import client.warps
from common.config import Config, HospitalConfig, RunDescription, replace
from common.errors import ConfigError
from common.run.messages import KeysReply, RefusedReply, Reply
from tests.support.asking_server import AskingServer, Terms
from tests.support.hospital_folder import Hospital, healthy, png
from tests.support.planted_mistakes import another_chest

RECORDS_AT_HAND = 60
SIDE = 28


def of_two_hospitals(folder: Path, terms: Terms, change: Any, policy: HospitalConfig | None = None) -> list[Reply]:  # noqa: ANN401 - a function of one or two arguments
    """Return the answers of a hospital's twins, of which ``change`` makes one."""
    replies = []
    for is_changed in (False, True):
        made = healthy(folder / f"data {is_changed}")
        change(made, is_changed)
        server = AskingServer(policy)
        replies.append(server.ask(server.agent(folder / f"hospital {is_changed}", made.folder), terms))
    return replies


def one_more(label: str, other: str) -> Any:  # noqa: ANN401 - as above
    def change(made: Hospital, is_changed: bool) -> None:
        label_of_it = label if is_changed else other
        made.add("one-more.png", png(another_chest(seed=9)), (label_of_it, "p-new", "train"))

    return change


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_no_run_can_ask_for_a_number_of_channels_that_no_image_has(channels: int) -> None:
    with pytest.raises(ConfigError, match="1 \\(grey\\) or 3 \\(colour\\)"):
        replace(Config(), task={"channels": channels})
    good = AskingServer().described({}).canonical_json()
    with pytest.raises(ConfigError):
        RunDescription.from_json(good.replace(b'"channels":1', b'"channels":%d' % channels))


def test_a_full_disk_does_not_count_the_records_that_a_map_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    room = SimpleNamespace(total=10**9, used=0, free=RECORDS_AT_HAND * SIDE**2 + 100)
    monkeypatch.setattr("client.data.cache.shutil.disk_usage", lambda _folder: room)
    classes = {"kind": "binary", "classes": ("normal", "pneumonia"), "positive": ("pneumonia",)}
    terms: Terms = {"task": {**classes, "labels": {"effusion": ""}}}
    replies = of_two_hospitals(tmp_path, terms, one_more("pneumonia", "effusion"))
    assert all(isinstance(reply, KeysReply) for reply in replies)
    # It has no room for either of them: images that the map leaves out take as much.
    assert caplog.text.count("no record counts in this run") == len(replies)


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device")], ids=["memory", "disk"])
def test_memory_for_copies_does_not_count_them_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    made_room = client.warps._room
    most = 16 * SIDE**2 * 40  # the training records that are there

    def room(shape: tuple[int, ...], folder: Path | None) -> Any:  # noqa: ANN401 - an array
        if np.prod(shape) > most:
            raise error
        return made_room(shape, folder)

    monkeypatch.setattr(client.warps, "_room", room)
    terms: Terms = {"model": {"name": "scattering_linear"}, "training": {"copies": 16, "warp": "chest"}}

    def change(made: Hospital, is_changed: bool) -> None:
        if is_changed:
            made.add("one-more.png", png(another_chest(seed=9)), ("normal", "p-new", "train"))

    replies = of_two_hospitals(tmp_path, terms, change)
    assert all(isinstance(reply, KeysReply) for reply in replies)
    assert "none of them counts in this run" in caplog.text


def fails_on_a_bright_image() -> bytes:
    """Return an ONNX file of allowed operators that looks up a table of one row: at row 0 for all but bright images."""

    def constant(name: str, value: Any) -> Any:  # noqa: ANN401 - of onnx
        return numpy_helper.from_array(np.asarray(value), name)

    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["mean", "limit"], ["over"]),
        helper.make_node("Mul", ["over", "steep"], ["far"]),
        helper.make_node("Clip", ["far", "zero", "top"], ["place"]),
        helper.make_node("Cast", ["place"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "one"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["features"], axis=0),
    ]
    constants = [
        constant("limit", np.float32(0.8)),
        constant("steep", np.float32(1e6)),
        constant("zero", np.float32(0)),
        constant("top", np.float32(1000)),
        constant("one", np.array([1], np.int64)),
        constant("table", np.ones((1, 8), np.float32)),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", 3, "h", "w"))
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "trap", [image], [features], constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    return bytes(model.SerializeToString())


def test_an_accepted_backbone_that_fails_on_one_kind_of_image_does_not_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = fails_on_a_bright_image()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "trap.onnx").write_bytes(encoded)
    monkeypatch.setenv("CONFIDE_WEIGHTS", str(tmp_path / "weights"))
    named = hashlib.sha256(encoded).hexdigest()
    model = {"name": "backbone_linear", "backbone": "onnx", "features": 8, "sha256": named, "pixels": "zero_one"}

    def change(made: Hospital, is_changed: bool) -> None:
        image = 230 - another_chest(seed=9) // 10 if is_changed else another_chest(seed=9)
        made.add("one-more.png", png(image), ("normal", "p-new", "train"))

    task = {"kind": "binary", "classes": ("normal", "pneumonia"), "positive": ("pneumonia",), "images": "any"}
    policy = HospitalConfig(accepted_models=(named,))
    replies = of_two_hospitals(tmp_path, {"experiment": {"task": "own"}, "model": model, "task": task}, change, policy)
    assert all(isinstance(reply, KeysReply) for reply in replies)
    assert "none of them counts in this run" in caplog.text


def test_the_next_run_of_a_running_agent_does_not_train_on_images_that_its_ledger_does_not_know(
    tmp_path: Path,
) -> None:
    made, server = healthy(tmp_path / "data"), AskingServer()
    agent = server.agent(tmp_path / "hospital", made.folder)
    assert isinstance(server.ask(agent, {}), KeysReply)
    for number in range(len(made.rows)):
        made.file(number).write_bytes(png(another_chest(seed=1000 + number)))
    for terms in ({}, {"model": {"image_size": 32}}):
        reply = server.ask(agent, terms)
        assert isinstance(reply, RefusedReply)
        assert "its operator knows why" in reply.reason


def test_the_next_run_of_a_running_agent_does_without_a_row_that_was_withdrawn(tmp_path: Path) -> None:
    made, server = healthy(tmp_path / "data"), AskingServer()
    agent = server.agent(tmp_path / "hospital", made.folder)

    def trained_on() -> int:
        assert isinstance(server.ask(agent, {}), KeysReply)
        assert agent._run is not None
        return len(agent._run.contributor._train)

    before = trained_on()
    made.rows = made.rows[3:]  # All three of the training part; the files stay.
    made.write_manifest()
    assert trained_on() == before - 3
