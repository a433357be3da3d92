"""Every property is tested without a deadline: none fails because a machine is busy."""

from hypothesis import settings

from deploy.source_tree import ROOT


def test_the_profile_has_no_deadline() -> None:
    assert settings.default is not None
    assert settings.default.deadline is None


def test_no_test_has_a_deadline_of_its_own() -> None:
    word = "dead" + "line="
    files = (path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert not [path.name for path in files if f"({word}" in path.read_text() or f", {word}" in path.read_text()]
