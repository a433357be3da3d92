"""``confide dev bench sums``: what a proved sum costs a hospital beside masking the same vector, in one process.

A hospital commits before it masks, and checks the sum of everybody's vectors before the next round. The sums are real:
every hospital commits, and a proof that does not hold ends the benchmark. Seconds are of the processor, because
everything here is done by one thread, and other work on the machine then counts less.
"""

import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import RunError
from common.proved_sums.commitment import Centred, commit
from common.proved_sums.expansion import matrix_key
from common.proved_sums.parameters import FEWEST_HOSPITALS, parameters_for
from common.proved_sums.proof import committed_group, prove, verify_sum
from common.provenance import machine, versions
from common.secagg.errors import Place
from common.secagg.masked_input import signed_part
from common.secagg.masks import Mask, apply_masks
from common.secagg.messages import MaskedInput, OpenedCommitment, SignedView, SumProof, encode
from common.secagg.parameters import RunParameters, Vector
from common.secagg.phases import Phase
from common.secagg.sealed_commitment import commitment_hash, seal
from deploy.command import command, json_file_option
from deploy.json_report import write_json_report

SIZES = ((26_000, 16), (57_000, 16), (57_000, 32), (11_200_000, 16), (11_200_000, 32))
"""Parameters and bits of the ring: two heads on frozen features, and a ResNet-18."""


@dataclass(frozen=True)
class SumCost:
    """What one hospital pays for a proved sum of one size. Seconds are medians of processor time, sizes are bytes."""

    parameters: int
    modulus_bits: int
    security_bits: int
    mask_seconds: float
    """All masks of the vector, put on by one core: one for each hospital."""
    commit_seconds: float
    verify_seconds: float
    commit_to_mask: float
    verify_to_mask: float
    commit_peak_bytes: int
    """The most that was allocated at once beyond the vector and its ρ."""
    upload_bytes: int
    """The vector alone."""
    upload_more_bytes: int
    """The commitment sealed, and ρ under the masks."""
    download_bytes: int
    """The sum with its ρ, and everybody's commitments."""
    model_bytes: int
    """What a float32 model, which the sum takes the place of, would take."""


@command(
    "sums",
    "Measure what a proved sum costs a hospital, against masking the same vector.",
    "./confide dev bench sums --hospitals 4",
)
@click.option("--hospitals", type=int, default=4, metavar="N", help="How many are in the sum.")
@click.option("--repeat", type=int, default=3, metavar="N", help="Repetitions; medians are reported.")
@click.option("--most", type=int, default=SIZES[-1][0], metavar="P", help="Leave out vectors longer than this.")
@json_file_option()
def main(hospitals: int, repeat: int, most: int, json_file: Path | None) -> int:
    """Measure, print, and write JSON where asked."""
    if hospitals < FEWEST_HOSPITALS or repeat < 1:
        raise RunError(f"--hospitals must be at least {FEWEST_HOSPITALS} and --repeat at least 1")
    costs = []
    for parameters, bits in SIZES:
        if parameters <= most:
            cost = measure(parameters, bits, hospitals, repeat)
            costs.append(cost)
            print("  ".join(f"{name} {value:.4g}" for name, value in asdict(cost).items()), flush=True)
    if json_file is not None:
        facts: dict[str, Any] = {
            "sums": [asdict(cost) for cost in costs],
            "hospitals": hospitals,
            "machine": machine(),
            "versions": versions(),
            "commit": versions()["commit"],
        }
        write_json_report(json_file, facts)
    return 0


def measure(entries: int, bits: int, hospitals: int, repeat: int) -> SumCost:
    """Return what one hospital pays at one size.

    Raises:
        ProvedSumError: the sum is not proved; the protocol is broken and no time means anything.
    """
    parameters = parameters_for(entries, bits, hospitals)
    identities = {f"hospital-{number}": Ed25519PrivateKey.generate() for number in range(hospitals)}
    run = RunParameters(
        run_id="0" * 32,
        config_hash=bytes(32),
        roster={name: key.public_key().public_bytes_raw() for name, key in identities.items()},
        min_hospitals=FEWEST_HOSPITALS,
        modulus_bits=bits,
        vector_length=parameters.length,
        proves_sums=True,
    )
    bound = parameters.bound // hospitals
    change = np.random.default_rng(0).integers(-bound, bound + 1, entries).astype(f"<i{bits // 8}")
    key, first = matrix_key(run, parameters), next(iter(run.roster))

    def masking() -> None:
        apply_masks(vector, [Mask(os.urandom(32)) for _ in range(hospitals)])

    def committing() -> None:
        commitment = commit(key, parameters, change, os.urandom)
        seal(run, 1, first, bytes(32), commitment.value)

    def verifying() -> None:
        verify_sum(group, parameters, proof, total)

    vector: Vector = np.zeros(parameters.length, run.dtype)
    group_views, proof, total = _round(run, change, identities)
    place = Place(first, 1, Phase.FULL_UNMASKING)
    group = committed_group(run, group_views[0], [_signed(view) for view in group_views], run.roster, place)
    mask_seconds, commit_seconds, verify_seconds = (_median(each, repeat) for each in (masking, committing, verifying))
    return SumCost(
        parameters=entries,
        modulus_bits=bits,
        security_bits=parameters.security_bits,
        mask_seconds=mask_seconds,
        commit_seconds=commit_seconds,
        verify_seconds=verify_seconds,
        commit_to_mask=commit_seconds / mask_seconds,
        verify_to_mask=verify_seconds / mask_seconds,
        commit_peak_bytes=_peak(committing),
        upload_bytes=entries * bits // 8,
        upload_more_bytes=parameters.upload_bytes,
        download_bytes=total.nbytes + len(encode(proof)),
        model_bytes=4 * entries,
    )


def _round(
    run: RunParameters, change: Centred, identities: dict[str, Ed25519PrivateKey]
) -> tuple[list[MaskedInput], SumProof, Vector]:
    """Let every hospital commit to the same change; returns their views, the proof and the sum."""
    parameters = parameters_for(len(change), run.modulus_bits, len(run.roster))
    key, views, opened = matrix_key(run, parameters), [], []
    total: Vector = np.zeros(parameters.length, run.dtype)
    for name, identity in identities.items():
        commitment = commit(key, parameters, change, os.urandom)
        total += np.concatenate([change, commitment.randomness]).view(run.dtype)
        blank = MaskedInput(
            run_id=run.run_id,
            round_number=1,
            hospital=name,
            config_hash=run.config_hash,
            directory_hash=bytes(32),
            cohort_hash=bytes(32),
            request_hash=bytes(32),
            modulus_bits=run.modulus_bits,
            vector_length=run.vector_length,
            vector_hash=bytes(32),
            commitment=b"",
            signature=b"",
        )
        unsigned = replace(blank, commitment=commitment_hash(run, blank, name, commitment.value))
        views.append(replace(unsigned, signature=identity.sign(signed_part(run, unsigned))))
        opened.append(OpenedCommitment(name, commitment.value))
    return views, prove(run, 1, opened), total


def _signed(view: MaskedInput) -> SignedView:
    return SignedView.of(view)


def _median(work: Callable[[], None], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times)


def _peak(work: Callable[[], None]) -> int:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak
