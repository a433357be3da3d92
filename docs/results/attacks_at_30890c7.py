"""The attacks of SECURITY.md's history, played against the unmodified code of commit 30890c7. Each must succeed there.

    git worktree add ../old 30890c7 && cp docs/results/attacks_at_30890c7.py ../old/tests/attacks/test_rows.py
    cd ../old && ./confide test tests/attacks/test_rows.py

Each prints what the server gets. The defences of today have tests of their own, in tests/attacks/.
"""

import dataclasses
import datetime
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from client.agent import HospitalAgent, Surroundings
from client.data.hospital_data import HospitalData, HospitalRecords
from client.ledger import LEDGER_FOLDER, Ledger
from client.training import TrainingData, _clipped_sum
from common.config import Config, HospitalConfig, PrivacyConfig, PrivacyMode, PrivacyUnit, RunDescription
from common.config import replace as changed
from common.flat_model import hash_model
from common.guarantee import adversary_of_epsilon
from common.messages import AdvertiseKeys, KeysAdvertised, MaskedInput, Refused, ShareKeys
from common.models import registry
from common.models.flat import flat_parameters, share_parameters
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind, epsilon
from common.secagg import advertise_keys, consistency_check, masked_input, share_keys, unmasking
from common.secagg import messages as secagg
from common.secagg.masks import apply_masks
from common.secagg.phases import Phase
from server.initial_model import initial_model
from server.run import describe
from tests.attacks.test_lies_to_agents import ROUND, RUN_ID, VICTIM, LyingServer
from tests.small_consortium import CONFIG, HOSPITALS, Dealt, small

CLASSES = ("normal", "pneumonia")
SIDE = 28


def quiet(seed, count):
    source = np.random.default_rng(seed)
    shade = source.integers(115, 140, (count, 1, 1, 1))
    return (shade + source.integers(-12, 13, (count, 1, SIDE, SIDE))).astype(np.uint8)


