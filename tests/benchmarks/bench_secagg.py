"""``confide dev bench secagg``: what masking costs a hospital and the server, against Flower's own SecAgg+.

Both do the same work: quantise a model's change, add the mask of the hospital itself and one for each other hospital,
and add up and unmask what the server gets when the last hospital drops out. Ours goes through the protocol's own
functions, with every check, decryption and signature; Flower's through the primitives that its client and its workflow
call, in their order.
"""

import os
import statistics
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    factor_extract,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    generate_key_pairs,
    private_key_to_bytes,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.config import Config
from common.errors import RunError
from common.mask_workers import MaskWorkers, cores
from common.provenance import machine, versions
from common.run.vector import Tail, VectorLayout
from common.secagg import advertise_keys, consistency_check, masked_input, share_keys, unmasking
from common.secagg.masks import Mask, MaskApplier, apply_masks
from common.secagg.messages import encode
from common.secagg.neighbours import degree
from common.secagg.parameters import SECURE_MINIMUM, Adversary, GraphParameters, RunParameters, Vector
from deploy.command import command, json_file_option, out_option
from deploy.json_report import write_json_report
from deploy.results.plots import BLUE, GREEN, ORANGE, styled

TERMS = bytes(100)
ROUND = 1
ENTRIES = 15
"""The entries of an evaluation with two classes."""
WEIGHT = 1000

KEYSTREAM_ELEMENTS = 11_200_000
"""A ResNet-18. The rate is measured on this many elements, or on as many as the model has when it is larger."""

FLOWER_CLIP, FLOWER_TARGET, FLOWER_MODULUS, FLOWER_MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0
"""Defaults of Flower's ``SecAggPlusWorkflow``."""

MOST_HOSPITALS_IN_16_BITS = 16
"""As the upload target says; at 16 hospitals an element of 16 bits still carries 2,047 levels a side."""

HOSPITALS_PLOTTED = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
PARAMETERS_PLOTTED = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
ELEMENTS_WHILE_HOSPITALS_GROW = 100_000
MOST_PARAMETERS_OF_FLOWER = 10_000_000
"""Beyond, Flower's int64 and float64 temporaries of one hospital pass five gigabytes."""

SCALING_FILE = "bench_secagg_scaling.png"
BYTES_PER_PARAMETER = 12
"""Bytes a parameter while a round is measured: the change (4), its encoding, masked vector, sum, plain sum (2 each)."""


@dataclass(frozen=True)
class Measurement:
    """What ``bench secagg`` prints and writes. Seconds are medians over the repetitions, sizes are bytes."""

    keystream_gb_per_second: float
    """AES-256-CTR keystream added to a vector, on one core; 10^9 bytes a second."""
    client_seconds: float
    """One hospital: quantise, open the inbox, mask."""
    server_seconds: float
    """Add all vectors, check and combine the shares, unmask, decode."""
    client_peak_bytes: int
    """The most that was allocated at once beyond the model's change: the encoded vector, masked in place, and what is
    shared with the processes that make masks."""
    upload_bytes: int
    upload_ratio_to_float32: float
    flower_client_seconds: float
    flower_server_seconds: float
    client_speedup: float
    server_speedup: float


@dataclass(frozen=True)
class RoundCost:
    """What one round cost one hospital and the server, in seconds."""

    hospital_seconds: float
    """Quantise, open the inbox, mask."""
    server_seconds: float
    hospital_checks_seconds: float = 0.0
    """The rest of a hospital's round: check everyone's keys and deal shares, sign the survivors, check and reveal."""


