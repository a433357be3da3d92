"""Two real agents whose data differ in one record, and a server that holds the same random conversation with both.

The twins have one identity, one clock and the same stream of random bytes each. Everything that leaves them is compared
byte by byte: replies as they are encoded for the wire, refusals with their words, the presence, shape, type and size of
vectors, and the lines of the audit chain, which others read. What a vector holds is not compared: that is what the data
decide, and what masks and noise are for. Nor are its hash and the signature over that, which follow from the vector.
Nor is the digest of the ledger's head in the chain: the ledger's first line holds 32 random bytes of its own, so its
digests hide what they are of; the head's number is compared.

The other hospitals of a round are played by the protocol's own functions, so that rounds run to their sums, which are
decoded: whatever the twins' data are, their vectors are valid and state what the policy states.
"""

import datetime
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from opacus.accountants.analysis import rdp

import client.contribution
import client.ledger.ledger
import common.privacy.calibration
import common.privacy.mechanism
from client.agent import HospitalAgent, Surroundings
from client.data import DataContract
from client.data.hospital_data import HospitalData, HospitalRecords
from common.audit.chain import AUDIT_FILE, AuditChain
from common.audit.parties import Writer
from common.config import Config, HospitalConfig, RunDescription
from common.config import replace as changed
from common.errors import ConfideError, ConfigError, DataError
from common.evaluation.plan import Part
from common.evaluation.question import Question
from common.evaluation.statistics import TRAITS
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
from common.models.flat import flat_parameters, share_parameters
from common.privacy.accounting import epsilon
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
    encode,
    phase_of,
)
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import describe, evaluation_plan_of, fewest_survivors, layout_of, protocol_parameters
from common.run.vector import Tail
from common.secagg import advertise_keys, consistency_check, full_unmasking, masked_input, share_keys, unmasking
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place, SecAggError
from common.secagg.masks import Mask, apply_masks
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase
from common.task import TaskConfig, TaskKind, implied
from tests.support.parties import Hospital

VICTIM = "hospital-1"
MOST_HOSPITALS = 5
STATED_BY_PEERS = 20
SIDE = 28
CLASSES = ("normal", "pneumonia")
TASK = implied("pneumonia", CLASSES)
"""What the twins' labels mean; :func:`of_task` changes it."""

LARGEST_FLOAT = 3.4e38

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - where there is one

Array = np.ndarray[Any, np.dtype[Any]]


class Difference(StrEnum):
    """In what the twins' data differ."""

    ADDED = "a record more"
    PIXEL = "another pixel"
    LABEL = "another label"
    SPLIT = "another part"
    OVERFLOWS = "a record on which a model overflows"
    EMPTY_PART = "the only record of a part"
    CLASS_GONE = "the only record of a class"
    PATIENT = "another patient"
    TRAITS = "another sex, age, view and size"


KINDS = tuple(Difference)
"""The conversation of seed s is with twins of the kind s modulo their number."""


class TwinsDifferError(AssertionError):
    """Something that left one twin did not leave the other."""


# ---------------------------------------------------------------------------------------------------------------------
# Data


def quiet_images(seed: int, count: int) -> Array:
    """Return images of little contrast, so that one of much contrast is the first to overflow."""
    source = np.random.default_rng(seed)
    shade = source.integers(115, 140, (count, 1, 1, 1))
    return (shade + source.integers(-12, 13, (count, 1, SIDE, SIDE))).astype(np.uint8)


