"""Every Prometheus metric of Confide: its name, labels, unit and meaning, once.

The exporters build their metrics from here; alert rules and dashboards are tested against it. Suffixes follow
Prometheus' conventions: ``_total`` counts up, ``_seconds`` and ``_bytes`` are units, ``_info`` is always 1 and
speaks by its labels. A metric without a unit in its name is a plain number.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from common.evaluation.metrics import METRICS


@dataclass(frozen=True)
class PrometheusMetric:
    """A metric as Prometheus sees it."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


def _of_run(name: str, words: str, labels: tuple[str, ...] = ()) -> PrometheusMetric:
    """Return a metric of one run of a server, named by the first digits of its identifier in the label ``run``."""
    return PrometheusMetric(name, words, ("run", *labels))


# Both sides -----------------------------------------------------------------------------------------------------------

BUILD_INFO = PrometheusMetric("confide_build_info", "Versions of the software.", ("version", "commit", "python"))

CERTIFICATE_LEFT = PrometheusMetric(
    "confide_certificate_left_ratio",
    "Part of its lifetime that a certificate or the revocation list has left; renewed by itself at a third, or a half.",
    ("of",),
)
CERTIFICATE_EXPIRES = PrometheusMetric(
    "confide_certificate_expires_timestamp_seconds", "When it ends, in seconds since the epoch.", ("of",)
)

DISK_FREE = PrometheusMetric("confide_disk_free_ratio", "Free part of the disk that holds the state folder.")

# The server: members -------------------------------------------------------------------------------------------------

MEMBER_VERSION_MISMATCH = PrometheusMetric(
    "confide_member_version_mismatch",
    "1 for a member that speaks no version of the protocol that this server speaks, and takes part in no run; else 0.",
    ("hospital", "software"),
)

# The server: how good the model is ------------------------------------------------------------------------------------

ROUND = _of_run("confide_round", "Training steps finished in the run shown.")
ROUNDS_PLANNED = _of_run("confide_rounds_planned", "Training steps the run is to make.")
MODEL_METRICS: Mapping[str, PrometheusMetric] = {
    name: _of_run(f"confide_{name}", metric.help) for name, metric in METRICS.items() if metric.help is not None
}
"""The metrics of :data:`common.evaluation.metrics.METRICS` that are exported, by name."""

MEASURED_INFO = _of_run(
    "confide_measured_info",
    "Whose records the figures are of: the hospitals' pooled validation or test parts, exact counts or noisy ones.",
    ("part", "exact"),
)
MEASURED_ROUND = _of_run("confide_measured_round", "The training step whose model the figures are of.")
INTERVAL_LOW = _of_run(
    "confide_interval_low", "Lower end of a measure's 95 % interval, for sampling and privacy noise.", ("measure",)
)
INTERVAL_HIGH = _of_run("confide_interval_high", "Upper end of a measure's 95 % interval.", ("measure",))
TEST = _of_run(
    "confide_test",
    "A measure of the run's last model on the hospitals' pooled test parts, asked once at the end.",
    ("measure",),
)
TEST_LOW = _of_run("confide_test_low", "Lower end of its 95 % interval.", ("measure",))
TEST_HIGH = _of_run("confide_test_high", "Upper end of its 95 % interval.", ("measure",))
TEST_NOISE = _of_run("confide_test_noise", "Standard deviation that privacy noise alone gives it.", ("measure",))

# The server: each of the last rounds of a run, so that no scrape misses one ------------------------------------------

ROUND_FINISHED = _of_run(
    "confide_round_finished_timestamp_seconds", "When a round ended, in seconds since the epoch.", ("round",)
)
ROUND_DURATION = _of_run("confide_round_duration_seconds", "How long a round took.", ("round",))
ROUND_HOSPITALS = _of_run("confide_round_hospitals", "Hospitals in a round's sum.", ("round",))
ROUND_EPSILON = _of_run(
    "confide_round_epsilon", "The largest epsilon that a hospital had spent after a round.", ("round",)
)
ROUND_AUC = _of_run("confide_round_auc", "AUC of a round's model, where it was measured.", ("round",))
ROUND_ACCURACY = _of_run("confide_round_accuracy", "Accuracy of a round's model, where it was measured.", ("round",))

# The server: privacy --------------------------------------------------------------------------------------------------

EPSILON_SPENT = _of_run(
    "confide_epsilon_spent",
    "Epsilon a hospital has spent over all runs on its data; see confide_privacy_info.",
    ("hospital",),
)
EPSILON_BUDGET = _of_run("confide_epsilon_budget", "Epsilon beyond which a hospital refuses to train.", ("hospital",))
EPSILON_LAST_ROUND = _of_run(
    "confide_epsilon_last_round", "What the last round a hospital took part in added to its epsilon.", ("hospital",)
)
EVALUATION_EPSILON = _of_run(
    "confide_evaluation_epsilon",
    "Epsilon that this run's measurements have cost each record of a part so far (zero-out relation); none where "
    "counts are exact.",
    ("part",),
)
PRIVACY_INFO = _of_run(
    "confide_privacy_info",
    "What an epsilon of this run means: mode, target, delta, unit, adversary and accountant.",
    ("mode", "target_epsilon", "delta", "unit", "adversary", "accountant", "aggregation"),
)

