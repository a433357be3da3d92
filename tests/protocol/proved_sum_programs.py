"""Programs of proved sums: who commits to what, what is shown to whom, and what must come out, by hash or by name.

A stored program holds all that a party needs: the run, identity keys, ρ's randomness, b_u, and the common part of the
round's view. A step lets a hospital commit, shows it views, opens a sealed commitment, or hands it a sum with
commitments; and says either the SHA-256 of what it must give, or the code of the error with which it must refuse, and
about whom. Commitments are named by who made them, with edits as (offset, bytes). So another implementation can replay
it. Randomness is AES-256-CTR under a seed; bytes are hexadecimal.

``python -m tests.protocol.proved_sum_programs`` writes the files in ``tests/vectors/proved_sums`` anew. A change of one
is a new version.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.keystream import Keystream
from common.proved_sums.commitment import Commitment, commit
from common.proved_sums.expansion import matrix_key
from common.proved_sums.parameters import parameters_for
from common.proved_sums.proof import CommittedGroup, committed_group, prove, verify_sum
from common.secagg.errors import Place, SecAggError
from common.secagg.masked_input import signed_part
from common.secagg.messages import MaskedInput, OpenedCommitment, SignedView
from common.secagg.parameters import RunParameters, Vector
from common.secagg.phases import Phase
from common.secagg.sealed_commitment import commitment_hash, seal, unseal

FOLDER = Path(__file__).parents[1] / "vectors" / "proved_sums"
ENTRIES = 12
Step = dict[str, Any]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Player:
    """Every party of a program; :meth:`step` gives one of them what the step holds."""

    def __init__(self, setting: Mapping[str, Any]) -> None:
        """Set everybody up from what a stored program says, and nothing else."""
        self.setting = setting
        self.identities = {
            name: Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
            for name, key in setting["identities"].items()
        }
        self.parameters = parameters_for(setting["entries"], setting["modulus_bits"], len(self.identities))
        self.run = RunParameters(
            run_id=setting["run_id"],
            config_hash=bytes.fromhex(setting["config_hash"]),
            roster={name: key.public_key().public_bytes_raw() for name, key in self.identities.items()},
            min_hospitals=3,
            modulus_bits=setting["modulus_bits"],
            vector_length=self.parameters.length,
            proves_sums=True,
        )
        self.commitments: dict[str, Commitment] = {}
        self.changes: dict[str, Any] = {}
        self.views: dict[str, MaskedInput] = {}
        self.groups: dict[str, CommittedGroup] = {}

    def step(self, step: Step) -> Step:
        """Return what must be stored as the step's outcome."""
        act: Callable[[Step], Step] = getattr(self, f"_{step['do']}")
        try:
            return act(step)
        except SecAggError as refusal:
            return {"refuses": refusal.code, "about": refusal.hospital}

    def _blank(self, name: str, round_number: int) -> MaskedInput:
        common = {key: bytes.fromhex(value) for key, value in self.setting["view"].items()}
        return MaskedInput(
            run_id=self.run.run_id,
            round_number=round_number,
            hospital=name,
            config_hash=self.run.config_hash,
            modulus_bits=self.run.modulus_bits,
            vector_length=self.run.vector_length,
            vector_hash=bytes(32),
            commitment=b"",
            signature=b"",
            **common,
        )

    def _commit(self, step: Step) -> Step:
        name, kind = step["hospital"], f"<i{self.run.modulus_bits // 8}"
        self.changes[name] = np.array(step["change"], kind)
        source = Keystream(bytes.fromhex(step["randomness"]))
        made = commit(matrix_key(self.run, self.parameters), self.parameters, self.changes[name], source.draw)
        self.commitments[name] = made
        blank = self._blank(name, step["round"])
        promised = commitment_hash(self.run, blank, str(step.get("named", name)), made.value)
        unsigned = replace(blank, commitment=promised)
        signature = self.identities[name].sign(signed_part(self.run, unsigned))
        self.views[name] = replace(unsigned, signature=signature)
        sealed = seal(self.run, step["round"], name, bytes.fromhex(self.setting["self_mask_seeds"][name]), made.value)
        return {
            "commitment": digest(made.value),
            "randomness": digest(made.randomness.tobytes()),
            "hash": promised.hex(),
            "sealed": digest(sealed.ciphertext),
            "signature": signature.hex(),
        }

    def _unseal(self, step: Step) -> Step:
        name = step["hospital"]
        seed = bytes.fromhex(self.setting["self_mask_seeds"][name])
        sealed = seal(self.run, self.views[name].round_number, name, seed, self.commitments[name].value)
        sealed = replace(sealed, ciphertext=_edited(sealed.ciphertext, step["edits"]))
        return {"commitment": digest(unseal(self.run, self.views[name], seed, sealed).commitment)}

    def _show(self, step: Step) -> Step:
        views = [self._signed(each) for each in step["views"]]
        place = Place(step["hospital"], 1, Phase.FULL_UNMASKING)
        self.groups[step["hospital"]] = committed_group(
            self.run, self.views[step["hospital"]], views, step["survivors"], place
        )
        return {}

    def _signed(self, shown: Mapping[str, Any]) -> SignedView:
        view = self.views[shown["hospital"]]
        whole = SignedView.of(view)
        changed = {key: bytes.fromhex(value) for key, value in shown.get("changed", {}).items()}
        return replace(whole, **changed)  # type: ignore[arg-type]

    def _verify(self, step: Step) -> Step:
        opened = [
            OpenedCommitment(each["hospital"], _edited(self.commitments[each["of"]].value, each.get("edits", [])))
            for each in step["commitments"]
        ]
        proof = prove(self.run, step["round"], opened)
        found = verify_sum(self.groups[step["hospital"]], self.parameters, proof, self._sum(step["sum"]))
        return {"sum": found.total.tolist(), "survivors": list(found.survivors)}

    def _sum(self, described: Mapping[str, Any]) -> Vector:
        total: Vector = np.zeros(self.parameters.length, self.run.dtype)
        for name in described["of"]:
            total += np.concatenate([self.changes[name], self.commitments[name].randomness]).view(self.run.dtype)
        for place, amount in described["plus"]:
            total[place : place + 1] += np.array([amount % (1 << self.run.modulus_bits)], self.run.dtype)
        return total


