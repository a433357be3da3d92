"""What this hospital agrees to, whatever the server asks."""

import numpy as np

from common.config import AdversaryModel, AggregationMode, HospitalConfig, PrivacyUnit, RunDescription
from common.errors import PolicyError
from common.identity.certificates import HospitalIdentity, read_certificate
from common.models.naming import PackageModel, from_outside
from common.privacy.mechanism import mechanism_of
from common.run.basis import words_for


def check_agreement(policy: HospitalConfig, run: RunDescription, identity: HospitalIdentity) -> None:
    """Refuse a run that this hospital has not agreed to take part in.

    Args:
        policy: the section ``hospital`` of the hospital's own configuration.
        run: what the server describes.
        identity: this hospital's.

    Raises:
        PolicyError: names the term that is refused and the hospital's setting that would allow it.
    """
    _check_aggregation(policy, run)
    mechanism = mechanism_of(run)
    if not mechanism.is_private and not policy.allow_no_privacy:
        raise PolicyError(
            "this hospital trains with differential privacy only, the run asks for privacy.mode none; "
            "its operator can set hospital.allow_no_privacy"
        )
    _check_model(policy, run)
    _check_statement(policy, run)
    noise_in_sums = mechanism.noise_in_sum or not run.evaluation.exact
    if noise_in_sums and run.privacy.colluders < policy.min_colluders:
        raise PolicyError(
            f"this hospital wants noise that withstands {policy.min_colluders} hospitals colluding with the server, "
            f"the run asks for privacy.colluders {run.privacy.colluders}; its operator can lower hospital.min_colluders"
        )
    if run.evaluation.exact and mechanism.is_private and not policy.allow_exact_evaluation:
        raise PolicyError(
            "this hospital measures models under differential privacy only, the run asks for evaluation.exact; "
            "its operator can set hospital.allow_exact_evaluation"
        )
    _check_statistics(policy, run)
    if policy.unit is PrivacyUnit.PATIENT and run.privacy.unit is PrivacyUnit.RECORD:
        raise PolicyError(
            "this hospital's budget is for each patient, the run's ε is for each record; "
            "its operator can set hospital.unit to record"
        )
    if run.training.local_epochs > policy.max_local_epochs:
        raise PolicyError(
            f"this hospital trains at most {policy.max_local_epochs} epochs a round, "
            f"the run asks for {run.training.local_epochs}"
        )
    if run.vector_length > policy.longest_vector:
        raise PolicyError(
            f"this hospital takes part with vectors of at most {policy.longest_vector} elements, the run's has "
            f"{run.vector_length}; its operator can raise hospital.longest_vector"
        )
    if len(run.roster) < policy.min_hospitals:
        raise PolicyError(
            f"this hospital joins runs of at least {policy.min_hospitals} hospitals, the roster names {len(run.roster)}"
        )
    own = run.roster.get(identity.name)
    if own is None or read_certificate(own.encode()).public_key() != identity.key.public_key():
        raise PolicyError(f"the roster must name {identity.name} with a certificate for its own key")


def _check_aggregation(policy: HospitalConfig, run: RunDescription) -> None:
    """Refuse a run whose server is trusted with more than this hospital has agreed to.

    Raises:
        PolicyError: names the term and the setting.
    """
    if run.aggregation.mode is AggregationMode.PLAIN and not policy.allow_plain:
        raise PolicyError(
            "this hospital sends masked vectors only, the run asks for aggregation.mode plain; "
            "its operator can set hospital.allow_plain"
        )
    if run.aggregation.adversary is AdversaryModel.SEMI_HONEST and not policy.allow_semi_honest:
        raise PolicyError(
            "this hospital does not trust the server to follow the protocol, the run asks for aggregation.adversary "
            "semi-honest; its operator can set hospital.allow_semi_honest"
        )
    bound, most = run.aggregation.norm_bound, policy.most_norm_bound
    if most and not 0 < bound <= most:
        raise PolicyError(
            f"this hospital wants changes of a model to be within {most:g} times their noise, the run's "
            f"aggregation.norm_bound is {bound:g} (0 is none); its operator can raise or lift hospital.most_norm_bound"
        )
    if run.aggregation.disputes:
        _check_disputes(policy, run)
    if policy.require_proved_sums and not run.aggregation.proved_sums:
        raise PolicyError(
            "this hospital trains models alone that follow from sums that it has seen proved, the run asks for "
            "aggregation.proved_sums false; its operator can lift hospital.require_proved_sums"
        )