def loud():
    rows, columns = np.indices((SIDE, SIDE))
    return np.where((rows // 7 + columns // 7) % 2, 255, 0).astype(np.uint8)[None, None]


def records(images, seed=0):
    labels = np.random.default_rng(seed).integers(0, 2, len(images))
    labels[:2] = (0, 1)
    return HospitalRecords(images, labels, np.arange(len(images)))


def data_of(train, test=12, extra=None):
    images, tested = quiet(1, train), quiet(2, test)
    if extra == "train":
        images[-1] = loud()[0]
    if extra == "test":
        tested[-1] = loud()[0]
    return HospitalData(records(images), records(quiet(3, 12)), records(tested), bytes(32))


def consortium_of(dealt, folder, data=None, hospitals=None, **sections):
    """Return a lying server whose victim has the given data."""
    policies = {}
    if sections.get("privacy", {}).get("mode") == "none":
        policies = {name.replace("-", "_"): HospitalConfig(allow_no_privacy=True) for name in HOSPITALS}
    made = small(dealt, folder, policies=policies)
    config = changed(CONFIG, **sections)
    roster = made.consortium.roster
    if hospitals is not None:
        roster = {name: roster[name] for name in hospitals}
    description = describe(config, RUN_ID, dealt.data.classes, dealt.data.channels, roster)
    server = LyingServer(made, description)
    if data is not None:
        agent = made.consortium.agents[VICTIM]
        agent._here = dataclasses.replace(agent._here, open_data=lambda *_: data)
    return server


def bare_vectors(server):
    """Note each hospital's vector before its masks: what the server's own sum is compared with."""
    found = {}
    for name, agent in server.consortium.consortium.agents.items():
        def spy(segment, masks, name=name):
            found.setdefault(name, segment.copy())
            apply_masks(segment, masks)
        agent._here = dataclasses.replace(agent._here, apply_masks=spy)
    return found


def unmasked(server, train):
    """Lead one round in which ``train`` says for each hospital whether it is asked to train; return the plain sum."""
    routed = server.routed()
    total = masked_input.MaskedSum(routed, hash_model(server.model))
    replies = {}
    for hospital in HOSPITALS:
        request = MaskedInput(
            run_id=RUN_ID, round_number=ROUND, train=train(hospital),
            request=secagg.encode(routed.request_for(hospital, hash_model(server.model))),
        )
        reply, vector = server.ask(hospital, request, server.model)
        replies[hospital] = reply
        total.add(hospital, server.decode(reply.masked, secagg.MaskedInput, Phase.MASKED_INPUT), vector)
    survivors, signatures = total.close(), {}
    for hospital in HOSPITALS:
        reply, _ = server.ask(hospital, server.check_request(survivors))
        signatures[hospital] = server.decode(reply.signature, secagg.SurvivorSignature, Phase.CONSISTENCY_CHECK)
    asked = consistency_check.collect(total, signatures).request
    revealed = {}
    from common.messages import Unmask
    for hospital in HOSPITALS:
        reply, _ = server.ask(hospital, Unmask(run_id=RUN_ID, round_number=ROUND, request=secagg.encode(asked)))
        revealed[hospital] = server.decode(reply.revealed, secagg.UnmaskingShares, Phase.UNMASKING)
    return unmasking.unmask(total, revealed).total, replies


@pytest.mark.parametrize("mode", ["none", "local", "distributed"])
def test_row_1_one_hospitals_exact_update(dealt, tmp_path, mode):
    sections = {"privacy": {"mode": mode}}
    if mode == "distributed":
        sections["aggregation"] = {"modulus_bits": 32}
    server = consortium_of(dealt, tmp_path, **sections)
    bare = bare_vectors(server)
    total, _ = unmasked(server, lambda hospital: hospital == VICTIM)
    d = len(server.model)
    if mode != "distributed":  # There everybody else adds a share of noise, and nothing of a record.
        assert not any(vector[:d].any() for name, vector in bare.items() if name != VICTIM)
    same = int((total[:d] == bare[VICTIM][:d]).sum())
    print(f"\nrow 1, {mode}: {same:,} of {d:,} elements of {VICTIM}'s vector")
    assert same == d


def overflowing_model():
    flat = np.load(os.environ["OVERFLOWING_MODEL"]) if "OVERFLOWING_MODEL" in os.environ else None
    if flat is not None:
        return flat
    model = registry.build("cnn", 2, 1, SIDE, 1)
    flat = flat_parameters(model).copy()
    images, one = quiet(5, 200), loud()
    pieces = [one[0, 0, y : y + 8, x : x + 8] / 127.5 - 1 for y in range(1, 20, 2) for x in range(1, 20, 2)]
    piece = max(pieces, key=lambda each: float(each.std()))
    flat[: 16 * 64] = 0

    def overflows(candidate, some):
        share_parameters(model, torch.from_numpy(candidate.copy()))
        with torch.inference_mode():
            scores = model(torch.from_numpy(some).float() / 127.5 - 1)
        return (~torch.isfinite(scores).all(dim=1)).numpy()

    for exponent in np.linspace(15, 22, 141):
        grown = flat.copy()
        grown[:64] = (piece - piece.mean()).reshape(-1) * 10.0**exponent
        if overflows(grown, one).all() and not overflows(grown, images).any():
            grown[:64] *= 1.5
            return grown
    raise AssertionError("no model overflows on the loud image alone")


@pytest.mark.parametrize("where", ["train", "test"])
def test_row_2_whether_an_image_is_a_hospitals_record(dealt, tmp_path, where):
    answers = {}
    for extra in (None, where):
        sections = {"privacy": {"mode": "none"}} if where == "train" else {}
        server = consortium_of(dealt, tmp_path / str(extra), data_of(60, extra=extra), **sections)
        server.__class__ = type("Crafted", (LyingServer,), {"model": property(lambda self: overflowing_model())})
        routed = server.routed()
        request = MaskedInput(
            run_id=RUN_ID, round_number=ROUND, train=where == "train",
            request=secagg.encode(routed.request_for(VICTIM, hash_model(server.model))),
        )
        reply, _ = server.ask(VICTIM, request, server.model)
        answers[extra] = type(reply).__name__ + (f" ({reply.code}: {reply.reason[:60]})" if isinstance(reply, Refused) else "")
    print(f"\nrow 2, {where}: without the image {answers[None]}; with it {answers[where]}")
    assert answers[None] != answers[where]


class Cancelling(nn.Module):
    def __init__(self, generator, pull):
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 1, bias=False)
        self.head = nn.Linear(128, 2, bias=False)
        direction = torch.randn(64, generator=generator)
        with torch.no_grad():
            self.conv.weight.copy_(1e-3 * torch.randn(self.conv.weight.shape, generator=generator))
            opposed = torch.stack([direction, -direction], dim=1).reshape(-1)
            self.head.weight.copy_(pull * torch.stack([opposed, -opposed]))

    def forward(self, x):
        return functional.linear(self.conv(x).flatten(1), self.head.weight)


def test_row_3_a_record_without_a_clipping_bound(dealt):
    found = []
    for trial in range(12):
        generator = torch.Generator().manual_seed(trial)
        patch = torch.randn(4, 64, 1, 1, generator=generator)
        inputs = torch.cat([patch, patch * (1 + 1e-6)], dim=2)
        data = TrainingData(inputs, torch.zeros(4, dtype=torch.int64), torch.arange(4))
        model = Cancelling(generator, 10.0 ** (2 + trial))
        privacy = PrivacyConfig(mode=PrivacyMode.LOCAL, max_grad_norm=1.0)
        share_parameters(model, torch.from_numpy(flat_parameters(model)))
        everyone = torch.arange(4)
        moved = _clipped_sum(model, data, everyone, privacy) - _clipped_sum(model, data, everyone[1:], privacy)
        found.append(float(moved.double().norm()))
    finite = [each for each in found if math.isfinite(each)]
    print(f"\nrow 3: one record moves the clipped sum by up to {max(finite):.3g} times the bound")
    assert max(finite) > 10


def test_row_4_evaluation_without_limit_and_for_nothing(dealt, tmp_path):
    server = consortium_of(dealt, tmp_path, evaluation={"score_bins": 65_536})
    answered = 0
    for number in range(1, 41):
        keys = {hospital: server.advertised(hospital, number) for hospital in HOSPITALS}
        directory = advertise_keys.collect(server.parameters(), number, keys).directory
        shares = {}
        for hospital in HOSPITALS:
            asked = ShareKeys(run_id=RUN_ID, round_number=number, directory=secagg.encode(directory))
            reply, _ = server.ask(hospital, asked)
            shares[hospital] = server.decode(reply.shares, secagg.EncryptedShares, Phase.SHARE_KEYS)
        routed = share_keys.route(server.parameters(), directory, shares)
        request = MaskedInput(
            run_id=RUN_ID, round_number=number, train=False,
            request=secagg.encode(routed.request_for(VICTIM, hash_model(server.model))),
        )
        reply, vector = server.ask(VICTIM, request, server.model)
        answered += vector is not None
    booked = server.consortium.booked(VICTIM)
    print(f"\nrow 4: {answered} of 40 evaluation-only rounds with 65,536 bins of exact counts answered, {len(booked)} booked")
    assert (answered, booked) == (40, [])


def test_row_5_a_hospitals_number_of_records_from_two_sums(dealt, tmp_path):
    server = consortium_of(dealt, tmp_path / "a", privacy={"mode": "none"})
    bare = bare_vectors(server)
    total, _ = unmasked(server, lambda hospital: True)
    agent = server.consortium.consortium.agents[VICTIM]
    contributor = agent._run.contributor if agent._run else None
    with_it = contributor.layout.decode(total, 4).total_weight
    without = contributor.layout.decode(
        np.sum([bare[name] for name in HOSPITALS[1:]], axis=0, dtype=bare[VICTIM].dtype), 3
    ).total_weight
    real = len(contributor._train)
    print(f"\nrow 5: {with_it} less {without} = {with_it - without}; {VICTIM} has {real} training records")
    assert with_it - without == real


def test_row_6_a_run_of_three_of_the_consortium(dealt, tmp_path):
    server = consortium_of(dealt, tmp_path, hospitals=HOSPITALS[:3])
    reply, _ = server.ask(VICTIM, AdvertiseKeys(run_description=server.description.canonical_json(), round_number=1))
    print(f"\nrow 6: a run that names 3 of 4 members: {type(reply).__name__}")
    assert isinstance(reply, KeysAdvertised)


def test_row_7_the_reported_epsilon_follows_from_the_number_of_records(dealt, tmp_path):
    told = {}
    for count in (60, 61, 70):
        server = consortium_of(
            dealt, tmp_path / str(count), data_of(count), training={"batch_size": 16}, privacy={"accountant": "rdp"}
        )
        request = server.mask_request(server.routed())
        reply, _ = server.ask(VICTIM, request, server.model)
        told[count] = reply.epsilon.spent
    print(f"\nrow 7: records and reported ε: {told}")
    assert len(set(told.values())) == 3


def test_row_8_bisection_over_run_descriptions(dealt, tmp_path):
    real, asked, low, high = 87, 0, 1, 4096
    server = consortium_of(dealt, tmp_path, data_of(real))
    while low < high:
        middle = (low + high) // 2
        description = server.description.model_copy(
            update={
                "run_id": f"{asked + 1:032x}",
                "aggregation": server.description.aggregation.model_copy(update={"max_weight": middle}),
            }
        )
        reply, _ = server.ask(VICTIM, AdvertiseKeys(run_description=description.canonical_json(), round_number=1))
        asked += 1
        if isinstance(reply, Refused):
            low = middle + 1
        else:
            high = middle
    print(f"\nrow 8: {asked} questions say {low}; there are {real} training records; booked: {server.consortium.booked(VICTIM) if (tmp_path / VICTIM / LEDGER_FOLDER).exists() else []}")
    assert low == real


def test_row_9_a_ledger_that_mixes_units(tmp_path):
    import inspect

    ledger, names = Ledger.open(tmp_path / "mixed", bytes(32)), inspect.signature(Ledger.record).parameters
    event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 0.8, 0.02, 10)
    for number in range(1, 101):  # 50 rounds for records, 50 for patients: nothing says which.
        spent = ledger.record(f"{1 + (number > 50):032x}", number, event, 1e6, 1e-5, Accountant.RDP)
    of_ten = epsilon([dataclasses.replace(event, steps=500)], 1e-5 / 10, Accountant.RDP) * 10
    print(f"\nrow 9: {spent:.2f} is booked for 50 rounds of records and 50 of patients; a patient with ten records "
          f"has about {of_ten:.0f} of the first alone; a booking is {list(names)[1:]}")
    assert not {"unit", "colluders", "adversary"} & set(names)
    assert of_ten > spent


