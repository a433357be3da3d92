"""No decoder of bytes from outside does anything with bad ones but refuse them with its typed error.

Each file of the corpus is read as it is; then Hypothesis cuts, flips, repeats and joins them. What ``confide dev fuzz``
finds is kept in the corpus, so that it is tried here for ever.
"""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import DECODERS, Decoder, feed

CORPUS = Path(__file__).with_name("corpus")

ROOM_BYTES = 32 * 2**20
"""What any decoder may need however short the bytes: larger than a decoded image of the corpus, smaller than harm."""

ROOM_FOR_EACH_BYTE = 200

by_name = pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)


def corpus(decoder: Decoder) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / decoder.name).iterdir())]


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Change a file of the corpus in a few places, or put an end of one on a beginning of another."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(("flip", "cut", "insert", "repeat", "join"))):
            case "flip" if place < len(content):
                content[place] ^= draw(st.integers(1, 255))
            case "cut":
                del content[place : place + draw(st.integers(1, 64))]
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=16))
            case "repeat":
                content[place:place] = content[: draw(st.integers(1, 64))] * 3
            case "join":
                content[place:] = draw(st.sampled_from(originals))[place:]
            case _:
                pass
    return bytes(content)


@by_name
def test_a_seed_is_taken_so_that_what_is_made_of_it_gets_far(decoder: Decoder) -> None:
    seeds = sorted((CORPUS / decoder.name).glob("seed-*"))
    assert seeds
    assert all(feed(decoder, seed.read_bytes()) for seed in seeds)


def feed_within_memory(decoder: Decoder, content: bytes) -> None:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    feed(decoder, content)
    grown = tracemalloc.get_traced_memory()[1] - before
    assert grown <= ROOM_BYTES + ROOM_FOR_EACH_BYTE * len(content)


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


@by_name
@pytest.mark.usefixtures("_traced")
def test_what_was_found_before_is_refused_or_taken_within_bounded_memory(decoder: Decoder) -> None:
    for content in corpus(decoder):
        feed_within_memory(decoder, content)


@by_name
@pytest.mark.usefixtures("_traced")
def test_changed_bytes_are_refused_or_taken_within_bounded_memory(decoder: Decoder) -> None:
    originals = [seed.read_bytes() for seed in sorted((CORPUS / decoder.name).glob("seed-*"))]

    # What fails is shown as it is: to make it smaller takes minutes with a long file.
    @settings(
        max_examples=30,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(mutated(originals), mutated(originals), st.binary(max_size=200)))
    def decode(content: bytes) -> None:
        feed_within_memory(decoder, content)

    decode()
