"""A consortium of real agents whose runs have disputes, of any number of hospitals, one of which cheats."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.contribution import Contribution, Contributor
from client.proved_model import ProvedModel
from common.audit.chain import AUDIT_FILE
from common.config import replace
from common.identity.certificates import certificate_pem
from common.run.messages import Request, phase_of
from deploy.audit.verify import verify
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealer import deal
from deploy.experiment.consortium import InProcessConsortium, Loss, Site
from tests.support.garbles import scale
from tests.support.proving_run import ProvingRun
from tests.support.small_consortium import CONFIG, Dealt, willing

CHEAT = "hospital-3"
STEPS = 2

Garble = Callable[[Any, Contributor], None]


@functools.cache
def phantom() -> DataSet:
    return obtain(CONFIG.data, CONFIG.experiment.task, CONFIG.model.image_size)


def names(hospitals: int) -> tuple[str, ...]:
    return tuple(f"hospital-{number}" for number in range(1, hospitals + 1))


def disputing(
    folder: Path,
    hospitals: int = 4,
    *,
    audited: bool = False,
    policy: Mapping[str, Any] | None = None,
    **more: Any,  # noqa: ANN401 - sections
) -> ProvingRun:
    """Return a consortium whose runs have disputes; ``more`` are keys of sections of the configuration."""
    aggregation = {"proved_sums": True, "norm_bound": 2.0, "disputes": True, **more.pop("aggregation", {})}
    experiment = {"rounds": STEPS, "num_clients": hospitals, **more.pop("experiment", {})}
    config = replace(CONFIG, aggregation=aggregation, experiment=experiment, **more)
    shards = [folder / name / "shard" for name in names(hospitals)]
    deal(phantom(), shards, CONFIG.data, CONFIG.experiment.seed, 1)
    agreed = willing(**{"allow_disputes": True, "allow_exact_evaluation": True, **(policy or {})})
    sites = {
        name: Site(data=shard, state=folder / name, cache=folder / name / "cache", policy=agreed)
        for name, shard in zip(names(hospitals), shards, strict=True)
    }
    made = InProcessConsortium(config, sites, audited=audited)
    return ProvingRun(Dealt(phantom(), folder), folder, config, made)


def spoil(made: ProvingRun, patch: pytest.MonkeyPatch, garble: Garble, cheats: tuple[str, ...] = (CHEAT,)) -> None:
    """Let the cheats' vectors be garbled before they are committed to, masked and signed."""
    contribute = Contributor.contribute

    def cheating(self: Contributor, *arguments: Any, **named: Any) -> Contribution:  # noqa: ANN401 - as the real one
        made_of = contribute(self, *arguments, **named)
        runs = [made.consortium.agents[cheat]._run for cheat in cheats]
        if any(run is not None and run.contributor is self for run in runs):
            garble(made_of.vector, self)
        return made_of

    patch.setattr(Contributor, "contribute", cheating)


def spoil_after_commitment(patch: pytest.MonkeyPatch, garble: Callable[[Any], None]) -> None:
    """Let the cheat commit to its honest vector, and mask another."""
    commit = ProvedModel.commit

    def cheating(self: ProvedModel, vector: Any) -> bytes:  # noqa: ANN401 - of either ring
        committed = commit(self, vector)
        if self._hospital == CHEAT:
            garble(vector)
        return committed

    patch.setattr(ProvedModel, "commit", cheating)


def scaled(factor: int) -> Garble:
    return lambda vector, contributor: scale(vector, contributor.layout, factor)


def noise(vector: Any, contributor: Contributor) -> None:  # noqa: ANN401 - of either ring
    proved = contributor.layout.proved_part(vector)
    proved[:] = np.frombuffer(np.random.default_rng().bytes(proved.nbytes), vector.dtype)


def noise_in_counts(vector: Any, contributor: Contributor) -> None:  # noqa: ANN401 - of either ring
    counts = vector[: len(vector) - contributor.layout.proof.length]
    counts[:] = np.frombuffer(np.random.default_rng().bytes(counts.nbytes), vector.dtype)


def losing(hospital: str, phase: str) -> Callable[[str, Request], Loss | None]:
    """Return a line on which a hospital never hears of one exchange."""
    return lambda name, request: Loss.OF_REQUEST if (name, phase_of(request)) == (hospital, phase) else None


def audit(made: ProvingRun) -> tuple[str, ...]:
    """Return what ``audit verify`` says of a run whose chains were kept."""
    authority = made.folder / "ca.pem"
    authority.write_bytes(certificate_pem(made.consortium.authority))
    chains = [made.folder / name / AUDIT_FILE for name in made.consortium.agents]
    return verify(made.folder, chains, authority).lines()
