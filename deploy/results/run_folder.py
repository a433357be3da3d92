"""Writes what a run leaves in its folder: the same files from the demo, containers, ``confide server`` and a cluster.

::

    events.jsonl, audit.jsonl, checkpoints/       the server's own, while it runs
    data-notes.json                               a demo's: what was left out of the data before it was dealt
    metrics.csv, summary.json                     from the run's first event on
    model.safetensors, model.json, plots/         once it has ended
    report.html, report.md, model_card.md         once it has ended
    ca.pem                                        the authority's certificate, to verify the run with
    delivery.json                                 the server's signature over what hospitals get, written last

``python -m deploy.results.run_folder RUN --state DIR`` writes them for a run that has ended. That is a process of its
own, because PyTorch and matplotlib take 500 MB that a server which goes on does not need.
"""

import argparse
import datetime
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from pydantic import ValidationError

from common.audit.chain import AUDIT_FILE, Chain, read_chain
from common.audit.entries import Began, Finished, Stepped, Summed
from common.audit.parties import Writer
from common.config import RunDescription
from common.errors import AuditError, ConfideError, RunError
from common.files import replace_file
from common.identity.certificates import load_certificate, load_server_key
from common.processes import EXIT_REFUSED, PRIVATE_UMASK, die_with_parent, python_module, python_path
from common.run.delivery import (
    AUTHORITY_FILE,
    DELIVERY_FILE,
    NEEDED_FILES,
    Delivery,
    chain_head,
    file_fact,
    sign,
)
from common.settings import CHECKPOINTS_FOLDER
from common.telemetry.events import EVENTS_FILE, Event, EventFile, RunFinished
from deploy.source_tree import ROOT
from server.checkpoints import CheckpointStore
from server.members.tls import TLS_CERTIFICATE_FILE, TLS_KEY_FILE

DATA_NOTES_FILE = "data-notes.json"


