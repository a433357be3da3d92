"""Programs of the secure aggregation: who is given which bytes, and what must come out, byte by byte or by name.

A stored program holds all that a party needs: the run, every hospital's identity key and randomness, and steps. A step
gives encoded messages to one hospital or to the server, and says either what it must answer or the code of the error
with which it must refuse, and about whom. So another implementation can replay it. Bytes are hexadecimal; long ones
stand once in the list ``bytes``, and ``#3`` in a step is number 3 of them, counted from zero.

``python -m tests.protocol.secagg_programs`` writes the files in ``tests/vectors/secagg_programs`` anew. A change of one
is a new protocol version.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.secagg import advertise_keys, consistency_check, full_unmasking, masked_input, share_keys, unmasking
from common.secagg.errors import SERVER, Place, SecAggError
from common.secagg.messages import (
    AdvertisedKeys,
    EncryptedShares,
    FullUnmaskingRequest,
    KeyDirectory,
    Limits,
    MaskedInput,
    MaskedInputRequest,
    Message,
    RevealedShare,
    SurvivorList,
    SurvivorSignature,
    UnmaskingRequest,
    UnmaskingShares,
    decode,
    encode,
)
from common.secagg.parameters import Adversary, RunParameters, Vector
from common.secagg.phases import Phase
from tests.support.parties import Hospital

FOLDER = Path(__file__).parents[1] / "vectors" / "secagg_programs"
RUN_ID = "0123456789abcdef0123456789abcdef"
TERMS = b"train from this model"
LENGTH = 6
"""Elements of a vector."""
_PLACE = Place(SERVER, 1, Phase.MASKED_INPUT)

M = TypeVar("M", bound=Message)
Step = dict[str, Any]


def _read(encoded: str, kind: type[M]) -> M:
    return decode(bytes.fromhex(encoded), kind, Limits(), _PLACE)


def _hex(message: Message) -> str:
    return encode(message).hex()


def _refused(refusals: Iterable[SecAggError]) -> dict[str, str]:
    return {str(refusal.hospital): refusal.code for refusal in refusals}


# ---------------------------------------------------------------------------------------------------------------------
# Playing


class Player:
    """Every party of a program; :meth:`step` gives one of them what the step holds."""

    def __init__(self, setting: Mapping[str, Any]) -> None:
        """Set everybody up from what a stored program says, and nothing else."""
        identities = {
            name: Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
            for name, key in setting["identities"].items()
        }
        self.run = RunParameters(
            run_id=setting["run_id"],
            config_hash=bytes.fromhex(setting["config_hash"]),
            roster={name: key.public_key().public_bytes_raw() for name, key in identities.items()},
            min_hospitals=setting["min_hospitals"],
            modulus_bits=setting["modulus_bits"],
            vector_length=setting["vector_length"],
            adversary=Adversary(setting["adversary"]),
        )
        self.hospitals = {
            name: Hospital(name, key, self.run, _stream(bytes.fromhex(setting["randomness"][name])))
            for name, key in identities.items()
        }
        self.routed: share_keys.Routed | None = None
        self.total: masked_input.MaskedSum | None = None

    def step(self, step: Step) -> Step:
        """Return what must be stored as the step's outcome."""
        act: Callable[[Step], Step] = getattr(self, f"_{step['do']}")
        try:
            return act(step)
        except SecAggError as refusal:
            return {"refuses": refusal.code, "about": refusal.hospital}

    def _sum(self) -> masked_input.MaskedSum:
        assert self.total is not None
        return self.total

    # Hospitals

    def _advertise(self, step: Step) -> Step:
        return {"gives": _hex(self.hospitals[step["hospital"]].advertise(step["round"]))}

    def _share(self, step: Step) -> Step:
        return {"gives": _hex(self.hospitals[step["hospital"]].share(_read(step["message"], KeyDirectory)))}

    def _mask(self, step: Step) -> Step:
        vector = np.frombuffer(bytes.fromhex(step["vector"]), self.run.dtype)
        message, masked = self.hospitals[step["hospital"]].mask(_read(step["message"], MaskedInputRequest), vector)
        return {"gives": _hex(message), "masked": masked.tobytes().hex()}

    def _sign(self, step: Step) -> Step:
        return {"gives": _hex(self.hospitals[step["hospital"]].sign(_read(step["message"], SurvivorList)))}

    def _reveal(self, step: Step) -> Step:
        return {"gives": _hex(self.hospitals[step["hospital"]].reveal(_read(step["message"], UnmaskingRequest)))}

    def _reveal_all(self, step: Step) -> Step:
        asked = _read(step["message"], FullUnmaskingRequest)
        return {"gives": _hex(self.hospitals[step["hospital"]].reveal_all(asked))}

    # The server

    def _collect(self, step: Step) -> Step:
        messages = {name: _read(each, AdvertisedKeys) for name, each in step["messages"].items()}
        collected = advertise_keys.collect(self.run, step["round"], messages)
        return {"gives": _hex(collected.directory), "refused": _refused(collected.refusals)}

    def _route(self, step: Step) -> Step:
        messages = {name: _read(each, EncryptedShares) for name, each in step["messages"].items()}
        self.routed = share_keys.route(self.run, _read(step["message"], KeyDirectory), messages)
        terms = bytes.fromhex(step["terms"])
        self.total = masked_input.MaskedSum(self.routed, terms)
        return {
            "gives": {name: _hex(self.routed.request_for(name, terms)) for name in self.routed.cohort},
            "refused": _refused(self.routed.refusals),
        }

    def _add(self, step: Step) -> Step:
        vector: Vector = np.frombuffer(bytes.fromhex(step["masked"]), self.run.dtype)
        self._sum().add(step["sender"], _read(step["message"], MaskedInput), vector)
        return {}

    def _close(self, _step: Step) -> Step:
        return {"gives": _hex(self._sum().close())}

    def _close_full(self, _step: Step) -> Step:
        return {"gives": _hex(full_unmasking.request_all(self._sum()))}

    def _ask(self, _step: Step) -> Step:
        return {"gives": _hex(consistency_check.unmasking_request(self._sum()))}

    def _agree(self, step: Step) -> Step:
        messages = {name: _read(each, SurvivorSignature) for name, each in step["messages"].items()}
        signed = consistency_check.collect(self._sum(), messages)
        return {"gives": _hex(signed.request), "refused": _refused(signed.refusals)}

    def _unmask(self, step: Step) -> Step:
        messages = {name: _read(each, UnmaskingShares) for name, each in step["messages"].items()}
        found = unmasking.unmask(self._sum(), messages)
        return {
            "sum": found.total.tobytes().hex(),
            "survivors": list(found.survivors),
            "refused": _refused(found.refusals),
        }


