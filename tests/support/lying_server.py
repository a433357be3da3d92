"""A server that lies in whole rounds to real hospital agents, and what it can unmask of what they then sent.

**Programs.** A :class:`Program` is a list of steps. Each asks some hospitals for one thing: keys for a round of a run,
shares for a directory, a vector for a cohort and terms, a signature over survivors, shares for unmasking, or shares
that open the sum over everybody at once. All fields of all messages are the program's choice, for each hospital anew.
:func:`random_program` makes one from a seed, and :func:`play` plays it. A program is plain JSON, so that it can be
stored with its outcome and replayed elsewhere.

**The adversary.** It holds every message and masked vector, and hospitals may collude with it, fewer than a third of
the consortium: these sign whatever is useful, deal for every directory, and hand over their keys and every share they
were dealt. From these it rebuilds each secret of which it has enough shares, and derives each mask that such a secret
gives. What it cannot derive cancels only between vectors that carry the same mask with opposite signs. So the sums that
it can unmask are those over connected parts of the graph whose edges are these masks, if no other unknown mask is left
in the part. The harness knows which masks each hospital really put on (it stands where the agent applies them), and
checks each such sum numerically; :meth:`Outcome.sums` tries in addition every set of a round's vectors, without that
argument.

**The promise**, see :func:`check`: what can be unmasked is over at least t hospitals that did the same thing, with t
from the pinned consortium by a formula of its own; it holds all the noise it needs; no two sums of a round differ in
one hospital; each hospital signs and sends once a round, and signs survivors or opens the sum over everybody, and the
latter only where everybody did the same thing; and each ledger has a line for all that was revealed, statistics of
training records among it.

A hospital may agree to runs against a *semi-honest* server (``docs/decisions/006-semi-honest-by-agreement.md``). What
holds of their sums holds if the server keeps to the protocol, so programs of that kind do: hospitals vanish at any
step, runs are interleaved, and colluding hospitals hand over what they hold.

Hospitals are real but for three things, which no mask and no booking depends on: a change of the model is drawn at
random instead of trained, scores are zero, and nothing is synced to the disk, which is in memory.
"""

import datetime
import hashlib
import json
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import TypeAdapter

import client.contribution
import client.ledger.ledger
from client.agent import HospitalAgent, Surroundings
from client.contribution import Contribution, Contributor
from client.data import DataContract
from client.data.hospital_data import HospitalData
from client.ledger.ledger import LEDGER_FOLDER, export
from common.config import AdversaryModel, HospitalConfig, PrivacyMode, RunDescription
from common.config import replace as changed
from common.evaluation.plan import Part, ReleaseKind
from common.evaluation.question import Question
from common.identity.certificates import (
    HospitalIdentity,
    certificate_pem,
    make_authority,
    request_hospital_certificate,
    sign_hospital_certificate,
)
from common.identity.members import sign_members
from common.keystream import Keystream
from common.models import registry
from common.models.frozen import extract
from common.privacy.accounting import Accountant
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.privacy.mechanism import mechanism_of
from common.run.flat_model import hash_model
from common.run.messages import (
    ConsistencyReply,
    ConsistencyRequest,
    KeysReply,
    KeysRequest,
    MaskReply,
    MaskRequest,
    PlainRequest,
    RefusedReply,
    Reply,
    Request,
    SharesReply,
    SharesRequest,
    UnmaskAllRequest,
    UnmaskReply,
    UnmaskRequest,
    decode_request,
    encode,
)
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import (
    describe,
    evaluation_plan_of,
    fewest_survivors,
    layout_of,
    protocol_parameters,
    release_mechanism,
)
from common.secagg import advertise_keys, consistency_check, masked_input, share_keys
from common.secagg import messages as secagg
from common.secagg.binding import directory_hash, round_context
from common.secagg.errors import SERVER, ParameterError, Place
from common.secagg.keys import (
    Agreements,
    Committed,
    commit,
    decrypt,
    derive,
    public_key,
    self_mask_info,
    share_encryption_info,
)
from common.secagg.masks import Mask, apply_masks
from common.secagg.messages import SHARE_BYTES
from common.secagg.neighbours import neighbourhoods
from common.secagg.parameters import RunParameters, Segment
from common.secagg.phases import Phase
from common.secagg.shamir import rebuild
from tests.support.twins import BASE, CLASSES, first_model, hospital_data, quick_accounting

MOST_HOSPITALS = 12
UNITS = 20
PREFIX = 24
"""Elements of each segment that are looked at: more than enough to tell a mask from none."""

POLICY: dict[str, Any] = {
    "delta": 1e-3,
    "epsilon_budget": 1000.0,
    "evaluation_epsilon_budget": 1000.0,
    "stated_training_units": UNITS,
    "stated_validation_units": 6,
    "stated_test_units": 6,
    "allow_no_privacy": True,
}

MODES = ("none", "local", "distributed")

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - where there is one
_BOOKING: TypeAdapter[Booking] = TypeAdapter(Booking)

Array = np.ndarray[Any, np.dtype[Any]]
Step = dict[str, Any]
Key = tuple[int, int]
"""Which of the program's runs, and the round."""


class PromiseBrokenError(AssertionError):
    """A server learnt what it must not."""


# ---------------------------------------------------------------------------------------------------------------------
# The consortium


def name_of(number: int) -> str:
    """Return a hospital's name."""
    return f"hospital-{number}"


def number_of(name: str) -> int:
    """Return a hospital's number."""
    return int(name.removeprefix("hospital-"))


@cache
def _identities() -> tuple[Any, dict[str, HospitalIdentity]]:
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("lied to", now)
    found = {}
    for number in range(1, MOST_HOSPITALS + 1):
        name = name_of(number)
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"lied to " + name.encode()).digest())
        request = request_hospital_certificate(name, key)
        certificate = sign_hospital_certificate(authority, request, name, now, datetime.timedelta(days=2))
        found[name] = HospitalIdentity(name, certificate, key)
    return authority, found


@cache
def _members(hospitals: int) -> tuple[dict[str, str], str, dict[str, bytes]]:
    """Return roster, signed member list and keys of the first so many hospitals."""
    authority, known = _identities()
    some = dict(list(known.items())[:hospitals])
    roster = {name: certificate_pem(each.certificate).decode() for name, each in some.items()}
    keys = {name: each.key.public_key().public_bytes_raw() for name, each in some.items()}
    return roster, sign_members(authority, keys, 1, datetime.datetime.now(datetime.UTC)).decode(), keys


@cache
def _described(hospitals: int, encoded: str) -> RunDescription:
    run = json.loads(encoded)
    roster, member_list, _ = _members(hospitals)
    named = {name: pem for name, pem in roster.items() if number_of(name) not in run.get("without", ())}
    config = changed(BASE, **run.get("changes", {}))
    classes = config.task.classes or CLASSES
    return describe(config, f"{run['id']:032x}", classes, 1, named, member_list=member_list)


@cache
def _data() -> HospitalData:
    return hospital_data(UNITS)


@cache
def _models(length: int) -> tuple[Array, ...]:
    """Return two models of a run; nothing here depends on what they are but that they differ."""
    first = first_model() if length == len(first_model()) else np.zeros(length, np.float32)
    return tuple(model.astype(np.float32) for model in (first, first + np.float32(0.5)))


def pinned_threshold(members: int, present: int, adversary: AdversaryModel = AdversaryModel.ACTIVE) -> int:
    """Return the smallest t for which 2t > n + n_C for n present hospitals and any n_C below a third of the members.

    Written by the theorem's condition (Bonawitz et al. 2017), not by the product's formula. t is above 2n/3 and at
    least 3. Against a server that keeps to the protocol, t is a majority of those present, and at least 3.
    """
    if adversary is AdversaryModel.SEMI_HONEST:
        return next(t for t in range(3, 2 * members) if 2 * t > present)
    colluding = (members - 1) // 3
    return next(t for t in range(3, 2 * members) if 2 * t > present + colluding and 3 * t > 2 * present)


# ---------------------------------------------------------------------------------------------------------------------
# Programs


