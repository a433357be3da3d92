"""``confide demo``: the whole system on this machine, as the processes that run in production, on loopback."""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console

from common.config import Config, load_config, replace
from common.errors import ConfideError, ConfigError, RunError
from common.files import replace_file
from common.models.first_model import FIRST_MODEL_FILE
from common.privacy.mechanism import mechanism_of
from common.processes import Stopping, raise_on_signals
from common.settings import (
    CACHE_FOLDER,
    HOSPITAL_SETTINGS_FILE,
    PORT_PATIENCE_SECONDS,
    SERVER_SETTINGS_FILE,
    HospitalSettings,
)
from common.telemetry.events import COMPLETED, EVENTS_FILE, EventFile, RunFinished
from deploy.command import FILE, command, config_options, out_option
from deploy.datasets.datasets import DataSet, obtain
from deploy.datasets.image_tree import is_split_tree
from deploy.datasets.own_data import TASK_FILE, TaskProposal, propose
from deploy.datasets.tasks import task_of_config, with_task
from deploy.demo.agreement import propose_and_approve
from deploy.demo.dealer import deal
from deploy.demo.dealing import state_dealt
from deploy.demo.features import bytes_needed, features_for, give
from deploy.demo.handing_home import bring_home
from deploy.demo.loopback import CONSORTIUM_FOLDER, SERVER, LoopbackDeployment
from deploy.demo.monitoring import write_configuration
from deploy.demo.recipe import with_recipe
from deploy.named import check_names, names_in_words
from deploy.results.live_table import LiveTable
from deploy.results.run_folder import DATA_NOTES_FILE, RunFolder
from deploy.source_tree import ROOT
from server.initial_model import make_first_model
from server.only_one import only_server
from server.run import new_run_id

EXIT_INTERRUPTED = 130

_FREE_BYTES_NEEDED = 64 * 2**20
"""The disk that logs, checkpoints, plots and shards of small images take."""

_BYTES_PER_RECORD = 4096
"""The disk that a small PNG and its block take."""

_POLL_SECONDS = 0.1


@command(
    "demo",
    "Run the whole system on this machine, as the processes that run in production: a server and hospitals that train "
    "together on loopback. No container is needed.",
    "./confide demo --hospitals 4 --rounds 5",
    names_in_words(),
)
@click.option("--hospitals", type=int, show_default="experiment.num_clients", metavar="N", help="How many take part.")
@click.option("--rounds", type=int, show_default="experiment.rounds", metavar="R", help="How often they train.")
@click.option(
    "--task", show_default="experiment.task", metavar="NAME", help="pneumonia, retina or another MedMNIST 2D task."
)
@click.option(
    "--data",
    show_default="data.source",
    metavar="SOURCE",
    help="auto, phantom, or the path of an npz file, a folder or a tar.",
)
@click.option(
    "--resume", type=FILE, metavar="DIR", help="Go on with a demo that was stopped, in its folder, as it was."
)
@click.option("--keep", is_flag=True, help="Leave the hospitals' keys and images in the folder of a finished demo.")
@out_option(shown="runs and the run's identifier", help="A new or empty folder.")
@config_options()
def main(
    *,
    hospitals: int | None,
    rounds: int | None,
    task: str | None,
    data: str | None,
    resume: Path | None,
    keep: bool,
    out: Path | None,
    config_file: Path,
    overrides: tuple[str, ...],
) -> int:
    """Run the demo; returns 0 when every round was trained."""
    if resume is not None:
        others = {"--hospitals": hospitals, "--rounds": rounds, "--task": task, "--data": data, "--out": out}
        given_too = [name for name, value in (*others.items(), ("--set", overrides or None)) if value is not None]
        if given_too:
            raise ConfigError(f"--resume goes on under the demo's own terms; leave out {', '.join(given_too)}")
        return _run(_stopped_demo(resume), keep=keep, resumes=True)
    short = {
        "experiment.num_clients": hospitals,
        "experiment.rounds": rounds,
        "experiment.task": task,
        "data.source": data,
    }
    given = [f"{key}={value}" for key, value in short.items() if value is not None]
    config = load_config(config_file, (*given, *overrides))
    check_names(config)
    proposal = _proposal(config) if task is None else None
    kind = config.task.kind if proposal is None else proposal.terms.kind
    own = proposal is not None or not config.task.is_preset
    config = with_recipe(config, (*given, *overrides), own=own, kind=kind)
    config = with_task(config) if proposal is None else _as_proposed(config, proposal)
    run_id = new_run_id()
    folder = _prepare_folder(out or ROOT / "runs" / run_id[:12])
    if proposal is not None:
        console = Console()
        replace_file(folder / TASK_FILE, proposal.as_yaml().encode())
        console.print(f"{folder / TASK_FILE} holds the task that the data suggest:\n", highlight=False, markup=False)
        console.print(proposal.as_yaml(), highlight=False, markup=False)
    return _run(LoopbackDeployment(config, folder, run_id), keep=keep)