class RunFolder:
    """The folder of one run of a server.

    Args:
        folder: the run's.
        state: the server's state folder, with its certificate, its key and the authority's certificate.

    Raises:
        RunError: (any method) the folder cannot be written.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        # Imported here: it brings scipy, which takes 60 MB and, on a busy machine, seconds of a server's start.
        from deploy.results.outputs import RunOutputs

        self.folder = folder
        self._state = state
        self._events = EventFile(folder / EVENTS_FILE)
        self._outputs = RunOutputs(folder)
        self.has_ended = False

    def bring_up_to_date(self) -> tuple[Event, ...]:
        """Write metrics and summary by the events since the last call, and return these events."""
        new = tuple(self._events.read_new())
        for event in new:
            self._outputs.add(event)
            self.has_ended = isinstance(event, RunFinished)
        return new

    def finish(self) -> tuple[Path, ...]:
        """Write everything else, from what has been read so far; returns the files that a person opens.

        Of a run that has not ended, model and report are of its last step, and no hospital gets them.

        Raises:
            ConfideError: a file of the run is damaged, or the disk is full.
        """
        try:
            history = self._outputs.history()
        except RunError:  # It ended before it began, for instance because it was badly configured.
            return ()
        checkpoint = CheckpointStore(self.folder / CHECKPOINTS_FOLDER).latest(history.started.run_id)
        if checkpoint is None or not checkpoint.step:
            return self._outputs.finish(None, None)
        from deploy.results.outputs import model_facts

        chain = self._chain()
        description = _descriptions(chain)[-1]
        progress = checkpoint.progress
        facts = model_facts(
            history,
            description.classes,
            description.channels,
            progress.threshold,
            progress.thresholds,
            progress.temperature,
            progress.prevalence,
            last_epsilon=_last_epsilon(chain),
        )
        files = self._outputs.finish(checkpoint.model[:], facts)
        if history.rounds:
            # Imported here: jinja2 and Markdown take a while that the start of a demo need not wait for.
            from deploy.results.report import write_report
            from deploy.results.report_facts import RunFacts

            plotted = {path.name: path.read_bytes() for path in files if path.parent != self.folder}
            files = (*files, *write_report([RunFacts.read(self.folder)], self.folder, plotted))
        replace_file(self.folder / AUTHORITY_FILE, (self._state / AUTHORITY_FILE).read_bytes())
        if self.has_ended:
            self._sign(chain)
        return files

    def _chain(self) -> Chain:
        """Return the server's audit chain, verified.

        Raises:
            AuditError: it cannot be read, or records no run.
        """
        try:
            chain = read_chain((self.folder / AUDIT_FILE).read_bytes(), AUDIT_FILE, self._authority())
        except OSError as error:
            raise AuditError(f"{AUDIT_FILE} must be readable: {error.strerror}") from None
        if not _descriptions(chain):
            raise AuditError(f"{AUDIT_FILE} must record the run in {EVENTS_FILE}")
        return chain

    def _authority(self) -> x509.Certificate:
        return load_certificate(self._state / AUTHORITY_FILE)

    def _sign(self, chain: Chain) -> None:
        """Sign what the run leaves for its hospitals, once the chain has its end."""
        ended = [entry.body for entry in chain.entries if isinstance(entry.body, Finished)]
        if not ended or not all((self.folder / name).exists() for name in NEEDED_FILES):
            return
        descriptions = _descriptions(chain)
        delivery = sign(
            descriptions[-1].run_id,
            ended[-1].model_hash,
            chain_head((self.folder / AUDIT_FILE).read_bytes()),
            {name: file_fact(self.folder / name) for name in NEEDED_FILES},
            tuple(sorted({name for description in descriptions for name in description.roster})),
            Writer(load_certificate(self._state / TLS_CERTIFICATE_FILE), load_server_key(self._state / TLS_KEY_FILE)),
            datetime.datetime.now(datetime.UTC),
        )
        replace_file(self.folder / DELIVERY_FILE, delivery.encode())


class ResultsKeeper:
    """Keeps the results of every run of a server: their metrics as they grow, everything else once a run has ended.

    Args:
        state: the server's state folder, whose folder ``runs`` has one for each run.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._going: dict[Path, RunFolder] = {}
        self._settled: dict[Path, int] = {}

    def keep(self) -> tuple[Path, ...]:
        """Bring every run's folder up to date; returns those whose results have been completed since the last call.

        A run whose results cannot be written says so on standard error, and does not end the server. It is tried again
        when the run goes on, or at the next start.
        """
        completed = []
        for events in sorted((self._state / "runs").glob(f"*/{EVENTS_FILE}")):
            folder, size = events.parent, events.stat().st_size
            if self._settled.get(folder) == size:
                continue
            try:
                is_done = self._advance(folder)
            except ConfideError as error:
                print(f"confide: the results of run {folder.name}: {error}", file=sys.stderr, flush=True)
                is_done = True
            if is_done:
                self._going.pop(folder, None)
                self._settled[folder] = size
                completed.append(folder)
        return tuple(folder for folder in completed if (folder / DELIVERY_FILE).exists())

    def _advance(self, folder: Path) -> bool:
        """Take in what is new; returns whether the run has ended and everything is written."""
        run = self._going.get(folder)
        if run is None:
            if is_complete(folder):
                return True
            run = self._going[folder] = RunFolder(folder, self._state)
        run.bring_up_to_date()
        if not run.has_ended:
            return False
        command = python_module("deploy.results.run_folder", str(folder), "--state", str(self._state))
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": python_path(ROOT)}, check=False)
        if done.returncode:
            raise RunError("they could not be written, see above; start the server again once that is corrected")
        return True


def is_complete(folder: Path) -> bool:
    """Return whether a run's folder has all results of the run as it is now."""
    with suppress(OSError, ValidationError):
        delivery = Delivery.model_validate_json((folder / DELIVERY_FILE).read_bytes())
        return all(file_fact(folder / name) == fact for name, fact in delivery.files.items())
    return False


def _descriptions(chain: Chain) -> list[RunDescription]:
    """Return what the hospitals agreed to, in order: a run goes on under another roster when its members change."""
    began = (entry.body for entry in chain.entries if isinstance(entry.body, Began))
    return [RunDescription.from_json(body.description.encode()) for body in began]


def _last_epsilon(chain: Chain) -> dict[str, float]:
    """Return what each hospital of the last step had spent by then."""
    sums: dict[int, Summed] = {}
    last: dict[str, float] = {}
    for entry in chain.entries:
        match entry.body:
            case Summed() as summed:
                sums[summed.round_number] = summed
            case Stepped(round_number=number) if number in sums:
                last = sums[number].epsilon
            case _:
                pass
    return last


def main() -> int:
    """Write the results of a run that has ended."""
    parser = argparse.ArgumentParser(prog="python -m deploy.results.run_folder", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--state", type=Path, required=True)
    arguments = parser.parse_args()
    os.umask(PRIVATE_UMASK)
    die_with_parent()
    try:
        run = RunFolder(arguments.run, arguments.state)
        run.bring_up_to_date()
        for file in run.finish():
            print(file)
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr, flush=True)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
