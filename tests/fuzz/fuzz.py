"""``confide dev fuzz``: feed every decoder with bad bytes, guided by what they reach in it (atheris, libFuzzer).

Each decoder runs in a process of its own and ends it at the first thing that is not a refusal; the bytes that did it
are kept in the corpus, where the fast tests try them from then on.
"""

import subprocess
import sys
import time
from pathlib import Path

import click

from common.errors import RunError
from deploy.command import FILE, command
from deploy.source_tree import ROOT

CORPUS = ROOT / "tests" / "fuzz" / "corpus"

LONGEST_BYTES = 1 << 16
"""The most bytes that are fed; no message of the protocol but the vector itself is longer."""

MEMORY_MIB = 2048
"""A decoder that takes more is stopped, and counts as a defect. Torch alone takes 500."""

ONE_INPUT_SECONDS = 20

SECONDS_EACH = 10

FEWEST_SECONDS = 5
"""A decoder that was fed for less has seen little beyond the corpus, which the fast tests try anyway."""

GRACE_SECONDS = 300
"""To import and instrument what is fuzzed, and to stop."""


@command(
    "fuzz",
    "Feed every decoder with bad bytes, guided by what they reach in it. The exit code is 1 when anything but a "
    "refusal came up; the bytes that did it are kept in the corpus.",
    "./confide dev fuzz --seconds 60 --decoder share_keys",
)
@click.option(
    "--seconds", type=int, show_default=f"{SECONDS_EACH} for each decoder", metavar="S", help="In all, shared evenly."
)
@click.option("--decoder", multiple=True, metavar="NAME", help="Only this one; repeatable.")
@click.option("--corpus", type=FILE, default=CORPUS, show_default="tests/fuzz/corpus", metavar="DIR", help="Inputs.")
def main(seconds: int | None, decoder: tuple[str, ...], corpus: Path) -> int:
    """Fuzz for so many seconds in all; returns 1 if anything but a refusal came up."""
    from tests.fuzz.decoders import DECODERS

    names = [each.name for each in DECODERS]
    chosen = decoder or tuple(names)
    if not set(chosen) <= set(names):
        raise RunError(f"--decoder must be one of {', '.join(names)}, got {', '.join(set(chosen) - set(names))}")
    whole = SECONDS_EACH * len(names) if seconds is None else seconds
    if whole < 1:
        raise RunError(f"--seconds must be at least 1, got {whole}")
    each_seconds = max(1, whole // len(chosen))
    failed = [name for name in chosen if not fuzz(name, each_seconds, corpus)]
    if failed:
        print(f"confide: {', '.join(failed)}: raised something other than a refusal; the bytes are in the corpus")
        return 1
    print(f"confide: {len(chosen)} decoders refuse or take whatever was fed to them")
    if each_seconds < FEWEST_SECONDS:
        print(
            f"confide: {each_seconds} s for each are too few to judge by; --seconds {FEWEST_SECONDS * len(chosen)} "
            "gives each decoder enough"
        )
    return 0


def fuzz(name: str, seconds: int, corpus: Path) -> bool:
    """Fuzz one decoder in a process of its own; returns whether it only ever took or refused.

    Raises:
        RunError: the process hangs.
    """
    started = time.monotonic()
    found = corpus / name
    found.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in found.iterdir()}
    command = [sys.executable, "-m", "tests.fuzz.fuzzed_decoder", name, *_flags(found, seconds)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"the decoder {name} must come back from what it is fed; it hangs") from None
    new = sorted({path.name for path in found.iterdir()} - before)
    outcome = "ok" if done.returncode == 0 else f"DEFECT, {', '.join(new) or 'see below'}"
    print(f"{name:18} {time.monotonic() - started:6.1f} s  {_runs(done.stderr):>9} inputs  {outcome}", flush=True)
    if done.returncode:
        print(done.stderr[-4000:], flush=True)
    return done.returncode == 0


def _flags(found: Path, seconds: int) -> list[str]:
    """Return libFuzzer's options; what is merely new stays in memory, what breaks a decoder goes to the corpus."""
    return [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_BYTES}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-timeout={ONE_INPUT_SECONDS}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=1",
        "-verbosity=0",
        f"-seed_inputs={','.join(str(path) for path in sorted(found.iterdir()))}",
    ]


def _runs(told: str) -> str:
    lines = [line for line in told.splitlines() if line.startswith("stat::number_of_executed_units")]
    return lines[-1].split()[-1] if lines else "?"
