"""``confide server``: run a consortium's server, which hospitals on other machines join by invitation.

The first start makes everything in the state folder; later ones continue from there, and so does an unfinished run.
Who is a member is for the consortium's authority to sign. Its key belongs on the organiser's machine (``confide ca
make``); its certificate comes here with ``--authority ca.pem``. ``--hold-authority-key`` keeps a key of its own here.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from common.config import Config, load_config
from common.errors import ConfigError
from common.files import write_private
from common.hosts import check_host
from common.identity.certificates import (
    certificate_pem,
    fingerprint,
    held_by_server,
    load_certificate,
    who_holds_the_key,
)
from common.identity.invitation import join_host_port
from common.processes import become, python_module
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from deploy.datasets.datasets import task_named
from deploy.source_tree import ROOT
from server.members import authority
from server.members.authority import Authority
from server.members.certificates import REQUESTS_FOLDER, Certificates
from server.run import new_run_id

FLEET_PORT, ENROLMENT_PORT, RUNTIME_PORT = 9092, 9093, 8000
"""Ports: hospitals connect to the first two, and the third stays on the loopback interface."""

_POLL_SECONDS = 1.0


def main(argv: Sequence[str]) -> int:
    """Prepare the state folder and become the server's supervisor."""
    arguments = _parser().parse_args(argv[1:])
    config = load_config(arguments.config, tuple(arguments.overrides))
    state = arguments.state.resolve()
    settings = _settings(arguments, state, config)
    root = _install_authority(state, settings, arguments.authority)
    write_private(settings.config, config.as_yaml())
    settings.write(state / SERVER_SETTINGS_FILE)
    print(f"consortium authority {fingerprint(root)}; {who_holds_the_key(root)}", file=sys.stderr)
    _await_certificate(state, settings, config)
    where = join_host_port(settings.hosts[0], settings.enrolment_port)
    print(f"hospitals join at {where}; logs in {settings.logs}", file=sys.stderr)
    if not arguments.no_start:
        become(python_module("server", "--state", str(state), *(("--once",) if arguments.once else ())), ROOT)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="confide server", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="keys, roster, runs; back it up")
    parser.add_argument(
        "--address", action="append", metavar="HOST", help="what hospitals call this server; may be repeated"
    )
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    holder = parser.add_mutually_exclusive_group()
    holder.add_argument(
        "--authority", type=Path, metavar="FILE", help="ca.pem of the authority that `confide ca make` made elsewhere"
    )
    holder.add_argument(
        "--hold-authority-key",
        action="store_true",
        help="make an authority here and keep its key: the server then can invent hospitals, and every output says so",
    )
    parser.add_argument("--data-set", metavar="NAME", help="what outputs call the hospitals' data")
    parser.add_argument("--new-run", action="store_true", help="begin a new run, the last one has finished")
    parser.add_argument("--once", action="store_true", help="end when the run is finished")
    parser.add_argument("--no-start", action="store_true", help="only prepare the state folder")
    parser.add_argument("--listen", default="0.0.0.0", metavar="ADDRESS", help="default: %(default)s")  # noqa: S104
    parser.add_argument("--fleet-port", type=int, default=FLEET_PORT, metavar="PORT", help="default: %(default)s")
    parser.add_argument("--enrolment-port", type=int, default=ENROLMENT_PORT, metavar="PORT")
    parser.add_argument("--runtime-port", type=int, default=RUNTIME_PORT, metavar="PORT", help="on loopback only")
    parser.add_argument("--metrics-host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s")
    return parser


def _settings(arguments: argparse.Namespace, state: Path, config: Config) -> ServerSettings:
    path = state / SERVER_SETTINGS_FILE
    before = ServerSettings.read(path) if path.exists() else None
    hosts = tuple(map(check_host, arguments.address or (before.hosts if before else ())))
    if not hosts:
        raise ConfigError("--address must say what hospitals call this server, such as --address confide.example.org")
    run_id = new_run_id() if before is None or arguments.new_run else before.run_id
    task = task_named(config.experiment.task)
    return ServerSettings(
        config=state / "config.yaml",
        run=state / "runs" / run_id[:12],
        logs=state / "logs",
        run_id=run_id,
        data_set=arguments.data_set or f"{task.name} (the hospitals' own)",
        classes=task.classes,
        channels=task.channels,
        fleet_host=arguments.listen,
        fleet_port=arguments.fleet_port,
        runtime_port=arguments.runtime_port,
        metrics_port=config.monitoring.server_metrics_port,
        metrics_host=arguments.metrics_host,
        hosts=hosts,
        enrolment_port=arguments.enrolment_port,
        authority=_folder_of_key(arguments, state, before),
    )


def _folder_of_key(arguments: argparse.Namespace, state: Path, before: ServerSettings | None) -> Path | None:
    """Return where this server keeps the authority's key, or None; as before unless an option says otherwise."""
    if arguments.authority is not None:
        return None
    if arguments.hold_authority_key:
        return state / "authority"
    if before is None:
        raise ConfigError(
            "--authority must name ca.pem of the consortium's authority; `confide ca make` makes one, on a machine "
            "that is not the server. To try things out, --hold-authority-key keeps a key on the server, which can then "
            "invent hospitals"
        )
    return before.authority


def _install_authority(state: Path, settings: ServerSettings, brought: Path | None) -> x509.Certificate:
    """Put the authority's certificate where every part of the server reads it; the same one for ever."""
    path = state / authority.CERTIFICATE_FILE
    if settings.authority is None:
        root = load_certificate(brought or path)
    elif authority.exists(settings.authority):
        root = Authority(settings.authority).certificate
    else:
        now = datetime.datetime.now(datetime.UTC)
        root = Authority.make(settings.authority, "Confide consortium", now, held_by_server=True).certificate
    if settings.authority is not None and not held_by_server(root):
        raise ConfigError(
            f"an authority whose key is on the server must say so in its certificate; the one in {settings.authority} "
            "was made to be kept elsewhere; move its folder there and start with --authority ca.pem"
        )
    if path.exists() and load_certificate(path) != root:
        raise ConfigError(
            f"{state} belongs to the authority {fingerprint(load_certificate(path))}, got {fingerprint(root)}; "
            "hospitals know only the first; use it, or a new --state"
        )
    write_private(path, certificate_pem(root))
    return root


def _await_certificate(state: Path, settings: ServerSettings, config: Config) -> None:
    """Have the server's certificate made; with an offline authority, wait until a person has had it signed."""
    certificates = Certificates(state, settings, config.enrolment)
    said = False
    while True:
        certificates.keep_current(datetime.datetime.now(datetime.UTC))
        if certificates.is_ready():
            return
        if not said:
            said = True
            print(
                f"waiting for the authority: `confide ca sign {state / REQUESTS_FOLDER}/*.csr` where its key is, and "
                "put the .pem files, revoked.crl and members.json into that folder",
                file=sys.stderr,
            )
        time.sleep(_POLL_SECONDS)
