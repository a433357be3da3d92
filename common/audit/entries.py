"""What the parties of a run write into their audit chains: one type an entry, each with its own facts alone.

Nothing here is secret: hashes, names, signatures and ε, never a key, a share, a vector or a patient's data.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.config import RunId
from common.task import MOST_CLASSES

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hexadecimal = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=65_536)]
Count = Annotated[int, Field(ge=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Identified(_Body):
    """A party begins to write: entries from here on are signed by the key of this certificate."""

    kind: Literal["identified"] = "identified"
    certificate: Annotated[str, Field(max_length=16_384)]
    """PEM, issued by the consortium's authority."""


class AnsweredProposal(_Body):
    """Hospital: it agreed to a run that was proposed, or declined it, once and for all."""

    kind: Literal["answered"] = "answered"
    run_id: RunId
    proposal: Hash
    """The hash of the proposal, see ``common/run/proposal.py``."""
    terms: Hash
    """The hash of the run's terms, which are its description without its members."""
    agreed: bool
    by: Literal["policy", "operator"]
    code: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(max_length=1000)]


class JoinedRun(_Body):
    """Hospital: it agreed to a run's terms."""

    kind: Literal["joined"] = "joined"
    run_id: RunId
    config_hash: Hash


class Contributed(_Body):
    """Hospital: it made a vector for a round, after its ledger had the cost."""

    kind: Literal["contributed"] = "contributed"
    run_id: RunId
    round_number: Count
    train: bool
    model_hash: Hash
    terms: Hexadecimal
    """The round's terms as they were bound into its masks, ``common/run/round_terms.py``."""
    epsilon: float | None
    """The ε spent on training over all runs, at the hospital's own δ, rounded up; None in mode ``none``."""
    budget: float | None
    ledger: Annotated[str, Field(pattern=r"^[0-9]{1,15}:[0-9a-f]{64}$")] | None
    """The ledger's last line, ``SEQUENCE:DIGEST``, which shows when a ledger was put back."""
    view: Hexadecimal | None
    """Its signed view of the round, a ``secagg`` MaskedInput, as it went with the vector; None of a bare one."""


class ContributedUnbound(_Body):
    """Hospital: what 0.1.0 wrote for a vector, before a round's terms and view were bound.

    It is read, so that a hospital that was upgraded goes on with its chain; no run of today counts it.
    """

    kind: Literal["contributed"] = "contributed"
    run_id: RunId
    round_number: Count
    train: bool
    model_hash: Hash
    epsilon: float | None
    budget: float | None
    ledger: Annotated[str, Field(pattern=r"^[0-9]{1,15}:[0-9a-f]{64}$")] | None


class SignedSurvivors(_Body):
    """Hospital: it signed whose vectors are in a round's sum."""

    kind: Literal["signed"] = "signed"
    run_id: RunId
    round_number: Count
    survivors: tuple[str, ...]
    signature: Hexadecimal
    """The ``secagg`` SurvivorSignature as it was sent."""


class OpenedSum(_Body):
    """Hospital: it revealed what opens the sum over everybody in a round's cohort, and signed no survivors."""

    kind: Literal["opened"] = "opened"
    run_id: RunId
    round_number: Count
    cohort: tuple[str, ...]


class PassedOver(_Body):
    """Hospital: it helped to open the sum of a round, in a run that proves its sums, and was given no sum of it."""

    kind: Literal["passed"] = "passed"
    run_id: RunId
    round_number: Count
    of: Count
    """How many such rounds the run allows."""


class ShownChange(_Body):
    """Hospital: it showed its change of a round whose sum it found to be none that honest hospitals can have."""

    kind: Literal["shown"] = "shown"
    run_id: RunId
    round_number: Count


class Named(_Body):
    """Either: a hospital was found to have cheated in a round, and takes part in no later one of the run."""

    kind: Literal["named"] = "named"
    run_id: RunId
    round_number: Count
    hospital: str
    fault: Annotated[str, Field(max_length=64)]
    """See ``common/proved_sums/dispute.py``."""
    evidence: Hash
    """SHA-256 of what everybody was shown, ``common.proved_sums.dispute.evidence_hash``."""


class Proved(_Body):
    """Server: what proves the sum of a round that changed the model, in two files of the run's folder."""

    kind: Literal["proved"] = "proved"
    run_id: RunId
    round_number: Count
    evidence_hash: Hash
    """SHA-256 of the file of a :class:`common.run.basis.Evidence`."""
    sum_hash: Hash
    """SHA-256 of the file of the sum, as it travels."""


class Began(_Body):
    """Server: a run begins, or continues from a checkpoint."""

    kind: Literal["began"] = "began"
    run_id: RunId
    description: Annotated[str, Field(max_length=64 * 2**20)]
    """The run description in its canonical JSON: configuration, roster with certificates."""
    data_set: str
    step: Count
    model_hash: Hash


class Summed(_Body):
    """Server: a round gave a sum."""

    kind: Literal["summed"] = "summed"
    run_id: RunId
    round_number: Count
    train: bool
    model_hash: Hash
    """The hash of the model that the hospitals started from."""
    terms: Hexadecimal
    """The round's terms, whose hash every signature is over."""
    survivors: tuple[str, ...]
    signatures: dict[str, Hexadecimal]
    """Hospital to its SurvivorSignature as it arrived; at least t of them against an active adversary, if somebody was
    missing."""
    views: dict[str, Hexadecimal]
    """Hospital to its ``secagg`` MaskedInput as it arrived, of all the cohort where nobody was missing; else none."""
    epsilon: dict[str, float]
    """What each survivor's ledger says, rounded up."""


class Stepped(_Body):
    """Server: a round's sum became the next model."""

    kind: Literal["stepped"] = "stepped"
    run_id: RunId
    round_number: Count
    step: Count
    model_hash: Hash


class Centred(_Body):
    """Server: a round's sum, the mean of features, became the centre of the model that training starts from."""

    kind: Literal["centred"] = "centred"
    run_id: RunId
    round_number: Count
    model_hash: Hash


class Told(_Body):
    """Server: what a run's ``events.jsonl`` holds with the line that is about to be written, a step's or the last."""

    kind: Literal["told"] = "told"
    run_id: RunId
    length_bytes: Count
    events_hash: Hash


class Refused(_Body):
    """Either: a hospital, or the server, did not do what was asked."""

    kind: Literal["refused"] = "refused"
    run_id: RunId | None
    round_number: Count | None
    hospital: str
    code: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(max_length=1000)]


class Finished(_Body):
    """Server: the run ended."""

    kind: Literal["finished"] = "finished"
    run_id: RunId
    reason: str
    steps: Count
    model_hash: Hash
    threshold: float | None
    thresholds: Annotated[tuple[float, ...], Field(max_length=MOST_CLASSES)] = ()
    """The threshold of each label of a multi-label task."""
    temperature: Annotated[float, Field(gt=0, le=1000)] | None = None
    """What scores are divided by; ``threshold`` is of the probabilities before that."""
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of the second of two classes among the validation units that fixed the temperature."""


Body = (
    Identified
    | AnsweredProposal
    | JoinedRun
    | Contributed
    | SignedSurvivors
    | OpenedSum
    | PassedOver
    | ShownChange
    | Named
    | Proved
    | Began
    | Summed
    | Stepped
    | Centred
    | Told
    | Refused
    | Finished
)