def _edited(content: bytes, edits: list[list[Any]]) -> bytes:
    """Return bytes with others in their place at some offsets; those at a negative offset are taken off the end."""
    edited = bytearray(content)
    for offset, replaced in edits:
        if offset < 0:
            del edited[offset:]
        else:
            edited[offset : offset + len(replaced) // 2] = bytes.fromhex(replaced)
    return bytes(edited)


class Script:
    """Writes a program: plays each step as it is added."""

    def __init__(self, comment: str, hospitals: int = 4, modulus_bits: int = 16) -> None:
        source = random.Random(2026)  # noqa: S311 - repeatable
        self.comment = comment
        self.names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
        self.setting: dict[str, Any] = {
            "run_id": "0123456789abcdef0123456789abcdef",
            "config_hash": bytes(range(32)).hex(),
            "entries": ENTRIES,
            "modulus_bits": modulus_bits,
            "identities": {name: source.randbytes(32).hex() for name in self.names},
            "self_mask_seeds": {name: source.randbytes(32).hex() for name in self.names},
            "view": {key: source.randbytes(32).hex() for key in ("directory_hash", "cohort_hash", "request_hash")},
        }
        self.source, self.steps = source, list[Step]()
        self.player = Player(self.setting)

    def do(self, step: Step) -> "Script":
        """Add a step with what came of it."""
        self.steps.append({**step, "expected": self.player.step(step)})
        return self

    def committed(self, round_number: int = 1, **named: str) -> "Script":
        """Let everybody commit; ``named`` hospitals hash another's name."""
        bound = self.player.parameters.bound // len(self.names)
        for name in self.names:
            change = [self.source.randint(-bound, bound) for _ in range(ENTRIES - 2)] + [bound, -bound]
            step = {"do": "commit", "hospital": name, "round": round_number, "change": change}
            extra = {"named": named[name.replace("-", "_")]} if name.replace("-", "_") in named else {}
            self.do({**step, "randomness": self.source.randbytes(32).hex(), **extra})
        return self

    def shown(self, changed: Mapping[str, Mapping[str, str]] | None = None, left_out: int = 0) -> "Script":
        """Show the first hospital everybody's views."""
        views = [
            {"hospital": name, **({"changed": changed[name]} if changed and name in changed else {})}
            for name in self.names[: len(self.names) - left_out]
        ]
        return self.do({"do": "show", "hospital": self.names[0], "views": views, "survivors": self.names})

    def verified(
        self,
        commitments: list[Step] | None = None,
        of: list[str] | None = None,
        plus: list[list[int]] | None = None,
        round_number: int = 1,
    ) -> "Script":
        """Hand the first hospital a sum with commitments."""
        honest = [{"hospital": name, "of": name} for name in self.names]
        described = {"of": of or self.names, "plus": plus or []}
        return self.do(
            {
                "do": "verify",
                "hospital": self.names[0],
                "round": round_number,
                "commitments": honest if commitments is None else commitments,
                "sum": described,
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return {"comment": self.comment, "setting": self.setting, "steps": self.steps}


def _ready(comment: str, hospitals: int = 4, modulus_bits: int = 16) -> Script:
    return Script(comment, hospitals, modulus_bits).committed().shown()


FIRST, PEER, OTHER, LAST = (f"hospital-{number}" for number in range(1, 5))


def _each(*changes: Step) -> list[Step]:
    """Return everybody's commitments, some of them changed."""
    by_name = {name: {"hospital": name, "of": name} for name in (FIRST, PEER, OTHER, LAST)}
    return list({**by_name, **{change["hospital"]: change for change in changes}}.values())


def programs() -> dict[str, Script]:
    """Return every program by its name."""
    honest = {
        f"honest-{hospitals}-hospitals-{bits}-bits": _ready("Nobody lies.", hospitals, bits).verified()
        for hospitals, bits in ((3, 16), (4, 16), (3, 32), (4, 32))
    }
    return {
        **honest,
        "sealed-opens": _ready("A sealed commitment opens with the seed.").do(
            {"do": "unseal", "hospital": PEER, "edits": []}
        ),
        "sealed-altered": _ready("A sealed commitment that was altered does not open its hash.").do(
            {"do": "unseal", "hospital": PEER, "edits": [[7, "00ff"]]}
        ),
        "sealed-too-short": _ready("A sealed commitment that was cut off.").do(
            {"do": "unseal", "hospital": PEER, "edits": [[-4, ""]]}
        ),
        "sum-plus-one": _ready("One unit more.").verified(plus=[[0, 1]]),
        "sum-minus-one": _ready("One unit less.").verified(plus=[[ENTRIES - 1, -1]]),
        "sum-of-randomness-plus-one": _ready("One unit more in ρ.").verified(plus=[[ENTRIES + 5, 1]]),
        "sum-plus-one-minus-one": _ready("Two entries change places by one.").verified(plus=[[0, 1], [1, -1]]),
        "sum-without-one": _ready("A survivor's vector and its commitment are left out.").verified(
            _each()[:-1], of=[FIRST, PEER, OTHER]
        ),
        "sum-with-one-twice": _ready("A survivor's vector is counted twice.").verified(
            of=[FIRST, PEER, OTHER, LAST, PEER]
        ),
        "sum-with-a-commitment-twice": _ready("A survivor's commitment comes twice.").verified(
            [*_each(), {"hospital": LAST, "of": LAST}]
        ),
        "sum-with-a-stranger": _ready("A commitment of nobody in the sum.").verified(
            [*_each(), {"hospital": "hospital-9", "of": LAST}]
        ),
        "commitments-swapped": _ready("Two commitments change places.").verified(
            _each({"hospital": PEER, "of": OTHER}, {"hospital": OTHER, "of": PEER})
        ),
        "own-commitment-replaced": _ready("The hospital's own commitment is another's.").verified(
            _each({"hospital": FIRST, "of": PEER})
        ),
        "commitment-altered": _ready("A commitment that was altered.").verified(
            _each({"hospital": LAST, "of": LAST, "edits": [[100, "00"]]})
        ),
        "proof-of-another-round": _ready("A proof of the next round.").verified(round_number=2),
        "proof-of-an-earlier-round": Script("A proof of the round before.").committed(2).shown().verified(),
        "hash-of-another-hospital": Script("A hospital hashed its commitment under another's name.")
        .committed(hospital_4=PEER)
        .shown()
        .verified(),
        "view-missing": Script("A survivor's view is not shown.").committed().shown(left_out=1),
        "view-with-another-hash": Script("A hash that its hospital did not sign.")
        .committed()
        .shown({LAST: {"commitment": "11" * 32}}),
        "view-without-a-hash": Script("A view without the hash of a commitment.")
        .committed()
        .shown({LAST: {"commitment": ""}}),
        "view-unsigned": Script("A view without a signature.").committed().shown({LAST: {"signature": ""}}),
        "own-view-altered": Script("The hospital's own view is not as it signed it.")
        .committed()
        .shown({FIRST: {"vector_hash": "22" * 32}}),
    }


def as_text(script: Script) -> str:
    """Return the file of a program."""
    return json.dumps(script.as_json(), indent=1) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, script in programs().items():
        (FOLDER / f"{name}.json").write_text(as_text(script), encoding="utf-8")
