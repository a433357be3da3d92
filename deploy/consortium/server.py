"""``confide server``: run a consortium's server, which hospitals on other machines join by invitation.

The first start makes everything in the state folder; later ones continue from there, and so does an unfinished run.
Who is a member is for the consortium's authority to sign. Its key belongs on the organiser's machine (``confide ca
make``); its certificate comes here with ``--authority ca.pem``. ``--hold-authority-key`` keeps a key of its own here.
"""

import datetime
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
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
from common.processes import Stopping, raise_on_signals
from common.settings import PORT_PATIENCE_SECONDS, SERVER_SETTINGS_FILE, ServerSettings
from deploy.command import FILE, command, config_options, log_format_option, state_option
from deploy.consortium.serving import serve
from deploy.datasets.tasks import task_of_config, with_task
from deploy.named import check_names
from server.members import authority
from server.members.authority import Authority
from server.members.certificates import REQUESTS_FOLDER, Certificates
from server.only_one import only_server
from server.run import new_run_id
from server.run_queue import RunQueue

FLEET_PORT, ENROLMENT_PORT, RUNTIME_PORT = 9092, 9093, 8000
"""Ports: hospitals connect to the first two, and the third stays on the loopback interface."""

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class _Asked:
    """What the command line says of a server: see the options of the same names."""

    address: tuple[str, ...]
    authority: Path | None
    hold_authority_key: bool
    listen: str
    fleet_port: int
    enrolment_port: int
    runtime_port: int
    metrics_host: str


@command(
    "server",
    "Run a consortium's server, which hospitals on other machines join by invitation.\n\n"
    "The first start makes everything in the state folder; later ones go on from there, and so does an unfinished run. "
    "Runs are proposed with ./confide run propose; each keeps the settings that it was proposed with, whatever a later "
    "start says. Who is a member is for the consortium's authority to sign. Its key belongs on the organiser's "
    "machine, where ./confide ca make makes it; its certificate comes here with --authority.",
    "./confide server --state /srv/consortium --address confide.example.org \\\n  --authority ca.pem",
)
@state_option("server")
@click.option("--address", multiple=True, metavar="HOST", help="What hospitals call this server; repeatable.")
@config_options("the consortium")
@click.option("--authority", type=FILE, metavar="FILE", help="ca.pem of the authority that was made elsewhere.")
@click.option(
    "--hold-authority-key",
    is_flag=True,
    help="Make an authority here and keep its key. The server then can invent hospitals, and every output says so.",
)
@click.option("--once", is_flag=True, help="End with the first run that ends.")
@click.option("--no-start", is_flag=True, help="Only prepare the state folder.")
@click.option("--listen", default="0.0.0.0", metavar="ADDRESS", help="Where hospitals may connect.")  # noqa: S104
@click.option("--fleet-port", type=int, default=FLEET_PORT, metavar="PORT", help="For hospitals' messages.")
@click.option("--enrolment-port", type=int, default=ENROLMENT_PORT, metavar="PORT", help="For hospitals that join.")
@click.option("--runtime-port", type=int, default=RUNTIME_PORT, metavar="PORT", help="On loopback only.")
@log_format_option()
@click.option("--metrics-host", default="127.0.0.1", metavar="ADDRESS", help="Where Prometheus may read.")
def main(state: Path, config_file: Path, overrides: tuple[str, ...], once: bool, no_start: bool, **options: Any) -> int:  # noqa: ANN401 - the fields of _Asked
    """Prepare the state folder, run the server, and keep what its runs leave."""
    asked = _Asked(**options)
    if asked.authority is not None and asked.hold_authority_key:
        raise ConfigError("--authority and --hold-authority-key exclude each other; got both")
    config = with_task(load_config(config_file, overrides))
    check_names(config)
    state = state.resolve()
    _settings(asked, state, config)  # What is asked for is checked before anything is made.
    with only_server(state, PORT_PATIENCE_SECONDS):
        settings = _settings(asked, state, config)
        root = _install_authority(state, settings, asked.authority)
        write_private(settings.config, config.as_yaml())
        settings.write(state / SERVER_SETTINGS_FILE)
        print(f"consortium authority {fingerprint(root)}; {who_holds_the_key(root)}", file=sys.stderr)
        _await_certificate(state, settings, config)
    where = join_host_port(settings.hosts[0], settings.enrolment_port)
    print(f"hospitals join at {where}; logs in {settings.logs}", file=sys.stderr)
    if not no_start:
        raise_on_signals()
        try:
            return serve(state, once=once)
        except Stopping:
            return 0
    return 0


def _settings(asked: _Asked, state: Path, config: Config) -> ServerSettings:
    path = state / SERVER_SETTINGS_FILE
    before = ServerSettings.read(path) if path.exists() else None
    hosts = tuple(map(check_host, asked.address or (before.hosts if before else ())))
    if not hosts:
        raise ConfigError("--address must say what hospitals call this server, such as --address confide.example.org")
    if before is None:
        task, run_id = task_of_config(config), new_run_id()
        # The first run that is proposed will be this one.
        run: dict[str, Any] = {
            "run": RunQueue(state).folder(run_id),
            "run_id": run_id,
            "data_set": f"{task.name} (the hospitals' own)",
            "classes": task.classes,
            "channels": task.channels,
        }
    else:
        run = before.model_dump(include={"run", "run_config", "run_id", "data_set", "classes", "channels"})
    return ServerSettings(
        config=state / "config.yaml",
        logs=state / "logs",
        **run,
        fleet_host=asked.listen,
        fleet_port=asked.fleet_port,
        runtime_port=asked.runtime_port,
        metrics_port=config.monitoring.server_metrics_port,
        metrics_host=asked.metrics_host,
        hosts=hosts,
        enrolment_port=asked.enrolment_port,
        authority=_folder_of_key(asked, state, before),
    )


def _folder_of_key(asked: _Asked, state: Path, before: ServerSettings | None) -> Path | None:
    """Return where this server keeps the authority's key, None where it has none; as before unless told otherwise."""
    if asked.authority is not None:
        return None
    if asked.hold_authority_key:
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