def test_row_10_a_ledger_that_was_put_back(dealt, tmp_path):
    server = consortium_of(dealt, tmp_path)
    request = server.mask_request(server.routed())
    server.ask(VICTIM, request, server.model)
    before = len(server.consortium.booked(VICTIM))
    shutil.rmtree(tmp_path / VICTIM / LEDGER_FOLDER)
    server.consortium.consortium.restart(VICTIM)
    reply, _ = server.ask(VICTIM, AdvertiseKeys(run_description=server.description.canonical_json(), round_number=2))
    left = server.consortium.booked(VICTIM)
    print(f"\nrow 10: {before} line before; removed: {type(reply).__name__}, {len(left)} lines, and nothing noticed")
    assert isinstance(reply, KeysAdvertised)
    assert left == []


def test_row_11_the_plan_counts_steps_in_another_way():
    from client.training import schedule
    from deploy.privacy_plan import Request, plan

    config, records = Config(), 1177  # A quarter of PneumoniaMNIST.
    training = config.training
    planned = plan(
        Request(
            records, config.experiment.rounds, training.batch_size, training.local_epochs, 8.0, 1e-4,
            PrivacyUnit.RECORD, Accountant.PRV, 4, 0, 1, 25_842,
        )
    )
    data = TrainingData(torch.zeros(records, 1), torch.zeros(records, dtype=torch.int64), torch.arange(records))
    deployed = schedule(data, training, config.privacy)
    event = MechanismEvent(
        MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, planned.local.noise_multiplier, deployed.sample_rate,
        deployed.steps * config.experiment.rounds,
    )
    reached = epsilon([event], 1e-4, Accountant.PRV)
    print(f"\nrow 11: the plan says at most 8 for {planned.local.steps} steps; the deployed schedule takes "
          f"{event.steps}, which is {reached:.2f}")
    assert reached > 8