@command(
    "secagg",
    "Measure what masking costs a hospital and the server, against Flower's own SecAgg+.",
    "./confide dev bench secagg --params 1000000 --hospitals 4",
)
@click.option("--params", type=int, default=KEYSTREAM_ELEMENTS, metavar="P", help="Elements of the model.")
@click.option("--hospitals", type=int, default=4, metavar="N", help="How many take part.")
@click.option("--repeat", type=int, default=5, metavar="N", help="Repetitions; medians are reported.")
@json_file_option()
@click.option("--scaling", is_flag=True, help="Plot cost against hospitals and parameters; takes minutes.")
@out_option(Path(), "the current folder", "For the plot.")
def main(params: int, hospitals: int, repeat: int, json_file: Path | None, scaling: bool, out: Path) -> int:
    """Measure, print, and write JSON and plots where asked."""
    if hospitals < SECURE_MINIMUM + 1:
        raise RunError(f"--hospitals must be at least {SECURE_MINIMUM + 1}, so that one can drop out, got {hospitals}")
    if params < 1 or repeat < 1:
        raise RunError("--params and --repeat must be at least 1")
    measured = measure(params, hospitals, repeat)
    result: dict[str, Any] = {
        **asdict(measured),
        "parameters": params,
        "hospitals": hospitals,
        "cores": cores(),
        "machine": machine(),
        "versions": versions(),
        "commit": versions()["commit"],
    }
    if scaling:
        result["scaling"] = measure_scaling(out)
    for name, value in result.items():
        print(f"{name:26} {value:.4g}" if isinstance(value, float) else f"{name:26} {value}")
    if json_file is not None:
        write_json_report(json_file, result)
    return 0


def measure(parameters: int, hospitals: int, repeat: int) -> Measurement:
    """Return all figures for one model size and number of hospitals, ours and Flower's from this one process."""
    change = _change(parameters)
    with MaskWorkers(cores() - 1) as apply:
        ours = [_Round(change, hospitals, apply=apply).play() for _ in range(repeat)]
    flowers = [_flower(change, hospitals) for _ in range(repeat)]
    client, server = _medians(ours)
    flower_client, flower_server = _medians(flowers)
    upload, peak = _sizes(change, hospitals)
    return Measurement(
        keystream_gb_per_second=keystream_gb_per_second(max(parameters, KEYSTREAM_ELEMENTS), repeat),
        client_seconds=client,
        server_seconds=server,
        client_peak_bytes=peak,
        upload_bytes=upload,
        upload_ratio_to_float32=upload / (parameters * np.dtype(np.float32).itemsize),
        flower_client_seconds=flower_client,
        flower_server_seconds=flower_server,
        client_speedup=flower_client / client,
        server_speedup=flower_server / server,
    )


def keystream_gb_per_second(elements: int, repeat: int) -> float:
    """Return how fast one core makes one mask and adds it to a vector of uint16."""
    vector: Vector = np.zeros(elements, np.uint16)
    seed = os.urandom(32)
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        apply_masks(vector, [Mask(seed)])
        times.append(time.perf_counter() - started)
    return vector.nbytes / statistics.median(times) / 1e9