def _stream(stored: bytes) -> Callable[[int], bytes]:
    left = bytearray(stored)

    def draw(count: int) -> bytes:
        assert len(left) >= count, "the program's randomness is used up"
        drawn = bytes(left[:count])
        del left[:count]
        return drawn

    return draw


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@dataclass
class Script:
    """Writes a program: plays each step as it is added, so that later ones can build on what came out."""

    comment: str
    hospitals: int = 4
    adversary: Adversary = Adversary.ACTIVE
    seed: int = 2017
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw every key and all randomness from the seed."""
        source = random.Random(self.seed)  # noqa: S311 - repeatable
        self.names = tuple(f"hospital-{number}" for number in range(1, self.hospitals + 1))
        self.setting: dict[str, Any] = {
            "run_id": RUN_ID,
            "config_hash": bytes(range(32)).hex(),
            "min_hospitals": 3,
            "modulus_bits": 16,
            "vector_length": LENGTH,
            "adversary": self.adversary.value,
            "identities": {name: source.randbytes(32).hex() for name in self.names},
            "randomness": {name: source.randbytes(600).hex() for name in self.names},
        }
        self.player = Player(self.setting)
        self.vectors = {name: source.randbytes(2 * LENGTH).hex() for name in self.names}

    def do(self, step: Step) -> Step:
        """Add a step with what came of it, and return that."""
        outcome = self.player.step(step)
        self.steps.append({**step, "expected": outcome})
        return outcome

    def asked(self, hospital: str, what: str, message: Message, **more: Any) -> Step:  # noqa: ANN401 - fields of a step
        """Give a hospital a message."""
        return self.do({"do": what, "hospital": hospital, "message": _hex(message), **more})

    # An honest round, as far as wanted. Each returns what its recipient decodes.

    def advertised(self, number: int = 1) -> dict[str, AdvertisedKeys]:
        """Have every hospital advertise its keys."""
        steps = {name: self.do({"do": "advertise", "hospital": name, "round": number}) for name in self.names}
        return {name: _read(step["gives"], AdvertisedKeys) for name, step in steps.items()}

    def collected(self, messages: Mapping[str, AdvertisedKeys], number: int = 1) -> Step:
        """Give the server the hospitals' keys."""
        encoded = {name: _hex(message) for name, message in messages.items()}
        return self.do({"do": "collect", "round": number, "messages": encoded})

    def directory(self, number: int = 1) -> KeyDirectory:
        """Play AdvertiseKeys."""
        return _read(self.collected(self.advertised(number), number)["gives"], KeyDirectory)

    def signed_by(self, name: str, directory: KeyDirectory, **keys: bytes) -> KeyDirectory:
        """Return a directory in which a hospital advertises, and signs, whatever keys it likes."""
        own = next(each for each in directory.keys if each.hospital == name)
        unsigned = replace(own, **keys, signature=b"")  # type: ignore[arg-type]
        identity = self.player.hospitals[name].identity
        signature = identity.sign(advertise_keys.signed_part(self.player.run, unsigned))
        return _with_key(directory, name, **keys, signature=signature)

    def shared(self, directory: KeyDirectory) -> dict[str, EncryptedShares]:
        """Have every hospital deal its shares."""
        return {name: _read(self.asked(name, "share", directory)["gives"], EncryptedShares) for name in self.names}

    def routed(self, directory: KeyDirectory, messages: Mapping[str, EncryptedShares]) -> Step:
        """Give the server the hospitals' shares."""
        encoded = {name: _hex(message) for name, message in messages.items()}
        return self.do({"do": "route", "message": _hex(directory), "messages": encoded, "terms": TERMS.hex()})

    def requests(self, number: int = 1) -> dict[str, MaskedInputRequest]:
        """Play ShareKeys."""
        directory = self.directory(number)
        routed = self.routed(directory, self.shared(directory))
        return {name: _read(each, MaskedInputRequest) for name, each in routed["gives"].items()}

    def masked(self, name: str, request: MaskedInputRequest) -> Step:
        """Ask a hospital for its vector."""
        return self.asked(name, "mask", request, vector=self.vectors[name])

    def added(self, sender: str, vector: Step, **changes: str) -> Step:
        """Give the server a vector."""
        step = {"do": "add", "sender": sender, "message": vector["gives"], "masked": vector["masked"]}
        return self.do({**step, **changes})

    def summed(self, missing: Iterable[str] = ()) -> dict[str, Step]:
        """Play MaskedInputCollection without those that are missing."""
        vectors = {name: self.masked(name, each) for name, each in self.requests().items() if name not in missing}
        for name, vector in vectors.items():
            self.added(name, vector)
        return vectors

    def closed(self) -> SurvivorList:
        """Close the sum."""
        return _read(self.do({"do": "close"})["gives"], SurvivorList)

    def signatures(self, survivors: SurvivorList) -> dict[str, SurvivorSignature]:
        """Have every survivor sign."""
        return {
            name: _read(self.asked(name, "sign", survivors)["gives"], SurvivorSignature) for name in survivors.survivors
        }

    def agreed(self, messages: Mapping[str, SurvivorSignature]) -> Step:
        """Give the server the signatures."""
        return self.do({"do": "agree", "messages": {name: _hex(each) for name, each in messages.items()}})

    def unmasking(self, missing: Iterable[str] = ()) -> UnmaskingRequest:
        """Play a round up to ConsistencyCheck."""
        self.summed(missing)
        return _read(self.agreed(self.signatures(self.closed()))["gives"], UnmaskingRequest)

    def revealed(self, request: UnmaskingRequest) -> dict[str, UnmaskingShares]:
        """Have every survivor reveal."""
        return {
            name: _read(self.asked(name, "reveal", request)["gives"], UnmaskingShares) for name in request.survivors
        }

    def unmasked(self, messages: Mapping[str, UnmaskingShares]) -> Step:
        """Give the server the shares."""
        return self.do({"do": "unmask", "messages": {name: _hex(each) for name, each in messages.items()}})

    def full(self) -> FullUnmaskingRequest:
        """Play a round in which nobody is missing up to the request that opens its sum."""
        self.summed()
        return _read(self.do({"do": "close_full"})["gives"], FullUnmaskingRequest)

    def as_json(self) -> dict[str, Any]:
        """Return what is stored."""
        table: list[str] = []
        steps = _interned(self.steps, table)
        return {"comment": self.comment, "setting": self.setting, "bytes": table, "steps": steps}