# The server: who takes part, and the protocol -------------------------------------------------------------------------

RUN_INFO = _of_run("confide_run_info", "Which run is shown, on which data.", ("run_id", "data_set", "task", "caveats"))
RUN_RESULT = _of_run(
    "confide_run_result",
    "Where a run that was proposed stands: proposed, agreed, running, stopped, failed, finished, declined, lapsed.",
    ("result",),
)
RUN_ACTIVE = _of_run("confide_run_active", "1 while the run is active, 0 once it has ended.")
LAST_PROGRESS = _of_run(
    "confide_last_progress_timestamp_seconds", "When the run last finished an exchange, in seconds since the epoch."
)
HOSPITALS_ONLINE = _of_run("confide_hospitals_online", "Hospitals whose node is connected.")
HOSPITALS_EXPECTED = _of_run("confide_hospitals_expected", "Hospitals on the run's roster.")
HOSPITAL_ONLINE = _of_run("confide_hospital_online", "1 while a hospital's node is connected, else 0.", ("hospital",))
HOSPITAL_LEFT = _of_run(
    "confide_hospital_left",
    "1 while a hospital is away that was stopped where it is and said so; 0 of one that is there, or has failed.",
    ("hospital",),
)
DROPOUTS = _of_run("confide_dropouts_total", "Hospitals of a cohort that missed a deadline.")
HOSPITAL_DROPOUTS = _of_run("confide_hospital_dropouts_total", "Deadlines a hospital missed.", ("hospital",))
REFUSALS = _of_run("confide_refusals_total", "Rounds a hospital refused, by the reason's code.", ("reason",))
HOSPITAL_REFUSALS = _of_run("confide_hospital_refusals_total", "Rounds refused, by hospital.", ("hospital",))
ATTACKS_REFUSED = _of_run(
    "confide_attacks_refused_total", "Protocol messages refused that no honest party can have sent.", ("code",)
)
EXCHANGE_SECONDS = _of_run("confide_exchange_seconds", "Duration of an exchange with the whole cohort.", ("phase",))
ROUND_PART_SECONDS = _of_run(
    "confide_round_part_seconds_total",
    "Where the time of finished rounds went: training, moving, waiting.",
    ("part",),
)
ROUND_SECONDS = _of_run("confide_round_seconds", "Duration of the last finished round.")
UPLOAD_BYTES = _of_run("confide_upload_bytes_total", "Bytes the hospitals sent to the server.")
DOWNLOAD_BYTES = _of_run("confide_download_bytes_total", "Bytes the server sent to the hospitals.")

# A hospital, about itself; never a count of patients or records -------------------------------------------------------

OWN_EPSILON_SPENT = PrometheusMetric(
    "confide_hospital_epsilon_spent", "Epsilon in this hospital's own ledger, over all runs on its data.", ("hospital",)
)
OWN_EPSILON_BUDGET = PrometheusMetric(
    "confide_hospital_epsilon_budget", "Epsilon beyond which this hospital refuses to train.", ("hospital",)
)
OWN_EVALUATION_EPSILON_SPENT = PrometheusMetric(
    "confide_hospital_evaluation_epsilon_spent",
    "Epsilon of evaluation in this hospital's own ledger, for each record of a part, over all runs on its data.",
    ("hospital", "part"),
)
OWN_EVALUATION_EPSILON_BUDGET = PrometheusMetric(
    "confide_hospital_evaluation_epsilon_budget",
    "Epsilon of evaluation beyond which this hospital counts no more, for each part.",
    ("hospital",),
)
OWN_NOTES = PrometheusMetric(
    "confide_hospital_notes",
    "Notes that this hospital's operator should read in `confide hospital status`, such as fewer records than stated.",
    ("hospital",),
)
OWN_PRIVACY_INFO = PrometheusMetric(
    "confide_hospital_privacy_info",
    "What this hospital's epsilon means: delta, unit, adversary and accountant.",
    ("hospital", "delta", "unit", "adversary", "accountant"),
)
OWN_VERSION_MISMATCH = PrometheusMetric(
    "confide_hospital_version_mismatch",
    "1 while the server speaks no version of the protocol that this hospital speaks; else 0.",
    ("hospital",),
)
OWN_ROUND = PrometheusMetric("confide_hospital_round", "The last round this hospital trained in.", ("hospital",))
OWN_THROUGHPUT = PrometheusMetric(
    "confide_hospital_training_records_per_second",
    "Records through a training step in a second, to one significant digit so that it counts nobody.",
    ("hospital",),
)
OWN_REFUSALS = PrometheusMetric(
    "confide_hospital_own_refusals_total",
    "Requests this hospital refused, by the reason's code.",
    ("hospital", "reason"),
)
OWN_LAST_CHANGE = PrometheusMetric(
    "confide_hospital_last_change_timestamp_seconds",
    "When this hospital's agent last reported, in seconds since the epoch.",
    ("hospital",),
)

ALL = (
    *MODEL_METRICS.values(),
    *(value for value in vars().copy().values() if isinstance(value, PrometheusMetric)),
)
"""Every metric above, for the tests of rules and dashboards."""
