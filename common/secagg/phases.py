"""The five message exchanges of Bonawitz et al. 2017, figure 4, in their order (there: rounds 0 to 4), and ours."""

from enum import StrEnum


class Phase(StrEnum):
    """One exchange between the server and every hospital of a round."""

    ADVERTISE_KEYS = "advertise_keys"
    SHARE_KEYS = "share_keys"
    MASKED_INPUT = "masked_input"
    CONSISTENCY_CHECK = "consistency_check"
    UNMASKING = "unmasking"
    FULL_UNMASKING = "full_unmasking"
    """Instead of the last two, when the vector of everyone in the cohort is there; not in the paper."""
    DISPUTE = "dispute"
    """After an opened sum that honest vectors cannot have: each shows its change, in runs that have disputes alone."""
    VERDICT = "verdict"
    """Everyone is shown what was opened in a dispute, and finds for itself who has cheated."""