_LONG = 100
"""Characters from which a string is stored once."""


def _interned(tree: Any, table: list[str]) -> Any:  # noqa: ANN401 - any JSON
    """Return a tree in which long strings are references into ``table``, which grows."""
    if isinstance(tree, dict):
        return {key: _interned(value, table) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_interned(value, table) for value in tree]
    if not isinstance(tree, str) or len(tree) < _LONG:
        return tree
    if tree not in table:
        table.append(tree)
    return f"#{table.index(tree)}"


def spelt_out(tree: Any, table: list[str]) -> Any:  # noqa: ANN401 - any JSON
    """Return a stored tree with what it refers to in ``table``."""
    if isinstance(tree, dict):
        return {key: spelt_out(value, table) for key, value in tree.items()}
    if isinstance(tree, list):
        return [spelt_out(value, table) for value in tree]
    return table[int(tree[1:])] if isinstance(tree, str) and tree.startswith("#") else tree


VICTIM, PEER, OTHER, LAST = (f"hospital-{number}" for number in range(1, 5))


def _with_key(directory: KeyDirectory, hospital: str, **changes: Any) -> KeyDirectory:  # noqa: ANN401 - fields
    keys = tuple(replace(each, **changes) if each.hospital == hospital else each for each in directory.keys)
    return replace(directory, keys=keys)