def test_row_12_whoever_gets_the_model_includes_hospitals_who_know_their_noise():
    said = adversary_of_epsilon(PrivacyConfig(mode=PrivacyMode.DISTRIBUTED, colluders=0))
    print(f"\nrow 12: {said}")
    assert "whoever gets the model" in said
    assert "not" not in said


def test_row_13_times_in_full_precision_and_an_identity_of_small_order(dealt, tmp_path):
    server = consortium_of(dealt, tmp_path)
    reply, _ = server.ask(VICTIM, server.mask_request(server.routed()), server.model)
    print(f"\nrow 13: training_seconds = {reply.training_seconds!r}")
    assert len(repr(reply.training_seconds)) > 8
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from common.identity import make_authority, sign_hospital_certificate, verify_roster, certificate_pem
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("test", now)
    small_order = Ed25519PublicKey.from_public_bytes(bytes([1]) + bytes(31))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hospital-9")])
    sane = Ed25519PrivateKey.generate()
    from common.identity import request_hospital_certificate
    good = sign_hospital_certificate(
        authority, request_hospital_certificate("hospital-9", sane), "hospital-9", now, datetime.timedelta(days=2)
    )
    builder = (
        x509.CertificateBuilder().subject_name(good.subject).issuer_name(good.issuer).public_key(small_order)
        .serial_number(x509.random_serial_number()).not_valid_before(good.not_valid_before_utc)
        .not_valid_after(good.not_valid_after_utc)
    )
    for extension in good.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    forged = builder.sign(authority.key, None)
    keys = verify_roster({"hospital-9": certificate_pem(forged).decode()}, authority.certificate, now)
    point = bytes([1]) + bytes(31)
    signature = point + bytes(32)
    print(f"        an identity of small order on a roster: {sorted(keys)}; anybody's signature verifies: "
          f"{all(_verifies(small_order, signature, bytes([m])) for m in range(20))}")
    assert keys["hospital-9"] == point


def _verifies(key, signature, message):
    try:
        key.verify(signature, message)
    except Exception:
        return False
    return True
