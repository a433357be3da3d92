"""Audit chains that agree are verified; whatever is changed, cut, added or hidden is found, with its place."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.audit.chain import AUDIT_FILE, AuditChain, read_chain
from common.audit.entries import OpenedSum, Refused, SignedSurvivors, Stepped, Summed
from common.errors import AuditError
from common.identity.certificates import certificate_pem, make_authority
from common.run.flat_model import hash_model
from common.run.round_terms import RoundTerms
from deploy.audit import verify as audit_verify
from deploy.audit.verify import Verdict, find_chains, verify
from server.initial_model import initial_model
from tests.support.audited_run import EPSILON, NAMES, RUN_ID, AuditedRun, audited_run, server_writer, terms_of


@pytest.fixture
def run(tmp_path: Path) -> AuditedRun:
    return audited_run(tmp_path / "run")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    return audited_run(tmp_path_factory.mktemp("whole") / "run")


def verdict_of(run: AuditedRun) -> Verdict:
    return verify(run.folder, find_chains(run.folder), run.authority_file)


def test_a_whole_run_is_verified(run: AuditedRun, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = verdict_of(run)
    assert verdict.hospitals == NAMES
    assert (verdict.steps, verdict.sums, verdict.refusals, verdict.unfinished) == (2, 3, 1, ())
    assert verdict.has_model
    assert verdict.is_complete
    assert audit_verify.main(["verify", str(run.folder)]) == 0
    assert capsys.readouterr().out.endswith("verified\n")


# A bit of a serial number makes it negative, which is read with a warning before the signature is found wrong.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_with_its_file(whole_run: AuditedRun, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(whole_run.files()))
    content = path.read_bytes()
    end = content.find(b'"versions"')  # Which libraries and what machine a summary names is its writer's word.
    index = data.draw(st.integers(0, (len(content) if end < 0 else end) - 1))
    flipped = bytearray(content)
    flipped[index] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(flipped))
    try:
        with pytest.raises(AuditError, match=r"\.(jsonl|pem|json|safetensors|csv)"):
            verdict_of(whole_run)
    finally:
        path.write_bytes(content)


def test_the_authoritys_signature_cannot_be_said_to_be_shorter(run: AuditedRun) -> None:
    authority = make_authority("consortium", datetime.datetime.now(datetime.UTC))
    while authority.certificate.signature[-1] & 1:  # Half of all signatures end in a zero bit.
        authority = make_authority("consortium", datetime.datetime.now(datetime.UTC))
    encoded = bytearray(authority.certificate.public_bytes(Encoding.DER))
    encoded[-65] = 1  # One of the last octet's bits is unused, it says.
    changed = x509.load_der_x509_certificate(bytes(encoded))
    changed.verify_directly_issued_by(changed)
    run.authority_file.write_bytes(certificate_pem(changed))
    with pytest.raises(AuditError, match=r"ca\.pem: must be a certificate in canonical DER"):
        verdict_of(run)


def test_the_line_that_was_changed_is_named(run: AuditedRun) -> None:
    path = run.chain_file("hospital-2")
    path.write_bytes(path.read_bytes().replace(b'"epsilon":1.5', b'"epsilon":1.4', 1))
    with pytest.raises(AuditError, match=r"hospital-2/audit.jsonl, line 3: must be signed"):
        verdict_of(run)


@pytest.mark.parametrize("gone", [1, 3, 5])
def test_a_removed_line_is_found(run: AuditedRun, gone: int) -> None:
    path = run.chain_file("hospital-1")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    with pytest.raises(AuditError, match=f"hospital-1/audit.jsonl, line {gone + 1}"):
        verdict_of(run)


def test_a_hospital_that_cuts_its_chain_short_is_found_by_the_servers(run: AuditedRun) -> None:
    path = run.chain_file("hospital-3")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(AuditError, match=r"hospital-3/audit.jsonl: must record round 3"):
        verdict_of(run)


def test_a_server_that_cuts_its_chain_short_is_found_by_the_model(run: AuditedRun) -> None:
    path = run.folder / AUDIT_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]))
    with pytest.raises(AuditError, match=r"model.safetensors"):
        verdict_of(run)


@pytest.mark.parametrize("full", [True, False])
def test_a_sum_that_the_server_hides_is_told(run: AuditedRun, *, full: bool) -> None:
    run.sum_up(7, bytes(32), train=True, record_it=False, full=full)
    assert verdict_of(run).unfinished == (7,)


def test_a_step_that_no_sum_gave_is_found(run: AuditedRun) -> None:
    run.server.append(Stepped(run_id=RUN_ID, round_number=9, step=3, model_hash="ab" * 32))
    with pytest.raises(AuditError, match=r"audit.jsonl, line \d+: no sum gave it"):
        verdict_of(run)


def test_survivors_that_did_not_sign_are_found(run: AuditedRun) -> None:
    model = hash_model(initial_model(run.description))
    terms = terms_of(bytes.fromhex(_last_model(run)))
    signatures = {name: run.signature(name, 4, terms_of(model), NAMES[:2]).hex() for name in NAMES[:2]}
    run.server.append(
        Summed(
            run_id=RUN_ID, round_number=4, train=True, model_hash=_last_model(run), terms=terms.encode().hex(),
            survivors=NAMES, signatures=signatures, views={}, epsilon={},
        )
    )  # fmt: skip
    with pytest.raises(AuditError, match="hospital-1 signed another view of round 4"):
        verdict_of(run)


def test_too_few_signatures_are_found(run: AuditedRun) -> None:
    model = _last_model(run)
    terms = terms_of(bytes.fromhex(model))
    signatures = {name: run.signature(name, 4, terms, NAMES).hex() for name in NAMES[:2]}
    run.server.append(
        Summed(
            run_id=RUN_ID, round_number=4, train=True, model_hash=model, terms=terms.encode().hex(), survivors=NAMES,
            signatures=signatures, views={}, epsilon={},
        )
    )  # fmt: skip
    with pytest.raises(AuditError, match="3 survivors must have signed, got 2"):
        verdict_of(run)


def _record_full_round(run: AuditedRun, views: dict[str, bytes], survivors: tuple[str, ...] = NAMES) -> None:
    """Let the server record round 4 as one in which nobody was missing, with these views as evidence."""
    model = _last_model(run)
    run.server.append(
        Summed(
            run_id=RUN_ID, round_number=4, train=True, model_hash=model, terms=_terms(run).encode().hex(),
            survivors=survivors, signatures={}, views={name: view.hex() for name, view in views.items()}, epsilon={},
        )
    )  # fmt: skip


def _terms(run: AuditedRun) -> RoundTerms:
    return terms_of(bytes.fromhex(_last_model(run)))


def _views(run: AuditedRun, **changes: Any) -> dict[str, bytes]:  # noqa: ANN401 - of AuditedRun.view
    return {name: run.view(name, 4, _terms(run), **changes) for name in NAMES}


def test_a_sum_over_less_than_the_cohort_that_signed_is_found(run: AuditedRun) -> None:
    _record_full_round(run, _views(run, cohort=(*NAMES, "hospital-4")))
    with pytest.raises(AuditError, match="the sum must be over the cohort that everyone signed"):
        verdict_of(run)


def test_a_full_round_without_everyones_view_is_found(run: AuditedRun) -> None:
    views = _views(run)
    del views["hospital-2"]
    _record_full_round(run, views)
    with pytest.raises(AuditError, match="everyone in the sum, and no other, must have signed"):
        verdict_of(run)


def test_views_that_differ_are_found(run: AuditedRun) -> None:
    other = run.view("hospital-3", 4, _terms(run), directory_hash=b"\1" * 32)
    _record_full_round(run, {**_views(run), "hospital-3": other})
    with pytest.raises(AuditError, match="hospital-3 signed another view than hospital-1"):
        verdict_of(run)


def test_a_view_of_another_round_or_another_hospitals_is_found(run: AuditedRun) -> None:
    _record_full_round(run, {**_views(run), "hospital-3": run.view("hospital-3", 5, _terms(run))})
    with pytest.raises(AuditError, match="the view of round 4 must be that of hospital-3"):
        verdict_of(run)


def test_a_view_that_its_hospital_did_not_sign_is_found(run: AuditedRun) -> None:
    views = _views(run)
    views["hospital-2"] = views["hospital-2"][:-1] + bytes([views["hospital-2"][-1] ^ 1])
    _record_full_round(run, views)
    with pytest.raises(AuditError, match="everyone in the cohort must have signed the same view of the round"):
        verdict_of(run)


def test_views_and_signatures_of_one_sum_are_found(run: AuditedRun) -> None:
    model, terms = _last_model(run), _terms(run)
    run.server.append(
        Summed(
            run_id=RUN_ID, round_number=4, train=True, model_hash=model, terms=terms.encode().hex(), survivors=NAMES,
            signatures={name: run.signature(name, 4, terms, NAMES).hex() for name in NAMES},
            views={name: view.hex() for name, view in _views(run).items()}, epsilon={},
        )
    )  # fmt: skip
    with pytest.raises(AuditError, match="not both"):
        verdict_of(run)


def test_a_view_that_the_hospitals_own_chain_lacks_is_found(run: AuditedRun) -> None:
    run.sum_up(4, bytes.fromhex(_last_model(run)), train=True, record_it=False)
    views = {**_views(run), "hospital-2": run.view("hospital-2", 4, _terms(run), vector=b"another")}
    run.server.append(
        Summed(
            run_id=RUN_ID, round_number=4, train=True, model_hash=_last_model(run), terms=_terms(run).encode().hex(),
            survivors=NAMES, signatures={}, views={name: view.hex() for name, view in views.items()},
            epsilon=dict.fromkeys(NAMES, EPSILON),
        )
    )  # fmt: skip
    with pytest.raises(AuditError, match=r"hospital-2/audit\.jsonl: round 4: the server holds a signed view"):
        verdict_of(run)


def test_a_hospital_that_signed_survivors_and_opened_everybodys_sum_is_found(run: AuditedRun) -> None:
    run.hospitals["hospital-1"].append(OpenedSum(run_id=RUN_ID, round_number=2, cohort=NAMES))
    with pytest.raises(AuditError, match=r"hospital-1/audit\.jsonl, line \d+: .* the server recorded another"):
        verdict_of(run)
    run.sum_up(7, bytes(32), train=True, record_it=False)
    one, terms = run.hospitals["hospital-2"], terms_of(bytes(32))
    signature = run.signature("hospital-2", 7, terms, NAMES).hex()
    one.append(SignedSurvivors(run_id=RUN_ID, round_number=7, survivors=NAMES, signature=signature))
    with pytest.raises(AuditError, match="survivors of round 7 were signed, and its sum over everybody was opened"):
        verify(run.folder, [run.chain_file("hospital-2")], run.authority_file)


@pytest.mark.parametrize("cohort", [NAMES[:2], (*NAMES, "hospital-4")])
def test_a_sum_opened_for_another_cohort_than_was_masked_for_is_found(run: AuditedRun, cohort: tuple[str, ...]) -> None:
    run.sum_up(7, bytes(32), train=True, record_it=False, full=False)
    run.hospitals["hospital-1"].append(OpenedSum(run_id=RUN_ID, round_number=7, cohort=cohort))
    with pytest.raises(AuditError, match="opened round 7 for another cohort than it masked for"):
        verdict_of(run)


def test_the_model_of_another_run_is_refused(run: AuditedRun, tmp_path: Path) -> None:
    other = audited_run(tmp_path / "other")
    for name in ("model.safetensors", "model.json"):
        shutil.copy(other.folder / name, run.folder / name)
    verdict_of(run)  # The same seed and steps make the same model.
    card = run.folder / "model.json"
    card.write_text(card.read_text().replace('"image_size": 28', '"image_size": 32'))
    with pytest.raises(AuditError, match=r"model\.json"):
        verdict_of(run)


def test_a_chain_of_another_consortium_is_refused(run: AuditedRun) -> None:
    now = datetime.datetime.now(datetime.UTC)
    stranger = server_writer(make_authority("Stranger", now), now)
    AuditChain(run.folder / AUDIT_FILE, stranger)
    with pytest.raises(AuditError, match="signed by the consortium's authority"):
        verdict_of(run)


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "events.jsonl"])
def test_an_edited_figure_is_found(run: AuditedRun, name: str) -> None:
    path = run.folder / name
    path.write_text(path.read_text().replace("0.75", "0.85", 1))
    with pytest.raises(AuditError, match=name):
        verdict_of(run)


def test_events_cut_short_or_added_are_found(run: AuditedRun) -> None:
    path = run.folder / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:-1], [*lines, lines[-1]], []):
        path.write_bytes(b"".join(changed))
        with pytest.raises(AuditError, match=r"events\.jsonl: must hold what the server recorded"):
            verdict_of(run)


def test_two_hospitals_chains_in_each_others_place_are_found(run: AuditedRun) -> None:
    one, other = run.chain_file("hospital-1"), run.chain_file("hospital-2")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(AuditError, match="must be the chain of hospital-1, got that of hospital-2"):
        verdict_of(run)


def _cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))


@pytest.mark.parametrize("lines", [1, 2])
def test_a_chain_without_the_runs_end_is_no_whole_verdict(run: AuditedRun, lines: int) -> None:
    _cut(run.folder / AUDIT_FILE, lines)
    verdict = verdict_of(run)
    assert not verdict.is_complete
    assert verdict.lines()[-1].startswith("verified as far as it goes")


def test_a_kill_between_the_chains_entry_and_the_event_is_no_fault(run: AuditedRun) -> None:
    _cut(run.folder / AUDIT_FILE, 2)
    _cut(run.folder / "events.jsonl", 2)
    _cut(run.folder / "metrics.csv", 1)
    assert verdict_of(run).has_figures


def test_hospitals_whose_chain_is_not_there_are_named(run: AuditedRun) -> None:
    verdict = verify(run.folder, [run.chain_file("hospital-2")], run.authority_file)
    assert verdict.without_chain == ("hospital-1", "hospital-3")
    assert "no chain given" in "\n".join(verdict.lines())


def _last_model(run: AuditedRun) -> str:
    chain = read_chain((run.folder / AUDIT_FILE).read_bytes(), AUDIT_FILE, run.authority.certificate)
    return next(entry.body.model_hash for entry in reversed(chain.entries) if isinstance(entry.body, Stepped))


def test_a_refusal_that_was_added_by_hand_is_found(run: AuditedRun) -> None:
    path = run.chain_file("hospital-1")
    forged = Refused(run_id=RUN_ID, round_number=5, hospital="hospital-1", code="policy", reason="never said")
    impostor = server_writer(run.authority, datetime.datetime.now(datetime.UTC))
    chain = AuditChain(path, impostor)
    chain.append(forged)
    with pytest.raises(AuditError, match="must be of hospital-1, got a certificate of the server"):
        verdict_of(run)


def test_a_card_that_hides_where_the_authoritys_key_lies_is_found(tmp_path: Path) -> None:
    run = audited_run(tmp_path / "run", authority_on_server=True)
    assert verdict_of(run).has_model
    card = run.folder / "model.json"
    told = json.loads(card.read_text())
    assert told["caveats"][-1].startswith("The server holds the authority's key")
    told["caveats"].pop()
    card.write_text(json.dumps(told, indent=2) + "\n")
    with pytest.raises(AuditError, match=r"model\.json: caveats must be"):
        verdict_of(run)


@pytest.mark.parametrize("figure", ['"records": 8', '"noise_sd": {\n      "accuracy": 0.01', '"round": 2'])
def test_an_edited_figure_of_the_final_test_or_the_curve_is_found(run: AuditedRun, figure: str) -> None:
    path = run.folder / "summary.json"
    text = path.read_text()
    assert figure in text
    path.write_text(text.replace(figure, figure[:-1] + "9", 1))
    with pytest.raises(AuditError, match=r"summary\.json: must say what events\.jsonl says"):
        verdict_of(run)