def _with_view(request: FullUnmaskingRequest, **changes: bytes) -> FullUnmaskingRequest:
    first, second, *rest = request.views
    return replace(request, views=(first, replace(second, **changes), *rest))  # type: ignore[arg-type]


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _honest() -> dict[str, Script]:
    three = Script("Three exchanges: one hospital sends no vector, and the others sign who is left.")
    three.unmasked(three.revealed(three.unmasking(missing=(LAST,))))
    two = Script("Two exchanges: nobody is missing, and the sum is opened at once.")
    request = two.full()
    two.unmasked({name: _read(two.asked(name, "reveal_all", request)["gives"], UnmaskingShares) for name in two.names})
    curious = Script("The semi-honest setting: nobody signs.", adversary=Adversary.SEMI_HONEST)
    curious.summed(missing=(LAST,))
    asked = _read(curious.do({"do": "ask"})["gives"], UnmaskingRequest)
    curious.unmasked(curious.revealed(asked))
    silent = Script("Five hospitals; one sends no vector, and one reveals nothing. Four shares are enough.", 5)
    silent_request = silent.unmasking()
    answers = silent.revealed(silent_request)
    del answers[LAST]
    silent.unmasked(answers)
    return {
        "honest-three-exchanges": three,
        "honest-two-exchanges": two,
        "honest-semi-honest": curious,
        "honest-one-reveals-nothing": silent,
    }


