"""``python -m deploy.containers.server_container``: the server of the demo's consortium in its container.

It does by itself what people do in a real consortium: makes the authority and keeps its key here, which every output
says; leaves an invitation in a volume that the hospitals read, valid for minutes and renewed while the demo is up; and
proposes a run once the number of hospitals is stable, which begins when all have agreed by their policies. An
interrupted run continues; another is proposed only when CONFIDE_RUN has a new value.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common.config import load_config
from common.errors import ConfideError
from common.identity.certificates import load_certificate
from common.models.first_model import FIRST_MODEL_FILE
from common.processes import EXIT_REFUSED, Stopping, python_module, raise_on_signals
from common.settings import CHECKPOINTS_FOLDER
from deploy.consortium import members as membership
from deploy.consortium import server
from deploy.consortium.serving import serve
from deploy.containers.between import count_addresses, dealt_data_set, publish
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


def main() -> int:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m deploy.containers.server_container", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path("/state"))
    parser.add_argument("--config", type=Path, default=Path("/etc/confide/config.yaml"))
    parser.add_argument("--address", default="server", help="what hospitals call this server (default: %(default)s)")
    parser.add_argument("--invitation", type=Path, default=Path("/invitation"), help="folder that hospitals read")
    parser.add_argument("--password", type=Path, default=Path("/grafana"), help="folder that Grafana reads")
    parser.add_argument("--deal", type=Path, default=Path("/deal"), help="folder that the dealer writes")
    parser.add_argument("--runs", type=Path, default=Path("/runs"), help="folder that gets each run's files")
    parser.add_argument(
        "--first-model", type=Path, default=Path("/first-model") / FIRST_MODEL_FILE, help="made by another container"
    )
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

    def run(self) -> int:
        load_config(self._arguments.config)  # or it ends here, with the reason in one line
        self._prepare()
        self._publish()
        return serve(self._state, at_each_poll=self._look_after, publish=self._hand_out)

    def _look_after(self) -> None:
        self._renew_invitation()
        if not self._is_proposed() and self._is_gathered():
            self._propose()

    def _hand_out(self, run: Path) -> None:
        """Copy a finished run's files, without its checkpoints, to where whoever started the containers reads them."""
        try:
            hand_out(run, self._arguments.runs / run.name)
        except OSError as error:
            print(f"confide: {self._arguments.runs} must be writable: {error.strerror}", file=sys.stderr, flush=True)

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

    def _is_proposed(self) -> bool:
        label = self._state / _LABEL_FILE
        return label.exists() and label.read_text(encoding="utf-8") == self._arguments.run

    def _propose(self) -> None:
        """Propose a run to all members, with the first model that another container has made: here is no PyTorch."""
        data_set = dealt_data_set(self._arguments.deal, load_certificate(self._state / AUTHORITY_FILE))
        command = (
            *python_module("deploy", "run", "propose"),
            "--state", str(self._state),
            "--data-set", str(data_set),
            "--first-model", str(self._arguments.first_model),
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
        """Return whether data is dealt, the first model made, all running hospitals have joined, and none is new."""
        now = count_addresses(self._arguments.hospitals)
        if now != self._running[0]:
            self._running = now, time.monotonic()
        still = time.monotonic() - self._running[1] >= _STABLE_SECONDS
        least = load_config(self._arguments.config).aggregation.min_hospitals
        joined = len(Membership(self._state).roster())
        authority = load_certificate(self._state / AUTHORITY_FILE)
        ready = self._arguments.first_model.exists() and dealt_data_set(self._arguments.deal, authority) is not None
        return still and joined >= now >= least and ready


def hand_out(run: Path, target: Path) -> None:
    """Copy a run's files so that everybody on this machine can read them.

    Raises:
        OSError: the target cannot be written.
    """
    for source in sorted(path for path in run.rglob("*") if path.is_file()):
        inside = source.relative_to(run)
        if inside.parts[0] == CHECKPOINTS_FOLDER or inside.name.startswith("."):
            continue
        copy = target / inside
        for folder in reversed(copy.parents[: len(inside.parts)]):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        shutil.copyfile(source, copy)
        copy.chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
