"""Looks for secrets in the memory of a process, without bringing back those that are gone.

A secret is remembered only in a scrambled form, and the memory that is looked through is scrambled, in a buffer of its
own, to compare the two.
"""

import mmap
import os
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SECRET_BYTES = 32
PIECE_BYTES = 8
"""What of a secret is looked for: so little that a copy is found also where the allocator has written over its head."""

PIECES = SECRET_BYTES // PIECE_BYTES

_KEY = 0x5A
_BUFFER_BYTES = 1 << 20
_NOWHERE = range(1 << 64, 1 << 64)
_DIGIT_BITS = 30
_DIGITS = SECRET_BYTES * 8 // _DIGIT_BITS


class Remembered:
    """Secrets, each scrambled, with its kind."""

    def __init__(self) -> None:
        self._secrets: list[tuple[str, bytes]] = []

    def remember(self, kind: str, secret: bytes) -> None:
        """Remember the last 32 bytes of a secret."""
        last = memoryview(secret)[-SECRET_BYTES:]
        self._secrets.append((kind, bytes(byte ^ _KEY for byte in last)))

    def counts(self) -> Counter[str]:
        """Return how many secrets of each kind there were."""
        return Counter(kind for kind, _ in self._secrets)

    def find(self, process: int | str = "self") -> Counter[str]:
        """Return how many pieces of each kind there are in a process' memory, as bytes or as integers of Python's."""
        pieces = {piece: kind for kind, secret in self._secrets for piece in _as_bytes(secret)}
        pieces |= {piece: f"{kind} as integers" for kind, secret in self._secrets for piece in _as_integer(secret)}
        found: Counter[str] = Counter()
        buffer: NDArray[np.uint8] = np.frombuffer(mmap.mmap(-1, _BUFFER_BYTES), np.uint8)
        own = range(buffer.ctypes.data, buffer.ctypes.data + _BUFFER_BYTES)
        beginnings = np.zeros((2, 1 << 16), np.bool_)
        for half in (0, 1):
            beginnings[half, [int.from_bytes(piece[2 * half :][:2], "little") for piece in pieces]] = True
        memory = os.open(f"/proc/{process}/mem", os.O_RDONLY)
        for addresses in _writable_memory(process, own if process == "self" else _NOWHERE):
            for position in range(addresses.start, addresses.stop, _BUFFER_BYTES - PIECE_BYTES):
                try:
                    count = os.preadv(memory, [buffer[: addresses.stop - position].data], position)
                except OSError:
                    break  # Unmapped since it was listed.
                np.bitwise_xor(buffer[:count], _KEY, out=buffer[:count])
                found.update(pieces[piece] for piece in _present(buffer[:count], beginnings, pieces))
        os.close(memory)
        return found


def _as_bytes(secret: bytes) -> Iterator[bytes]:
    yield from (secret[start : start + PIECE_BYTES] for start in range(0, SECRET_BYTES, PIECE_BYTES))


def _as_integer(secret: bytes) -> Iterator[bytes]:
    digits = [_scrambled_digit(secret, number) for number in range(_DIGITS)]
    yield from (low + high for low, high in zip(digits[::2], digits[1::2], strict=True))


def _scrambled_digit(secret: bytes, number: int) -> bytes:
    """Return a digit of the integer that a scrambled secret stands for, as it is in scrambled memory.

    CPython has 30 bits in each four bytes, the lowest digit first. To scramble the secret flips bits of its digits, and
    to scramble memory flips others; nothing here needs the secret itself.
    """
    everywhere = bytes([_KEY]) * SECRET_BYTES
    in_secret, flipped = (
        int.from_bytes(number_of, "big") >> number * _DIGIT_BITS & (1 << _DIGIT_BITS) - 1
        for number_of in (secret, everywhere)
    )
    return (in_secret ^ flipped ^ int.from_bytes(everywhere[:4], "little")).to_bytes(4, "little")


def _writable_memory(process: int | str, without: range) -> Iterator[range]:
    """Yield the addresses that a process can write to, without those of one buffer."""
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        addresses, permissions = line.split()[:2]
        begin, end = (int(address, 16) for address in addresses.split("-"))
        if permissions.startswith("rw"):
            yield range(begin, min(end, without.start))
            yield range(max(begin, without.stop), end)


def _present(buffer: NDArray[np.uint8], beginnings: NDArray[np.bool_], pieces: Container[bytes]) -> Iterator[bytes]:
    """Yield the pieces in a buffer; few places are looked at twice, because few have the four first bytes of one."""
    for shift in (0, 1):
        pairs = buffer[shift : shift + (len(buffer) - shift) // 2 * 2].view("<u2")
        for place in 2 * np.flatnonzero(beginnings[0, pairs[:-1]] & beginnings[1, pairs[1:]]) + shift:
            piece = buffer[place : place + PIECE_BYTES].tobytes()
            if piece in pieces:
                yield piece