def _keys() -> dict[str, Script]:
    changes: dict[str, tuple[str, Callable[[KeyDirectory], KeyDirectory]]] = {
        "unsigned-key": ("A key without a signature.", lambda each: _with_key(each, PEER, signature=b"")),
        "forged-key": (
            "A key that its hospital did not sign.",
            lambda each: _with_key(each, PEER, masking_key=bytes([9]) + bytes(31)),
        ),
        "threshold-lowered": ("A threshold below the rule's.", lambda each: replace(each, threshold=2)),
        "left-out-of-the-directory": (
            "The directory leaves out the hospital it is sent to.",
            lambda each: replace(each, keys=each.keys[1:], threshold=3),
        ),
        "directory-of-two": (
            "Fewer hospitals than the minimum.",
            lambda each: replace(each, keys=each.keys[:2], threshold=2),
        ),
        "directory-of-another-run": ("A directory of another run.", lambda each: replace(each, run_id="f" * 32)),
    }
    found = {}
    for name, (comment, change) in changes.items():
        script = Script(comment)
        script.asked(VICTIM, "share", change(script.directory()))
        found[name] = script
    signed: dict[str, tuple[str, Callable[[KeyDirectory], dict[str, bytes]]]] = {
        "low-order-key": (
            "A hospital signs a point with which every agreement is known.",
            lambda _: {"masking_key": bytes(32)},
        ),
        "reflected-key": (
            "A hospital signs the victim's key as its own.",
            lambda each: {"encryption_key": each.keys[0].encryption_key},
        ),
    }
    for name, (comment, bad) in signed.items():
        script = Script(comment)
        directory = script.directory()
        script.asked(VICTIM, "share", script.signed_by(PEER, directory, **bad(directory)))
        found[name] = script
    server = Script("The server drops a key whose signature is not its hospital's, and goes on with the others.", 5)
    messages = server.advertised()
    server.collected({**messages, PEER: replace(messages[PEER], signature=_flipped(messages[PEER].signature))})
    few = Script("Too few hospitals advertise.")
    few.collected(dict(list(few.advertised().items())[:2]))
    impostor = Script("One hospital sends the keys of another.", 5)
    messages = impostor.advertised()
    impostor.collected({**messages, PEER: messages[OTHER]})
    return {**found, "server-refuses-a-key": server, "too-few-keys": few, "keys-of-another-hospital": impostor}


def _shares() -> dict[str, Script]:
    changes: dict[str, tuple[str, Callable[[MaskedInputRequest], MaskedInputRequest]]] = {
        "share-altered": (
            "A share that was altered on its way.",
            lambda each: replace(
                each,
                inbox=(replace(each.inbox[0], ciphertext=_flipped(each.inbox[0].ciphertext)), *each.inbox[1:]),
            ),
        ),
        "share-missing": ("A share is not delivered.", lambda each: replace(each, inbox=each.inbox[1:])),
        "share-of-a-wrong-commitment": (
            "A share that is not what its dealer is said to have committed to.",
            lambda each: replace(each, inbox=(replace(each.inbox[0], self_mask_commitment=bytes(32)), *each.inbox[1:])),
        ),
        "cohort-below-the-threshold": (
            "A cohort of two.",
            lambda each: replace(each, cohort=each.cohort[:2], inbox=each.inbox[:1]),
        ),
        "cohort-without-the-victim": (
            "A cohort that leaves out the hospital it is sent to.",
            lambda each: replace(each, cohort=each.cohort[1:]),
        ),
        "cohort-with-a-stranger": (
            "A cohort with a hospital that has no key.",
            lambda each: replace(each, cohort=(*each.cohort, "hospital-9")),
        ),
        "request-of-another-run": ("A request of another run.", lambda each: replace(each, run_id="f" * 32)),
    }
    found = {}
    for name, (comment, change) in changes.items():
        script = Script(comment)
        script.masked(VICTIM, change(script.requests()[VICTIM]))
        found[name] = script
    dropped = Script("A hospital that shares nothing is not in the cohort.", 5)
    directory = dropped.directory()
    messages = dropped.shared(directory)
    del messages["hospital-5"]
    dropped.routed(directory, messages)
    return {**found, "one-shares-nothing": dropped}


