"""A is what AES-256-CTR gives under a hash of public things, and nothing else."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from common.proved_sums import expansion
from common.proved_sums.expansion import UniformStream, matrix_key
from common.proved_sums.parameters import parameters_for
from common.secagg.parameters import VERSION
from tests.support.parties import Consortium

RUN = Consortium(4).run
PARAMETERS = parameters_for(300, 16, 4)


def test_the_key_is_the_hash_of_version_run_and_sizes() -> None:
    parts = [
        b"confide secagg", bytes([VERSION]), b"commitment matrix", bytes.fromhex(RUN.run_id), RUN.config_hash,
        *(size.to_bytes(8, "big") for size in (256, 4, 2**32 - 99, 300, 2816)),
    ]  # fmt: skip
    packed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    assert matrix_key(RUN, PARAMETERS) == hashlib.sha256(packed).digest()


def test_another_run_configuration_or_size_has_another_matrix() -> None:
    keys = {
        matrix_key(RUN, PARAMETERS),
        matrix_key(replace(RUN, run_id="f" * 32), PARAMETERS),
        matrix_key(replace(RUN, config_hash=bytes(32)), PARAMETERS),
        matrix_key(RUN, parameters_for(301, 16, 4)),
        matrix_key(RUN, parameters_for(300, 32, 4)),
    }
    assert len(keys) == 5


def test_integers_are_the_words_of_the_stream() -> None:
    # Published: NIST SP 800-38A, F.5.5, CTR-AES256, gives the cipher; the words are little-endian.
    key = bytes(range(32))
    words = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(64))
    expected = [int.from_bytes(words[start : start + 4], "little") for start in range(0, 64, 4)]
    assert UniformStream(key, 2**32 - 99, 16).take(16).tolist() == expected


@pytest.mark.parametrize("limit", [2**31, 2**30 + 5])
def test_words_that_are_too_large_are_skipped_and_the_rest_keeps_its_order(limit: int) -> None:
    key = bytes(range(32))
    words = np.frombuffer(Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(4 * 2000)), "<u4")
    expected = words[words < limit]
    stream = UniformStream(key, limit, 200)
    found = np.concatenate([stream.take(count).copy() for count in (1, 199, 200)])
    # A call that is short of integers takes whole words beyond it, which then come next.
    assert found.tolist() == expected[: len(found)].tolist()


def test_more_than_one_call_of_the_cipher_continues_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = UniformStream(bytes(32), 2**64 - 59, 1000).take(1000).copy()
    monkeypatch.setattr(expansion, "_ZEROS", bytes(48))
    assert UniformStream(bytes(32), 2**64 - 59, 1000).take(1000).tolist() == whole.tolist()
