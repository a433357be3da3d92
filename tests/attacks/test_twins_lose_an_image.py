"""An image that is removed or damaged while a run goes on changes the masked vector, and nothing else that leaves."""

import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from client.contribution import Contributor
from client.data import watch as watching
from client.data.hospital_data import HospitalData
from client.data.watch import Gone, Origin, Origins, OriginsWriter, Watch, stamp_of
from common.errors import DataError
from common.shards import Split
from tests.support import twins
from tests.support.twins import Difference, Talk, Twins, TwinsDifferError, quick_accounting, random_policy, twin_data

CONVERSATIONS = 40
ON_FEATURES = 15
PARTS: tuple[Split, ...] = ("train", "val", "test")


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PACE", 0)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with quick_accounting():
        yield
    logging.disable(logging.NOTSET)


class _Counting(Watch):
    """A watch over real files that counts what it told."""

    def __init__(self, root: Path, parts: dict[Split, Origins]) -> None:
        super().__init__(root, parts)
        self.told: list[int] = []

    def gone(self) -> Gone:
        found = super().gone()
        self.told.append(len(found.files))
        return found


def in_files(data: HospitalData, folder: Path) -> HospitalData:
    """Return the same data with a file for each record, and a watch over them."""
    folder.mkdir(parents=True)
    parts = {}
    for split, part in zip(PARTS, (data.train, data.validation, data.test), strict=True):
        writer = OriginsWriter()
        for number, image in enumerate(part.images):
            name = f"{split}-{number}"
            (folder / name).write_bytes(image.tobytes())
            writer.add(Origin(name, bytes(32), stamp_of(folder, name)))
        parts[split] = Origins(bytes(writer.files), bytes(writer.digests), bytes(writer.stamps))
    return replace(data, watch=_Counting(folder, parts))


class Losing(Talk):
    """A server before whose requests, now and then, a file of the second twin's data is removed or cut short."""

    folder: Path

    def step(self) -> None:
        for path in sorted(self.folder.iterdir()):
            if self.source.random() < 0.2:
                path.unlink() if self.source.random() < 0.5 else path.write_bytes(b"cut short")
        super().step()


@dataclass
class Tally:
    """What was compared: vectors of twins, and rounds in which the second had lost an image."""

    vectors: int = 0
    lost: int = 0


def hold(conversations: int, folder: Path) -> Tally:
    tally = Tally()
    for seed in range(conversations):
        source = random.Random(seed)  # noqa: S311 - repeatable
        same, _ = twin_data(Difference.PIXEL, seed)
        data = in_files(same, folder / "kept"), in_files(same, folder / "losing")
        pair = Twins(folder, seed, random_policy(source, data), data)
        talk = Losing(pair, source)
        talk.folder = folder / "losing"
        try:
            talk.hold(2)
        finally:
            shutil.rmtree(folder)
        kept, losing = (each.watch for each in data)
        assert isinstance(kept, _Counting)
        assert isinstance(losing, _Counting)
        assert not any(kept.told)
        tally.vectors += pair.vectors
        tally.lost += sum(count > 0 for count in losing.told)
    return tally


def test_a_lost_image_is_seen_in_nothing_but_the_vector(tmp_path: Path) -> None:
    tally = hold(CONVERSATIONS, tmp_path / "twins")
    assert tally.vectors > CONVERSATIONS
    assert tally.lost > tally.vectors // 2


@pytest.fixture
def on_features() -> Iterator[None]:
    with twins.on_features():
        yield


@pytest.mark.usefixtures("on_features")
def test_nor_is_it_in_runs_on_features_with_copies_and_a_mean(tmp_path: Path) -> None:
    tally = hold(ON_FEATURES, tmp_path / "twins")
    assert tally.vectors > ON_FEATURES
    assert tally.lost > tally.vectors // 2


def test_the_harness_finds_a_refusal_for_a_lost_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out = Contributor._leave_out_what_is_gone

    def refuse(self: Contributor) -> None:
        leave_out(self)
        if self._gone.files:
            raise DataError("an image cannot be read")

    monkeypatch.setattr(Contributor, "_leave_out_what_is_gone", refuse)
    with pytest.raises(TwinsDifferError):
        hold(5, tmp_path / "twins")