def _vectors() -> dict[str, Script]:
    other = Script("A vector that its hospital did not sign.")
    vector = other.masked(VICTIM, other.requests()[VICTIM])
    other.added(VICTIM, vector, masked=_flipped(bytes.fromhex(vector["masked"])).hex())
    twice = Script("A second vector of one hospital.")
    vector = twice.masked(VICTIM, twice.requests()[VICTIM])
    twice.added(VICTIM, vector)
    twice.added(VICTIM, vector)
    asked = Script("A vector for another request than this round's: the hospital was shown other terms.")
    request = asked.requests()[VICTIM]
    asked.added(VICTIM, asked.masked(VICTIM, replace(request, terms=b"evaluate this model")))
    late = Script("A vector that comes after the sum is closed.")
    vectors = {name: late.masked(name, each) for name, each in late.requests().items()}
    for name in late.names[:3]:
        late.added(name, vectors[name])
    late.closed()
    late.added(LAST, vectors[LAST])
    few = Script("Too few vectors: the sum stays masked for ever.")
    few.summed(missing=(OTHER, LAST))
    few.do({"do": "close"})
    return {
        "vector-altered": other,
        "vector-twice": twice,
        "vector-for-another-request": asked,
        "vector-too-late": late,
        "vectors-too-few": few,
    }


def _survivors() -> dict[str, Script]:
    lists: dict[str, tuple[str, Callable[[tuple[str, ...]], tuple[tuple[str, ...], tuple[str, ...]]]]] = {
        "dropped-and-alive": ("One hospital is listed as both.", lambda all_: (all_, (PEER,))),
        "neither-dropped-nor-alive": ("One hospital is listed as neither.", lambda all_: (all_[:3], ())),
        "survivor-from-outside": ("A survivor that nobody masked with.", lambda all_: ((*all_, "hospital-9"), ())),
        "declared-dropped": ("The victim is told that it dropped out.", lambda all_: (all_[1:], (VICTIM,))),
        "survivors-below-the-threshold": ("Two survivors.", lambda all_: (all_[:2], all_[2:])),
    }
    found = {}
    for name, (comment, change) in lists.items():
        script = Script(comment)
        script.summed()
        script.asked(VICTIM, "sign", SurvivorList(RUN_ID, 1, *change(script.names)))
        found[name] = script
    forged = Script("A signature over the survivors that its hospital did not make.")
    request = forged.unmasking()
    signatures = (
        request.signatures[0],
        replace(request.signatures[1], signature=_flipped(request.signatures[1].signature)),
        *request.signatures[2:],
    )
    forged.asked(VICTIM, "reveal", replace(request, signatures=signatures))
    few = Script("Too few have signed.")
    request = few.unmasking()
    few.asked(VICTIM, "reveal", replace(request, signatures=request.signatures[:2]))
    unsigned = Script("Shares are asked for although this hospital has signed nothing.")
    unsigned.summed()
    unsigned.closed()
    unsigned.asked(VICTIM, "reveal", UnmaskingRequest(RUN_ID, 1, unsigned.names, (), ()))
    other = Script("Other survivors than this hospital signed.")
    request = other.unmasking()
    changed = replace(request, survivors=other.names[:3], dropped=(LAST,), signatures=request.signatures[:3])
    other.asked(VICTIM, "reveal", changed)
    server = Script("The server drops a signature that is not its hospital's.", 5)
    server.summed()
    messages = server.signatures(server.closed())
    server.agreed({**messages, PEER: replace(messages[PEER], signature=_flipped(messages[PEER].signature))})
    return {
        **found,
        "survivors-forged": forged,
        "survivors-signed-by-too-few": few,
        "survivors-unsigned": unsigned,
        "survivors-exchanged": other,
        "server-refuses-a-signature": server,
    }


