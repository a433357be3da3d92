"""``confide experiment baselines``: every way to train, at three degrees of heterogeneity, in one table.

Central training, private or not, is what nobody can do without moving records; a hospital alone is what anybody can.
Between the two lies what Confide does: FedAvg under masks, with noise in each hospital or one noise shared by all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.config import Config, load_config, replace
from common.files import replace_file
from common.provenance import ROOT
from deploy.command import command, config_options, out_option
from deploy.experiment.accuracy import FAMILIES, steps
from deploy.experiment.figures import draw_auc_by_epsilon, draw_gain, draw_learning
from deploy.experiment.methods import Method
from deploy.experiment.places import obtained
from deploy.experiment.runner import RESULTS_FILE, TABLE_FILE
from deploy.experiment.study import Outcomes, Study, Training, run_study
from deploy.experiment.tables import baselines_table

EPSILONS = (1.0, 3.0, 8.0)

IID = "IID"
SPLITS: dict[str, dict[str, Any]] = {
    IID: {"partition": "iid"},
    "Dirichlet 0.5": {"partition": "dirichlet", "dirichlet_alpha": 0.5},
    "Dirichlet 0.1": {"partition": "dirichlet", "dirichlet_alpha": 0.1},
}
"""Three degrees of heterogeneity: the section ``data`` of each."""

FAMILY = FAMILIES["pneumonia-28"]
"""The data, the model and the recipe, as ``confide experiment accuracy`` has them: one method has one figure."""

LOCAL_STEPS: dict[float, dict[str, dict[str, Any]]] = {
    epsilon: dict(steps(20, length)) for epsilon, length in ((1.0, 160.0), (3.0, 200.0), (8.0, 400.0))
}
"""Mode ``local`` takes the demo's 20 full-batch steps, as long altogether as those of mode ``distributed``."""

TABLE = "baselines.md"
PLOTS = ("learning.png", "auc-by-epsilon.png", "gain.png")


@command(
    "baselines",
    "Compare every way to train, at three degrees of heterogeneity, in one table and plots: in one place, each "
    "hospital alone, and together, with and without privacy.",
    "./confide experiment baselines --seeds 3",
)
@click.option("--seeds", type=int, default=3, metavar="N", help="Repeat everything with N seeds.")
@out_option(ROOT / "runs" / "experiment-baselines", "runs/experiment-baselines", "Resumed if begun.")
@config_options()
def main(seeds: int, out: Path, config_file: Path, overrides: tuple[str, ...]) -> int:
    """Run the study, or what is left of it."""
    config = load_config(config_file, ("evaluation.score_bins=512", *FAMILY.settings, *overrides))
    console = Console()
    data = obtained(config, console)
    study = Study(data, out.resolve())
    trainings = plan(config, range(1, seeds + 1))
    outcomes = run_study(study, trainings, lambda line: console.print(line, highlight=False, soft_wrap=True))
    write_baselines(study, outcomes)
    console.print((study.folder / TABLE).read_text(encoding="utf-8"), highlight=False, soft_wrap=True)
    console.print(f"{', '.join((TABLE, TABLE_FILE, RESULTS_FILE, *PLOTS))} are in {study.folder}", highlight=False)
    return 0


def plan(config: Config, seeds: Sequence[int]) -> tuple[Training, ...]:
    """Return every training of the study; one seed after the other, so that an unfinished study has whole seeds."""
    trainings: list[Training] = []
    for seed in seeds:
        seeded = replace(config, experiment={"seed": seed})
        trainings.append(Training(Method.CENTRAL, seeded))
        trainings += [_private(Method.CENTRAL_DP, seeded, epsilon) for epsilon in EPSILONS]
        for name, section in SPLITS.items():
            dealt = replace(seeded, data=section)
            trainings += [Training(Method.ALONE, dealt, 1 + place) for place in range(config.experiment.num_clients)]
            trainings.append(Training(Method.FEDAVG, dealt))
            trainings += [_private(Method.DISTRIBUTED_DP, dealt, epsilon) for epsilon in EPSILONS]
            of_local = EPSILONS if name == IID else EPSILONS[-1:]
            trainings += [_private(Method.LOCAL_DP, dealt, epsilon) for epsilon in of_local]
    return tuple(trainings)


def write_baselines(study: Study, outcomes: Outcomes) -> None:
    """Write the table and the plots into the study's folder.

    Raises:
        RunError: the folder cannot be written.
    """
    learning, by_epsilon, gain = (study.folder / name for name in PLOTS)
    draw_learning(study, outcomes, tuple(SPLITS), learning)
    draw_auc_by_epsilon(study, outcomes, IID, by_epsilon)
    draw_gain(study, outcomes, tuple(SPLITS), gain)
    replace_file(study.folder / TABLE, baselines_table(study, outcomes, tuple(SPLITS)).encode())


def _private(method: Method, config: Config, epsilon: float) -> Training:
    """Return a private training; central DP takes the steps of distributed DP, on everybody's records in one place."""
    terms = (
        LOCAL_STEPS[epsilon] if method is Method.LOCAL_DP else dict(FAMILY.aim(Method.DISTRIBUTED_DP, epsilon).sections)
    )
    return Training(method, replace(replace(config, **terms), privacy={"target_epsilon": epsilon}))