class _Round:
    """One round of our protocol, as one hospital and the server see it; the hospital that is measured is the first."""

    def __init__(
        self,
        change: NDArray[np.float32],
        hospitals: int,
        adversary: Adversary = Adversary.ACTIVE,
        apply: MaskApplier = apply_masks,
    ) -> None:
        config = Config()
        bits = 16 if hospitals <= MOST_HOSPITALS_IN_16_BITS else 32
        aggregation = config.aggregation.model_copy(update={"modulus_bits": bits})
        self.layout = VectorLayout.for_run(aggregation, ENTRIES, parameters=len(change), hospitals=hospitals)
        self.change, self.apply = change, apply
        self.identities = {f"hospital-{number}": Ed25519PrivateKey.generate() for number in range(hospitals)}
        self.run = RunParameters(
            run_id="0" * 32,
            config_hash=bytes(32),
            roster={name: key.public_key().public_bytes_raw() for name, key in self.identities.items()},
            min_hospitals=SECURE_MINIMUM,
            modulus_bits=bits,
            vector_length=self.layout.length,
            counts_length=self.layout.counts_length,
            adversary=adversary,
        )
        self.names = tuple(self.run.roster)
        self.measured, self.dropped = self.names[0], self.names[-1]
        self.hospital_seconds = self.server_seconds = self.checks_seconds = 0.0
        self.message_bytes = 0

    def play(self) -> RoundCost:
        """Run every phase; only one hospital makes every check, because all of them would cost it the same."""
        routed, shared = self.keys()
        total = masked_input.MaskedSum(routed, TERMS)
        masked = {}
        plain: Vector = np.zeros_like(total.total)
        for name in self.names[:-1]:
            masked[name], message, vector = self.mask(routed, shared[name], plain)
            started = time.perf_counter()
            total.add(name, message, vector)
            self.server_seconds += time.perf_counter() - started
        request, signed = self._agree(total, masked)
        revealed = {name: unmasking.shares_for(state, request) for name, state in masked.items()}
        started = time.perf_counter()
        revealed[self.measured] = unmasking.reveal(signed[self.measured], request)
        self.checks_seconds += time.perf_counter() - started
        started = time.perf_counter()
        unmasked = unmasking.unmask(total, revealed, self.apply)
        self.server_seconds += time.perf_counter() - started
        if not np.array_equal(unmasked.total, plain):
            raise RunError("the unmasked sum must be the plain sum; the protocol is broken and no time means anything")
        started = time.perf_counter()
        self.layout.decode(unmasked.total, len(unmasked.survivors))
        self.server_seconds += time.perf_counter() - started
        return RoundCost(self.hospital_seconds, self.server_seconds, self.checks_seconds)

    def keys(self) -> tuple[share_keys.Routed, dict[str, share_keys.SharedKeys]]:
        """Run AdvertiseKeys and ShareKeys."""
        keys, advertised = {}, {}
        for name, identity in self.identities.items():
            keys[name], advertised[name] = advertise_keys.advertise(self.run, ROUND, name, identity, os.urandom)
        directory = advertise_keys.collect(self.run, ROUND, advertised).directory
        shared, dealt = {}, {}
        for name in self.names:
            if name == self.measured:
                started = time.perf_counter()
                shared[name], dealt[name] = share_keys.share(keys[name], directory, os.urandom)
                self.checks_seconds += time.perf_counter() - started
            else:
                shared[name], dealt[name] = share_keys.deal(keys[name], directory, os.urandom)
        return share_keys.route(self.run, directory, dealt), shared

    def mask(
        self, routed: share_keys.Routed, state: share_keys.SharedKeys, plain: Vector
    ) -> tuple[masked_input.MaskedState, Any, Vector]:
        """Encode and mask one hospital's vector, and add it bare to ``plain``; returns state, message and vector."""
        request = routed.request_for(state.keys.hospital, TERMS)
        tail = Tail(WEIGHT, 100, 100, np.zeros(ENTRIES, np.int64))
        started = time.perf_counter()
        vector = self.layout.encode(self.change, tail, os.urandom)
        seconds = time.perf_counter() - started
        self.run.add(plain, vector)
        started = time.perf_counter()
        masked_state, message, masked = masked_input.mask(
            state, self.identities[state.keys.hospital], request, vector, self.apply
        )
        seconds += time.perf_counter() - started
        if state.keys.hospital == self.measured:
            self.hospital_seconds += seconds
            self.message_bytes = len(encode(message))
        return masked_state, message, masked

    def _agree(
        self, total: masked_input.MaskedSum, masked: Mapping[str, masked_input.MaskedState]
    ) -> tuple[Any, Mapping[str, Any]]:
        if self.run.adversary is Adversary.SEMI_HONEST:
            return consistency_check.unmasking_request(total), masked
        survivors = total.close()
        signed, signatures = {}, {}
        for name, state in masked.items():
            signed[name], signatures[name] = consistency_check.sign_survivors(state, self.identities[name], survivors)
        return consistency_check.collect(total, signatures).request, signed


def _sizes(change: NDArray[np.float32], hospitals: int) -> tuple[int, int]:
    """Return what one hospital uploads, and the most it allocates at once while it encodes and masks."""
    with MaskWorkers(cores() - 1) as apply:
        played = _Round(change, hospitals, apply=apply)
        routed, shared = played.keys()
        plain: Vector = np.zeros(played.run.vector_length, played.run.dtype)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        _, _, masked = played.mask(routed, shared[played.measured], plain)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    return masked.nbytes + played.message_bytes, peak


