"""Which version a run has, and who is told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent import _require_version
from common.config import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from common.errors import OtherVersionError, RunError
from common.run import messages
from common.run.versions import SPOKEN, Window, newest_common, version_for_run
from tests.support.released_formats import description

windows = st.tuples(st.integers(1, 6), st.integers(0, 3)).map(lambda pair: Window(pair[0], sum(pair)))


@given(st.lists(windows, min_size=1, max_size=5))
def test_the_newest_common_version_is_spoken_by_all_and_the_next_one_is_not(speak: list[Window]) -> None:
    common = [version for version in range(1, 12) if all(version in window for window in speak)]
    assert newest_common(speak) == max(common, default=None)


def test_a_run_has_the_newest_version_that_the_server_and_all_it_names_speak() -> None:
    here = Window(3, 4)
    assert version_for_run(here, {"a": Window(3, 3), "b": Window(3, 4)}, {}) == 3
    assert version_for_run(here, {"a": Window(4, 5), "b": Window(3, 4)}, {}) == 4


def test_members_that_are_not_named_count_where_that_costs_nobody_the_run() -> None:
    here = Window(3, 4)
    assert version_for_run(here, {"a": Window(3, 4)}, {"c": Window(3, 3)}) == 3
    assert version_for_run(here, {"a": Window(4, 4)}, {"c": Window(3, 3)}) == 4
    assert version_for_run(here, {"a": Window(3, 4)}, {"c": Window(2, 2)}) == 4


def test_who_speaks_another_version_is_named_with_what_to_do() -> None:
    with pytest.raises(RunError, match="this server speaks version 3, got st-anne version 2; upgrade the older side"):
        version_for_run(Window(3, 3), {"st-anne": Window(2, 2), "general": Window(3, 3)}, {})
    with pytest.raises(RunError, match="a version 3, b version 4"):
        version_for_run(Window(3, 4), {"a": Window(3, 3), "b": Window(4, 4)}, {})


def test_a_window_goes_from_an_older_version_to_a_newer_one() -> None:
    for oldest, newest in ((0, 3), (4, 3)):
        with pytest.raises(RunError, match="must go from an older one to a newer one"):
            Window(oldest, newest)
    assert Window(OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION) == SPOKEN
    # 0.1.0 spoke version 2, which does not bind what decides a vector: it stays outside for good.
    assert OLDEST_PROTOCOL_VERSION >= 3


def test_a_message_goes_out_and_comes_in_in_its_runs_version() -> None:
    request = messages.SharesRequest(run_id="ab" * 16, round_number=1, directory=b"keys")
    assert messages.in_version(request, request.version) is request
    next_one = messages.in_version(request, PROTOCOL_VERSION + 1)
    encoded = messages.encode(next_one)
    assert messages.decode_request(encoded, Window(PROTOCOL_VERSION, PROTOCOL_VERSION + 1)) == next_one
    with pytest.raises(OtherVersionError, match="the server speaks version 4, this hospital speaks version 3"):
        messages.decode_request(encoded)


def test_a_request_of_another_version_than_its_runs_is_refused() -> None:
    run = description()
    _require_version(run, run.protocol_version)
    with pytest.raises(OtherVersionError, match="must be of its run's version of the protocol, 3, got version 4"):
        _require_version(run, run.protocol_version + 1)


def test_the_version_of_a_run_is_part_of_what_keys_and_signatures_bind() -> None:
    run = description()
    assert run.model_copy(update={"protocol_version": PROTOCOL_VERSION + 1}).hash() != run.hash()
