"""The command feeds each decoder in a process of its own, and says so when one breaks."""

from pathlib import Path

import pytest

from common.errors import RunError
from tests.fuzz import fuzz
from tests.fuzz.decoders import DECODERS


def test_a_time_that_leaves_nothing_to_be_fed_is_refused() -> None:
    with pytest.raises(RunError, match="--seconds"):
        fuzz.main(["fuzz", "--seconds", "0"])


@pytest.mark.parametrize(("seconds", "says_so"), [(1, True), (fuzz.FEWEST_SECONDS, False)])
def test_a_time_that_is_too_short_to_judge_by_is_called_so(
    seconds: int, says_so: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "fuzz", lambda *_: True)
    assert fuzz.main(["fuzz", "--seconds", str(seconds), "--decoder", DECODERS[0].name]) == 0
    assert ("too few to judge by" in capsys.readouterr().out) is says_so


@pytest.mark.slow
def test_a_process_that_ends_badly_is_a_defect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not fuzz.fuzz("no-such-decoder", 1, tmp_path)
    assert "DEFECT" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_decoder_takes_or_refuses_what_it_is_fed_for_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["fuzz", "--seconds", str(10 * len(DECODERS))]) == 0
    assert capsys.readouterr().out.count(" ok") == len(DECODERS)
