"""The ServerApp that Flower's executor starts: the run, on Flower's grid.

It imports no PyTorch: models are made by ``server/initial_model.py``, in a process of its own.
"""

import datetime
import logging
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.audit.chain import AUDIT_FILE, AuditChain
from common.audit.parties import Writer
from common.config import PROTOCOL_VERSION, load_config
from common.errors import ConfideError, IdentityError, RunError
from common.files import alone
from common.identity.certificates import held_by_server, load_certificate, load_server_key
from common.mask_workers import MaskWorkers, cores
from common.processes import (
    die_with_parent,
    python_module,
)
from common.proved_sums.ring import SPECTRA_BYTES, keep_spectra
from common.run.terms import describe
from common.secagg.masks import MaskApplier
from common.settings import CHECKPOINTS_FOLDER, SERVER_SETTINGS_FILE, ServerSettings
from common.telemetry.events import RunFinished
from server.__main__ import STATE_VARIABLE
from server.audit import recording_events, recording_refusals
from server.checkpoints import Checkpoint, CheckpointStore
from server.conversation import Conversation
from server.events import EventLog
from server.flower.grid import GridTransport, let_responses_go
from server.flower.pieces import LocalPieces
from server.members.departures import Departures
from server.members.roster import Members, Membership
from server.members.tls import TLS_CERTIFICATE_FILE, TLS_KEY_FILE
from server.run import Run
from server.run_plan import RunPlan
from server.run_queue import RunQueue

_LOG = logging.getLogger("confide.server")

_PREDECESSOR_SECONDS = 10.0
"""A ServerApp whose executor was killed has this long to end before another takes up its run."""

app = ServerApp()


@app.main()
def main(grid: Grid, _context: Context) -> None:
    """Train one run; a run that cannot continue says so in its last event."""
    die_with_parent()
    let_responses_go()
    keep_spectra(SPECTRA_BYTES)
    state = Path(os.environ[STATE_VARIABLE])
    settings = ServerSettings.read(state / SERVER_SETTINGS_FILE)
    with (
        alone(state / "serverapp.lock", _PREDECESSOR_SECONDS),
        EventLog(settings.run) as events,
        MaskWorkers(cores() - 1) as apply_masks,
    ):
        try:
            store = CheckpointStore(settings.run / CHECKPOINTS_FOLDER)
            plan = _plan(state, settings, len(_begun(store, state, settings.run_id).model), apply_masks)
            waits = plan.config.transport
            transport = GridTransport(grid, waits.poll_seconds, LocalPieces(state))
            chain = AuditChain(settings.run / AUDIT_FILE, _writer(state))
            tell = recording_events(events, chain.append, settings.run_id)
            report = recording_refusals(tell, chain.append, settings.run_id)
            version = plan.description.protocol_version
            departed = Departures(state).all
            conversation = Conversation(transport, waits, report, version=version, departed=departed)
            Run(plan, conversation, store, report, chain.append).train()
        except ConfideError as error:
            _LOG.error("the run ends: %s", error)
            events.append(RunFinished(time=time.time(), reason=str(error), rounds_done=0))


def _writer(state: Path) -> Writer:
    return Writer(load_certificate(state / TLS_CERTIFICATE_FILE), load_server_key(state / TLS_KEY_FILE))


def _begun(store: CheckpointStore, state: Path, run_id: str) -> Checkpoint:
    """Return where the run stands; a run without a model gets its first one made."""
    found = store.latest(run_id)
    if found is not None:
        return found
    making = subprocess.run(
        python_module("server.initial_model", "--state", str(state)), stderr=subprocess.PIPE, check=False
    )
    made = store.latest(run_id)
    if making.returncode or made is None:
        words = making.stderr.decode(errors="replace").strip().splitlines()
        _LOG.error("making the first model: %s", "\n".join(words))
        raise RunError(words[-1].removeprefix("confide: ") if words else "the first model could not be made")
    return made


def _plan(state: Path, settings: ServerSettings, parameters: int, apply_masks: MaskApplier) -> RunPlan:
    config = load_config(settings.run_config or settings.config)
    queue = RunQueue(state)
    authority = load_certificate(state / "ca.pem")
    membership = Membership(state)
    proposal = queue.proposal(settings.run_id)
    version = PROTOCOL_VERSION if proposal is None else proposal.description.protocol_version

    def all_members() -> Members:
        return membership.all_members(authority, datetime.datetime.now(datetime.UTC), version)

    def plan_for(members: Members) -> RunPlan:
        description = describe(
            config,
            settings.run_id,
            settings.classes,
            settings.channels,
            members.roster,
            parameters,
            members.member_list,
            version,
        )
        queue.hold_terms(settings.run_id, description)
        return RunPlan(
            config,
            description,
            settings.data_set,
            members.keys,
            apply_masks,
            absent=absent(members),
            consortium=len(members.keys),
            authority_on_server=held_by_server(authority),
            newest=newest,
            must_stop=lambda: queue.must_stop(settings.run_id),
        )

    def absent(members: Members) -> frozenset[str]:
        agreed = queue.agreed(settings.run_id)
        return members.absent if agreed is None else members.absent | (members.roster.keys() - agreed)

    def newest(plan: RunPlan) -> RunPlan:
        try:
            members = all_members()
        except IdentityError as error:
            _LOG.warning("the run continues with the members it has: %s", error)
            return plan
        if len(members.roster) - len(absent(members)) < config.aggregation.min_hospitals:
            return plan  # With too few members left the run waits for others under the description it has.
        same = (members.roster, members.member_list) == (plan.description.roster, plan.description.member_list)
        return replace(plan, absent=absent(members)) if same else plan_for(members)

    return plan_for(all_members())
