"""What a run asks of a hospital's data; follows from the run description, so every hospital checks the same."""

from dataclasses import dataclass
from typing import Self

from client.data.likeness import CHEST, LikenessReference
from common.config import PrivacyUnit, RunDescription
from common.task import ImageKindName, TaskConfig, implied


@dataclass(frozen=True)
class ImageKind:
    """What the images of a task are by nature.

    Attributes:
        name: as a person says it.
        modalities: DICOM Modality (0008,0060) values that may be mixed; empty if any one may be used.
        body_parts: words of which Body Part Examined (0018,0015) holds one where it is filled in; empty if any may.
        frontal: whether lateral and oblique views do not belong to the task.
        reference: what images of the task look like; None if that is not known.
        upright: the mean picture on an 8 x 8 grid, row by row, to recognise an inverted image; empty if none is known.
        least_range: of 256 grey levels, how many must lie between the 1st and the 99th percentile of an image.
        most_bare: the largest share of an image that may be about black; 1 if any may.
    """

    name: str
    modalities: frozenset[str] = frozenset()
    body_parts: frozenset[str] = frozenset()
    frontal: bool = False
    reference: LikenessReference | None = None
    upright: tuple[float, ...] = ()
    least_range: int = 0
    most_bare: float = 1.0


_LEAST_RANGE = 16
"""The grey levels that remain of 12 bits when the upper 8 are dropped; real images of both kinds have 29 or more."""

CHEST_RADIOGRAPH = ImageKind(
    "chest radiograph",
    frozenset({"CR", "DX", "DR", "RG", "SC", "OT"}),
    frozenset({"CHEST", "THORAX", "TORAX", "TORACE", "LUNG", "LUNGE", "PULMON", "POUMON"}),
    frontal=True,
    reference=CHEST,
    # Mean of PneumoniaMNIST's training images (Yang et al. 2023), each centred and scaled to length 1. Against it all
    # 5,856 X-rays of Kermany et al. correlate above 0.3 at 224 pixels, and above 0 at 28.
    upright=(
        -0.18, -0.11, -0.02, +0.07, +0.06, -0.04, -0.13, -0.19,
        -0.08, -0.05, -0.04, +0.07, +0.06, -0.06, -0.03, -0.09,
        -0.08, -0.11, -0.10, +0.10, +0.09, -0.09, -0.07, -0.08,
        -0.12, -0.18, -0.07, +0.14, +0.15, +0.00, -0.09, -0.09,
        -0.17, -0.19, -0.03, +0.17, +0.18, +0.08, -0.07, -0.12,
        -0.20, -0.17, -0.04, +0.17, +0.19, +0.10, -0.05, -0.16,
        -0.08, +0.04, +0.11, +0.20, +0.20, +0.12, +0.02, -0.13,
        +0.07, +0.18, +0.21, +0.23, +0.22, +0.16, +0.12, -0.01,
    ),
    least_range=_LEAST_RANGE,
    # A chest fills its film, a limb does not. Of 3,451 chest X-rays one has more.
    most_bare=0.35,
)  # fmt: skip
"""DICOM modalities of X-rays. Many archives call a digitised or re-exported radiograph SC or OT."""

FUNDUS_PHOTOGRAPH = ImageKind("fundus photograph", frozenset({"OP", "XC", "SC", "OT"}), least_range=_LEAST_RANGE)

ANY_IMAGE = ImageKind("image")

_KINDS_BY_NAME = {
    ImageKindName.CHEST_RADIOGRAPH: CHEST_RADIOGRAPH,
    ImageKindName.FUNDUS_PHOTOGRAPH: FUNDUS_PHOTOGRAPH,
}

_KINDS = {
    "pneumonia": CHEST_RADIOGRAPH,
    "pneumoniamnist": CHEST_RADIOGRAPH,
    "retina": FUNDUS_PHOTOGRAPH,
    "retinamnist": FUNDUS_PHOTOGRAPH,
}


@dataclass(frozen=True)
class DataContract:
    """The terms.

    Attributes:
        task: what the classes are.
        classes: names of the classes in the order of their indices.
        channels: 1 (grey) or 3 (colour).
        image_size: pixels on a side of what the model takes; smaller images are refused.
        batch_size: expected records of a Poisson batch; fewer training records make no batch. 1 where the run names a
            sample rate instead.
        delta: of (ε, δ); must stay below 1 / training records; 0 for a run without privacy.
        unit: what one unit of privacy is; ``patient`` needs every patient known.
        min_records_per_class: training records there must be of every class; with 0 a class may be missing.
        terms: what labels mean; None where that follows from the name and the classes.
    """

    task: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    batch_size: int
    delta: float
    unit: PrivacyUnit = PrivacyUnit.RECORD
    min_records_per_class: int = 0
    terms: TaskConfig | None = None

    @property
    def meaning(self) -> TaskConfig:
        """What the task is and what labels mean."""
        return implied(self.task, self.classes) if self.terms is None else self.terms

    @classmethod
    def of_run(cls, run: RunDescription) -> Self:
        """Read the terms out of a run description, without those about how much data there is.

        These are judged against what the hospital's policy states (``client/policy.py``): a refusal that depended on
        the data would let a server find out by trying.
        """
        return cls(
            run.experiment.task,
            run.classes,
            run.channels,
            run.model.image_size,
            1,
            0.0,
            run.privacy.unit,
            0,
            run.task,
        )

    @property
    def kind(self) -> ImageKind:
        """What the task's images are by nature."""
        if self.terms is not None and self.terms.images in _KINDS_BY_NAME:
            return _KINDS_BY_NAME[self.terms.images]
        return _KINDS.get(self.task, ANY_IMAGE)
