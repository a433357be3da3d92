"""What carries a part of an array is an object of Flower's, and only such an object is taken for one."""

import hashlib

import numpy as np
import pytest
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from hypothesis import given
from hypothesis import strategies as st

from common.flower.carried import Piece, array_head, cut, is_name, part_of
from common.flower.waits import PIECE_BYTES
from common.run.messages import join_array, read_array


@given(st.binary(max_size=300))
def test_a_piece_is_flowers_own_object(part: bytes) -> None:
    piece, flowers = Piece(lambda: part), ArrayChunk(memoryview(part))
    assert piece.content() == flowers.deflate()
    assert piece.name == flowers.object_id == get_object_id(piece.content())
    validate_object_content(piece.content())
    assert part_of(piece.content()) == part


@given(st.binary(max_size=80))
def test_what_is_no_piece_is_refused(content: bytes) -> None:
    if not content.startswith(b"ArrayChunk  "):
        with pytest.raises(ValueError, match="must hold a part"):
            part_of(content)


@pytest.mark.parametrize("content", [b"ArrayChunk  4", b"ConfigRecord  1\0x", b"Array  0\0", b"ArrayChunk,4\0abcd"])
def test_other_objects_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="must hold a part"):
        part_of(content)


def test_a_piece_that_is_too_long_is_refused() -> None:
    longest = bytes(PIECE_BYTES)
    assert part_of(Piece(lambda: longest).content()) == longest
    with pytest.raises(ValueError, match="bytes at most"):
        part_of(Piece(lambda: longest + b"x").content())


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.float32])
def test_head_and_numbers_are_a_numpy_file(dtype: type[np.generic]) -> None:
    array = np.arange(PIECE_BYTES // np.dtype(dtype).itemsize + 7, dtype=dtype)
    encoded = array_head(array.dtype, len(array)) + array.tobytes()
    np.testing.assert_array_equal(read_array(encoded), array)
    pieces = list(cut(memoryview(encoded)))
    assert [len(piece) for piece in pieces[:-1]] == [PIECE_BYTES]
    np.testing.assert_array_equal(join_array(pieces, array.nbytes), array)


@pytest.mark.parametrize("name", ["", "0" * 63, "G" * 64, "A" * 64, "0" * 65])
def test_only_hashes_are_names(name: str) -> None:
    assert not is_name(name)
    assert is_name(hashlib.sha256(name.encode()).hexdigest())
