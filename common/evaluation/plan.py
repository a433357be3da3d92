"""What a run asks about its models, and at what cost: every release with its part, its step and its noise.

Validation and test patients are apart, so each part has the run's whole ε for evaluation. A part's releases are
Gaussian mechanisms, whose costs add up as 1/z²: a release with share s of its part's budget has noise multiplier
z_1/√s, where z_1 is that of one release which spends everything. The relation is *zero-out*, as for training: a unit
(a record, or all records of a patient) against an empty one, with the number of units public.

A release's accuracy depends on its share alone (docs/results/evaluation.md), so a long run asks less often.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Self

from common.errors import PrivacyError
from common.evaluation.against_alone import length_of as length_against_alone
from common.evaluation.layout import NORM_BOUND, Layout, layout_of
from common.evaluation.site_spread import length_of as length_of_spread
from common.evaluation.statistics import class_bins, length_of
from common.privacy.accounting import Accountant, rounded_up
from common.privacy.distributed import DistributedMechanism
from common.privacy.gaussian import accounted_epsilon, accounted_mu
from common.task import TaskKind

CLASSES_SHARE = 0.05
INTERIM_SHARE = 0.50
"""The share of the validation part's budget for counting classes and for measuring models during the run. The last
model gets the rest, because its release gives the edges and the threshold at which the test part is asked, once."""


ALONE_SHARE = 0.3
"""The share of the test part's budget for comparing the last model with hospitals' models of their own records, where a
run asks for that. The last model's own figures get the rest."""


class Part(StrEnum):
    """The records that a release counts."""

    VALIDATION = "validation"
    TEST = "test"
    TRAINING = "training"
    """Counted by the statistics alone, on an account of their own."""


EVALUATED = (Part.VALIDATION, Part.TEST)
"""Parts that models are measured on."""


class ReleaseKind(StrEnum):
    """What a release asks."""

    CLASSES = "classes"
    """How many units of each class there are; no model is asked."""

    INTERIM = "interim"
    """How a model does in the middle of a run."""

    FINAL = "final"
    """How the last model does, in full."""

    STATISTICS = "statistics"
    """Who the run trains on (:mod:`common.evaluation.statistics`); no model is asked."""

    AGAINST_ALONE = "against alone"
    """How often the last model is right where each hospital's own is wrong (:mod:`common.evaluation.against_alone`)."""

    SPREAD = "spread"
    """How far hospitals' own AUC of the last model lie apart (:mod:`common.evaluation.site_spread`)."""


WITHOUT_TREES = (ReleaseKind.STATISTICS, ReleaseKind.AGAINST_ALONE, ReleaseKind.SPREAD)
"""Releases that are counted otherwise than by :class:`~common.evaluation.layout.Layout`."""


@dataclass(frozen=True)
class Release:
    """One question that a run asks once.

    Attributes:
        number: in the plan, from 0.
        part: of the data.
        after_step: optimiser steps of the run that its model has behind it, 0 for the first model.
        share: of the part's budget, in (0, 1].
        kind: what is asked.
    """

    number: int
    part: Part
    after_step: int
    share: float
    kind: ReleaseKind