@dataclass(frozen=True)
class Program:
    """What a server does, from its first request to its last.

    Attributes:
        hospitals: members of the consortium.
        colluders: the numbers of the hospitals that collude.
        policy: what each hospital agrees to, where it is not as in :data:`POLICY`.
        runs: each with ``id``, ``changes`` of the base configuration, and members it goes ``without``.
        steps: see :meth:`Server.step`.
        comment: what a reader should know.
    """

    hospitals: int
    colluders: tuple[int, ...]
    policy: dict[str, Any]
    runs: tuple[dict[str, Any], ...]
    steps: tuple[Step, ...]
    comment: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {
            "comment": self.comment,
            "hospitals": self.hospitals,
            "colluders": list(self.colluders),
            "policy": self.policy,
            "runs": list(self.runs),
            "steps": list(self.steps),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Program":
        """Read a program."""
        return cls(**{**tree, **{name: tuple(tree[name]) for name in ("colluders", "runs", "steps")}})


# ---------------------------------------------------------------------------------------------------------------------
# Hospitals, and what is known of them here


@dataclass
class Vector:
    """One masked vector, what it hides, and what its hospital did to make it."""

    hospital: str
    key: Key
    description: RunDescription
    terms: RoundTerms
    cohort: tuple[str, ...]
    message: secagg.MaskedInput
    plain: tuple[Array, ...]
    masked: tuple[Array, ...]
    masks: tuple[tuple[Mask, ...], ...]
    units: Mapping[Part, int]

    @property
    def did(self) -> tuple[Any, ...]:
        """Return what hospitals of one sum must have in common."""
        return self.description.hash(), self.key[1], self.terms.encode(), self.cohort

    @property
    def asks_who_is_trained_on(self) -> bool:
        """Whether its round counts training records."""
        return self._asks(ReleaseKind.STATISTICS)

    @property
    def spreads(self) -> bool:
        """Whether its round asks how far hospitals' own AUC lie apart."""
        return self._asks(ReleaseKind.SPREAD)

    @property
    def compares(self) -> bool:
        """Whether its round compares the model with hospitals' own."""
        return self._asks(ReleaseKind.AGAINST_ALONE)

    def _asks(self, kind: ReleaseKind) -> bool:
        plan, question = evaluation_plan_of(self.description), self.terms.question
        return plan is not None and question is not None and plan.release(question.release).kind is kind


class _Site:
    """One honest hospital: its agent and disk, and an eye on what it puts on its vectors."""

    def __init__(self, name: str, folder: Path, policy: HospitalConfig, seed: int) -> None:
        self.name, self.folder, self.policy = name, folder, policy
        self.random = Keystream(hashlib.sha256(f"{seed} {name}".encode()).digest()).draw
        self.plain: list[Array] = []
        self.masks: list[tuple[Mask, ...]] = []
        folder.mkdir(mode=0o700)
        self.restart()

    def restart(self) -> None:
        """Begin the agent anew on the disk that is there."""
        authority, hospitals = _identities()
        now = datetime.datetime.now(datetime.UTC)
        here = Surroundings(
            state=self.folder,
            data=self.folder / "data",
            cache=self.folder / "cache",
            random=self.random,
            now=lambda: now,
            apply_masks=self._masked,
            open_data=_open,
        )
        self.agent = HospitalAgent(hospitals[self.name], authority.certificate, self.policy, here)

    def _masked(self, segment: Array, masks: Sequence[Mask]) -> None:
        self.plain.append(segment[:PREFIX].copy())
        # The agent overwrites the bytes of its seeds afterwards, wherever they are: these are others.
        self.masks.append(tuple(Mask(bytes(bytearray(mask.seed)), mask.subtract) for mask in masks))
        apply_masks(segment, masks)

    def bookings(self) -> Counter[tuple[str, int, Booking]]:
        """Return what the ledger says was spent: run, round and booking."""
        if not (self.folder / LEDGER_FOLDER).exists():
            return Counter()
        entries = [each for each in export(self.folder / LEDGER_FOLDER)["entries"] if each["kind"] == "spent"]
        return Counter(
            (each["run_id"], each["round_number"], _BOOKING.validate_python(each["booking"])) for each in entries
        )


def _open(_folder: Path, _contract: DataContract, _cache: Path, _began_with: str) -> HospitalData:
    return _data()


@contextmanager
def quick_hospitals() -> Iterator[None]:
    """Make hospitals draw their changes at random instead of training, and note every contribution."""
    source = np.random.default_rng(5)

    def trained(_model: Any, start: Array, *_: Any, **__: Any) -> SimpleNamespace:  # noqa: ANN401 - as train_locally
        return SimpleNamespace(delta=source.normal(0, 0.01, len(start)).astype(np.float32))

    def summed(_model: Any, start: Array, *_: Any) -> SimpleNamespace:  # noqa: ANN401 - as noisy_gradient_sum
        return SimpleNamespace(total=source.integers(-1000, 1000, len(start)))

    def scored(_model: Any, _flat: Array, *parts: Any) -> tuple[Array, Array]:  # noqa: ANN401 - as scores
        validation, test, classes, _device = parts
        zeros = [np.zeros((len(part) * part.copies, classes), np.float32) for part in (validation, test)]
        return zeros[0], zeros[1]

    contribute = Contributor.contribute

    def noted(self: Contributor, round_number: int, terms: RoundTerms, model: Array, *, cohort: int) -> Contribution:
        made = contribute(self, round_number, terms, model, cohort=cohort)
        _NOTED.append((self, round_number, terms))
        return made

    with quick_accounting(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.contribution, "train_locally", trained)
        patch.setattr(client.contribution, "noisy_gradient_sum", summed)
        patch.setattr(client.contribution, "scores", scored)
        patch.setattr(client.contribution, "model_inputs", _inputs_once)
        patch.setattr(client.contribution, "model_of", _model_once)
        patch.setattr(Contributor, "contribute", noted)
        yield


def _model_once(run: RunDescription) -> Any:  # noqa: ANN401 - as the real one
    """Return a model that nobody trains; all runs of an architecture share it."""
    size = run.model.image_size
    return _built(run.model.architecture, len(run.classes), run.channels, size, seed=0)


_built = cache(registry.build)

_INPUTS: dict[tuple[str, bytes], Array] = {}


def _inputs_once(name: str, images: Array, _cache: Path) -> Array:
    """Return a model's inputs; the features of the same images are computed once."""
    key = (name, hashlib.sha256(images.tobytes()).digest())
    if key not in _INPUTS:
        features = registry.frozen_features(name)
        _INPUTS[key] = images if features is None else np.concatenate([*extract(features, images)])
    return _INPUTS[key]


_NOTED: list[tuple[Contributor, int, RoundTerms]] = []


class _Colluder:
    """A hospital that does what the server likes."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.identity = _identities()[1][name].key
        self.random = Keystream(hashlib.sha256(f"{seed} {name}".encode()).digest()).draw
        self.keys: dict[Key, advertise_keys.RoundKeys] = {}

    def advertise(self, key: Key, run: RunParameters) -> secagg.AdvertisedKeys:
        if key not in self.keys:
            self.keys[key], _ = advertise_keys.advertise(run, key[1], self.name, self.identity, self.random)
        return self.keys[key].advertised

    def sign(self, like: secagg.SurvivorSignature, run: RunParameters) -> secagg.SurvivorSignature:
        unsigned = replace(like, hospital=self.name, signature=b"")
        return replace(unsigned, signature=self.identity.sign(consistency_check.signed_part(run, unsigned)))

    def view(self, like: secagg.MaskedInput, run: RunParameters) -> secagg.MaskedInput:
        """Sign whatever view of a round another hospital has signed, with a vector that was never sent."""
        unsigned = replace(like, hospital=self.name, vector_hash=bytes(32), signature=b"")
        return replace(unsigned, signature=self.identity.sign(masked_input.signed_part(run, unsigned)))


# ---------------------------------------------------------------------------------------------------------------------
# The server


class Server:
    """Plays a program against hospitals, and keeps all it is sent."""

    def __init__(self, program: Program, folder: Path, seed: int = 0) -> None:
        self.program = program
        self.names = tuple(name_of(number) for number in range(1, program.hospitals + 1))
        policy = HospitalConfig.model_validate({**POLICY, **program.policy})
        self.colluders = {name: _Colluder(name, seed) for name in map(name_of, program.colluders)}
        honest = [name for name in self.names if name not in self.colluders]
        self.sites = {name: _Site(name, folder / name, policy, seed) for name in honest}
        self.advertised: dict[Key, dict[str, secagg.AdvertisedKeys]] = defaultdict(dict)
        self.accepted: dict[tuple[str, Key], secagg.KeyDirectory] = {}
        self.deals: dict[Key, list[tuple[secagg.KeyDirectory, secagg.EncryptedShares]]] = defaultdict(list)
        self.signatures: dict[Key, list[secagg.SurvivorSignature]] = defaultdict(list)
        self.revealed: dict[Key, list[secagg.UnmaskingShares]] = defaultdict(list)
        self.opened: list[tuple[str, Key]] = []
        """Who opened the sum over everybody of a round."""
        self.vectors: list[Vector] = []
        self.bare: list[str] = []
        """Who sent a vector without masks."""
        self.history: list[tuple[str, Request, Array | None, Step]] = []
        self.replies: list[dict[str, str]] = []
        self._parameters: dict[int, RunParameters] = {}

    def description(self, run: int) -> RunDescription:
        """Return the description of one of the program's runs."""
        return _described(self.program.hospitals, json.dumps(self.program.runs[run], sort_keys=True))

    def parameters(self, run: int) -> RunParameters:
        """Return the run as the protocol sees it."""
        if run not in self._parameters:
            self._parameters[run] = self._parameters_of(run)
        return self._parameters[run]

    def _parameters_of(self, run: int) -> RunParameters:
        description = self.description(run)
        keys = {name: _members(self.program.hospitals)[2][name] for name in description.roster}
        return protocol_parameters(
            description, keys, description.aggregation.min_hospitals, max(self.program.hospitals, len(keys))
        )

    def play(self) -> None:
        """Take every step, and note the kind of each reply, or the code of each refusal."""
        for step in self.program.steps:
            self.replies.append(self.step(step))

    def step(self, step: Step) -> dict[str, str]:
        """Take one step; ``do`` says which, ``to`` whom to ask, ``run`` and ``round`` for what.

        - ``advertise``: keys.
        - ``share``: of the keys of the hospitals in ``directory``, for a ``threshold`` where one is stated.
        - ``mask``: a vector for ``cohort``, with ``terms``; keys for the round ``next`` may ride on it.
        - ``sign``: ``survivors`` and ``dropped``; the directory ``next`` may ride on it.
        - ``unmask``: likewise, with the signatures of ``signers`` where they are named, otherwise every signature over
          the view that the hospital asked has signed; with ``of`` the signatures are of another round.
        - ``open``: the sum over everybody, with everyone's signed view, or that of ``signers`` where they are named.
          With ``of`` the views are of another round. Colluders sign what the hospital asked has signed. The directory
          ``next`` may ride on it.
        - ``plain``: the vector without masks.
        - ``replay``: the ``request``-th request that was sent (from 0), whomever it was sent to then.
        - ``restart``.
        """
        found: dict[str, str] = {}
        for number in step["to"]:
            name = name_of(number)
            if name in self.colluders:
                self._collude(self.colluders[name], step)
                continue
            if name not in self.sites:
                continue
            if step["do"] == "restart":
                self.sites[name].restart()
                continue
            asked = self._request(name, step)
            if asked is None:
                found[name] = "not asked"
                continue
            request, array, origin = asked
            self.history.append((name, request, array, origin))
            found[name] = self._ask(name, request, array, origin)
        return found

    def _collude(self, colluder: _Colluder, step: Step) -> None:
        number = {"advertise": step.get("round"), "mask": step.get("next")}.get(step["do"])
        if not number:
            return
        try:
            parameters = self.parameters(step["run"])
        except ParameterError:
            return  # The roster is one that the protocol does not run with, so nobody's keys would help.
        key = (step["run"], number)
        self.advertised[key].setdefault(colluder.name, colluder.advertise(key, parameters))

    def _directory(self, key: Key, hospitals: Sequence[int], threshold: int | None) -> secagg.KeyDirectory | None:
        known = self.advertised[key]
        keys = tuple(known[name] for name in sorted(map(name_of, hospitals)) if name in known)
        if not keys:
            return None
        honest = self.parameters(key[0]).threshold(len(keys))
        directory = secagg.KeyDirectory(f"{self.program.runs[key[0]]['id']:032x}", key[1], threshold or honest, keys)
        everyone, names = directory_hash(directory), {entry.hospital for entry in keys}
        dealt = {each.hospital for _, each in self.deals[key] if each.directory_hash == everyone}
        for name, colluder in self.colluders.items():
            if name in names - dealt and len(keys) >= directory.threshold:
                _, message = share_keys.deal(colluder.keys[key], directory, colluder.random)
                self.deals[key].append((directory, message))
        return directory

    def terms(self, key: Key, cohort: int, stated: Mapping[str, Any]) -> tuple[RoundTerms, Array]:
        """Return a round's terms, honest in what is not stated, and the model that goes with them."""
        description = self.description(key[0])
        model = _models(layout_of(description).parameters)[stated.get("model", 0)]
        plan, question, release = evaluation_plan_of(description), None, stated.get("release")
        if release is not None and plan is not None:
            at = stated.get("edges", 4.0)
            asked = plan.release(min(release, len(plan.everything) - 1))
            edges = plan.edges(asked)
            question = Question(release, tuple(tuple(np.linspace(-at, at, count).tolist()) for count in edges))
        purpose = Purpose(stated.get("purpose", "train"))
        fewest = stated.get("fewest")
        if fewest is None:
            trains, measures = purpose is not Purpose.EVALUATE, question is not None
            fewest = fewest_survivors(description, cohort, trains=trains, measures=measures)
        return RoundTerms(
            purpose=purpose, model_hash=hash_model(model), fewest_survivors=fewest, question=question
        ), model

    def _request(  # noqa: PLR0911 - one each
        self, name: str, step: Step
    ) -> tuple[Request, Array | None, Step] | None:
        if step["do"] == "replay":
            return self._again(step)
        key = (step["run"], step["round"])
        run_id = f"{self.program.runs[key[0]]['id']:032x}"
        place: dict[str, Any] = {"run_id": run_id, "round_number": key[1]}
        match step["do"]:
            case "advertise":
                encoded = self.description(key[0]).canonical_json()
                return KeysRequest(run_description=encoded, round_number=key[1]), None, step
            case "share":
                directory = self._directory(key, step["directory"], step.get("threshold"))
                if directory is None:
                    return None
                return SharesRequest(**place, directory=secagg.encode(directory)), None, step
            case "mask":
                terms, model = self.terms(key, len(step["cohort"]), step["terms"])
                cohort = tuple(sorted(map(name_of, step["cohort"])))
                asked = secagg.MaskedInputRequest(
                    run_id, key[1], terms.encode(), cohort, self._inbox(name, key, cohort)
                )
                return MaskRequest(**place, request=secagg.encode(asked), next_round=step.get("next")), model, step
            case "sign":
                listed = secagg.SurvivorList(run_id, key[1], *self._lists(step))
                rides = self._riding(key, step)
                return ConsistencyRequest(**place, survivors=secagg.encode(listed), **rides), None, step
            case "unmask":
                survivors, dropped = self._lists(step)
                chosen = self._chosen(name, key, step, survivors)
                wanted = secagg.UnmaskingRequest(run_id, key[1], survivors, dropped, chosen)
                return UnmaskRequest(**place, request=secagg.encode(wanted)), None, step
            case "open":
                everything = secagg.FullUnmaskingRequest(run_id, key[1], self._views(name, key, step))
                rides = self._riding(key, step)
                return UnmaskAllRequest(**place, request=secagg.encode(everything), **rides), None, step
            case "plain":
                terms, model = self.terms(key, self.program.hospitals, step["terms"])
                encoded = self.description(key[0]).canonical_json()
                return PlainRequest(**place, run_description=encoded, terms=terms.encode()), model, step
        raise ValueError(f"no such step: {step['do']}")

    def _riding(self, key: Key, step: Step) -> dict[str, Any]:
        if not step.get("next"):
            return {}
        following = self._directory((key[0], key[1] + 1), step["next"], None)
        if following is None:
            return {}
        return {"next_round": key[1] + 1, "next_directory": secagg.encode(following)}

    def _views(self, name: str, key: Key, step: Step) -> tuple[secagg.SignedView, ...]:
        key = tuple(step["of"]) if "of" in step else key
        own = next((each for each in reversed(self.vectors) if (each.hospital, each.key) == (name, key)), None)
        chosen: dict[str, secagg.MaskedInput] = {}
        for vector in self.vectors:
            if vector.key != key or ("signers" in step and number_of(vector.hospital) not in step["signers"]):
                continue
            alike = own is not None and vector.did == own.did
            if alike or vector.hospital not in chosen:
                chosen[vector.hospital] = vector.message
        for colluding, colluder in self.colluders.items():
            if own is not None and colluding in own.cohort:
                chosen[colluding] = colluder.view(own.message, self.parameters(key[0]))
        return tuple(
            secagg.SignedView(hospital, view.vector_hash, view.commitment, view.signature)
            for hospital, view in sorted(chosen.items())
        )

    def _again(self, step: Step) -> tuple[Request, Array | None, Step] | None:
        if step["request"] >= len(self.history):
            return None
        _, request, array, origin = self.history[step["request"]]
        return request, array, origin

    @staticmethod
    def _lists(step: Step) -> tuple[tuple[str, ...], tuple[str, ...]]:
        survivors, dropped = (tuple(sorted(map(name_of, step[which]))) for which in ("survivors", "dropped"))
        return survivors, dropped

    def _inbox(self, name: str, key: Key, cohort: Collection[str]) -> tuple[secagg.EncryptedShare, ...]:
        """Return the shares dealt to a hospital, of deals for the directory that it was shown where there are such."""
        shown = self.accepted.get((name, key))
        wanted = None if shown is None else directory_hash(shown)
        best: dict[str, secagg.EncryptedShare] = {}
        for _, deal in sorted(self.deals[key], key=lambda each: each[1].directory_hash == wanted):
            if deal.hospital in cohort and deal.hospital != name:
                best.update((deal.hospital, share) for share in deal.shares if share.recipient == name)
        return tuple(best[dealer] for dealer in sorted(best))

    def _chosen(
        self, name: str, key: Key, step: Step, survivors: Collection[str]
    ) -> tuple[secagg.SurvivorSignature, ...]:
        key = tuple(step["of"]) if "of" in step else key
        given = self.signatures[key]
        own = next((each for each in reversed(given) if each.hospital == name), None)
        chosen: dict[str, secagg.SurvivorSignature] = {}
        for each in given:
            named = "signers" in step and number_of(each.hospital) in step["signers"]
            alike = own is not None and "signers" not in step and _view(each) == _view(own)
            if named or alike:
                chosen[each.hospital] = each
        for colluding, colluder in self.colluders.items():
            if own is not None and colluding in survivors:
                chosen[colluding] = colluder.sign(own, self.parameters(key[0]))
        return tuple(chosen[hospital] for hospital in sorted(chosen))

    def _ask(self, name: str, request: Request, array: Array | None, step: Step) -> str:
        site = self.sites[name]
        site.plain, site.masks = [], []
        _NOTED.clear()
        copied = None if array is None else array.copy()
        reply, vector = site.agent.answer(decode_request(encode(request)), copied)
        if isinstance(reply, RefusedReply):
            if vector is not None:
                raise PromiseBrokenError(f"{name} sent a vector with a refusal")
            if reply.code == "fault":
                raise AssertionError(f"a fault of the agent of {name} after {request}")
            return reply.code
        self._take(name, request, reply, vector, (step["run"], step["round"]))
        return str(type(reply).__struct_config__.tag)

    def _take(self, name: str, request: Request, reply: Reply, vector: Array | None, key: Key) -> None:
        following = (key[0], key[1] + 1)
        match reply:
            case KeysReply():
                self.advertised[key][name] = _read(reply.advertised, secagg.AdvertisedKeys)
            case SharesReply():
                assert isinstance(request, SharesRequest)
                self._take_deal(name, key, request.directory, reply.shares)
            case MaskReply():
                assert isinstance(request, MaskRequest)
                assert vector is not None
                self._take_vector(name, request, reply, vector, key)
                if reply.advertised is not None:
                    advertised = _read(reply.advertised, secagg.AdvertisedKeys)
                    self.advertised[key[0], advertised.round_number][name] = advertised
            case ConsistencyReply():
                self.signatures[key].append(_read(reply.signature, secagg.SurvivorSignature))
                if reply.shares is not None:
                    assert isinstance(request, ConsistencyRequest)
                    assert request.next_directory is not None
                    self._take_deal(name, following, request.next_directory, reply.shares)
            case UnmaskReply():
                self.revealed[key].append(_read(reply.revealed, secagg.UnmaskingShares))
                if isinstance(request, UnmaskAllRequest):
                    self.opened.append((name, key))
                    if reply.shares is not None:
                        assert request.next_directory is not None
                        self._take_deal(name, following, request.next_directory, reply.shares)
            case _:
                self.bare.append(name)

    def _take_deal(self, name: str, key: Key, directory: bytes, encoded: bytes) -> None:
        accepted = self.accepted[name, key] = _read(directory, secagg.KeyDirectory)
        self.deals[key].append((accepted, _read(encoded, secagg.EncryptedShares)))

    def _take_vector(self, name: str, request: MaskRequest, reply: MaskReply, vector: Array, key: Key) -> None:
        site = self.sites[name]
        ((contributor, round_number, terms),) = _NOTED
        assert round_number == key[1]
        description = contributor._run
        segments = self.parameters(key[0]).segments(vector)
        asked = secagg.decode(request.request, secagg.MaskedInputRequest, secagg.Limits(MOST_HOSPITALS), _PLACE)
        counts = site.plain[0]
        # The training units that statistics count stand where validation units would.
        units = {Part.VALIDATION: int(counts[1]), Part.TRAINING: int(counts[1]), Part.TEST: int(counts[2])}
        self.vectors.append(
            Vector(
                hospital=name,
                key=key,
                description=description,
                terms=terms,
                cohort=asked.cohort,
                message=_read(reply.masked, secagg.MaskedInput),
                plain=tuple(site.plain),
                masked=tuple(part[:PREFIX].copy() for part in segments),
                masks=tuple(site.masks),
                units=units,
            )
        )


_PLACE = Place(SERVER, 1, Phase.MASKED_INPUT)


def _read(encoded: bytes, kind: type[secagg.M]) -> secagg.M:
    return secagg.decode(encoded, kind, secagg.Limits(MOST_HOSPITALS), _PLACE)


def _view(signature: secagg.SurvivorSignature) -> tuple[bytes, ...]:
    return signature.config_hash, signature.request_hash, signature.cohort_hash, signature.survivors_hash


# ---------------------------------------------------------------------------------------------------------------------
# What the server can work out


def pairwise_seed_info(*of: Any) -> bytes:  # noqa: ANN401 - passed on
    """Return what hospitals bind a pair's seed to, also when a test has put a defect there."""
    info: bytes = vars(masked_input)["pairwise_seed_info"](*of)
    return info


class Knowledge:
    """Every secret that the adversary can rebuild, and every mask that follows from one."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._secrets: dict[tuple[Key, str, Committed], bytes | None] = {}
        self.seeds = {segment: self._seeds(segment) for segment in Segment}

    def _seeds(self, segment: Segment) -> set[bytes]:
        found: set[bytes] = set()
        for vector in self.server.vectors:
            run, shown = self.server.parameters(vector.key[0]), self.server.accepted[vector.hospital, vector.key]
            context = round_context(run, vector.key[1])
            own = self.secret(vector.key, vector.hospital, Committed.SELF_MASK_SEED)
            if own is not None:
                found.add(derive(own, self_mask_info(context, vector.hospital, segment)))
            public = {entry.hospital: entry.masking_key for entry in shown.keys}
            mine = self.secret(vector.key, vector.hospital, Committed.MASKING_KEY_SHARE)
            for peer, key in public.items():
                theirs = self.secret(vector.key, peer, Committed.MASKING_KEY_SHARE)
                if peer == vector.hospital or (mine is None and theirs is None):
                    continue
                message, pair = vector.message, (vector.hospital, peer)
                info = pairwise_seed_info(context, message.cohort_hash, message.request_hash, pair, segment)
                if mine is not None:
                    found.add(bytes(Agreements(mine).agree(key, info)))
                elif theirs is not None:
                    found.add(bytes(Agreements(theirs).agree(public[vector.hospital], info)))
        return found

    def secret(self, key: Key, owner: str, kind: Committed) -> bytes | None:
        """Return b of a hospital, or its masking key, where the adversary can have it."""
        asked = key, owner, kind
        if asked not in self._secrets:
            self._secrets[asked] = self._secret(*asked)
        return self._secrets[asked]

    def _secret(self, key: Key, owner: str, kind: Committed) -> bytes | None:
        colluder = self.server.colluders.get(owner)
        if colluder is not None:
            keys = colluder.keys.get(key)
            return None if keys is None or kind is Committed.SELF_MASK_SEED else bytes(keys.masking_key)
        for directory, deal in self.server.deals[key]:
            if deal.hospital == owner:
                found = self._rebuilt(key, directory, deal, kind)
                if found is not None:
                    return found
        return None

    def _rebuilt(
        self, key: Key, directory: secagg.KeyDirectory, deal: secagg.EncryptedShares, kind: Committed
    ) -> bytes | None:
        graph = neighbourhoods(self.server.parameters(key[0]), directory)
        shares: dict[int, bytes] = {}
        of_seed = kind is Committed.SELF_MASK_SEED
        for message in self.server.revealed[key]:
            given = message.self_mask_shares if of_seed else message.masking_key_shares
            for share in given:
                if share.owner == deal.hospital and message.hospital in graph.points:
                    shares[graph.points[message.hospital]] = share.share
        for name, colluder in self.server.colluders.items():
            opened = self._handed_over(colluder, key, deal) if name in graph.points else None
            if opened is not None:
                shares[graph.points[name]] = opened[0 if of_seed else 1]
        for some in combinations(sorted(shares), graph.share_threshold):
            found = rebuild({point: shares[point] for point in some})
            if found is not None and self._is_it(key, directory, deal, found, of_seed=of_seed):
                return found
        return None

    def _handed_over(self, colluder: _Colluder, key: Key, deal: secagg.EncryptedShares) -> tuple[bytes, bytes] | None:
        """Return the shares of b and of the masking key that a hospital dealt to a colluder."""
        sealed = next((share for share in deal.shares if share.recipient == colluder.name), None)
        if sealed is None or key not in colluder.keys:
            return None
        context = round_context(self.server.parameters(key[0]), key[1])
        info = share_encryption_info(context, deal.directory_hash, deal.hospital, colluder.name)
        theirs = self.server.advertised[key][deal.hospital].encryption_key
        opened = decrypt(Agreements(colluder.keys[key].encryption_key).agree(theirs, info), sealed.ciphertext)
        if opened is None:
            return None
        return opened[-SHARE_BYTES:], opened[-2 * SHARE_BYTES : -SHARE_BYTES]

    def _is_it(
        self, key: Key, directory: secagg.KeyDirectory, deal: secagg.EncryptedShares, secret: bytes, *, of_seed: bool
    ) -> bool:
        if of_seed:
            context = round_context(self.server.parameters(key[0]), key[1])
            made = commit(context, Committed.SELF_MASK_SEED, deal.hospital, deal.hospital, secret)
            return made == deal.self_mask_commitment
        advertised = next(entry for entry in directory.keys if entry.hospital == deal.hospital)
        return public_key(secret) == advertised.masking_key


@dataclass(frozen=True)
class Sum:
    """A sum that the server can unmask in one segment, which no smaller one makes up."""

    segment: Segment
    vectors: tuple[Vector, ...]

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Return over whom it is."""
        return tuple(sorted(vector.hospital for vector in self.vectors))


@dataclass
class Outcome:
    """What came of a program: each step's replies, what can be unmasked, and what was booked."""

    server: Server
    sums: list[Sum]
    stored: dict[str, Any] = field(default_factory=dict)
    """What a stored program expects, taken while the hospitals' ledgers were there."""

    @classmethod
    def of(cls, server: Server) -> "Outcome":
        """Work out what the server can."""
        knowledge = Knowledge(server)
        found = [each for place in enumerate(Segment) for each in _sums(server.vectors, *place, knowledge)]
        outcome = cls(server, found)
        outcome._try_every_set(knowledge)
        return outcome

    def _try_every_set(self, knowledge: Knowledge) -> None:
        """Assert that taking off every mask that is known opens the unions of the sums found, and no other set."""
        for place, segment in enumerate(Segment):
            of_segment = [{id(vector) for vector in each.vectors} for each in self.sums if each.segment is segment]
            for key in {vector.key for vector in self.server.vectors}:
                here = [vector for vector in self.server.vectors if vector.key == key]
                bare = {id(vector): _unmasked(vector, place, knowledge.seeds[segment]) for vector in here}
                for size in range(1, len(here) + 1):
                    for some in combinations(here, size):
                        residue = sum(bare[id(vector)] for vector in some)
                        plain = sum(vector.plain[place] for vector in some)
                        chosen = {id(vector) for vector in some}
                        within = [each for each in of_segment if each <= chosen]
                        expected = set().union(*within) == chosen
                        if np.array_equal(np.asarray(residue), np.asarray(plain)) != expected:
                            raise AssertionError(f"the harness is wrong about {[v.hospital for v in some]}")

    def as_json(self) -> dict[str, Any]:
        """Return what a stored program expects."""
        opened = sorted({(each.vectors[0].key, each.hospitals) for each in self.sums})
        return {
            "replies": self.server.replies,
            "unmasked": [
                {
                    "run": run,
                    "round": number,
                    "hospitals": list(hospitals),
                    "segments": sorted(
                        each.segment.value
                        for each in self.sums
                        if (each.vectors[0].key, each.hospitals) == ((run, number), hospitals)
                    ),
                }
                for (run, number), hospitals in opened
            ],
            "booked": {
                name: dict(sorted(_by_account(site.bookings()).items())) for name, site in self.server.sites.items()
            },
        }


def _by_account(bookings: Counter[tuple[str, int, Booking]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, _, booking), count in bookings.items():
        found[booking.account.value] += count
    return found


def _unmasked(vector: Vector, place: int, known: set[bytes]) -> Array:
    part = vector.masked[place].copy()
    taken = [Mask(mask.seed, not mask.subtract) for mask in vector.masks[place] if mask.seed in known]
    apply_masks(part, taken)
    return part


def _sums(vectors: Sequence[Vector], place: int, segment: Segment, knowledge: Knowledge) -> Iterator[Sum]:
    """Yield the smallest sums whose unknown masks all cancel."""
    carried: dict[bytes, list[tuple[int, bool]]] = defaultdict(list)
    for number, vector in enumerate(vectors):
        for mask in vector.masks[place]:
            if mask.seed not in knowledge.seeds[segment]:
                carried[mask.seed].append((number, mask.subtract))
    part_of, shut = list(range(len(vectors))), set[int]()
    for ends in carried.values():
        if len(ends) == 2 and ends[0][1] != ends[1][1]:
            one, other = part_of[ends[0][0]], part_of[ends[1][0]]
            part_of = [one if each == other else each for each in part_of]
        else:
            shut.update(number for number, _ in ends)
    closed = {part_of[number] for number in shut}
    for part in sorted(set(part_of) - closed):
        chosen = tuple(vector for number, vector in enumerate(vectors) if part_of[number] == part)
        yield Sum(segment, chosen)


# ---------------------------------------------------------------------------------------------------------------------
# The promise


def check(outcome: Outcome) -> None:
    """Assert the promise.

    Raises:
        PromiseBrokenError: it does not hold; says what the server learnt.
    """
    server = outcome.server
    if server.bare:
        raise PromiseBrokenError(f"{server.bare} sent vectors without masks")
    for each in outcome.sums:
        _check_sum(server, each)
    _check_differences(outcome)
    _check_once(server)
    _check_opened(server)
    for name in server.sites:
        _check_ledger(server, name)


def _check_sum(server: Server, opened: Sum) -> None:
    first, hospitals = opened.vectors[0], opened.hospitals
    if len({vector.did for vector in opened.vectors}) > 1:
        raise PromiseBrokenError(f"a sum over {hospitals}, who did different things, can be unmasked")
    if len(set(hospitals)) < len(hospitals):
        raise PromiseBrokenError(f"a sum over {hospitals} holds two vectors of one hospital")
    members = server.program.hospitals
    if set(first.description.roster) != set(server.names):
        raise PromiseBrokenError(f"a sum over {hospitals} of a run with a part of the consortium can be unmasked")
    colluding = len(server.colluders.keys() & set(first.cohort))
    directory = server.accepted[first.hospital, first.key]
    fewest = pinned_threshold(members, len(directory.keys), first.description.aggregation.adversary)
    if len(hospitals) + colluding < fewest:
        raise PromiseBrokenError(
            f"a sum over {hospitals} and {colluding} colluders can be unmasked, {fewest} must be in it"
        )
    run, terms = first.description, first.terms
    private_training = terms.reads_training_records and run.privacy.mode is PrivacyMode.DISTRIBUTED
    needed = len(first.cohort) - run.privacy.tolerated_dropouts
    if (private_training or terms.question is not None) and len(hospitals) + colluding < needed:
        raise PromiseBrokenError(
            f"the noise of {needed} hospitals must be in a sum, the one over {hospitals} can be unmasked"
        )


def _check_differences(outcome: Outcome) -> None:
    by_round: dict[tuple[str, int, Segment], list[Sum]] = defaultdict(list)
    for each in outcome.sums:
        first = each.vectors[0]
        by_round[first.description.run_id, first.key[1], each.segment].append(each)
    for (_, number, _), sums in by_round.items():
        # The server has these sums and what they make up together, so two of them and a third differ in a whole one.
        if len(sums) > 1:
            raise PromiseBrokenError(f"round {number} gives sums over {[each.hospitals for each in sums]}")


def _check_once(server: Server) -> None:
    vectors = Counter((each.hospital, each.description.run_id, each.key[1]) for each in server.vectors)
    views: dict[tuple[str, str, int], set[bytes]] = defaultdict(set)
    for (run, number), given in server.signatures.items():
        for each in given:
            views[each.hospital, server.description(run).run_id, number].add(each.survivors_hash)
    for what, counts in (("vectors", vectors), ("signed views", {key: len(some) for key, some in views.items()})):
        for (name, _, number), count in counts.items():
            if count > 1:
                raise PromiseBrokenError(f"{name} gave {count} {what} for round {number}")


def _check_opened(server: Server) -> None:
    signed = {(each.hospital, key) for key, given in server.signatures.items() for each in given}
    for name, key in server.opened:
        if (name, key) in signed:
            raise PromiseBrokenError(f"{name} signed survivors of round {key[1]} and opened the sum over everybody")
        own = next(vector for vector in server.vectors if (vector.hospital, vector.key) == (name, key))
        alike = {vector.hospital for vector in server.vectors if vector.did == own.did}
        missing = set(own.cohort).intersection(server.sites) - alike
        if missing:
            raise PromiseBrokenError(f"{name} opened a sum over everybody of round {key[1]} without {sorted(missing)}")
    if len(server.opened) > len(set(server.opened)):
        raise PromiseBrokenError("a hospital opened a sum twice")


def _check_ledger(server: Server, name: str) -> None:
    revealed: Counter[tuple[str, int, Booking]] = Counter()
    asked: Counter[tuple[str, Booking]] = Counter()
    allowed: dict[tuple[str, Booking], int] = {}
    for vector in server.vectors:
        if vector.hospital == name:
            for run_id, number, booking in _cost(vector):
                revealed[run_id, number, booking] += 1
                if booking.account is not Account.TRAINING or vector.terms.purpose is Purpose.MEAN:
                    asked[run_id, booking] += 1
                    allowed[run_id, booking] = _most_asked(vector.description, booking)
    booked = server.sites[name].bookings()
    alone = _of_models_alone(server, name, booked)
    missing = revealed - booked
    if missing:
        lines = [f"{booking.account} in round {number}" for _, number, booking in missing]
        raise PromiseBrokenError(f"the ledger of {name} has no line for {lines}")
    for kind, count in asked.items():
        if count > allowed[kind]:
            raise PromiseBrokenError(f"{name} answered {count} times what a run may ask {allowed[kind]} times")
    policy = server.sites[name].policy
    for account in Account:
        limit = BudgetPolicy.of(policy, account)
        events = [limit.event_of(each) for _, _, each in revealed.elements() if each.account is account]
        events += [limit.event_of(each) for each in alone if each.account is account]
        if events and vars(client.ledger.ledger)["epsilon"](events, policy.delta, Accountant.RDP) > limit.budget:
            raise PromiseBrokenError(f"what {name} revealed of its {account} records costs more than its budget")


def _of_models_alone(server: Server, name: str, booked: Counter[tuple[str, int, Booking]]) -> list[Booking]:
    """Return what a hospital has booked for its own models, of which it told something: at least once in each run."""
    found: list[Booking] = []
    told = {
        vector.description.run_id: vector.description
        for vector in server.vectors
        if vector.hospital == name and vector.compares and vector.units[Part.TEST]
    }
    for run_id, run in told.items():
        for booking in mechanism_of(run).bookings_alone(run, layout_of(run).parameters):
            lines = sum(count for (of, _, each), count in booked.items() if (of, each) == (run_id, booking))
            if not lines:
                raise PromiseBrokenError(f"the ledger of {name} has no line for its model alone, of which it told")
            found += [booking] * lines
    return found


_ACCOUNTS = {Part.VALIDATION: Account.VALIDATION, Part.TEST: Account.TEST, Part.TRAINING: Account.STATISTICS}
"""Where a hospital must book what a release says about a part; statistics are about training records."""


def _most_asked(run: RunDescription, booking: Booking) -> int:
    """Return how often a run may ask for what costs as much: as planned, and the repeats."""
    if booking.account is Account.TRAINING:
        return 1 + run.evaluation.repeats  # The mean of features; steps have a budget alone.
    plan = evaluation_plan_of(run)
    assert plan is not None
    alike = [
        release
        for release in plan.everything
        if _ACCOUNTS[release.part] is booking.account
        and release_mechanism(run, plan, release).event(1.0) == booking.event
    ]
    return len(alike) + run.evaluation.repeats


def _cost(vector: Vector) -> Iterator[tuple[str, int, Booking]]:
    """Yield what a hospital must have booked before it sent a vector."""
    run, terms, privacy = vector.description, vector.terms, vector.description.privacy
    plan, number = evaluation_plan_of(run), vector.key[1]
    if terms.reads_training_records and privacy.mode is not PrivacyMode.NONE:
        mechanism, parameters = mechanism_of(run), layout_of(run).parameters
        told = mechanism.mean_plan(run, parameters) if terms.purpose is Purpose.MEAN else None
        event = (told or mechanism.plan(run, parameters)).event
        assert event is not None
        colluders = None if privacy.mode is PrivacyMode.LOCAL else privacy.colluders
        yield run.run_id, number, Booking(Account.TRAINING, event, privacy.unit, colluders, privacy.delta)
    if terms.question is None or plan is None:
        return
    release = plan.release(terms.question.release)
    if vector.units[release.part]:
        account = _ACCOUNTS[release.part]
        event = release_mechanism(run, plan, release).event(1.0)
        yield run.run_id, number, Booking(account, event, privacy.unit, privacy.colluders, privacy.delta)


# ---------------------------------------------------------------------------------------------------------------------
# Playing


def play(program: Program, seed: int = 0) -> Outcome:
    """Play a program against hospitals that have never seen a server; :func:`quick_hospitals` must be in force."""
    folder = Path(tempfile.mkdtemp(prefix="lying-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
    try:
        server = Server(program, folder, seed)
        server.play()
        outcome = Outcome.of(server)
        check(outcome)
        outcome.stored = outcome.as_json()
        return outcome
    finally:
        shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Programs by chance


def honest_round(
    everyone: Sequence[int],
    run: int = 0,
    number: int = 1,
    dropped: Sequence[int] = (),
    *,
    at_once: bool = False,
    trusted: bool = False,
    **terms: Any,  # noqa: ANN401
) -> list[Step]:
    """Return the steps of an honest round; ``dropped`` answer no more once they have masked nothing.

    Where nobody is missing the sum may be opened ``at_once``, in four steps; otherwise there are five. Nobody signs
    where the server is ``trusted`` to keep to the protocol, so that there are four as well.
    """
    place = {"run": run, "round": number}
    stay = [each for each in everyone if each not in dropped]
    begin: list[Step] = [
        {"do": "advertise", "to": list(everyone), **place},
        {"do": "share", "to": list(everyone), **place, "directory": list(everyone)},
        {"do": "mask", "to": stay, **place, "cohort": list(everyone), "terms": terms},
    ]
    if at_once:
        return [*begin, {"do": "open", "to": stay, **place}]
    lists = {"survivors": stay, "dropped": list(dropped)}
    sign: list[Step] = [] if trusted else [{"do": "sign", "to": stay, **place, **lists}]
    return [*begin, *sign, {"do": "unmask", "to": stay, **place, **lists}]


def _some(source: random.Random, of: Sequence[int], least: int = 1) -> list[int]:
    return sorted(source.sample(list(of), source.randint(min(least, len(of)), len(of))))


FEATURES, LABELS, STATISTICS, COLLUDERS, TRUSTED = "features", "labels", "statistics", "colluders", "semi-honest"
COMPARING = "comparing"

KINDS: dict[str, dict[str, Any]] = {
    FEATURES: {
        "model": {"name": "scattering_linear"},
        "training": {"copies": 2, "warp": "chest"},
        "privacy": {"mean_share": 0.1},
    },
    LABELS: {"task": {"kind": "multilabel", "classes": ("effusion", "mass", "nodule")}},
    STATISTICS: {"evaluation": {"statistics_epsilon": 1.0}},
    COLLUDERS: {"privacy": {"colluders": 2}, "aggregation": {"min_hospitals": 4}},
    TRUSTED: {"aggregation": {"adversary": "semi-honest"}},
    COMPARING: {"privacy": {"alone_share": 0.5}, "evaluation": {"spread_share": 0.2}},
}
"""What runs of another kind change: models on frozen features, which may ask for their mean; several labels; runs that
ask who is trained on; seven hospitals of whom two collude; a server that keeps to the protocol; runs that compare their
model with each hospital's own."""


ASKED_OF_TRAINING = 4
"""The number of the release that counts training records, in the plan of a run of two rounds."""

ASKED_OF_ALONE = 4
"""The number of the release that compares, likewise, where nobody asks who is trained on."""

ASKED_OF_SPREAD = 5
"""The number of the release that tells how far hospitals' own AUC lie apart, after that."""


class _Dice:
    """Makes one random program."""

    def __init__(self, seed: int, hospitals: int | None = None, kind: str = "") -> None:
        self.kind = kind
        self.source = random.Random(seed)  # noqa: S311 - repeatable
        sizes = (7,) if kind == COLLUDERS else (4, 4, 5, 6)
        self.hospitals = self.source.choice(sizes) if hospitals is None else hospitals
        self.everyone = list(range(1, self.hospitals + 1))
        self.mode = MODES[seed % len(MODES)]
        self.left_out = _some(self.source, self.everyone[: self.hospitals - 3])
        self.always: dict[str, Any] | None = None
        # What all share: an attack needs most of a round to go well.
        self.mischief = self.source.choice((0.05, 0.15, 0.3))

    def maybe(self, scale: float = 1.0) -> bool:
        return self.source.random() < self.mischief * scale

    def program(self) -> Program:
        source = self.source
        changes: dict[str, Any] = {
            "privacy": {"mode": self.mode, "colluders": 1, "tolerated_dropouts": source.choice((0, 1, 1))}
        }
        if self.mode != "none":
            changes["training"] = {"sample_rate": 1.0}
        for section, values in KINDS.get(self.kind, {}).items():
            changes[section] = {**changes.get(section, {}), **values}
        runs: list[dict[str, Any]] = [
            {"id": 1, "changes": changes},
            {"id": 2, "changes": self._other_statistics(changes)},
            {"id": 1, "changes": {**changes, "training": {**self._copies(), "learning_rate": 0.5}}},
            {"id": 1, "changes": changes, "without": self.left_out},
            {"id": 3, "changes": {**changes, "privacy": {**changes["privacy"], "unit": "patient"}}},
        ]
        make = self.ambush if source.random() < 0.5 else self.round
        if self.kind == TRUSTED:
            make = self.trusted
        if source.random() < 0.1:  # The same is asked again and again.
            self.always = self._terms()
            rounds = [make(number) for number in range(1, source.choice((4, 5)))]
        else:
            rounds = [make(number) for number in range(1, source.choice((2, 2, 3)))]
        if len(rounds) > 1 and (self.maybe() or (self.between_runs and source.random() < 0.15)):
            steps = self._interleaved(rounds)
        else:
            steps = [step for each in rounds for step in each]
        colluders = self._colluders()
        policy: dict[str, Any] = {"evaluation_epsilon_budget": source.choice((0.3, 1000.0, 1000.0))}
        if self.kind == COMPARING:  # Too little for a question, for asking it twice, or enough.
            policy["evaluation_epsilon_budget"] = source.choice((0.3, 0.6, 1000.0))
        if self.kind == STATISTICS:  # Too little for the other run, for asking twice, for both runs, or enough.
            policy["allow_statistics_epsilon"] = source.choice((1.0, 2.0, 2.5, 1000.0))
        if self.kind == TRUSTED:
            policy["allow_semi_honest"] = True
        return Program(
            hospitals=self.hospitals,
            colluders=colluders,
            policy=policy,
            runs=tuple(runs),
            steps=tuple(steps if self.kind == TRUSTED else self._disturbed(steps)),
        )

    @property
    def between_runs(self) -> bool:
        """Whether rounds of two runs come in turn: a hospital that joins another run forgets the keys of the first."""
        return self.kind in (STATISTICS, TRUSTED)

    def _other_statistics(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return a run's changes; one that asks who is trained on does so at another price."""
        return {**changes, "evaluation": {"statistics_epsilon": 2.0}} if self.kind == STATISTICS else changes

    def _colluders(self) -> tuple[int, ...]:
        if self.kind in (COLLUDERS, TRUSTED):  # As many as the threshold is made for, or fewer.
            most = (self.hospitals - 1) // 3 if self.kind == COLLUDERS else (self.hospitals - 1) // 2
            return tuple(self.everyone[self.hospitals - self.source.randint(most // 2, most) :])
        chosen = self.source.choice((0, self.hospitals, self.hospitals))
        return (chosen,) if chosen else ()

    def trusted(self, number: int) -> list[Step]:
        """Return a round of a server that keeps to the protocol, in which hospitals vanish at any step."""
        source = self.source
        place = {"run": source.choice((0, 0, 1)), "round": number}
        terms = self._terms()
        there, steps = list(self.everyone), list[Step]()
        steps.append({"do": "advertise", "to": there, **place})
        there = self._still(there)
        steps.append({"do": "share", "to": there, **place, "directory": there})
        cohort = self._still(there)
        steps.append({"do": "mask", "to": (stay := self._still(cohort)), **place, "cohort": cohort, "terms": terms})
        dropped = [each for each in cohort if each not in stay]
        lists = {"survivors": stay, "dropped": dropped}
        return [*steps, {"do": "unmask", "to": self._still(stay), **place, **lists}]

    def _still(self, there: Sequence[int]) -> list[int]:
        """Return who is still there: mostly everybody."""
        gone = _some(self.source, there)[: self.source.randint(1, 2)] if self.maybe() else []
        return [each for each in there if each not in gone]

    def _copies(self) -> dict[str, Any]:
        copies: dict[str, Any] = KINDS.get(self.kind, {}).get("training", {})
        return copies

    def _interleaved(self, rounds: list[list[Step]]) -> list[Step]:
        left, steps = [list(each) for each in rounds], []
        while any(left):
            steps.append(self.source.choice([each for each in left if each]).pop(0))
        return steps

    def _disturbed(self, steps: list[Step]) -> list[Step]:
        source, found = self.source, []
        for step in steps:
            if self.maybe(0.1):
                continue
            found.append(step)
            if self.maybe(0.1):
                found.append({"do": "restart", "to": _some(source, self.everyone)})
            if self.maybe(0.3):
                found.append({"do": "replay", "to": _some(source, self.everyone), "request": source.randrange(30)})
        if self.maybe(0.1) and len(found) > 2:
            place = source.randrange(len(found) - 1)
            found[place], found[place + 1] = found[place + 1], found[place]
        return found

    def _split(self, of: Sequence[int]) -> list[list[int]]:
        """Return everyone as one group, or as two that are told different things."""
        if len(of) < 2 or not self.maybe():
            return [list(of)]
        first = _some(self.source, of[:-1]) if len(of) > 1 else list(of)
        second = [each for each in of if each not in first]
        return [group for group in (first, second) if group]

    def round(self, number: int) -> list[Step]:
        """Return the steps of one round, bent here and there."""
        source, steps = self.source, []
        run = source.choice((1, 2, 3, 4)) if self.maybe(0.3) else self._usual_run()
        place = {"run": run, "round": number}
        there = _some(source, self.everyone, self.hospitals - 1) if self.maybe() else list(self.everyone)
        for group in self._split(there):
            other = source.choice((1, 2, 3, 4)) if self.maybe(0.15) else run
            steps.append({"do": "advertise", "to": group, "run": other, "round": number})
        for group in self._split(there):
            shown = _some(source, there, 2) if self.maybe(0.4) else there
            step = {"do": "share", "to": group, **place, "directory": shown}
            if self.maybe(0.2):
                step["threshold"] = source.randint(1, self.hospitals)
            steps.append(step)
        cohort = _some(source, there, 3) if self.maybe() else list(there)
        terms = self._terms()
        views: list[tuple[list[int], list[int]]] = []
        for group in self._split(there):
            together = _some(source, there, 3) if self.maybe(0.5) else cohort
            asked = self._bent(terms) if self.maybe() else terms
            step = {"do": "mask", "to": group, **place, "cohort": together, "terms": asked}
            if self.maybe(0.3):
                step["next"] = number + 1
            steps.append(step)
            views.append((group, together))
        if self.maybe(0.1):
            steps.append({"do": "plain", "to": _some(source, there), **place, "terms": terms})
        for group, together in views:
            steps += self._ending(group, together, place, there)
        return steps

    def _end(self, group: list[int], cohort: list[int], place: dict[str, int], there: list[int]) -> list[Step]:
        source, steps = self.source, []
        groups = self._split(there if self.maybe(2.0) else group)
        gone = _some(source, cohort)[:1] if self.maybe() else []
        lists = {}
        for number, some in enumerate(groups):
            lost = _some(source, cohort)[: source.randint(0, 2)] if self.maybe() else gone
            survivors, dropped = [each for each in cohort if each not in lost], list(lost)
            if self.maybe(0.3):
                survivors = sorted({*survivors, source.choice(self.everyone)})
            if self.maybe(0.3) and dropped:
                dropped = dropped[1:]
            if self.maybe(0.2):
                dropped = sorted({*dropped, source.choice(cohort)})
            lists[number] = {"survivors": survivors, "dropped": dropped}
            steps.append({"do": "sign", "to": some, **place, **lists[number]})
            if self.maybe(0.3):
                again = [each for each in cohort if each not in _some(source, cohort)[:1]]
                left = [each for each in cohort if each not in again]
                steps.append({"do": "sign", "to": some, **place, "survivors": again, "dropped": left})
        for number, some in enumerate(groups):
            shown = lists[source.choice(sorted(lists))] if self.maybe(0.5) else lists[number]
            step = {"do": "unmask", "to": some, **place, **shown}
            if self.maybe(0.2):
                step["signers"] = _some(source, self.everyone)
            if self.maybe(0.1):
                step["of"] = [place["run"], source.randint(1, 2)]
            steps.append(step)
        return steps

    def _ending(self, group: list[int], cohort: list[int], place: dict[str, int], there: list[int]) -> list[Step]:
        """Return the steps of either ending of a round, or of both in any order."""
        opening = self._opening(group, place, cohort) if self.source.random() < 0.5 else []
        if opening and not self.maybe(2.0):
            return opening
        steps = self._end(group, cohort, place, there)
        for step in opening:
            steps.insert(self.source.randint(0, len(steps)), step)
        return steps

    def _opening(self, group: list[int], place: dict[str, int], cohort: list[int]) -> list[Step]:
        source, steps = self.source, []
        for some in self._split(group):
            step: Step = {"do": "open", "to": some, **place}
            if self.maybe(0.3):
                step["signers"] = _some(source, cohort)
            if self.maybe(0.1):
                step["of"] = [place["run"], source.randint(1, 2)]
            if self.maybe(0.3):
                step["next"] = list(cohort)
            steps.append(step)
        return steps

    def ambush(self, number: int) -> list[Step]:
        """Return the steps of a round with one lie, which everything that follows is in keeping with."""
        steps, source = self._lie(number), self.source
        masked = max(place for place, step in enumerate(steps) if step["do"] == "mask") + 1
        asked = sorted({each for step in steps[:masked] if step["do"] == "mask" for each in step["to"]})
        opening: Step = {"do": "open", "to": asked, "run": steps[0]["run"], "round": number}
        ending = source.random()
        if ending < 0.3:
            return [*steps[:masked], opening]
        if ending < 0.7:  # Both endings of the round: the one to some, the other to others, or to all.
            steps.insert(source.randint(masked, len(steps)), {**opening, "to": _some(source, asked)})
        return steps

    def _usual_run(self) -> int:
        return self.source.randrange(2) if self.between_runs else 0

    def _lie(self, number: int) -> list[Step]:
        source, run = self.source, 3 if self.source.random() < 0.15 else self._usual_run()
        there = [each for each in self.everyone if run != 3 or each not in self.left_out]
        steps = honest_round(there, run=run, number=number, **self._terms())
        advertise, share, mask, sign, unmask = steps
        lied_to = _some(source, there)[: source.choice((1, 1, 2))]
        others = [each for each in there if each not in lied_to]
        last = self.hospitals  # The one that colludes, where one does.
        match source.randrange(5):
            case 0:  # Some are asked for something else.
                bent = {**mask, "to": lied_to, "terms": self._bent(mask["terms"])}
                return [advertise, share, bent, {**mask, "to": others}, sign, unmask]
            case 1:  # Some are shown another cohort, mostly where the terms do not tell its size.
                left_out = source.choice((last, source.choice(there)))
                mask = {**mask, "terms": source.choice((mask["terms"], {"purpose": "train"}))}
                bent = {**mask, "to": lied_to, "cohort": [each for each in there if each != left_out]}
                return [advertise, share, bent, {**mask, "to": others}, sign, unmask]
            case 2:  # Who survives has little to do with who is in the cohort.
                cohort = source.choice((_some(source, there, 3), [each for each in there if each != last]))
                gone = source.choice(cohort)
                survivors = source.choice(
                    (_some(source, self.everyone, 3), sorted({*cohort, last} - {gone}), sorted({*cohort} - {gone}))
                )
                dropped = [each for each in cohort if each not in survivors]
                asked = {"to": survivors, "survivors": survivors, "dropped": dropped}
                return [
                    advertise,
                    share,
                    {**mask, "to": cohort, "cohort": cohort},
                    {**sign, **asked},
                    {**unmask, **asked},
                ]
            case 3:  # Another list is to be signed, or unmasked, afterwards.
                lists = {"survivors": others, "dropped": lied_to}
                again = source.choice(([{**sign, **lists}, unmask], [unmask, {**unmask, **lists}]))
                return [advertise, share, mask, sign, *again]
            case _:
                return steps

    def _terms(self) -> dict[str, Any]:
        source = self.source
        if self.always is not None:
            return dict(self.always)
        if self.kind == FEATURES and source.random() < 0.5:
            return {"purpose": "mean", "release": source.choice((None, None, None, 0))}
        if self.kind == COMPARING and source.random() < 0.5:
            return {
                "purpose": source.choice(("evaluate",) * 4 + ("train",)),
                "release": source.choice((ASKED_OF_ALONE, ASKED_OF_ALONE, ASKED_OF_SPREAD)),
            }
        if self.kind == STATISTICS and source.random() < 0.5:
            return {"purpose": source.choice(("evaluate",) * 4 + ("train",)), "release": ASKED_OF_TRAINING}
        purpose = source.choice(("train", "train", "evaluate"))
        release = source.choice((0, 1, 2, 3)) if purpose == "evaluate" else source.choice((None, 0, 1))
        return {"purpose": purpose, "release": release}

    def _bent(self, terms: dict[str, Any]) -> dict[str, Any]:
        other = "evaluate" if terms["purpose"] == "train" else "train"
        if self.kind == FEATURES and terms["purpose"] != "mean" and self.source.random() < 0.5:
            other = "mean"
        bend: tuple[dict[str, Any], ...] = (
            {"purpose": other},
            {"model": 1},
            {"release": self.source.choice((None, 0, 1, 2, 3, 7 if self.kind != STATISTICS else ASKED_OF_TRAINING))},
            {"edges": 2.0},
            {"fewest": self.source.randint(0, self.hospitals)},
        )
        return {**terms, **self.source.choice(bend)}


def random_program(seed: int, hospitals: int | None = None, kind: str = "") -> Program:
    """Return the program of a seed; its mode is the seed modulo three.

    It is for 4 to 6 hospitals, or for as many as are named; ``kind`` is one of :data:`KINDS`, or of two classes.
    """
    return _Dice(seed, hospitals, kind).program()