def _flower(change: NDArray[np.float32], hospitals: int) -> RoundCost:
    """Do the same with Flower's primitives, as ``secaggplus_mod`` and ``SecAggPlusWorkflow`` call them."""
    keys = [generate_key_pairs() for _ in range(hospitals)]
    seeds = [os.urandom(32) for _ in range(hospitals)]
    survivors, threshold = range(hospitals - 1), 2 * hospitals // 3 + 1
    started = time.perf_counter()
    first = _flower_mask(change, 0, keys, seeds[0])
    hospital_seconds = time.perf_counter() - started
    others = [_flower_mask(change, node, keys, seeds[node]) for node in survivors if node != 0]
    seed_shares = [create_shares(seeds[node], threshold, hospitals)[:threshold] for node in survivors]
    key_shares = create_shares(private_key_to_bytes(keys[-1][0]), threshold, hospitals)[:threshold]
    started = time.perf_counter()
    total = first
    for other in others:
        total = parameters_addition(total, other)
    total = parameters_mod(total, FLOWER_MODULUS)
    shapes = [array.shape for array in total]
    for shares in seed_shares:
        total = parameters_subtraction(total, pseudo_rand_gen(combine_shares(shares), FLOWER_MODULUS, shapes))
    dropped_key = bytes_to_private_key(combine_shares(key_shares))
    for node in survivors:
        shared_key = generate_shared_key(dropped_key, keys[node][1])
        # The dropped hospital has the highest number, so the survivors subtracted this mask.
        total = parameters_addition(total, pseudo_rand_gen(shared_key, FLOWER_MODULUS, shapes))
    _flower_decode(parameters_mod(total, FLOWER_MODULUS), len(survivors))
    return RoundCost(hospital_seconds, time.perf_counter() - started)


def _flower_mask(
    change: NDArray[np.float32], node: int, keys: Sequence[tuple[Any, Any]], seed: bytes
) -> list[NDArray[Any]]:
    ratio = round(WEIGHT / FLOWER_MAX_WEIGHT * FLOWER_TARGET)
    weighted = parameters_multiply([change], ratio / FLOWER_TARGET)
    masked = factor_combine(ratio, quantize(weighted, FLOWER_CLIP, FLOWER_TARGET))
    shapes = [array.shape for array in masked]
    masked = parameters_addition(masked, pseudo_rand_gen(seed, FLOWER_MODULUS, shapes))
    for peer, (_, public) in enumerate(keys):
        if peer == node:
            continue
        mask = pseudo_rand_gen(generate_shared_key(keys[node][0], public), FLOWER_MODULUS, shapes)
        masked = (parameters_addition if node > peer else parameters_subtraction)(masked, mask)
    return parameters_mod(masked, FLOWER_MODULUS)


def _flower_decode(total: list[NDArray[Any]], survivors: int) -> None:
    ratio, parameters = factor_extract(total)
    for vector in dequantize(parameters, FLOWER_CLIP, FLOWER_TARGET):
        vector += -(survivors - 1) * FLOWER_CLIP  # noqa: PLW2901 - in place, as Flower does
        vector *= FLOWER_TARGET / ratio  # noqa: PLW2901


