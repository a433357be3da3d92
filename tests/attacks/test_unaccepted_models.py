"""A server names models that hospitals have not accepted; refusals depend on policy alone, and cost nothing."""

import hashlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import HospitalConfig
from common.models.backbone_file import FOLDER_VARIABLE
from common.models.onnx_rules import Breach
from common.models.package import package_hash
from common.run.messages import KeysReply, KeysRequest, RefusedReply
from common.run.terms import describe
from tests.support.onnx_files import FEATURES, HOSTILE, honest
from tests.support.small_consortium import CONFIG, RUN_ID, Dealt, everybody, small

SOURCE = """
from torch import nn

def small(classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))
"""
PARAMETERS = 2 * (28 * 28 + 1)
HEAD = 2 * (FEATURES + 1) + FEATURES
"""The parameters of a linear head on a backbone, and the centre of its features."""
OTHER = "ab" * 32

_numbers = itertools.count()


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Dealt:
    return Dealt.into(tmp_path_factory.mktemp("dealt"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Install a package that leaves a file behind when it runs."""
    name = f"net_of_attack_{next(_numbers)}"
    folder = tmp_path / "site" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{SOURCE}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    finders = list(sys.meta_path)
    yield name
    sys.meta_path[:] = finders
    sys.modules.pop(name, None)


def refusals(
    dealt: Dealt,
    folder: Path,
    policies: dict[str, HospitalConfig] | None = None,
    parameters: int = PARAMETERS,
    **model: object,
) -> dict[str, tuple[str, str]]:
    """Return how each hospital refuses a run of such a model, code and words; none of those that agree."""
    consortium = small(dealt, folder, policies=policies)
    data = dealt.data
    named = CONFIG.model_copy(
        update={"model": type(CONFIG.model).model_validate({**CONFIG.model.model_dump(), **model})}
    )
    description = describe(
        named, RUN_ID, data.classes, data.channels, consortium.consortium.roster, parameters,
        consortium.consortium.member_list,
    )  # fmt: skip
    request = KeysRequest(run_description=description.canonical_json(), round_number=1)
    found = {}
    for hospital, agent in consortium.consortium.agents.items():
        reply, vector = agent.answer(request, None)
        assert vector is None
        assert isinstance(reply, RefusedReply | KeysReply)
        if isinstance(reply, RefusedReply):
            assert consortium.spent(hospital) == []
            found[hospital] = (reply.code, reply.reason)
    return found


def test_a_package_that_no_policy_accepts_is_refused_by_name_and_nothing_of_it_runs(
    dealt: Dealt, tmp_path: Path, package: str
) -> None:
    sha256 = package_hash(package)
    refused = refusals(dealt, tmp_path, name=f"{package}:small", sha256=sha256)
    words = {reason for _, reason in refused.values()}
    assert len(refused) == 4
    expected = (
        f"this hospital trains with packages and backbones that it accepted alone, the run's package ({package}:small) "
        f"has the SHA-256 {sha256}; its operator can add it to hospital.accepted_models"
    )
    assert words == {expected}
    assert {code for code, _ in refused.values()} == {"policy"}
    assert not (tmp_path / "ran").exists()


def test_the_words_of_that_refusal_do_not_tell_whether_the_package_is_installed(
    dealt: Dealt, tmp_path: Path, package: str
) -> None:
    there = refusals(dealt, tmp_path / "a", name=f"{package}:small", sha256=OTHER)
    missing = refusals(dealt, tmp_path / "b", name="nowhere_installed:small", sha256=OTHER)
    said = {reason.replace(package, "nowhere_installed") for _, reason in there.values()}
    assert said == {reason for _, reason in missing.values()}


def test_a_package_accepted_by_one_hospital_is_refused_by_the_others(
    dealt: Dealt, tmp_path: Path, package: str
) -> None:
    sha256 = package_hash(package)
    policies = {"hospital_2": everybody(accepted_models=[sha256])["hospital_2"]}
    refused = refusals(dealt, tmp_path, policies, name=f"{package}:small", sha256=sha256)
    assert sorted(refused) == ["hospital-1", "hospital-3", "hospital-4"]
    assert (tmp_path / "ran").exists()


def test_an_accepted_hash_for_another_source_is_refused_before_a_line_of_it_runs(
    dealt: Dealt, tmp_path: Path, package: str
) -> None:
    """The server names a package that is installed, with the hash of another one that the hospital accepted."""
    refused = refusals(dealt, tmp_path, everybody(accepted_models=[OTHER]), name=f"{package}:small", sha256=OTHER)
    assert len(refused) == 4
    for code, reason in refused.values():
        assert code == "config"
        assert reason.startswith(f"the package {package} must be installed with the source of SHA-256 {OTHER}")
        assert package_hash(package) not in reason
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("function", ["sys:exit", "os:system", "subprocess:run", "builtins:exec", "client.agent:open"])
def test_no_function_of_python_or_of_this_program_can_be_named(dealt: Dealt, tmp_path: Path, function: str) -> None:
    refused = refusals(dealt, tmp_path, everybody(accepted_models=[OTHER]), name=function, sha256=OTHER)
    assert len(refused) == 4
    assert {code for code, _ in refused.values()} == {"config"}


def on_backbone(sha256: str, **changes: object) -> dict[str, Any]:
    return {"name": "backbone_linear", "backbone": "onnx", "features": FEATURES, "sha256": sha256, **changes}


def test_a_backbone_that_no_policy_accepts_is_refused_whether_or_not_its_file_is_there(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "network.onnx").write_bytes(honest())
    sha256 = hashlib.sha256(honest()).hexdigest()
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    missing = refusals(dealt, tmp_path / "a", parameters=HEAD, **on_backbone(sha256))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    there = refusals(dealt, tmp_path / "b", parameters=HEAD, **on_backbone(sha256))
    assert there == missing
    expected = (
        "this hospital trains with packages and backbones that it accepted alone, the run's backbone "
        f"(backbone_linear) has the SHA-256 {sha256}; its operator can add it to hospital.accepted_models"
    )
    assert set(there.values()) == {("policy", expected)}
    assert len(there) == 4


def test_an_accepted_backbone_is_joined_and_another_hash_or_a_hostile_file_is_refused(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, breach = HOSTILE["external data"]
    hashes = []
    for name, file in (("good", honest()), ("bad", make())):
        (tmp_path / f"{name}.onnx").write_bytes(file)
        hashes.append(hashlib.sha256(file).hexdigest())
    good, bad = hashes
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    policies = everybody(accepted_models=[good, bad, OTHER])
    assert refusals(dealt, tmp_path / "a", policies, parameters=HEAD, **on_backbone(good)) == {}
    for sha256, words in (
        (OTHER, f"a backbone's file with the SHA-256 {OTHER} must lie in the folder"),
        (bad, f"the backbone's file is refused, {Breach[breach]}"),
    ):
        refused = refusals(dealt, tmp_path / sha256[:8], policies, parameters=HEAD, **on_backbone(sha256))
        assert len(refused) == 4
        for code, reason in refused.values():
            assert code == "config"
            assert reason.startswith(words)
            assert str(tmp_path) not in reason
    wider = refusals(
        dealt, tmp_path / "wider", policies, parameters=HEAD + 3, **on_backbone(good, features=FEATURES + 1)
    )
    assert {reason for _, reason in wider.values()} == {"model.features must be what the backbone gives, 8, got 9"}
