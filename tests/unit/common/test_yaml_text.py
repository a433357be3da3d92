"""YAML is read as PyYAML's safe loader reads it, in time that does not grow with the square of its length."""

import pytest
import yaml

from common.yaml_text import NO_YAML, read_yaml


@pytest.mark.parametrize(
    "text", ["a: {b: [1, 2.5, yes]}\nc:\n- d\n- ~\n", "", "x", b"\xef\xbb\xbfa: \xc3\xa9\n", "&a [1, *a]", "2025-01-02"]
)
def test_it_reads_what_the_safe_loader_reads(text: str | bytes) -> None:
    assert repr(read_yaml(text)) == repr(yaml.safe_load(text))


@pytest.mark.parametrize("text", ["[", "a: b: c", "!!python/object/apply:os.system [x]", "a: *b", "--- a\n--- b", "\0"])
def test_what_the_safe_loader_refuses_is_refused_with_the_same_error(text: str) -> None:
    with pytest.raises(NO_YAML) as expected:
        yaml.safe_load(text)
    with pytest.raises(type(expected.value)):
        read_yaml(text)


def test_as_many_brackets_as_are_allowed_are_read() -> None:
    depth, found = 0, read_yaml("[" * 64 + "]" * 64)
    while found:
        depth, (found,) = depth + 1, found
    assert depth == 63
    with pytest.raises(RecursionError, match="at most 64 brackets"):
        read_yaml("[" * 65 + "]" * 65)


@pytest.mark.parametrize("opened", ["[", "{", "[{a: ", "- ", "? "])
def test_deep_nesting_ends_in_an_error_however_deep_it_is(opened: str) -> None:
    with pytest.raises(NO_YAML):
        read_yaml(opened * 20_000)
