"""``confide experiment accuracy``: how good the models are on the official test splits, beside what is published.

Hospitals train as they are deployed, with masks; the noise of the private runs is complete in their secure sum alone.
The table reports the model of the last round, and nothing was chosen by the test part: settings were chosen on the
validation parts, which are public here. On private records such a choice would cost privacy; so would statistics of the
features, of which none are used.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.config import Config, load_config, replace
from common.errors import ConfigError
from common.files import replace_file
from common.provenance import ROOT
from deploy.command import FILE, command, config_options, out_option
from deploy.datasets.datasets import DATA_VARIABLE, default_cache
from deploy.experiment.figures import draw_auc_by_epsilon
from deploy.experiment.methods import Method
from deploy.experiment.places import obtained
from deploy.experiment.runner import RESULTS_FILE, TABLE_FILE
from deploy.experiment.study import Study, Training, run_study
from deploy.experiment.tables import accuracy_table

TABLE = "accuracy.md"
PLOT = "auc-by-epsilon.png"

OWN_FILE = "pneumoniamnist_224.npz"
"""What MedMNIST published of PneumoniaMNIST at 224 pixels."""


@dataclass(frozen=True)
class Aim:
    """What a training is held against, and the sections of its configuration.

    Attributes:
        method: how it is trained.
        epsilon: its target, None without privacy.
        auc: at least, None where the result is published whatever it is.
        accuracy: likewise.
        sections: what this training needs instead of the family's settings.
    """

    method: Method
    epsilon: float | None = None
    auc: float | None = None
    accuracy: float | None = None
    sections: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class Family:
    """One data set with one model.

    Attributes:
        settings: as for ``--set``.
        aims: the trainings.
        needs_xrays: whether the data are the X-rays that ``--xrays`` names.
    """

    settings: tuple[str, ...]
    aims: tuple[Aim, ...]
    needs_xrays: bool = False

    def aim(self, method: Method, epsilon: float | None = None) -> Aim:
        """Return what a method is held against, with its sections."""
        return next(aim for aim in self.aims if (aim.method, aim.epsilon) == (method, epsilon))


def steps(rounds: int, length: float) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return the sections of full-batch steps of mode ``distributed`` that go ``length`` altogether.

    Args:
        rounds: T, one step each.
        length: learning rate times T times the clipping norm, which is 1.
    """
    training = {"sample_rate": 1.0, "learning_rate": length / rounds, "momentum": 0.0}
    return (("experiment", {"rounds": rounds}), ("training", training), ("privacy", {"max_grad_norm": 1.0}))


_PNEUMONIA_28 = (
    Aim(Method.FEDAVG, auc=0.985, accuracy=0.940),
    Aim(Method.DISTRIBUTED_DP, 8.0, auc=0.984, accuracy=0.930, sections=steps(30, 400.0)),
    Aim(Method.DISTRIBUTED_DP, 3.0, auc=0.980, accuracy=0.925, sections=steps(30, 200.0)),
    Aim(Method.DISTRIBUTED_DP, 1.0, auc=0.970, accuracy=0.905, sections=steps(30, 160.0)),
)
"""Published without privacy at 28 pixels: DINO ViT-B/16 .973 and .866, ResNet-18 .944 and .854."""

_PNEUMONIA_224 = (
    Aim(Method.CENTRAL),
    Aim(Method.FEDAVG),
    Aim(Method.DISTRIBUTED_DP, 8.0, auc=0.965, accuracy=0.890, sections=steps(30, 400.0)),
    Aim(Method.DISTRIBUTED_DP, 3.0, auc=0.965, accuracy=0.880, sections=steps(30, 400.0)),
    Aim(Method.DISTRIBUTED_DP, 1.0, auc=0.955, accuracy=0.860, sections=steps(30, 160.0)),
)

_RETINA = (
    Aim(Method.CENTRAL),
    Aim(Method.FEDAVG, auc=0.750, accuracy=0.531),
    Aim(Method.DISTRIBUTED_DP, 8.0, auc=0.745, accuracy=0.535, sections=steps(40, 160.0)),
    Aim(Method.DISTRIBUTED_DP, 3.0, auc=0.735, sections=steps(40, 60.0)),
    Aim(Method.DISTRIBUTED_DP, 1.0, sections=steps(40, 60.0)),
)
"""Published without privacy: AutoML .750 and .531 (Yang et al. 2023). A thousand images are few for any ε."""

FAMILIES = {
    "pneumonia-28": Family(
        (
            "experiment.task=pneumonia", "model.name=scattering_efficientnet_linear", "model.image_size=28",
            "experiment.rounds=20", "training.batch_size=64", "training.learning_rate=0.1", "training.momentum=0.9",
            "training.copies=3", "training.warp=chest", "privacy.mean_share=0.04",
        ),
        _PNEUMONIA_28,
    ),
    "pneumonia-224": Family(
        (
            # At 224 pixels the network has no better features of these images, and takes four times as long.
            "experiment.task=pneumonia", "model.name=efficientnet_linear", "model.image_size=112",
            "experiment.rounds=20", "training.batch_size=64", "training.learning_rate=0.1", "training.momentum=0.9",
            "training.copies=3", "training.warp=xray", "privacy.mean_share=0.04",
        ),
        _PNEUMONIA_224,
        needs_xrays=True,
    ),
    "retina-28": Family(
        (
            "experiment.task=retina", "model.name=efficientnet_linear", "model.image_size=28",
            "experiment.rounds=40", "training.local_epochs=2", "training.batch_size=64", "training.learning_rate=0.02",
            "training.momentum=0.9", "training.copies=2", "training.warp=mirror", "privacy.mean_share=0.06",
        ),
        _RETINA,
    ),
}  # fmt: skip


