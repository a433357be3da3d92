"""One small round whose every byte is stored: whoever changes the wire or a derivation learns it here.

``python -m tests.protocol.test_known_answer`` writes the vector anew; a change of it is a new protocol version.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from common.secagg.full_unmasking import request_all
from common.secagg.masked_input import MaskedSum
from common.secagg.messages import encode
from common.secagg.parameters import VERSION
from common.secagg.unmasking import unmask
from tests.support.parties import TERMS, Consortium, sent

VECTOR = Path(__file__).parents[1] / "vectors" / "secagg_round.json"
SEED = 2017
DROPPED = "hospital-4"
PARTS = (
    "version",
    "vectors",
    "key_directory",
    "masked_input_requests",
    "masked_vectors",
    "masked_inputs",
    "survivors",
    "unmasking_request",
    "unmasking_shares",
    "sum",
    "full_round",
)


def transcript() -> dict[str, Any]:
    """Play a round of four hospitals, of which one drops out after it shared its keys, and one in which none does."""
    consortium = Consortium(4, SEED, vector_length=12, counts_length=2)
    vectors = {name: consortium.vector() for name in consortium.names}
    routed = consortium.routed()
    total, masked_vectors, masked_inputs = MaskedSum(routed, TERMS), {}, {}
    requests = {name: routed.request_for(name, TERMS) for name in consortium.names if name != DROPPED}
    for name, request in requests.items():
        message, masked = consortium[name].mask(sent(request), vectors[name])
        total.add(name, message, masked)
        masked_vectors[name] = masked.tobytes().hex()
        masked_inputs[name] = encode(message).hex()
    survivors = total.close()
    unmasking_request = consortium.unmasking_request(total)
    revealed = {name: consortium[name].reveal(unmasking_request) for name in survivors.survivors}
    return {
        "version": VERSION,
        "vectors": {name: vector.tobytes().hex() for name, vector in vectors.items()},
        "key_directory": encode(routed.directory).hex(),
        "masked_input_requests": {name: encode(request).hex() for name, request in requests.items()},
        "masked_vectors": masked_vectors,
        "masked_inputs": masked_inputs,
        "survivors": encode(survivors).hex(),
        "unmasking_request": encode(unmasking_request).hex(),
        "unmasking_shares": {name: encode(message).hex() for name, message in revealed.items()},
        "sum": consortium.unmask(total, unmasking_request).total.tobytes().hex(),
        "full_round": full_round(consortium),
    }


def full_round(consortium: Consortium) -> dict[str, Any]:
    """Play the round after it, in which nobody is missing and the sum is opened at once."""
    total = consortium.masked_sum(round_number=2)
    views = {name: encode(view).hex() for name, view in total.views.items()}
    request = request_all(total)
    revealed = {name: consortium[name].reveal_all(request) for name in total.survivors}
    return {
        "masked_inputs": views,
        "full_unmasking_request": encode(request).hex(),
        "unmasking_shares": {name: encode(message).hex() for name, message in revealed.items()},
        "sum": unmask(total, revealed).total.tobytes().hex(),
    }


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    return transcript()


@pytest.mark.parametrize("part", PARTS)
def test_a_round_gives_the_stored_bytes(played: dict[str, Any], part: str) -> None:
    assert played[part] == json.loads(VECTOR.read_text())["round"][part]


def test_the_stored_round_is_whole(played: dict[str, Any]) -> None:
    assert set(json.loads(VECTOR.read_text())["round"]) == set(played) == set(PARTS)


if __name__ == "__main__":
    source = (
        "this protocol's version 3: four hospitals, two counts and eight elements modulo 2^16, "
        "Python's random.Random(2017) as their randomness"
    )
    VECTOR.write_text(json.dumps({"source": source, "round": transcript()}, indent=1) + "\n")
