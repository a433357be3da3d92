"""``python -m deploy.containers.server_container``: the server of the demo's consortium in its container.

It does by itself what people do in a real consortium: makes the authority and keeps its key here, which every output
says; leaves an invitation in a volume that the hospitals read, valid for minutes and renewed while the demo is up; and
proposes a run once the number of hospitals is stable, which begins when all have agreed by their policies. An
interrupted run continues; another is proposed only when CONFIDE_RUN has a new value.
"""

import argparse
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.config import load_config
from common.errors import ConfideError
from common.identity.certificates import load_certificate
from common.processes import EXIT_REFUSED, Stopping, python_module, raise_on_signals
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from deploy.consortium import members as membership
from deploy.consortium import server
from deploy.demo.dealer_service import count_addresses, dealt_data_set, publish
from deploy.results.run_folder import RunFolder
from deploy.source_tree import ROOT
from server.members.roster import MOST_USES, Membership

INVITATION_FILE = "invitation"
AUTHORITY_FILE = "ca.pem"
PASSWORD_FILE = "grafana_admin_password"  # pragma: allowlist secret  # noqa: S105 - the file's name
"""The password, made once, for people who want to change a dashboard."""

_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - Prometheus is another container; the metrics' port is not published
_INVITATION_MINUTES = 15.0
_STABLE_SECONDS = 10.0
"""How long the number must be stable: longer than between the starts of two containers of one service."""
_LABEL_FILE = "run"
"""What CONFIDE_RUN was when a run was proposed last."""
_POLL_SECONDS = 0.5
_STOP_SECONDS = 20.0


def main() -> int:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m deploy.containers.server_container", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path("/state"))
    parser.add_argument("--config", type=Path, default=Path("/etc/confide/config.yaml"))
    parser.add_argument("--address", default="server", help="what hospitals call this server (default: %(default)s)")
    parser.add_argument("--invitation", type=Path, default=Path("/invitation"), help="folder that hospitals read")
    parser.add_argument("--password", type=Path, default=Path("/grafana"), help="folder that Grafana reads")
    parser.add_argument("--deal", type=Path, default=Path("/deal"), help="folder that the dealer writes")
    parser.add_argument("--hospitals", default="hospital", help="DNS name with one address a running hospital")
    parser.add_argument("--run", default=os.environ.get("CONFIDE_RUN", ""), help="a new value proposes a new run")
    arguments = parser.parse_args()
    os.umask(0o077)
    raise_on_signals()
    try:
        return _ServerContainer(arguments).run()
    except Stopping:
        return 0
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr, flush=True)
        return EXIT_REFUSED


class _ServerContainer:
    """What one container does from its start to its end."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._state: Path = arguments.state
        self._invite_at = 0.0
        self._running = 0, time.monotonic()
        """How many hospitals run, and since when."""
        self._followed: tuple[Path, RunFolder] | None = None

    def run(self) -> int:
        self._prepare()
        self._publish()
        with _running("server", "--state", str(self._state)) as process:
            while process.poll() is None:
                if not self._is_proposed() and self._is_gathered():
                    self._propose()
                self._outputs().bring_up_to_date()
                self._renew_invitation()
                time.sleep(_POLL_SECONDS)
            return process.returncode

    def _prepare(self) -> None:
        given = self._arguments
        server.main(
            [
                "server",
                "--state", str(self._state),
                "--address", given.address,
                "--config", str(given.config),
                "--hold-authority-key",
                "--metrics-host", _EVERY_ADDRESS,
                "--no-start",
            ]
        )  # fmt: skip

    def _outputs(self) -> RunFolder:
        """Return the folder of the run that the server carries now."""
        settings = ServerSettings.read(self._state / SERVER_SETTINGS_FILE)
        if self._followed is None or self._followed[0] != settings.run:
            self._followed = settings.run, RunFolder(settings)
        return self._followed[1]

    def _is_proposed(self) -> bool:
        label = self._state / _LABEL_FILE
        return label.exists() and label.read_text(encoding="utf-8") == self._arguments.run

    def _propose(self) -> None:
        """Propose a run to all members, in a process of its own: it takes PyTorch for a moment."""
        data_set = dealt_data_set(self._arguments.deal, load_certificate(self._state / AUTHORITY_FILE))
        command = (
            *python_module("deploy", "run", "propose"),
            "--state", str(self._state),
            "--data-set", str(data_set),
        )  # fmt: skip
        if subprocess.run(command, cwd=ROOT, check=False).returncode == 0:
            (self._state / _LABEL_FILE).write_text(self._arguments.run, encoding="utf-8")
        else:
            time.sleep(_STABLE_SECONDS)  # The reason stands above, in this container's log; it may pass.

    def _publish(self) -> None:
        """Leave what other containers read: the authority's certificate, an invitation, Grafana's password."""
        publish(self._arguments.invitation / AUTHORITY_FILE, (self._state / AUTHORITY_FILE).read_bytes())
        self._renew_invitation()
        password = self._arguments.password / PASSWORD_FILE
        if not password.exists():
            publish(password, secrets.token_urlsafe(16).encode())

    def _renew_invitation(self) -> None:
        if time.monotonic() < self._invite_at:
            return
        self._invite_at = time.monotonic() + _INVITATION_MINUTES * 60 / 2
        private = self._state / INVITATION_FILE
        membership.invite(
            [
                "invite", "hospital",
                "--state", str(self._state),
                "--hours", str(_INVITATION_MINUTES / 60),
                "--group", str(MOST_USES),
                "--out", str(private),
            ]
        )  # fmt: skip
        publish(self._arguments.invitation / INVITATION_FILE, private.read_bytes())
        private.unlink()

    def _is_gathered(self) -> bool:
        """Return whether the data is dealt, every hospital that runs has joined, and their number is stable."""
        now = count_addresses(self._arguments.hospitals)
        if now != self._running[0]:
            self._running = now, time.monotonic()
        still = time.monotonic() - self._running[1] >= _STABLE_SECONDS
        least = load_config(self._arguments.config).aggregation.min_hospitals
        joined = len(Membership(self._state).roster())
        authority = load_certificate(self._state / AUTHORITY_FILE)
        return still and joined >= now >= least and dealt_data_set(self._arguments.deal, authority) is not None


@contextmanager
def _running(module: str, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Run one of our modules, with what it says in this container's log, and end it whatever happens."""
    process = subprocess.Popen(python_module(module, *arguments), cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