def _loud_image() -> Array:
    rows, columns = np.indices((SIDE, SIDE))
    return np.where((rows // 7 + columns // 7) % 2, 255, 0).astype(np.uint8)[None, None]


_COLUMNS = ("images", "labels", "patients", "parts", "traits")


@dataclass(frozen=True)
class _Table:
    """Records as rows, so that they can be moved between parts."""

    images: Array
    labels: Array
    patients: Array
    parts: Array
    traits: Array

    def without(self, row: int) -> "_Table":
        kept = np.arange(len(self.labels)) != row
        return _Table(*(getattr(self, name)[kept] for name in _COLUMNS))

    def with_row(self, row: int, **values: Any) -> "_Table":  # noqa: ANN401 - of a column
        columns = {name: getattr(self, name).copy() for name in _COLUMNS}
        for name, value in values.items():
            columns[name][row] = value
        return _Table(**columns)

    def data(self) -> HospitalData:
        def part(number: int) -> HospitalRecords:
            rows = self.parts == number
            return HospitalRecords(self.images[rows], self.labels[rows], self.patients[rows], self.traits[rows])

        digest = hashlib.sha256()
        for name in _COLUMNS:
            digest.update(getattr(self, name).tobytes())
        return HospitalData(part(0), part(1), part(2), digest.digest())


def twin_data(difference: Difference, seed: int) -> tuple[HospitalData, HospitalData]:  # noqa: C901, PLR0911 - one each
    """Return a hospital's data, and the same with one record that differs."""
    source = np.random.default_rng(seed)
    counts = (int(source.integers(18, 42)), int(source.integers(3, 9)), int(source.integers(3, 9)))
    parts = np.repeat([0, 1, 2], counts)
    total = len(parts)
    labels = source.integers(0, TASK.numbers, total)
    patients = np.where(source.random(total) < 0.5, np.arange(total), np.arange(total) // 3 * 3) + 1000 * parts
    # Of a stream of its own, so that every other column stays what it was before there were traits.
    traits = np.random.default_rng((seed, 1)).integers(0, 3, (total, len(TRAITS))).astype(np.uint8)
    table = _Table(quiet_images(seed, total), labels, patients, parts, traits)
    row = int(source.integers(0, total))
    match difference:
        case Difference.ADDED:
            return table.data(), table.without(row).data()
        case Difference.PIXEL:
            images = table.images[row].copy()
            images[0, 14, 14] ^= 128
            return table.data(), table.with_row(row, images=images).data()
        case Difference.LABEL:
            return table.data(), table.with_row(row, labels=(labels[row] + 1) % TASK.numbers).data()
        case Difference.SPLIT:
            moved = (int(parts[row]) + int(source.integers(1, 3))) % 3
            return table.data(), table.with_row(row, parts=moved, patients=1000 * moved + 999).data()
        case Difference.OVERFLOWS:
            return table.data(), table.with_row(row, images=_loud_image()[0]).data()
        case Difference.EMPTY_PART:
            emptied = int(source.integers(0, 3))
            (rows,) = np.nonzero(parts == emptied)
            for extra in reversed(rows[1:].tolist()):
                table = table.without(extra)
            return table.data(), table.without(int(rows[0])).data()
        case Difference.CLASS_GONE:
            table = table.with_row(slice(None), labels=0)  # type: ignore[arg-type]
            return table.with_row(0, labels=1).data(), table.data()
        case Difference.PATIENT:
            return table.data(), table.with_row(row, patients=1000 * int(parts[row]) + 998).data()
        case Difference.TRAITS:
            return table.data(), table.with_row(row, traits=2 - traits[row]).data()


# ---------------------------------------------------------------------------------------------------------------------
# The consortium


@cache
def identities() -> tuple[Any, dict[str, HospitalIdentity]]:
    """Return an authority and five hospitals that it signed."""
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("twins", now)
    found = {}
    for number in range(1, MOST_HOSPITALS + 1):
        name = f"hospital-{number}"
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        request = request_hospital_certificate(name, key)
        certificate = sign_hospital_certificate(authority, request, name, now, datetime.timedelta(days=2))
        found[name] = HospitalIdentity(name, certificate, key)
    return authority, found


@cache
def _members(hospitals: int) -> tuple[dict[str, str], str]:
    """Return the roster of the first so many hospitals, and the list that names them as all members."""
    authority, known = identities()
    some = dict(list(known.items())[:hospitals])
    roster = {name: certificate_pem(each.certificate).decode() for name, each in some.items()}
    keys = {name: each.key.public_key().public_bytes_raw() for name, each in some.items()}
    return roster, sign_members(authority, keys, 1, datetime.datetime.now(datetime.UTC)).decode()


@contextmanager
def quick_accounting() -> Iterator[None]:
    """Ask the accountant each question once in a process: it answers from public numbers alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cached = lru_cache(maxsize=None)(epsilon)

    def of_any(events: Any, delta: float, accountant: Any) -> float:  # noqa: ANN401 - as epsilon takes it
        return cached(tuple(events), delta, accountant)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.privacy.calibration, "noise_multiplier", _calibrated)
        patch.setattr(client.contribution, "epsilon", of_any)
        patch.setattr(common.privacy.mechanism, "epsilon", of_any)
        patch.setattr(client.ledger.ledger, "epsilon", of_any)
        patch.setattr(rdp, "_compute_rdp", lru_cache(maxsize=None)(rdp._compute_rdp))
        patch.setattr(os, "fsync", lambda _descriptor: None)  # No power fails here.
        yield
    torch.set_num_threads(before)


_calibrated = lru_cache(maxsize=None)(common.privacy.calibration.noise_multiplier)


def _view(encoded: bytes) -> secagg.MaskedInput:
    return secagg.decode(
        encoded, secagg.MaskedInput, secagg.Limits(MOST_HOSPITALS), Place(SERVER, 1, Phase.MASKED_INPUT)
    )


def _without_vector(encoded: bytes) -> bytes:
    """Return a signed view without what follows from the vector."""
    view = _view(encoded)
    return secagg.encode(replace(view, vector_hash=bytes(32), signature=bytes(len(view.signature))))


def _comparable(reply: Reply) -> bytes:
    if isinstance(reply, MaskReply):
        reply = msgspec.structs.replace(reply, masked=_without_vector(reply.masked))
    return encode(reply)


@dataclass(frozen=True)
class Left:
    """What left one twin after a request."""

    reply: bytes
    shape: tuple[int, ...] | None
    dtype: str | None
    size: int


@dataclass
class Twin:
    """One of the two: an agent with a disk, data and random bytes of its own."""

    folder: Path
    data: HospitalData
    policy: HospitalConfig
    seed: bytes
    bare: list[Array] = field(default_factory=list)
    """The segments of the last vectors, before their masks."""

    def __post_init__(self) -> None:
        """Make the folders, and begin."""
        self.random = Keystream(self.seed).draw
        self.state = self.folder / "state"
        self.state.mkdir(mode=0o700, parents=True)
        self.agent = self.started()

    def started(self) -> HospitalAgent:
        """Begin the agent anew on the disk that is there."""
        authority, hospitals = identities()
        me = hospitals[VICTIM]
        chain = AuditChain(self.state / AUDIT_FILE, Writer(me.certificate, me.key))
        now = datetime.datetime.now(datetime.UTC)

        def masked(segment: Array, masks: Sequence[Mask]) -> None:
            self.bare.append(segment.copy())
            apply_masks(segment, masks)

        surroundings = Surroundings(
            state=self.state,
            data=self.folder / "data",
            cache=self.folder / "cache",
            random=self.random,
            now=lambda: now,
            clock=lambda: 0.0,
            pause=lambda _seconds: None,
            record=chain.append,
            apply_masks=masked,
            open_data=self._open,
        )
        self.chain = chain
        return HospitalAgent(me, authority.certificate, self.policy, surroundings)

    def _open(self, _folder: Path, contract: DataContract, _cache: Path, _began_with: str) -> HospitalData:
        """Open what is in memory; whether it is fit for the task is the one bit that a hospital sends, and public."""
        if (contract.image_size, contract.channels, contract.classes) != (SIDE, 1, TASK.classes):
            raise DataError("the images are not what the run asks for")
        return self.data

    def restart(self) -> None:
        """Lose what is in memory."""
        self.chain.close()
        self.agent = self.started()

    def lines(self) -> list[Any]:
        """Return what the audit chain shows others, without the digest of the ledger's head."""
        bodies = [json.loads(line)["body"] for line in (self.state / AUDIT_FILE).read_bytes().splitlines()]
        for body in bodies:
            if body.get("ledger"):
                body["ledger"] = body["ledger"].split(":")[0]
            if body.get("view"):
                body["view"] = _without_vector(bytes.fromhex(body["view"])).hex()
        return bodies


Times = dict[str, list[tuple[float, float]]]


class Twins:
    """Both agents; whatever is asked of one is asked of the other, and compared."""

    def __init__(
        self, folder: Path, seed: int, policy: HospitalConfig, data: tuple[HospitalData, HospitalData]
    ) -> None:
        stream = hashlib.sha256(b"twins" + seed.to_bytes(8, "big")).digest()
        self.pair = tuple(Twin(folder / str(number), each, policy, stream) for number, each in enumerate(data))
        self.policy = policy
        self.times: Times = defaultdict(list)
        self.asked = 0
        self.refusals: dict[str, int] = defaultdict(int)
        self.vectors = 0
        self.views: list[secagg.MaskedInput] = []
        """What each has signed of its last vector."""

    def ask(
        self, request: Request, array: Array | None = None, second: Request | None = None
    ) -> tuple[Reply, Array | None, Array | None]:
        """Return the reply, which is the same of both, with each one's vector.

        Args:
            request: to both; or to the first, where the other's must hold what follows from its own vector.
            array: to both.
            second: the other's request, if it is another.

        Raises:
            TwinsDifferError: something tells them apart.
        """
        left, replies, vectors, seconds = [], [], [], [0.0, 0.0]
        order = (0, 1) if self.asked % 2 else (1, 0)
        answers: dict[int, tuple[Reply, Array | None]] = {}
        for number in order:
            began = time.perf_counter()
            asked = request if second is None or number == 0 else second
            answers[number] = self.pair[number].agent.answer(asked, None if array is None else array.copy())
            seconds[number] = time.perf_counter() - began
        for number in (0, 1):
            reply, vector = answers[number]
            shape, dtype = (None, None) if vector is None else (vector.shape, vector.dtype.str)
            left.append(Left(_comparable(reply), shape, dtype, 0 if vector is None else vector.nbytes))
            replies.append(reply)
            vectors.append(vector)
        self.asked += 1
        self.times[phase_of(request)].append((seconds[0], seconds[1]))
        if left[0] != left[1]:
            raise TwinsDifferError(
                f"{phase_of(request)}: {replies[0]} {left[0].shape} against {replies[1]} {left[1].shape}"
            )
        if isinstance(replies[0], RefusedReply):
            self.refusals[replies[0].code] += 1
            if replies[0].code == "fault":
                raise AssertionError(f"a fault of the agent after {request}")
        self.vectors += vectors[0] is not None
        self.views = [_view(reply.masked) for reply in replies if isinstance(reply, MaskReply)] or self.views
        return replies[0], vectors[0], vectors[1]

    def refusal(self, request: Request, array: Array | None = None) -> RefusedReply | None:
        """Return how both refuse, None if they do not."""
        reply, _, _ = self.ask(request, array)
        return reply if isinstance(reply, RefusedReply) else None

    def restart(self) -> None:
        """Restart both."""
        for twin in self.pair:
            twin.restart()

    def close(self) -> None:
        """Compare what the chains tell.

        Raises:
            TwinsDifferError: a line differs.
        """
        first, second = (twin.lines() for twin in self.pair)
        for twin in self.pair:
            twin.chain.close()
        if first != second:
            ours = [f"{a} against {b}" for a, b in zip(first, second, strict=False) if a != b]
            raise TwinsDifferError(f"audit chains of {len(first)} and {len(second)} lines: {ours[:1]}")


# ---------------------------------------------------------------------------------------------------------------------
# Runs and models that a server may ask for

BASE = changed(
    Config(),
    experiment={"rounds": 2},
    training={"sample_rate": 1.0},
    privacy={"accountant": "rdp", "delta": 1e-3, "target_epsilon": 4.0},
    evaluation={"score_bins": 16},
)

RUNS: tuple[dict[str, dict[str, Any]], ...] = (
    {},
    {"training": {"momentum": 0.9, "proximal_mu": 0.5, "local_epochs": 3}},
    {"training": {"sample_rate": 0.5}},
    {"training": {"sample_rate": 0.5}, "privacy": {"mode": "distributed"}},
    {"privacy": {"unit": "patient"}},
    {"experiment": {"rounds": 1}, "training": {"local_epochs": 2}},
    {"privacy": {"mode": "distributed"}},
    {"privacy": {"mode": "distributed", "unit": "patient"}, "evaluation": {"repeats": 0}},
    {"privacy": {"mode": "distributed", "tolerated_dropouts": 0, "colluders": 1}},
    {"privacy": {"mode": "none"}},
    {"privacy": {"mode": "none"}, "training": {"batch_size": 7, "momentum": 0.5}, "evaluation": {"exact": True}},
    {"privacy": {"mode": "none"}, "training": {"batch_size": 1}, "experiment": {"rounds": 6}},
    {"evaluation": {"exact": True}},
    {"privacy": {"mode": "distributed"}, "evaluation": {"exact": True}},
    {"aggregation": {"adversary": "semi-honest"}},
    {"aggregation": {"modulus_bits": 32, "max_weight": 41}},
    {"aggregation": {"mode": "plain"}, "evaluation": {"exact": True}},
    {"aggregation": {"mode": "plain"}, "evaluation": {"exact": True}, "privacy": {"mode": "none"}},
    {"evaluation": {"statistics_epsilon": 0.5}},
    {"evaluation": {"statistics_epsilon": 0.5}, "privacy": {"mode": "distributed", "unit": "patient"}},
)
"""Changes of :data:`BASE`, few enough that the accountant is asked little."""

_ON_FEATURES: dict[str, dict[str, Any]] = {
    "model": {"name": "scattering_linear"},
    "training": {"copies": 2, "warp": "chest"},
}

RUNS_ON_FEATURES: tuple[dict[str, dict[str, Any]], ...] = tuple(
    {**_ON_FEATURES, "privacy": {"mean_share": 0.1, **privacy}, **others}
    for privacy, others in (
        ({}, {}),
        ({"mode": "distributed"}, {}),
        ({"mode": "distributed", "unit": "patient"}, {"evaluation": {"repeats": 0}}),
        ({"unit": "patient"}, {}),
        ({"mode": "none"}, {"evaluation": {"exact": True}}),
    )
)
"""Runs of a model on frozen features, which may ask for their mean."""

RUNS_COMPARING: tuple[dict[str, dict[str, Any]], ...] = tuple(
    {"privacy": {"alone_share": 0.5, **privacy}, **others}
    for privacy, others in (
        ({}, {"evaluation": {"spread_share": 0.3}}),
        ({"unit": "patient"}, {"evaluation": {"repeats": 0}}),
        ({"mode": "distributed"}, {"training": {"sample_rate": 1.0, "momentum": 0.5}}),
        ({"mode": "distributed", "unit": "patient"}, {"evaluation": {"spread_share": 0.2}}),
        ({"mode": "none"}, {"training": {"batch_size": 7}}),
    )
)
"""Runs that compare their model with each hospital's own; some ask for the spread of hospitals' own AUC as well."""

RUNS_OF_TASKS: tuple[dict[str, dict[str, Any]], ...] = (
    {},
    {"privacy": {"mode": "distributed"}},
    {"privacy": {"mode": "distributed", "unit": "patient"}, "evaluation": {"repeats": 0}},
    {"privacy": {"mode": "none"}, "evaluation": {"exact": True}},
    {"evaluation": {"exact": True}},
    {"evaluation": {"statistics_epsilon": 0.5}},
)
"""Runs of tasks with several classes or labels, whose evaluation is another one."""

TASKS = {
    "ordinal": TaskConfig(kind=TaskKind.ORDINAL, classes=("none", "mild", "severe"), positive=("severe",)),
    "multiclass": TaskConfig(kind=TaskKind.MULTICLASS, classes=("normal", "bacteria", "virus", "other")),
    "multilabel": TaskConfig(kind=TaskKind.MULTILABEL, classes=("effusion", "mass", "nodule")),
}


@contextmanager
def of_task(task: TaskConfig) -> Iterator[None]:
    """Let the twins' data, models and runs be of another task than that of two classes."""
    runs = tuple({**run, "task": task.model_dump()} for run in RUNS_OF_TASKS)
    cached = (_described, first_model, overflowing_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.twins.TASK", task)
        patch.setattr("tests.support.twins.RUNS", runs)
        for function in cached:
            function.cache_clear()
        yield
    for function in cached:
        function.cache_clear()


def on_features() -> AbstractContextManager[None]:
    """Let every run of a conversation be of a model on frozen features, with copies and a mean."""
    return _with_runs(RUNS_ON_FEATURES)


def comparing() -> AbstractContextManager[None]:
    """Let every run of a conversation compare its model with each hospital's own."""
    return _with_runs(RUNS_COMPARING)


@contextmanager
def _with_runs(runs: tuple[dict[str, dict[str, Any]], ...]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.twins.RUNS", runs)
        _described.cache_clear()
        yield
    _described.cache_clear()


TOLD_MEANS: list[RoundTerms] = []
"""The terms of rounds that asked for a mean and reached their end."""

BENT: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("privacy", "delta", (1e-3, 1 / 20, 1 / 25, 1 / 30, 1 / 41, 0.09)),
    ("privacy", "colluders", (0, 1, 2, 3)),
    ("aggregation", "max_weight", (1, 19, 20, 21, 25, 30, 36, 41, 4096)),
    ("aggregation", "min_hospitals", (3, 4, 5)),
    ("experiment", "min_records_per_class", (0, 1, 2, 5, 10, 20)),
    ("experiment", "rounds", (1, 2)),
    ("experiment", "task", ("pneumonia", "retina")),
    ("training", "batch_size", (1, 2, 20, 30, 41, 65_536)),
    ("training", "local_epochs", (1, 2, 21)),
    ("model", "image_size", (28, 64, 512)),
    ("model", "name", ("cnn", "no_such_model")),
    ("evaluation", "interim_releases", (1, 9)),
    ("evaluation", "target_epsilon", (1.0, 2.0, 5.0)),
    ("evaluation", "repeats", (0, 1)),
    ("evaluation", "statistics_epsilon", (0.0, 0.5, 1.0)),
)
"""Terms that a server may bend to learn something by who refuses."""

_OF_NOISE = {("privacy", "delta"), ("experiment", "rounds"), ("training", "local_epochs")}


@cache
def _described(number: int, hospitals: int) -> RunDescription:
    config = changed(BASE, **{section: dict(values) for section, values in RUNS[number].items()})
    roster, member_list = _members(hospitals)
    return describe(config, 32 * "0", TASK.classes, 1, roster, member_list=member_list)


def random_run(source: random.Random, near: tuple[int, ...], hospitals: int) -> RunDescription | bytes:
    """Return a run's description; mostly one that a hospital may take part in.

    Args:
        source: of what is random.
        near: numbers of records that a server tries to tell apart.
        hospitals: of the consortium; now and then a run names others.
    """
    description = _described(
        source.randrange(len(RUNS)), hospitals if source.random() < 0.95 else source.randint(3, MOST_HOSPITALS)
    )
    tree = json.loads(description.canonical_json())
    tree["run_id"] = f"{source.getrandbits(128):032x}"
    if source.random() < 0.35:
        for section, key, values in source.sample(BENT, source.randint(1, 2)):
            # What is sampled at a rate below one keeps its terms: each others of its noise take seconds to search for.
            if tree["training"]["sample_rate"] == 1 or (section, key) not in _OF_NOISE:
                tree[section][key] = source.choice(values)
        if source.random() < 0.5:
            tree["aggregation"]["max_weight"] = source.choice(near)
        elif tree["training"]["sample_rate"] == 1:
            tree["privacy"]["delta"] = 1 / (source.choice(near) + 0.5)
    if source.random() < 0.05:
        tree["vector_length"] += source.choice((-1, 1, 1000))
    if source.random() < 0.05:
        tree["classes"] = ["normal", "pneumonia", "other"]
    if source.random() < 0.05 and tree["noise_multiplier"]:
        tree["noise_multiplier"] *= 0.5
    encoded = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    try:
        return RunDescription.from_json(encoded)
    except ConfigError:
        return encoded


def overflows(flat: Array, images: Array) -> Array:
    """Say for each image whether the model's scores or its gradient are not finite on it alone."""
    model = registry.build("cnn", len(TASK.classes), 1, SIDE, 1)
    share_parameters(model, torch.from_numpy(flat.copy()))
    inputs = torch.from_numpy(images).to(torch.float32) / 127.5 - 1
    with torch.inference_mode():
        scores = model(inputs)
    return (~torch.isfinite(scores).all(dim=1)).numpy()


def loud_images() -> Array:
    """Return five images of much contrast, all different: the one that twins may differ in first."""
    blocks = [np.random.default_rng(seed).permuted(np.tile([0, 255], 8)).reshape(4, 4) for seed in (8, 9, 10, 12)]
    others = np.array(blocks, np.uint8)[:, None].repeat(7, axis=2).repeat(7, axis=3)
    return np.concatenate([_loud_image(), others])


@cache
def overflowing_model(which: int = 0) -> Array:
    """Return a finite model that is not defined on one of five loud images, and is on quiet ones."""
    flat = first_model().copy()
    quiet, loud = quiet_images(5, 200), loud_images()[which : which + 1]
    # Of the first convolution, 16 filters of 8 x 8: the first looks for a piece of the image, the others for nothing.
    pieces = [loud[0, 0, y : y + 8, x : x + 8] / 127.5 - 1 for y in range(1, 20, 2) for x in range(1, 20, 2)]
    piece = max(pieces, key=lambda each: float(each.std()))
    matched = (piece - piece.mean()).reshape(-1)
    flat[: 16 * 64] = 0
    for exponent in np.linspace(15, 22, 141):
        grown = flat.copy()
        grown[:64] = matched * 10.0**exponent
        if overflows(grown, loud).all() and not overflows(grown, quiet).any():
            grown[:64] *= 1.5  # Well beyond where it begins.
            assert overflows(grown, loud).all()
            assert not overflows(grown, quiet).any()
            return grown
    raise AssertionError("no model overflows on the loud image alone")


@cache
def first_model() -> Array:
    """Return the run's first model."""
    flat: Array = flat_parameters(registry.build("cnn", len(TASK.classes), 1, SIDE, 1))
    return flat


def random_model(source: random.Random, length: int) -> Array:
    """Return a model of any finite values."""
    kind = source.randrange(6)
    if length != len(first_model()):
        return np.zeros(length, np.float32)
    if kind <= 1:
        return overflowing_model().copy()
    generator = np.random.default_rng(source.getrandbits(32))
    if kind == 2:
        return first_model().copy()
    size = 10.0 ** source.uniform(-3, 38.5)
    with np.errstate(over="ignore"):
        found = generator.standard_normal(length) * min(size, LARGEST_FLOAT)
    if kind == 3:
        found = np.where(generator.random(length) < 0.01, found, first_model())
    bounded: Array = np.clip(found, -LARGEST_FLOAT, LARGEST_FLOAT).astype(np.float32)
    return bounded


# ---------------------------------------------------------------------------------------------------------------------
# The conversation


class _Ended(Exception):  # noqa: N818 - no error
    """The hospital refused, so this round goes no further."""


@dataclass
class _Riding:
    """What the round before has brought for the next one."""

    round_number: int
    advertised: secagg.AdvertisedKeys
    directory: secagg.KeyDirectory | None = None
    shares: secagg.EncryptedShares | None = None


class Talk:
    """A server that leads the twins through a random conversation, honest in parts.

    Args:
        twins: asked alike.
        source: of everything that is random about the server.
    """

    def __init__(self, twins: Twins, source: random.Random) -> None:
        self.twins = twins
        self.source = source
        self.hospitals = source.randint(3, MOST_HOSPITALS)
        self.history: list[tuple[Request, Array | None]] = []
        self.finished = 0
        self.description: RunDescription | None = None
        self.encoded = b""
        self.round_number = 0
        self.riding: _Riding | None = None

    def hold(self, runs: int) -> None:
        """Hold the conversation."""
        for _ in range(runs):
            self.begin()
            for _ in range(self.source.randint(1, 3)):
                self.step()
        self.twins.close()

    def step(self) -> None:
        """Lead a round, or do something that no honest server does."""
        what = self.source.random()
        if what < 0.72:
            self.round()
        elif what < 0.84:
            self.mischief()
        elif what < 0.92:
            self.twins.restart()
        else:
            self.evaluation_only()

    def begin(self) -> None:
        """Describe another run."""
        described = random_run(self.source, tuple(len(twin.data.train) for twin in self.twins.pair), self.hospitals)
        self.riding = None
        if isinstance(described, bytes):
            self.description, self.encoded = None, described
        else:
            self.description, self.encoded = described, described.canonical_json()
        self.round_number = self.source.randint(0, 3)

    def maybe(self, probability: float) -> bool:
        """Say yes so often."""
        return self.source.random() < probability

    def ask(
        self, request: Request, array: Array | None = None, other: Request | None = None
    ) -> tuple[Reply, Array | None, Array | None]:
        """Ask both, sometimes after something else."""
        if self.maybe(0.04):
            self.mischief()
        self.history.append((request, array))
        reply, first, second = self.twins.ask(request, array, other)
        if isinstance(reply, RefusedReply):
            raise _Ended
        if self.maybe(0.04):
            self.twins.ask(request, array, other)
        return reply, first, second

    def mischief(self) -> None:
        """Replay a request, reorder one, or bend its bytes."""
        if not self.history:
            return
        request, array = self.source.choice(self.history[-12:])
        if self.maybe(0.6):
            names = [name for name in request.__struct_fields__ if isinstance(getattr(request, name), bytes)]
            kind = self.source.randrange(4)
            if kind == 0 and names:
                name = self.source.choice(names)
                content = bytearray(getattr(request, name))
                if content:
                    content[self.source.randrange(len(content))] ^= 1 << self.source.randrange(8)
                request = msgspec.structs.replace(request, **{name: bytes(content)})
            elif kind == 1:
                request = msgspec.structs.replace(request, round_number=self.source.randint(1, 9))
            elif kind == 2 and array is not None:
                array = self.source.choice((None, array[:-1], array.astype(np.float64), np.full_like(array, np.nan)))
            elif names:
                name = self.source.choice(names)
                request = msgspec.structs.replace(
                    request, **{name: getattr(request, name)[: self.source.randrange(40)]}
                )
        self.twins.ask(request, array)

    # A round

    def parameters(self) -> RunParameters:
        """Return the run as the protocol sees it."""
        assert self.description is not None
        _, known = identities()
        keys = {name: known[name].key.public_key().public_bytes_raw() for name in self.description.roster}
        fewest = max(self.description.aggregation.min_hospitals, self.twins.policy.min_hospitals)
        return protocol_parameters(self.description, keys, fewest)

    def peers(self) -> dict[str, Hospital]:
        """Return the other hospitals of the run."""
        assert self.description is not None
        _, known = identities()
        parameters = self.parameters()
        return {
            name: Hospital(name, known[name].key, parameters, self.source.randbytes)
            for name in self.description.roster
            if name != VICTIM
        }

    def evaluation_only(self) -> None:
        """Ask for many evaluations of one model, which cost a hospital no training."""
        for _ in range(self.source.randint(1, 4)):
            self.round(purpose=Purpose.EVALUATE)

    def round(self, purpose: Purpose | None = None) -> None:
        """Lead one round as far as the hospital goes along."""
        self.round_number += 1
        try:
            if self.description is None:
                self.ask(KeysRequest(run_description=self.encoded, round_number=self.round_number))
                raise AssertionError("a hospital joined a run whose description is none")
            try:
                # The parameters of a run that contradicts itself cannot be made; then the agent cannot either.
                parameters = self.parameters()
            except ConfideError:
                self.ask(KeysRequest(run_description=self.encoded, round_number=self.round_number))
                return
            if self.description.aggregation.mode == "plain":
                self._plain(purpose)
            else:
                self._masked(parameters, purpose)
        except (_Ended, SecAggError):
            self.riding = None

    def terms(self, model: Array, cohort: int, purpose: Purpose | None) -> RoundTerms:
        """Return what a round asks for, mostly as an honest server does."""
        assert self.description is not None
        try:
            plan = evaluation_plan_of(self.description)
        except ConfideError:
            plan = None
        purpose = purpose or (Purpose.TRAIN if self.maybe(0.8) else Purpose.EVALUATE)
        if self.description.privacy.mean_share and self.maybe(0.4):
            purpose = Purpose.MEAN
        question = None
        if plan is not None and (purpose is Purpose.EVALUATE or self.maybe(0.5)):
            release = self.source.choice(plan.releases)
            if plan.statistics is not None and self.maybe(0.5):
                release = plan.statistics
            if plan.comparison is not None and self.maybe(0.5):
                release = plan.comparison
            if plan.spread is not None and self.maybe(0.4):
                release = plan.spread
            edges = plan.edges(release)
            if self.maybe(0.05):
                edges = (*edges, 1)
            question = Question(release.number, tuple(self._edges(count) for count in edges))
        if purpose is Purpose.MEAN and self.maybe(0.8):
            question = None
        fewest = fewest_survivors(
            self.description, cohort, trains=purpose is not Purpose.EVALUATE, measures=question is not None
        )
        if self.maybe(0.04):
            fewest = self.source.randint(0, 5)
        digest = hash_model(model) if self.maybe(0.97) else self.source.randbytes(32)
        return RoundTerms(purpose=purpose, model_hash=digest, fewest_survivors=fewest, question=question)

    def _edges(self, count: int) -> tuple[float, ...]:
        size = 10.0 ** self.source.uniform(-3, 30)
        return tuple(sorted(self.source.uniform(-size, size) for _ in range(count)))

    def model(self) -> Array:
        """Return the model of a round."""
        assert self.description is not None
        return random_model(self.source, layout_of(self.description).parameters)

    def _plain(self, purpose: Purpose | None) -> None:
        assert self.description is not None
        model = self.model()
        request = PlainRequest(
            run_id=self.description.run_id,
            run_description=self.encoded,
            round_number=self.round_number,
            terms=self.terms(model, len(self.description.roster), purpose).encode(),
        )
        _, *vectors = self.ask(request, model)
        for vector in vectors:
            assert vector is not None
            self.check(vector, None)
        self.finished += 1

    def _masked(self, parameters: RunParameters, purpose: Purpose | None) -> None:
        assert self.description is not None
        run_id, number = self.description.run_id, self.round_number
        riding = self.riding if self.riding and self.riding.round_number == number else None
        peers = self._peers_of_round(riding)
        if riding is None:
            reply, _, _ = self.ask(KeysRequest(run_description=self.encoded, round_number=number))
            assert isinstance(reply, KeysReply)
            own = self._read(reply.advertised, secagg.AdvertisedKeys, Phase.ADVERTISE_KEYS)
        else:
            own = riding.advertised
        if riding is None or riding.directory is None:
            directory = self._directory(parameters, own, peers, number)
        else:
            directory = riding.directory
        if riding is None or riding.shares is None:
            reply, _, _ = self.ask(
                SharesRequest(run_id=run_id, round_number=number, directory=secagg.encode(directory))
            )
            assert isinstance(reply, SharesReply)
            mine = self._read(reply.shares, secagg.EncryptedShares, Phase.SHARE_KEYS)
        else:
            mine = riding.shares
        in_round = {entry.hospital for entry in directory.keys}
        dealt = {name: peer.share(directory) for name, peer in peers.items() if name in in_round}
        if self.maybe(0.1):
            dealt.pop(self.source.choice(sorted(dealt)))
        routed = share_keys.route(parameters, directory, {**dealt, VICTIM: mine})
        model = self.model()
        terms = self.terms(model, len(routed.cohort), purpose)
        follows = number + 1 if self.maybe(0.4) else None
        request = MaskRequest(
            run_id=run_id,
            round_number=number,
            request=secagg.encode(routed.request_for(VICTIM, terms.encode())),
            next_round=follows,
        )
        for twin in self.twins.pair:
            twin.bare.clear()
        reply, first, _ = self.ask(request, model)
        assert isinstance(reply, MaskReply)
        assert first is not None
        if terms.purpose is Purpose.MEAN:
            TOLD_MEANS.append(terms)
        plain = [np.concatenate([twin.bare[0].view(first.dtype), twin.bare[1]]) for twin in self.twins.pair]
        for vector in plain:
            self.check(vector, terms)
        self._finish(parameters, peers, routed, terms, reply, first, plain[0], follows)

    def _finish(
        self,
        parameters: RunParameters,
        peers: dict[str, Hospital],
        routed: share_keys.Routed,
        terms: RoundTerms,
        masked: MaskReply,
        vector: Array,
        plain: Array,
        follows: int | None,
    ) -> None:
        """Sum, sign and unmask; the sum less what the peers gave is the hospital's vector."""
        assert self.description is not None
        total = masked_input.MaskedSum(routed, terms.encode())
        total.add(VICTIM, self._read(masked.masked, secagg.MaskedInput, Phase.MASKED_INPUT), vector)
        layout = layout_of(self.description)
        given = np.zeros(layout.length, layout.dtype)
        nothing = np.zeros(layout.parameters, np.int64)
        empty = Tail(STATED_BY_PEERS, 0, 0, np.zeros(self._entries(), np.int64))
        lost = self.source.choice(routed.cohort) if self.maybe(0.15) else ""
        for name in routed.cohort:
            if name in (VICTIM, lost):
                continue
            theirs = layout.encode_integers(nothing, empty)
            message, hidden = peers[name].mask(routed.request_for(name, terms.encode()), theirs)
            total.add(name, message, hidden)
            parameters.add(given, theirs)
        following = None
        if follows is not None and masked.advertised is not None:
            keys = self._read(masked.advertised, secagg.AdvertisedKeys, Phase.ADVERTISE_KEYS, follows)
            following = _Riding(follows, keys)
            self._next_peers = self.peers()
            if self.maybe(0.7):
                following.directory = self._directory(parameters, keys, self._next_peers, follows)
        rides: dict[str, Any] = {}
        if following is not None and following.directory is not None:
            rides = {"next_round": follows, "next_directory": secagg.encode(following.directory)}
        if full_unmasking.is_full(total) and self.maybe(0.6):
            reply, revealed = self._open(peers, total, rides)
        else:
            reply, revealed = self._sign_and_unmask(peers, total, rides, following)
        assert isinstance(reply, UnmaskReply)
        if following is not None and reply.shares is not None:
            following.shares = self._read(reply.shares, secagg.EncryptedShares, Phase.SHARE_KEYS, follows)
        revealed[VICTIM] = self._read(reply.revealed, secagg.UnmaskingShares, Phase.UNMASKING)
        parameters.add(given, plain)
        assert np.array_equal(unmasking.unmask(total, revealed).total, given), "the sum is not that of the vectors"
        self.finished += 1
        if following is not None and following.directory is not None and following.shares is None:
            following = None  # Keys that were to be shared were not: this round's peers have moved on.
        self.riding = following

    def _open(
        self, peers: dict[str, Hospital], total: masked_input.MaskedSum, rides: dict[str, Any]
    ) -> tuple[Reply, dict[str, secagg.UnmaskingShares]]:
        """Open the sum over everybody at once; each twin is shown its own view among the others'."""
        assert self.description is not None
        asked, requests = full_unmasking.request_all(total), []
        for view in self.twins.views:
            own = secagg.SignedView(VICTIM, view.vector_hash, view.commitment, view.signature)
            views = tuple(own if each.hospital == VICTIM else each for each in asked.views)
            requests.append(
                UnmaskAllRequest(
                    run_id=self.description.run_id,
                    round_number=self.round_number,
                    request=secagg.encode(replace(asked, views=views)),
                    **rides,
                )
            )
        reply, _, _ = self.ask(requests[0], None, requests[1])
        return reply, {name: peers[name].reveal_all(asked) for name in total.survivors if name != VICTIM}

    def _sign_and_unmask(
        self,
        peers: dict[str, Hospital],
        total: masked_input.MaskedSum,
        rides: dict[str, Any],
        following: _Riding | None,
    ) -> tuple[Reply, dict[str, secagg.UnmaskingShares]]:
        """Have the survivors signed, unless the server is semi-honest, and the sum unmasked."""
        assert self.description is not None
        run_id, number, survivors = self.description.run_id, self.round_number, total.close()
        if self.description.aggregation.adversary == "semi-honest":
            asked = consistency_check.unmasking_request(total)
        else:
            if self.maybe(0.05):
                raise _Ended  # The round stops before anyone signs.
            reply, _, _ = self.ask(
                ConsistencyRequest(run_id=run_id, round_number=number, survivors=secagg.encode(survivors), **rides)
            )
            assert isinstance(reply, ConsistencyReply)
            signatures = {name: peers[name].sign(survivors) for name in survivors.survivors if name != VICTIM}
            signatures[VICTIM] = self._read(reply.signature, secagg.SurvivorSignature, Phase.CONSISTENCY_CHECK)
            if following is not None and reply.shares is not None:
                shares = self._read(reply.shares, secagg.EncryptedShares, Phase.SHARE_KEYS, following.round_number)
                following.shares = shares
            asked = consistency_check.collect(total, signatures).request
            rides = {}
        reply, _, _ = self.ask(UnmaskRequest(run_id=run_id, round_number=number, request=secagg.encode(asked), **rides))
        return reply, {name: peers[name].reveal(asked) for name in asked.survivors if name != VICTIM}

    def _peers_of_round(self, riding: _Riding | None) -> dict[str, Hospital]:
        return self.peers() if riding is None else self._next_peers

    def _directory(
        self, parameters: RunParameters, own: secagg.AdvertisedKeys, peers: dict[str, Hospital], number: int
    ) -> secagg.KeyDirectory:
        keys = {name: peer.advertise(number) for name, peer in peers.items()}
        if len(keys) > 2 and self.maybe(0.2):
            keys.pop(self.source.choice(sorted(keys)))
        return advertise_keys.collect(parameters, number, {VICTIM: own, **keys}).directory

    def _entries(self) -> int:
        assert self.description is not None
        evaluation = layout_of(self.description).evaluation
        return evaluation if isinstance(evaluation, int) else len(evaluation.bits())

    def _read(self, encoded: bytes, kind: type[secagg.M], phase: Phase, number: int | None = None) -> secagg.M:
        place = Place(SERVER, number or self.round_number, phase)
        return secagg.decode(encoded, kind, secagg.Limits(MOST_HOSPITALS), place)

    def check(self, vector: Array, terms: RoundTerms | None) -> None:
        """Assert that a vector is one that any hospital with this policy could have sent.

        Its change is within the bound (of one hospital), its public entries are what the policy states, and entries
        that the release does not ask for are zero.
        """
        assert self.description is not None
        layout, policy = layout_of(self.description), self.twins.policy
        decoded = layout.decode(vector, 1)
        assert decoded.tail.weight == policy.stated_training_units
        if self.description.privacy.mode != "distributed":
            assert np.abs(decoded.total_of(slice(None))).max() <= layout.element_bound
        if not isinstance(layout.evaluation, int) or terms is None:
            return
        plan = evaluation_plan_of(self.description)
        assert plan is not None
        if terms.question is None:
            assert (decoded.tail.validation_units, decoded.tail.test_units) == (0, 0)
            assert not decoded.tail.entries.any()
            return
        release = plan.release(terms.question.release)
        units = {
            Part.VALIDATION: policy.stated_validation_units,
            Part.TEST: policy.stated_test_units,
            Part.TRAINING: policy.stated_training_units,
        }
        # Statistics state the training units that they count where validation units would stand.
        counted = Part.TRAINING if release.part is Part.TRAINING else Part.VALIDATION
        found = {counted: decoded.tail.validation_units, Part.TEST: decoded.tail.test_units}
        assert found[release.part] in (0, units[release.part])  # None once its budget is spent, which is public too.
        assert sum(found.values()) == found[release.part]


def random_policy(source: random.Random, data: tuple[HospitalData, HospitalData]) -> HospitalConfig:
    """Return what a hospital states, which may be more than it has, and what it agrees to."""
    there = [len(each.train) for each in data]
    return HospitalConfig(
        delta=1e-3,
        epsilon_budget=source.choice((4.0, 10.0, 1000.0)),
        evaluation_epsilon_budget=source.choice((1.0, 4.0)),
        stated_training_units=max(20, source.choice((20, 20, 30, *there, there[0] + 1))),
        stated_validation_units=source.choice((1, 4, 6, 9)),
        stated_test_units=source.choice((1, 4, 6, 9)),
        stated_units_per_class=source.choice((0, 1, 5)),
        allow_plain=source.random() < 0.7,
        allow_semi_honest=source.random() < 0.8,
        allow_no_privacy=source.random() < 0.8,
        allow_exact_evaluation=source.random() < 0.8,
        allow_statistics_epsilon=source.choice((0.5, 0.5, 1.0)),
    )


@dataclass
class Tally:
    """What conversations held so far were made of."""

    conversations: int = 0
    requests: int = 0
    vectors: int = 0
    sums: int = 0
    refusals: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    times: Times = field(default_factory=lambda: defaultdict(list))

    def add(self, twins: Twins, talk: Talk) -> None:
        """Count one more."""
        self.conversations += 1
        self.requests += twins.asked
        self.vectors += twins.vectors
        self.sums += talk.finished
        for code, count in twins.refusals.items():
            self.refusals[code] += count
        for phase, pairs in twins.times.items():
            self.times[phase] += pairs

    def table(self) -> str:
        """Return how long the twins' replies took, and how often the two agree to one significant digit."""
        lines = [f"{'request':20} {'pairs':>7} {'first, ms':>10} {'second, ms':>10} {'one digit alike':>16}"]
        for phase, pairs in sorted(self.times.items()):
            first, second = np.array(pairs).T
            alike = np.mean([f"{a:.0e}" == f"{b:.0e}" for a, b in pairs])
            medians = f"{1000 * np.median(first):10.2f} {1000 * np.median(second):10.2f}"
            lines.append(f"{phase:20} {len(pairs):7} {medians} {100 * alike:14.0f} %")
        return "\n".join(lines)


def converse(
    seed: int, tally: Tally | None = None, policy: Callable[[HospitalConfig], HospitalConfig] | None = None
) -> None:
    """Hold the conversation of a seed.

    Raises:
        TwinsDifferError: something that left the hospital depends on one record.
    """
    source = random.Random(seed)  # noqa: S311 - repeatable
    data = twin_data(KINDS[seed % len(KINDS)], seed)
    if source.random() < 0.5:
        data = data[1], data[0]
    agreed = random_policy(source, data)
    folder = Path(tempfile.mkdtemp(prefix="twins-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
    try:
        twins = Twins(folder, seed, agreed if policy is None else policy(agreed), data)
        talk = Talk(twins, source)
        talk.hold(source.randint(1, 3))
        if tally is not None:
            tally.add(twins, talk)
    finally:
        shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------------------------------
# An attacker who knows what to ask


class Led(Talk):
    """A server that asks for what a test tells it to, and is otherwise honest."""

    def __init__(self, twins: Twins, description: RunDescription) -> None:
        super().__init__(twins, random.Random(1))  # noqa: S311 - repeatable
        self.last: Reply | None = None
        self._sent = first_model()
        self._release: int | None = None
        self.run(description)

    def run(self, description: RunDescription) -> None:
        """Begin a run."""
        self.description, self.encoded, self.riding = description, description.canonical_json(), None
        self.round_number = 0

    def lead(self, purpose: Purpose, model: Array | None = None, release: int | None = None) -> RefusedReply | None:
        """Lead a round; return the refusal in which it ended, if it did."""
        self._sent = first_model() if model is None else model
        self._release = release
        self.round(purpose)
        return self.last if isinstance(self.last, RefusedReply) else None

    def bare(self) -> Array:
        """Return the first twin's last vector, which the sum less what everybody else gave is."""
        assert self.description is not None
        tail, change = self.twins.pair[0].bare
        return np.concatenate([tail.view(change.dtype), change])

    def maybe(self, _probability: float) -> bool:
        """Leave nothing to chance."""
        return False

    def ask(
        self, request: Request, array: Array | None = None, other: Request | None = None
    ) -> tuple[Reply, Array | None, Array | None]:
        """Ask both, and keep the reply."""
        self.last, first, second = self.twins.ask(request, array, other)
        if isinstance(self.last, RefusedReply):
            raise _Ended
        return self.last, first, second

    def model(self) -> Array:
        """Return the model that the test sends."""
        return self._sent

    def terms(self, model: Array, cohort: int, purpose: Purpose | None) -> RoundTerms:
        """Return honest terms for it."""
        assert self.description is not None
        assert purpose is not None
        plan, question = evaluation_plan_of(self.description), None
        if plan is not None and self._release is not None:
            edges = plan.layout(plan.release(self._release)).edges
            question = Question(self._release, tuple(tuple(np.linspace(-4, 4, count).tolist()) for count in edges))
        reads = purpose is not Purpose.EVALUATE
        fewest = fewest_survivors(self.description, cohort, trains=reads, measures=bool(question))
        return RoundTerms(purpose=purpose, model_hash=hash_model(model), fewest_survivors=fewest, question=question)


def described(run_id: int = 0, hospitals: int = 3, /, **changes: dict[str, Any]) -> RunDescription:
    """Return the description of an honest run; ``changes`` are of sections of :data:`BASE`."""
    roster, member_list = _members(hospitals)
    return describe(changed(BASE, **changes), f"{run_id:032x}", CLASSES, 1, roster, member_list=member_list)


def hospital_data(train: int, validation: int = 6, test: int = 6, seed: int = 0) -> HospitalData:
    """Return so many records in each part; the first ones of more are those of fewer."""
    images, labels = [], []
    for number, count in enumerate((train, validation, test)):
        images.append(quiet_images(1000 * seed + number, count))
        labels.append(np.random.default_rng(1000 * seed + number).integers(0, 2, count))
    parts = np.repeat([0, 1, 2], (train, validation, test))
    everything = len(parts)
    traits = np.zeros((everything, len(TRAITS)), np.uint8)
    return _Table(np.concatenate(images), np.concatenate(labels), np.arange(everything), parts, traits).data()
