"""The command line: names every command, and imports only what the chosen one needs."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import ConfideError
from common.hosts import past_proxies

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class _Command:
    """A command: the words that choose it, the module whose ``main(argv)`` runs it, and one line of help."""

    words: tuple[str, ...]
    module: str
    summary: str


COMMANDS = (
    # runs and what comes of them
    _Command(
        ("demo",), "deploy.demo.demo", "run the whole system on this machine: a server and N hospitals, no container"
    ),
    _Command(
        ("report",), "deploy.results.report", "write a run's report, one page with everything, and its model card"
    ),
    _Command(("dashboard",), "deploy.results.dashboard", "show a running or finished run in a browser"),
    _Command(("statistics",), "deploy.results.statistics", "who a run trains on, in noisy counts over all hospitals"),
    _Command(
        ("predict",), "deploy.results.predict", "classify images with a trained model, at its calibrated threshold"
    ),
    _Command(
        ("evidence",), "deploy.audit.evidence", "pack report, chains, configuration and bill of materials of a run"
    ),
    # the operator of the consortium's server
    _Command(("server",), "deploy.consortium.server", "run a consortium's server, which hospitals join by invitation"),
    _Command(("invite",), "deploy.consortium.members", "print an invitation for a hospital"),
    _Command(("revoke",), "deploy.consortium.members", "cut a hospital off"),
    _Command(
        ("ca",), "deploy.consortium.authority", "make a certificate authority, sign requests and revoke, on files alone"
    ),
    _Command(("certs",), "deploy.consortium.certs", "make what lies in certs/, and show it"),
    _Command(
        ("privacy", "plan"), "deploy.consortium.privacy_plan", "which noise an ε costs, and what each adversary gets"
    ),
    # a hospital
    _Command(("hospital", "fetch"), "deploy.hospital.fetch", "take studies from the hospital's own PACS into a folder"),
    _Command(
        ("hospital", "list-images"),
        "deploy.hospital.list_images",
        "begin a manifest from a PACS export's DICOM headers",
    ),
    _Command(
        ("hospital", "check-data"),
        "deploy.hospital.check_data",
        "check a hospital's images before any privacy is spent",
    ),
    _Command(("hospital", "join"), "deploy.hospital.join", "join a consortium, and take part from then on"),
    _Command(("hospital", "status"), "deploy.hospital.status", "how a hospital stands in its consortium"),
    _Command(("hospital", "report"), "deploy.hospital.report", "how good the model is on this hospital's own records"),
    _Command(
        ("hospital", "shadow"), "deploy.hospital.shadow", "a silent trial: stored answers against reports, weekly"
    ),
    _Command(("hospital", "ledger"), "deploy.hospital.ledger", "show, verify or export what a hospital has spent"),
    # what convinces: experiments, audits, failures, costs
    _Command(("experiment", "accuracy"), "deploy.experiment.accuracy", "test accuracy on real images, with intervals"),
    _Command(("experiment", "baselines"), "deploy.experiment.baselines", "every way to train, in one table and plots"),
    _Command(("experiment", "privacy"), "deploy.experiment.privacy", "what privacy costs, by where the noise is added"),
    _Command(("audit", "verify"), "deploy.audit.verify", "check offline that all audit chains and the model agree"),
    _Command(
        ("audit", "privacy"), "deploy.attacks.privacy", "train once with canaries: is more given away than claimed?"
    ),
    _Command(("audit", "inversion"), "deploy.attacks.inversion", "what pictures a server can make of what it sees"),
    _Command(
        ("chaos",), "deploy.resilience.chaos", "kill a deployment's processes at random, and see whether it survives"
    ),
    _Command(("load",), "deploy.resilience.load", "time and memory of one server against more and more hospitals"),
    _Command(("soak",), "deploy.resilience.soak", "let a deployment run, and see whether anything grows"),
    _Command(("fuzz",), "tests.fuzz.fuzz", "feed every decoder of bytes from outside with bad ones"),
    _Command(
        ("bench", "secagg"),
        "tests.benchmarks.bench_secagg",
        "what masking costs, against Flower's own secure aggregation",
    ),
    _Command(("bench", "round"), "tests.benchmarks.bench_round", "a deployed round with masks against one without"),
    _Command(
        ("bench", "dp"), "tests.benchmarks.bench_dp", "a private training step against a plain one, and against Opacus"
    ),
    _Command(("bench", "data"), "tests.benchmarks.bench_data", "time and memory of checking a hospital's images"),
    _Command(("bench", "evaluation"), "tests.benchmarks.bench_evaluation", "noisy measurements against exact ones"),
    # the code itself
    _Command(("check",), "deploy.development.checks", "run the static checks alone"),
    _Command(("test",), "deploy.development.checks", "run the static checks and the tests"),
)


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code.

    What a person can cause (a wrong key, a missing file, a full disk) is one line on standard error and code 2.
    """
    chosen = _choose(argv)
    if chosen is None:
        return _explain(argv)
    os.environ.update(past_proxies(os.environ))
    try:
        return int(importlib.import_module(chosen.module).main(list(argv[len(chosen.words) - 1 :])))
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _choose(argv: Sequence[str]) -> _Command | None:
    """Return the command with the most words that ``argv`` begins with."""
    fitting = [command for command in COMMANDS if tuple(argv[: len(command.words)]) == command.words]
    return max(fitting, key=lambda command: len(command.words), default=None)


def _explain(argv: Sequence[str]) -> int:
    words = [word for word in argv if not word.startswith("-")]
    inside = [command for command in COMMANDS if words and command.words[: len(words)] == tuple(words)]
    if words and not inside:
        print(f"confide: unknown command {' '.join(words)!r}; see ./confide --help", file=sys.stderr)
        return EXIT_ERROR
    asked = not argv or "-h" in argv or "--help" in argv
    parser = argparse.ArgumentParser(prog="confide", add_help=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.usage = "./confide COMMAND [options]      ./confide COMMAND --help"
    parser.description = (
        "Hospitals train one medical-image classifier together; no image, no gradient and no single hospital's model "
        "leaves a hospital."
    )
    commands = parser.add_argument_group("commands")
    for command in inside or COMMANDS:
        commands.add_argument(" ".join(command.words), nargs="?", help=command.summary)
    parser.print_help(sys.stdout if asked else sys.stderr)
    return 0 if asked else EXIT_ERROR