def measure_scaling(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Measure rounds of more hospitals and of larger models, and plot them.

    Args:
        folder: where :data:`SCALING_FILE` is written.

    Returns:
        The points: by hospitals for either adversary, and by parameters; what did not fit in memory is left out.

    Raises:
        RunError: the folder cannot be written.
    """
    small = _change(ELEMENTS_WHILE_HOSPITALS_GROW)
    by_hospitals = []
    for adversary in Adversary:
        for hospitals in HOSPITALS_PLOTTED:
            cost = _Round(small, hospitals, adversary).play()
            sparse = degree(hospitals, hospitals, adversary, GraphParameters())
            neighbours = hospitals - 1 if sparse is None else sparse.neighbours
            point = {"adversary": adversary.value, "hospitals": hospitals, "neighbours": neighbours, **asdict(cost)}
            print(f"{point}", flush=True)
            by_hospitals.append(point)
    measured = (_by_parameters(parameters) for parameters in PARAMETERS_PLOTTED)
    by_parameters = [point for point in measured if point is not None]
    figure = _scaling_figure(by_hospitals, by_parameters)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / SCALING_FILE)
    except OSError as error:
        raise RunError(f"--out must be a writable folder; {folder}: {error.strerror}") from None
    return {"by_hospitals": by_hospitals, "by_parameters": by_parameters}


def _by_parameters(parameters: int) -> dict[str, Any] | None:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if parameters * BYTES_PER_PARAMETER > available:
        print(f"{parameters} parameters need {parameters * BYTES_PER_PARAMETER / 1e9:.1f} GB, left out", flush=True)
        return None
    change = _change(parameters)
    point: dict[str, Any] = {"parameters": parameters, **asdict(_Round(change, SECURE_MINIMUM + 1).play())}
    if parameters <= MOST_PARAMETERS_OF_FLOWER:
        flower = _flower(change, SECURE_MINIMUM + 1)
        point |= {
            "flower_client_seconds": flower.hospital_seconds,
            "flower_server_seconds": flower.server_seconds,
        }
    print(f"{point}", flush=True)
    return point


@styled
def _scaling_figure(by_hospitals: list[dict[str, Any]], by_parameters: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_hospitals(left, by_hospitals)
    _draw_parameters(right, by_parameters)
    return figure


def _draw_hospitals(axes: Axes, points: list[dict[str, Any]]) -> None:
    for adversary, colour in ((Adversary.ACTIVE, BLUE), (Adversary.SEMI_HONEST, ORANGE)):
        chosen = [point for point in points if point["adversary"] == adversary.value]
        hospitals = [point["hospitals"] for point in chosen]
        for key, who, style in (
            ("hospital_seconds", "hospital masks", "-"),
            ("hospital_checks_seconds", "hospital checks", ":"),
            ("server_seconds", "server", "--"),
        ):
            seconds = [point[key] for point in chosen]
            axes.plot(hospitals, seconds, style, color=colour, marker="o", markersize=4, label=f"{who}, {adversary}")
    axes.axvline(GraphParameters().complete_up_to, color="#888888", linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="hospitals (everyone masks with everyone up to the line)",
        ylabel="seconds a round",
        title=f"{ELEMENTS_WHILE_HOSPITALS_GROW:,} parameters",
    )
    axes.set_xticks(HOSPITALS_PLOTTED, [str(hospitals) for hospitals in HOSPITALS_PLOTTED])
    axes.minorticks_off()
    axes.legend()


def _draw_parameters(axes: Axes, points: list[dict[str, Any]]) -> None:
    lines = (
        ("hospital_seconds", "hospital", BLUE, "-"),
        ("server_seconds", "server", BLUE, "--"),
        ("flower_client_seconds", "Flower's client", GREEN, "-"),
        ("flower_server_seconds", "Flower's server", GREEN, "--"),
    )
    for key, label, colour, style in lines:
        chosen = [point for point in points if key in point]
        axes.plot(
            [point["parameters"] for point in chosen],
            [point[key] for point in chosen],
            style,
            color=colour,
            marker="o",
            markersize=4,
            label=label,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="parameters",
        ylabel="seconds a round",
        title=f"{SECURE_MINIMUM + 1} hospitals, one of them drops out",
    )
    axes.legend()


def _change(parameters: int) -> NDArray[np.float32]:
    """Return a change of plausible size; the time does not depend on its values."""
    return np.random.default_rng(0).normal(0.0, 0.01, parameters).astype(np.float32)


def _medians(costs: Sequence[RoundCost]) -> tuple[float, float]:
    return (
        statistics.median(cost.hospital_seconds for cost in costs),
        statistics.median(cost.server_seconds for cost in costs),
    )
