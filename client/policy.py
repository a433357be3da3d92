"""What this hospital agrees to, whatever the server asks."""

from common.config import AdversaryModel, AggregationMode, HospitalConfig, PrivacyMode, RunDescription
from common.errors import PolicyError
from common.identity import HospitalIdentity, read_certificate


def check_agreement(policy: HospitalConfig, run: RunDescription, identity: HospitalIdentity) -> None:
    """Refuse a run that this hospital has not agreed to take part in.

    Args:
        policy: the section ``hospital`` of the hospital's own configuration.
        run: what the server describes.
        identity: this hospital's.

    Raises:
        PolicyError: names the term that is refused and the hospital's setting that would allow it.
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
    if run.privacy.mode is PrivacyMode.NONE and not policy.allow_no_privacy:
        raise PolicyError(
            "this hospital trains with differential privacy only, the run asks for privacy.mode none; "
            "its operator can set hospital.allow_no_privacy"
        )
    if run.privacy.mode is not PrivacyMode.NONE and run.privacy.delta < policy.min_delta:
        raise PolicyError(
            f"this hospital books no δ below {policy.min_delta:g}, at which all its rounds would count for good, "
            f"the run asks for {run.privacy.delta:g}; its operator can lower hospital.min_delta"
        )
    if run.privacy.mode is PrivacyMode.DISTRIBUTED and run.privacy.colluders < policy.min_colluders:
        raise PolicyError(
            f"this hospital wants noise that withstands {policy.min_colluders} hospitals colluding with the server, "
            f"the run asks for privacy.colluders {run.privacy.colluders}; its operator can lower hospital.min_colluders"
        )
    if run.training.local_epochs > policy.max_local_epochs:
        raise PolicyError(
            f"this hospital trains at most {policy.max_local_epochs} epochs a round, "
            f"the run asks for {run.training.local_epochs}"
        )
    if len(run.roster) < policy.min_hospitals:
        raise PolicyError(
            f"this hospital joins runs of at least {policy.min_hospitals} hospitals, the roster names {len(run.roster)}"
        )
    own = run.roster.get(identity.name)
    if own is None or read_certificate(own.encode()).public_key() != identity.key.public_key():
        raise PolicyError(f"the roster must name {identity.name} with a certificate for its own key")
