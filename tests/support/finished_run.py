"""A finished run in a server's state folder, as its server leaves it, and a hospital that took part in it."""

import datetime
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cryptography import x509

from common.audit.chain import AUDIT_FILE, read_chain
from common.audit.entries import Began, Finished, Identified, Stepped
from common.audit.parties import Writer
from common.config import Config
from common.files import write_private
from common.identity.certificates import HospitalIdentity, certificate_pem, private_key_pem
from common.models.first_model import FIRST_MODEL_FILE
from common.run.flat_model import hash_model
from common.settings import CHECKPOINTS_FOLDER
from common.telemetry.events import STOPPED, RunFinished
from deploy.models.initial import first_model_of
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, load_model
from deploy.results.outputs import METRICS_FILE, SUMMARY_FILE
from deploy.results.run_folder import RunFolder
from server.audit import recording_events
from server.checkpoints import Checkpoint, CheckpointStore
from server.events import EventLog
from server.progress import RunProgress
from tests.support.audited_run import NAMES, RUN_ID, AuditedRun, audited_run, server_writer


@dataclass(frozen=True)
class FinishedRun:
    """The run, its server's state folder and the key that signs there."""

    run: AuditedRun
    state: Path
    writer: Writer

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def authority(self) -> x509.Certificate:
        return self.run.authority.certificate

    def write_results(self) -> None:
        """Write what the server writes at a run's end."""
        folder = RunFolder(self.folder, self.state)
        folder.bring_up_to_date()
        folder.finish()

    def copy(self, state: Path) -> "FinishedRun":
        """Return the same run in another state folder; what it appends to its chains would go to the first one."""
        shutil.copytree(self.state, state)
        return FinishedRun(replace(self.run, folder=state / self.folder.relative_to(self.state)), state, self.writer)

    def hospital(self, state: Path, name: str = NAMES[0]) -> HospitalIdentity:
        """Make the state folder of a hospital that took part, with its chain; returns who it is."""
        content = self.run.chain_file(name).read_bytes()
        write_private(state / AUDIT_FILE, content)
        write_private(state / "ca.pem", certificate_pem(self.authority))
        first = read_chain(content, AUDIT_FILE, self.authority).entries[0].body
        assert isinstance(first, Identified)
        certificate = x509.load_pem_x509_certificate(first.certificate.encode())
        return HospitalIdentity(name, certificate, self.run.sign[name])


def finished_run(state: Path, config: Config | None = None) -> FinishedRun:
    """Write the run, with the first model that came with its proposal; its results are not written yet."""
    run = audited_run(state / "runs" / RUN_ID[:12], config)
    described = run.description
    proposed = Config(model=described.model, experiment=described.experiment)
    first_model_of(proposed, len(described.classes), described.channels).write(run.folder / FIRST_MODEL_FILE)
    model, _ = load_model(run.folder)
    for name in (TENSORS_FILE, CARD_FILE, METRICS_FILE, SUMMARY_FILE):
        (run.folder / name).unlink()
    CheckpointStore(run.folder / CHECKPOINTS_FOLDER).save(
        Checkpoint(RUN_ID, 2, 4, np.asarray(model), {}, 2, RunProgress(threshold=0.5))
    )
    writer = server_writer(run.authority, datetime.datetime.now(datetime.UTC))
    write_private(state / "ca.pem", certificate_pem(run.authority.certificate))
    write_private(state / "tls.pem", certificate_pem(writer.certificate))
    write_private(state / "tls.key", private_key_pem(writer.key))
    return FinishedRun(run, state, writer)


def goes_on_for_one_step(run: FinishedRun, epsilon: float) -> None:
    """Let a run go on, and be stopped after a step that costs this; nobody measures that step's model.

    Args:
        run: without results.
        epsilon: what each hospital has spent by then.
    """
    server, folder, description = run.run.server, run.folder, run.run.description
    store = CheckpointStore(folder / CHECKPOINTS_FOLDER)
    before = store.latest(RUN_ID)
    assert before is not None
    described, given = description.canonical_json().decode(), hash_model(before.model)
    server.append(Began(run_id=RUN_ID, description=described, data_set="a test", step=2, model_hash=given.hex()))
    run.run.sum_up(4, given, train=True, epsilon=epsilon)
    model = before.model[:] + np.float32(0.01)
    made = hash_model(model).hex()
    server.append(Stepped(run_id=RUN_ID, round_number=4, step=3, model_hash=made))
    store.save(replace(before, step=3, round_number=5, model=model))
    with EventLog(folder) as log:
        server.append(Finished(run_id=RUN_ID, reason=STOPPED, steps=3, model_hash=made, threshold=0.5))
        recording_events(log, server.append, RUN_ID)(RunFinished(time=5.0, reason=STOPPED, rounds_done=3))