def _run(deployment: LoopbackDeployment, *, keep: bool, resumes: bool = False) -> int:
    raise_on_signals()
    console, folder = Console(), deployment.folder
    try:
        with LiveTable(console, folder) as table:
            code = _Demo(deployment, table, keep=keep).run(resumes=resumes)
    except Stopping:
        console.print(f"stopped; what was finished lies in {folder}", highlight=False)
        code = EXIT_INTERRUPTED
    if not code and not keep:
        console.print("The hospitals' keys and images were removed; with --keep they stay.", highlight=False)
    if code and (folder / EVENTS_FILE).exists():
        console.print(
            f"./confide demo --resume {folder} goes on with it; until then keys and images stay there",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return code


def _stopped_demo(folder: Path) -> LoopbackDeployment:
    """Return the deployment of a demo that was stopped or has failed.

    Raises:
        ConfigError: the folder holds no demo, one that runs, or one that has all its rounds.
    """
    folder = folder.resolve()
    if not (folder / CONSORTIUM_FOLDER / SERVER / SERVER_SETTINGS_FILE).exists():
        raise ConfigError(f"--resume must be the folder of a demo that was stopped, got {folder}")
    events = [event for event in EventFile(folder / EVENTS_FILE).read_new() if isinstance(event, RunFinished)]
    if events and events[-1].reason == COMPLETED:
        raise ConfigError(f"--resume must be the folder of a demo that was stopped; all rounds are done in {folder}")
    deployment = LoopbackDeployment.found_in(folder)
    with only_server(deployment.consortium.server_state, PORT_PATIENCE_SECONDS):
        return deployment


def _proposal(config: Config) -> TaskProposal | None:
    """Return the task that a person's own images suggest; None where the configuration says it or they fit it."""
    path = Path(config.data.source).expanduser()
    named = config.data.source in ("auto", "phantom") or path.suffix == ".npz"
    if not config.task.is_preset or named or not path.exists():
        return None
    return None if is_split_tree(path, task_of_config(config).classes) else propose(path)


def _as_proposed(config: Config, proposal: TaskProposal) -> Config:
    return replace(config, experiment={"task": proposal.name}, task=proposal.terms.model_dump())


def _prepare_folder(folder: Path) -> Path:
    """Make the output folder, or say in one line why it cannot be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"--out must be a new or empty folder, {folder} is not empty; nothing was changed")
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"--out must be a folder that can be written, got {folder}: {error.strerror}") from None
    if free < _FREE_BYTES_NEEDED:
        raise ConfigError(
            f"--out needs {_FREE_BYTES_NEEDED // 2**20} MiB of disk, {free // 2**20} MiB are free in {folder}; "
            "free space or choose another folder"
        )
    return folder.resolve()


class _Demo:
    """One run of the demo: set up, start, show, finish, and stop whatever happens."""

    def __init__(self, deployment: LoopbackDeployment, table: LiveTable, *, keep: bool = False) -> None:
        self._config = deployment.config
        self._folder = deployment.folder
        self._table = table
        self._deployment = deployment
        self._keep = keep
        self._warned: set[str] = set()

    def run(self, *, resumes: bool = False) -> int:
        outputs = RunFolder(self._folder, self._deployment.consortium.server_state)
        why = "stopped"
        try:
            if resumes:
                self._take_up(outputs)
            else:
                self._begin()
            self._table.starting("waiting for the server")
            self._deployment.await_server()
            self._table.starting(f"starting {len(self._deployment.members)} hospitals")
            self._deployment.start_hospitals()
            why = self._follow(outputs).reason
        except ConfideError as error:
            why = str(error)
            raise
        else:
            return 0 if why == COMPLETED else 1
        finally:
            self._table.starting("stopping every process")
            self._deployment.supervisor.stop()
            self._finish(outputs, why)

    def _begin(self) -> None:
        """Get the data, make the consortium, deal, and start the server."""
        data = self._obtain()
        self._say_where_metrics_are(self._deployment.set_up(data))
        self._deal(data)
        features = features_for(data, self._config, self._table.starting)
        parameters = self._make_first_model(data)
        self._table.starting("proposing the run, and answering for each hospital by its policy")
        propose_and_approve(self._deployment, parameters)
        self._table.starting("starting the server")
        self._deployment.start_server()
        for member in self._deployment.members:
            give(features, member.state / CACHE_FOLDER)

    def _make_first_model(self, data: DataSet) -> int:
        """Make here, where PyTorch is in memory already, what the server would start a process for.

        Returns:
            How many parameters the model has.
        """
        config = self._config
        made = make_first_model(config.model, len(data.classes), data.channels, config.experiment.seed)
        made.write(self._folder / FIRST_MODEL_FILE)
        return len(made.flat)

    def _take_up(self, outputs: RunFolder) -> None:
        """Show what was done before the demo was stopped, and start the server on it."""
        for event in outputs.bring_up_to_date():
            self._table.show(event)
        self._say_where_metrics_are(self._deployment.take_up())
        self._table.starting("starting the server")
        self._deployment.start_server()

    def _say_where_metrics_are(self, ports: Mapping[str, tuple[int, ...]]) -> None:
        self._table.starting(f"metrics: prometheus --config.file={write_configuration(self._folder, ports)}")

    def _obtain(self) -> DataSet:
        self._table.starting("getting the data")
        config = self._config
        data = obtain(config.data, config.experiment.task, config.model.image_size, terms=config.task)
        if data.banner:
            self._table.remember(data.banner)
        left_out = tuple(note for note in data.notes if note != data.banner)
        for note in left_out:
            self._table.remember(f"{data.name}: {note}")
        replace_file(self._folder / DATA_NOTES_FILE, (json.dumps(left_out, indent=2) + "\n").encode())
        return data

    def _deal(self, data: DataSet) -> None:
        config, members = self._config, self._deployment.members
        self._table.starting(f"dealing {data.name} to {len(members)} hospitals")
        needed = sum(map(len, data.parts.values())) * max(_BYTES_PER_RECORD, data.channels * data.image_size**2)
        needed += bytes_needed(data, config)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise ConfigError(
                f"--out needs {needed // 2**20} MiB of disk for the shards, {free // 2**20} MiB are free; "
                "free space or choose another folder"
            )
        shards, fewest = [member.data for member in members], mechanism_of(config).fewest_records(config.training)
        deal(data, shards, config.data, config.experiment.seed, fewest)
        self._state()

    def _state(self) -> None:
        """Be the operator of each hospital: state in its own configuration how much data it has, coarsely."""
        for member in self._deployment.members:
            state_dealt(HospitalSettings.read(member.state / HOSPITAL_SETTINGS_FILE).config, member.data, self._config)

    def _follow(self, outputs: RunFolder) -> RunFinished:
        while True:
            # Looked at before the events, so that none of the last is missed.
            ended = self._deployment.supervisor.ended()
            for event in outputs.bring_up_to_date():
                self._table.show(event)
                if isinstance(event, RunFinished):
                    return event
            self._deployment.check_server(ended)
            self._warn_about(ended)
            time.sleep(_POLL_SECONDS)

    def _warn_about(self, ended: Sequence[str]) -> None:
        """Say once why a hospital has ended by itself; the run continues with the others."""
        for name in ended:
            if name not in self._warned:
                self._warned.add(name)
                self._table.starting(f"{name} has ended: {self._deployment.last_words(name)}")
        if len(self._warned) > len(self._deployment.members) - self._config.aggregation.min_hospitals:
            raise RunError(f"too few hospitals are left: {self._deployment.last_words(ended[0])}")

    def _finish(self, outputs: RunFolder, why: str) -> None:
        """Write what there is, also of a run that was stopped, and say why it ended."""
        try:
            files = outputs.finish()
            kept = bring_home(self._deployment) if why == COMPLETED else 0
        except ConfideError as error:
            print(f"confide: {error}", file=sys.stderr)
            return
        if kept:
            self._table.remember(f"{kept} hospitals have verified the model by their own chains, and keep it")
        self._table.finish(files, state=why)
        if why == COMPLETED and not self._keep:
            self._deployment.remove_keys_and_images()
