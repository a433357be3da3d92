from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import HospitalConfig, PrivacyUnit
from common.errors import DataError
from common.shards import Records, ShardDescription, Split, write
from deploy.demo.dealing import Deal, DealtCounts, Standing, count_dealt, stated

NAMES = ("hospital-1", "hospital-2", "hospital-3")
STABLE = 5.0


class _Table:
    """Writes an archive for each hospital and remembers how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.deals: list[int] = []

    def write(self, number: int) -> tuple[Path, ...]:
        self.deals.append(number)
        archives = tuple(self.folder / f"{position}.zip" for position in range(number))
        for archive in archives:
            archive.write_bytes(archive.name.encode())
        return archives


@pytest.fixture
def table(tmp_path: Path) -> _Table:
    return _Table(tmp_path)


def _deal(table: _Table, seats: int = 0) -> Deal:
    return Deal(table.folder, len(NAMES), seats, STABLE, table.write)


def _dealt(table: _Table, seats: int = 0) -> Deal:
    deal = _deal(table, seats)
    for name in NAMES:
        deal.ask(name)
    deal.look(len(NAMES), 0.0)
    deal.look(len(NAMES), STABLE)
    return deal


def test_nothing_is_dealt_before_the_number_of_hospitals_holds_still(table: _Table) -> None:
    deal = _deal(table)
    for name in NAMES:
        assert deal.ask(name) is Standing.WAIT
    deal.look(3, 0.0)
    deal.look(4, STABLE - 1)  # a fourth container has started
    deal.ask("hospital-4")
    deal.look(4, STABLE)
    deal.look(4, 2 * STABLE - 0.1)
    assert table.deals == []
    deal.look(4, 2 * STABLE)
    assert table.deals == [4]
    assert deal.hospitals == (*NAMES, "hospital-4")


def test_a_replica_that_has_not_asked_yet_is_waited_for(table: _Table) -> None:
    deal = _deal(table)
    for name in NAMES:
        deal.ask(name)
    deal.look(4, 0.0)
    deal.look(4, 100.0)
    assert deal.hospitals == ()


def test_too_few_hospitals_get_nothing(table: _Table) -> None:
    deal = _deal(table)
    for name in NAMES[:2]:
        deal.ask(name)
    deal.look(2, 0.0)
    deal.look(2, 100.0)
    assert deal.hospitals == ()


def test_each_hospital_gets_its_own_shard_once_and_the_dealer_keeps_none(table: _Table) -> None:
    deal = _dealt(table)
    for position, name in enumerate(NAMES):
        assert deal.ask(name) is Standing.READY
        assert deal.archive(name).read_bytes() == f"{position}.zip".encode()
        deal.taken(name)
        assert deal.ask(name) is Standing.SENT
    assert list(table.folder.glob("*.zip")) == []


def test_who_comes_after_the_deal_is_told_so(table: _Table) -> None:
    assert _dealt(table).ask("hospital-9") is Standing.LATE


def test_a_free_seat_has_a_shard_for_one_who_comes_later(table: _Table) -> None:
    deal = _dealt(table, seats=4)
    assert deal.ask("hospital-9") is Standing.READY
    assert deal.archive("hospital-9").read_bytes() == b"3.zip"
    deal.taken("hospital-9")
    assert deal.ask("hospital-10") is Standing.LATE
    assert _deal(table, seats=4).ask("hospital-9") is Standing.SENT


def test_a_dealer_that_starts_again_deals_the_same_hands_to_those_who_miss_theirs(table: _Table) -> None:
    _dealt(table).taken(NAMES[0])
    again = _deal(table)
    assert [again.ask(name) for name in NAMES] == [Standing.SENT, Standing.READY, Standing.READY]
    assert table.deals == [3, 3]
    assert not (table.folder / "0.zip").exists()
    assert again.archive(NAMES[1]).read_bytes() == b"1.zip"


def test_a_finished_deal_touches_the_data_no_more(table: _Table) -> None:
    deal = _dealt(table)
    for name in NAMES:
        deal.taken(name)
    assert _deal(table).hospitals == NAMES
    assert len(table.deals) == 1


def test_a_broken_memory_is_no_reason_to_deal_anew(table: _Table) -> None:
    (table.folder / "deal.json").write_text("{")
    with pytest.raises(DataError, match="must be readable and whole"):
        _deal(table)


def _shard(folder: Path) -> Path:
    """Write a shard of 104 training, 31 validation and 9 test records; patients have two records each."""
    sizes: dict[Split, int] = {"train": 104, "val": 31, "test": 9}
    parts = {
        part: Records(
            np.zeros((size, 1, 4, 4), np.uint8),
            (np.arange(size) % 3 == 0).astype(np.int64),
            tuple(f"{part}-{number // 2}" for number in range(size)),
        )
        for part, size in sizes.items()
    }
    write(folder, ShardDescription("a test", "pneumonia", ("normal", "pneumonia"), 1, 4), parts)
    return folder


def test_what_was_dealt_is_counted_by_the_unit_of_privacy(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "shard")
    assert count_dealt(shard, PrivacyUnit.RECORD) == DealtCounts(104, 31, 9, 35)
    assert count_dealt(shard, PrivacyUnit.PATIENT) == DealtCounts(52, 16, 5, 35)


def test_a_folder_without_a_shard_cannot_be_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold a shard that was dealt"):
        count_dealt(tmp_path, PrivacyUnit.RECORD)


@given(st.lists(st.integers(0, 2**24), min_size=4, max_size=4), st.integers(20, 2**24))
def test_what_is_stated_is_there_has_two_digits_and_is_taken_by_a_policy(counts: list[int], most: int) -> None:
    dealt = DealtCounts(*counts)
    told = stated(dealt, most)
    HospitalConfig.model_validate(told)
    assert told["stated_training_units"] <= max(20, min(dealt.training, most))
    assert told["stated_validation_units"] <= max(1, dealt.validation)
    assert told["stated_test_units"] <= max(1, dealt.test)
    assert told["stated_units_per_class"] <= dealt.per_class
    assert len(str(told["stated_test_units"]).rstrip("0")) <= 2
    assert told["stated_units_per_class"] > 0.9 * dealt.per_class - 1
