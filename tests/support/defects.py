"""Defects that tests put into the product, to show that they would be found."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from common.secagg import masked_input, unmasking

Patch = pytest.MonkeyPatch


def request_unbound(patch: Patch) -> None:
    """Leave the request out of what a pair's mask is derived from."""
    bound: Callable[..., bytes] = vars(masked_input)["pairwise_seed_info"]

    def unbound(context: bytes, cohort: bytes, _request: bytes, *rest: Any) -> bytes:  # noqa: ANN401 - passed on
        return bound(context, cohort, bytes(32), *rest)

    patch.setattr(masked_input, "pairwise_seed_info", unbound)


def any_share(patch: Patch) -> None:
    """Reveal both kinds of share for whoever dropped out."""
    only = unmasking.shares_for

    def both(masked: Any, request: Any) -> Any:  # noqa: ANN401 - passed on
        given = only(masked, request)
        everybody = dataclasses.replace(request, survivors=tuple(masked.shares))
        return dataclasses.replace(given, self_mask_shares=only(masked, everybody).self_mask_shares)

    patch.setattr(unmasking, "shares_for", both)
