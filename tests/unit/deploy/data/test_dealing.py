from pathlib import Path

import pytest

from common.errors import DataError
from deploy.data.dealing import Deal, Standing

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