@dataclass(frozen=True)
class EvaluationPlan:
    """All releases of a run. Built with :meth:`of`, by server and hospitals alike, from the run description alone.

    Attributes:
        kind: of the task.
        classes: of the task; of a multi-label task the labels.
        epsilon: that a part's planned releases stay within.
        delta: at which.
        accountant: that composes them.
        releases: in order; release 0 counts classes, the last two are the final ones of validation and test.
        repeats: how many releases of each part may be asked again, each booked again.
        full_noise: z_1, the noise multiplier of a release of share 1.
        statistics_epsilon: for each training unit, of the statistics before training; 0 where none are asked for.
        statistics_noise: their noise multiplier; 0 where none are asked for.
        against_alone: the last model is compared with hospitals' models of their own records.
        spread_share: of the test part's budget, for the spread of hospitals' own AUC; 0 where nobody asks.
        labels_left_out: the task leaves single labels of a record out.
    """

    kind: TaskKind
    classes: int
    epsilon: float
    delta: float
    accountant: Accountant
    releases: tuple[Release, ...]
    repeats: int
    full_noise: float
    statistics_epsilon: float = 0.0
    statistics_noise: float = 0.0
    against_alone: bool = False
    spread_share: float = 0.0
    labels_left_out: bool = False

    @classmethod
    def of(
        cls,
        *,
        rounds: int,
        classes: int,
        kind: TaskKind,
        epsilon: float,
        delta: float,
        accountant: Accountant,
        interim_releases: int,
        repeats: int,
        statistics_epsilon: float = 0.0,
        against_alone: bool = False,
        spread_share: float = 0.0,
        labels_left_out: bool = False,
    ) -> Self:
        """Lay out a run's releases.

        A run of at most ``interim_releases + 1`` rounds is measured after every one, a longer one at as many steps,
        evenly spaced.

        Args:
            rounds: R of the run, at least 1; step s is the model that s rounds made.
            classes: of the task, or its labels.
            kind: of the task.
            epsilon: for each unit of a part, over the run without repeats.
            delta: at which.
            accountant: that hospitals book with.
            interim_releases: the most measurements before the last model, at least 1.
            repeats: releases of each part that may be asked again.
            statistics_epsilon: for each training unit, of the statistics before training; 0 for none.
            against_alone: compare the last model with hospitals' models of their own records, on test records.
            spread_share: of the test part's budget, for the spread of hospitals' own AUC; 0 for none.
            labels_left_out: the task leaves single labels of a record out.

        Raises:
            PrivacyError: a value is out of range, or no noise reaches ``epsilon``.
        """
        if rounds < 1 or interim_releases < 1 or repeats < 0:
            raise PrivacyError(
                f"a plan needs at least 1 round, 1 interim release and 0 repeats, got {rounds}, {interim_releases} "
                f"and {repeats}; correct experiment.rounds and evaluation"
            )
        layout_of(kind, classes, classes_only=False, final=True, with_classes=True)
        of_test = 1 - (ALONE_SHARE if against_alone else 0.0) - spread_share
        releases = _releases(rounds, interim_releases, of_test)
        return cls(
            kind=kind,
            classes=classes,
            epsilon=epsilon,
            delta=delta,
            accountant=accountant,
            releases=releases,
            repeats=repeats,
            full_noise=_full_noise(epsilon, delta, accountant),
            statistics_epsilon=statistics_epsilon,
            statistics_noise=_full_noise(statistics_epsilon, delta, accountant) if statistics_epsilon else 0.0,
            against_alone=against_alone,
            spread_share=spread_share,
            labels_left_out=labels_left_out,
        )

    @property
    def norm_bound(self) -> int:
        """Return S: the L2 norm of a unit's whole numbers, which no unit passes."""
        return NORM_BOUND

    @property
    def length(self) -> int:
        """Return how many entries a vector has, whichever release it answers."""
        longest = max(self.layout(release).length for release in self.releases)
        if self.statistics is not None:
            longest = max(longest, length_of(class_bins(self.kind, self.classes)))
        if self.against_alone:
            longest = max(longest, length_against_alone(self.classes))
        return max(longest, length_of_spread()) if self.spread_share else longest

    @property
    def final_validation(self) -> Release:
        """Return the release that measures the last model on validation records; it fixes edges and threshold."""
        return self.releases[-2]

    @property
    def test(self) -> Release:
        """Return the release that measures the last model on test records."""
        return self.releases[-1]

    @property
    def statistics(self) -> Release | None:
        """Return the release that counts who the run trains on, numbered after all others; None where there is none."""
        if not self.statistics_noise:
            return None
        return Release(len(self.releases), Part.TRAINING, 0, 1.0, ReleaseKind.STATISTICS)

    @property
    def comparison(self) -> Release | None:
        """Return the release that compares the last model with hospitals' own; None without it."""
        if not self.against_alone:
            return None
        number = len(self.releases) + (self.statistics is not None)
        return Release(number, Part.TEST, self.test.after_step, ALONE_SHARE, ReleaseKind.AGAINST_ALONE)

    @property
    def spread(self) -> Release | None:
        """Return the release that tells how far hospitals' own AUC lie apart, numbered last; None without it."""
        if not self.spread_share:
            return None
        number = len(self.releases) + (self.statistics is not None) + (self.comparison is not None)
        return Release(number, Part.TEST, self.test.after_step, self.spread_share, ReleaseKind.SPREAD)

    @property
    def everything(self) -> tuple[Release, ...]:
        """Return all releases, also those that no tree counts."""
        without = (self.statistics, self.comparison, self.spread)
        return (*self.releases, *(each for each in without if each is not None))

    def release(self, number: int) -> Release:
        """Return a release by its number.

        Raises:
            PrivacyError: the plan has no such release.
        """
        everything = self.everything
        if not 0 <= number < len(everything):
            raise PrivacyError(f"a release must be one of the plan's {len(everything)}, from 0, got {number}")
        return everything[number]

    def release_at(self, step: int) -> Release | None:
        """Return the release that rides on the training round which starts from the model of ``step``, if any."""
        return next((r for r in self.releases[:-2] if r.after_step == step), None)

    def layout(self, release: Release) -> Layout:
        """Return which entries of a vector answer ``release``."""
        return layout_of(
            self.kind,
            self.classes,
            classes_only=release.kind is ReleaseKind.CLASSES,
            final=release.kind is ReleaseKind.FINAL,
            with_classes=release.part is Part.TEST,
            labels_left_out=self.labels_left_out,
        )

    def edges(self, release: Release) -> tuple[int, ...]:
        """Return how many edges a question about ``release`` has, for each score that it cuts.

        A comparison of models that decide between two classes has one, the threshold of the run's model.
        """
        if release.kind is ReleaseKind.AGAINST_ALONE:
            return (1,) if self.kind is TaskKind.BINARY else ()
        return () if release.kind in WITHOUT_TREES else self.layout(release).edges

    def noise_multiplier(self, release: Release) -> float:
        """Return z of a release: the noise that is sure to be in the sum, over S."""
        if release.kind is ReleaseKind.STATISTICS:
            return self.statistics_noise
        return self.full_noise / math.sqrt(release.share)

    def mechanism(self, release: Release, *, colluders: int, tolerated_dropouts: int) -> DistributedMechanism:
        """Return what gives a release its noise and its event: book ``event(1.0)``, add ``noise_share(...)``.

        Raises:
            PrivacyError: a value is out of range.
        """
        return DistributedMechanism(
            noise_multiplier=self.noise_multiplier(release),
            max_grad_norm=1.0,
            norm_bound=self.norm_bound,
            dimension=self.length,
            colluders=colluders,
            tolerated_dropouts=tolerated_dropouts,
        )

    def spent(self, part: Part, repeated: tuple[Release, ...] = ()) -> float:
        """Return the ε of all planned releases of a part, and of repeated ones, for each unit at the plan's δ."""
        asked = [release for release in (*self.everything, *repeated) if release.part is part]
        mu = math.sqrt(sum(self.noise_multiplier(release) ** -2 for release in asked))
        return accounted_epsilon(mu, self.delta, self.accountant)

    def most_spent(self, part: Part) -> float:
        """Return the ε of a part if releases of each share are repeated as often as the plan allows."""
        alike = {release.share: release for release in self.everything if release.part is part}
        return self.spent(part, tuple(alike.values()) * self.repeats)

    def describe(self) -> tuple[str, ...]:
        """Return the plan as lines that a person reads."""
        interim = [str(release.after_step) for release in self.releases if release.kind is ReleaseKind.INTERIM]
        validation, test = (rounded_up(self.spent(part)) for part in EVALUATED)
        noise = {release.number: f"noise multiplier {self.noise_multiplier(release):.2f}" for release in self.releases}
        relation = "zero-out: a unit against an empty one; the number of units is public"
        spent = f"ε = {validation:.3f} for each validation unit and {test:.3f} for each test unit at δ = {self.delta:g}"
        lines = [
            f"evaluation: {spent} ({relation})",
            f"  validation: the class count before round 1 ({noise[0]})",
        ]
        if interim:
            after = "after round" if len(interim) == 1 else "after each of rounds"
            lines.append(f"  validation: {after} {', '.join(interim)} ({noise[1]})")
        lines.append(f"  validation: the last model ({noise[self.final_validation.number]})")
        lines.append(f"  test: the last model, once ({noise[self.test.number]})")
        if self.comparison is not None:
            lines.append(
                f"  test: against each hospital's model of its own records, once "
                f"(noise multiplier {self.noise_multiplier(self.comparison):.2f})"
            )
        if self.spread is not None:
            lines.append(
                f"  test: how far hospitals' own AUC lie apart, once "
                f"(noise multiplier {self.noise_multiplier(self.spread):.2f})"
            )
        if self.statistics is not None:
            told = rounded_up(self.spent(Part.TRAINING))
            lines.append(
                f"  training: who is trained on, once before round 1: ε = {told:.3f} for each training unit beside "
                f"that of training (noise multiplier {self.statistics_noise:.2f})"
            )
        if self.repeats:
            lines.append(
                f"  up to {self.repeats} releases of each kind may be repeated after a failed round; ε is then at most "
                f"{rounded_up(self.most_spent(Part.VALIDATION)):.3f} and {rounded_up(self.most_spent(Part.TEST)):.3f}"
            )
        return tuple(lines)