def _check_disputes(policy: HospitalConfig, run: RunDescription) -> None:
    """Refuse a run in which this hospital's change could be shown, or for whose disputes it would get too much.

    Raises:
        PolicyError: names the term and the setting.
    """
    if not policy.allow_disputes:
        raise PolicyError(
            "this hospital shows its change of a model to nobody, the run asks for aggregation.disputes; its operator "
            "can set hospital.allow_disputes"
        )
    words = words_for(len(run.roster) * run.vector_length, np.dtype(f"<u{run.aggregation.modulus_bits // 8}"))
    if words > policy.longest_vector:
        raise PolicyError(
            f"this hospital takes arrays of at most {policy.longest_vector} elements, a dispute of this run comes with "
            f"up to {words}: the vectors of {len(run.roster)} hospitals; its operator can raise hospital.longest_vector"
        )


def _check_model(policy: HospitalConfig, run: RunDescription) -> None:
    """Refuse a model from outside that this hospital's people have not accepted; nothing of it is run or read.

    Raises:
        PolicyError: its hash is not among those that are accepted.
        ConfigError: the package that was accepted is not the one that is installed.
    """
    outside = from_outside(run.model.architecture)
    if outside is None:
        return
    if outside.sha256 not in policy.accepted_models:
        kind = "package" if isinstance(outside, PackageModel) else "backbone"
        raise PolicyError(
            f"this hospital trains with packages and backbones that it accepted alone, the run's {kind} "
            f"({run.model.name}) has the SHA-256 {outside.sha256}; its operator can add it to hospital.accepted_models"
        )
    if isinstance(outside, PackageModel):
        from common.models.package import check_installed

        check_installed(outside)


def _check_statistics(policy: HospitalConfig, run: RunDescription) -> None:
    """Refuse to count training records for more than this hospital agrees to.

    Raises:
        PolicyError: names both figures and the setting.
    """
    if run.evaluation.statistics_epsilon > policy.allow_statistics_epsilon:
        raise PolicyError(
            f"this hospital lets statistics of its training records cost ε = {policy.allow_statistics_epsilon:g} at "
            f"most, the run asks for evaluation.statistics_epsilon {run.evaluation.statistics_epsilon:g}; "
            "its operator can set hospital.allow_statistics_epsilon"
        )


def _check_statement(policy: HospitalConfig, run: RunDescription) -> None:
    """Refuse terms that do not fit what this hospital states about its data; the data itself is not read.

    Raises:
        PolicyError: names the term and the statement.
    """
    stated, unit = policy.stated_training_units, run.privacy.unit
    if stated > run.aggregation.max_weight:
        raise PolicyError(
            f"this hospital states {stated} training {unit}s, the run lets one state aggregation.max_weight = "
            f"{run.aggregation.max_weight} at most"
        )
    if run.experiment.min_records_per_class > policy.stated_units_per_class:
        raise PolicyError(
            f"this hospital states {policy.stated_units_per_class} training {unit}s of every class, the run asks for "
            f"experiment.min_records_per_class = {run.experiment.min_records_per_class}"
        )
    for whose, delta in (("the run's privacy.delta", run.privacy.delta), ("its own hospital.delta", policy.delta)):
        if mechanism_of(run).is_private and delta * stated >= 1:
            raise PolicyError(
                f"δ must be below 1 / {stated} training {unit}s that this hospital states = {1 / stated:.2g}, got "
                f"{whose} = {delta:g}: at 1 / n or more, to publish one of n outright would meet it"
            )