def _openings() -> dict[str, Script]:
    changes: dict[str, tuple[str, Callable[[FullUnmaskingRequest], FullUnmaskingRequest]]] = {
        "opened-without-one": ("One signed view is missing.", lambda each: replace(each, views=each.views[:-1])),
        "opened-with-a-forged-view": (
            "A view that its hospital did not sign.",
            lambda each: _with_view(each, signature=_flipped(each.views[1].signature)),
        ),
        "opened-with-another-vector": (
            "A view of another vector than its hospital signed.",
            lambda each: _with_view(each, vector_hash=bytes(32)),
        ),
        "opened-with-a-strangers-view": (
            "A view of somebody outside the cohort.",
            lambda each: replace(each, views=(*each.views, replace(each.views[0], hospital="hospital-9"))),
        ),
    }
    found = {}
    for name, (comment, change) in changes.items():
        script = Script(comment)
        script.asked(VICTIM, "reveal_all", change(script.full()))
        found[name] = script
    missing = Script("The sum is to be opened at once although a vector is missing.")
    missing.summed(missing=(LAST,))
    missing.do({"do": "close_full"})
    curious = Script("A semi-honest run has no such exchange.", adversary=Adversary.SEMI_HONEST)
    curious.summed()
    curious.asked(VICTIM, "reveal_all", FullUnmaskingRequest(RUN_ID, 1, ()))
    return {**found, "opened-although-one-is-missing": missing, "opened-in-a-semi-honest-run": curious}


def _answers() -> dict[str, Script]:
    few = Script("Too few reveal their shares: nothing is unmasked.")
    request = few.unmasking()
    few.unmasked(dict(list(few.revealed(request).items())[:2]))
    wrong = Script("One share is not the one its dealer committed to; its hospital is named, and enough are left.", 5)
    request = wrong.unmasking()
    answers = wrong.revealed(request)
    first = answers[PEER].self_mask_shares[0]
    changed = (RevealedShare(first.owner, _flipped(first.share)), *answers[PEER].self_mask_shares[1:])
    wrong.unmasked({**answers, PEER: replace(answers[PEER], self_mask_shares=changed)})
    both = Script("A hospital reveals a share of a survivor's masking key, which nobody asked for.", 5)
    request = both.unmasking(missing=(LAST,))
    answers = both.revealed(request)
    key = RevealedShare(VICTIM, answers[PEER].masking_key_shares[0].share)
    more = (key, *answers[PEER].masking_key_shares)
    both.unmasked({**answers, PEER: replace(answers[PEER], masking_key_shares=more)})
    return {"revealed-too-little": few, "revealed-a-wrong-share": wrong, "revealed-both-kinds": both}


def programs() -> dict[str, dict[str, Any]]:
    """Return every program with its outcomes, made anew."""
    made = {**_honest(), **_keys(), **_shares(), **_vectors(), **_survivors(), **_openings(), **_answers()}
    return {name: script.as_json() for name, script in made.items()}


def as_text(program: Mapping[str, Any]) -> str:
    """Return a program as it is stored."""
    return json.dumps(program, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for stem, content in programs().items():
        (FOLDER / f"{stem}.json").write_text(as_text(content))