def _releases(rounds: int, interim_releases: int, of_test: float) -> tuple[Release, ...]:
    count = min(rounds - 1, interim_releases)
    every = rounds <= interim_releases + 1
    steps = [i if every else round(i * rounds / (count + 1)) for i in range(1, count + 1)]
    final = 1 - CLASSES_SHARE - (INTERIM_SHARE if steps else 0)
    releases = [Release(0, Part.VALIDATION, 0, CLASSES_SHARE, ReleaseKind.CLASSES)]
    for number, step in enumerate(steps, start=1):
        releases.append(Release(number, Part.VALIDATION, step, INTERIM_SHARE / count, ReleaseKind.INTERIM))
    releases.append(Release(len(releases), Part.VALIDATION, rounds, final, ReleaseKind.FINAL))
    releases.append(Release(len(releases), Part.TEST, rounds, of_test, ReleaseKind.FINAL))
    return tuple(releases)


@lru_cache(maxsize=256)
def _full_noise(target: float, delta: float, accountant: Accountant) -> float:
    """Return z_1, with which the accountant bounds all releases of a part together by ``target``.

    It is in closed form, because a server plans without PyTorch, which the accountants need; hospitals ask the
    accountant.
    """
    mu = accounted_mu(target, delta, accountant)
    if mu == 0:
        raise PrivacyError(
            f"no noise keeps an evaluation within ε = {target:g} at δ = {delta:g} by the {accountant.upper()} "
            f"accountant; raise evaluation.target_epsilon"
        )
    return 1 / mu