@command(
    "accuracy",
    "Measure how good the models are on official test splits, beside what is published. Hospitals train as they are "
    "deployed. Nothing is chosen by the test part.\n\n"
    f"FAMILY is one or more of {', '.join(FAMILIES)}; without one, all whose data can be had are run.",
    "./confide experiment accuracy --seeds 5 --xrays /data/x-rays",
)
@click.argument("families", nargs=-1, type=click.Choice(tuple(FAMILIES)), metavar="[FAMILY]...")
@click.option("--seeds", type=int, default=5, metavar="N", help="Of the split, the sampling and the first model.")
@click.option(
    "--xrays",
    type=FILE,
    metavar="PATH",
    help=f"{OWN_FILE} of MedMNIST, or X-rays of Kermany et al. in folders; by default the former where it is found.",
)
@click.option("--noisy", is_flag=True, help="Measure and choose thresholds by noisy counts, as deployed runs do.")
@out_option(ROOT / "runs" / "experiment-accuracy", "runs/experiment-accuracy", "Resumed if begun.")
@config_options()
def main(
    *,
    families: tuple[str, ...],
    seeds: int,
    xrays: Path | None,
    noisy: bool,
    out: Path,
    config_file: Path,
    overrides: tuple[str, ...],
) -> int:
    """Run the study, or what is left of it."""
    console = Console()
    tables = []
    xrays = xrays or own_file()
    for name in _chosen(families, xrays):
        family = FAMILIES[name]
        source = (f"data.source={xrays}",) if family.needs_xrays else ()
        settings = ("evaluation.score_bins=512", *family.settings, *source, *overrides)
        tables.append(_run_family(name, load_config(config_file, settings), out, seeds, console, noisy=noisy))
    replace_file(out / TABLE, "\n".join(tables).encode())
    console.print("\n".join(tables), highlight=False, soft_wrap=True)
    console.print(f"{TABLE} is in {out}, and for each family {TABLE_FILE}, {RESULTS_FILE} and {PLOT}")
    return 0


def plan(config: Config, family: Family, seeds: Sequence[int], *, noisy: bool = False) -> dict[Training, Aim]:
    """Return every training of a family with its aim, one seed after the other; with noisy counts those together."""
    planned = {}
    for seed in seeds:
        seeded = replace(config, experiment={"seed": seed})
        for aim in family.aims:
            if noisy and aim.method.is_pooled:
                continue
            own = replace(seeded, **dict(aim.sections))
            if aim.epsilon is not None:
                own = replace(own, privacy={"target_epsilon": aim.epsilon})
            planned[Training(aim.method, own, noisy=noisy)] = aim
    return planned


def _run_family(name: str, config: Config, out: Path, seeds: int, console: Console, *, noisy: bool) -> str:
    data = obtained(config, console)
    study = Study(data, (out / name).resolve())
    planned = plan(config, FAMILIES[name], range(1, seeds + 1), noisy=noisy)
    outcomes = run_study(
        study, tuple(planned), lambda line: console.print(f"{name}: {line}", highlight=False, soft_wrap=True)
    )
    draw_auc_by_epsilon(
        study, outcomes, next(training.split for training in planned if training.epsilon), study.folder / PLOT
    )
    return accuracy_table(study, outcomes, _aims(planned))


def own_file(environment: Mapping[str, str] = os.environ, cache: Path | None = None) -> Path | None:
    """Return MedMNIST's own file of 224 pixels where it lies with the data, or was downloaded; None otherwise.

    Its images were cropped before they were made smaller. X-rays that were squashed to a square tell their class by
    their former shape (docs/results/pneumonia-224.md).
    """
    folders = [cache or default_cache(environment)]
    if given := environment.get(DATA_VARIABLE):
        folders.insert(0, Path(given))
    return next((folder / OWN_FILE for folder in folders if (folder / OWN_FILE).is_file()), None)


def _aims(planned: dict[Training, Aim]) -> dict[tuple[Method, float | None], tuple[float | None, float | None]]:
    return {(aim.method, aim.epsilon): (aim.auc, aim.accuracy) for aim in planned.values()}


def _chosen(families: Sequence[str], xrays: Path | None) -> tuple[str, ...]:
    """Return the families to run: those named, else all whose data can be had."""
    chosen = tuple(families) or tuple(name for name, family in FAMILIES.items() if xrays or not family.needs_xrays)
    for name in chosen:
        if FAMILIES[name].needs_xrays and xrays is None:
            raise ConfigError(
                f"{name} needs {OWN_FILE} in ${DATA_VARIABLE}, or --xrays PATH: that file, or a folder or tar of "
                "train|val|test/NORMAL|PNEUMONIA/image"
            )
    return chosen
