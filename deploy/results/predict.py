"""``confide predict``: classify images with a trained model, at the threshold its hospitals' validation parts chose.

What a check of the data would find of an image is said beside its answer. Where answers are filed or stored, such an
image gets none: a report in an archive outlives the remark beside it.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from client.data.contract import DataContract
from client.data.examine import look_at
from client.data.mistakes import ADVICE, Finding, Mistake
from client.data.pixels import UnusableImageError
from client.data.readers import HEAD_BYTES, quiet
from client.data.readers.dicom import is_dicom, parse_dicom
from common.errors import DataError
from common.files import make_private_folder, write_private
from common.shards import MAX_FILE_BYTES, fit
from common.task import TaskKind
from deploy.command import FILE, command, json_option
from deploy.results.classifier import Classifier, Mix, decided, log_odds, probabilities_of, thresholds_of
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, ModelCard, load_model
from deploy.results.predict_files import Prediction, Unanswered, files_of, write_table
from deploy.results.saliency import occlusion
from deploy.results.stored_answers import StoredAnswer, input_statistics, store

NOT_A_DEVICE = "A research model, not a medical device: no decision about a patient may rest on it."

TWO_CLASSES = 2
REPORT_ENDING, PICTURE_ENDING = ".confide-sr.dcm", ".confide-saliency.dcm"

_AT_ONCE = 256
"""Images in memory at a time."""

_ALLOWS_AN_ANSWER = frozenset({Mistake.FUTURE_STUDY, Mistake.BURNED_IN_TEXT, Mistake.BURNED_IN_TEXT_SUSPECTED})
"""What a check says of a clock, or of privacy, and not of whether the model was trained for such an image."""


@dataclass(frozen=True)
class OpenedImage:
    """One image that can be read, without its file's bytes, which may be many megabytes.

    Attributes:
        path: of the file.
        digest: SHA-256 of it, in hexadecimal.
        study: accession number and Study Instance UID, '' where it does not say; None where it is not DICOM.
        pixels: as the model takes them, uint8 (channels, image_size, image_size).
        findings: what is odd about it.
    """

    path: Path
    digest: str = field(repr=False)
    study: tuple[str, str] | None = field(repr=False)
    pixels: NDArray[np.uint8] = field(repr=False)
    findings: tuple[Finding, ...] = field(repr=False)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is odd, as ``kind: reason``."""
        return tuple(map(_remark, self.findings))

    @property
    def flags(self) -> tuple[Finding, ...]:
        """What of it forbids to file an answer."""
        return tuple(finding for finding in self.findings if finding.mistake not in _ALLOWS_AN_ANSWER)


@command(
    "predict",
    "Classify images with a trained model, at the threshold that its hospitals' validation parts chose. A research "
    "model, not a medical device. What a check of the data would find of an image is said beside its answer; a file "
    "that cannot be used is named at the end, and the others are answered.\n\n"
    f"MODEL is a run's folder, or one of {CARD_FILE} and {TENSORS_FILE}. IMAGE is PNG, JPEG or DICOM, or a folder.",
    "./confide predict runs/0123456789ab image.png\n./confide predict runs/0123456789ab /srv/xrays --csv answers.csv",
)
@click.argument("model", type=FILE)
@click.argument("images", nargs=-1, required=True, type=FILE, metavar="IMAGE...")
@click.option("--csv", "csv_file", type=FILE, metavar="FILE", help="Write the answers to this table.")
@click.option(
    "--dicom-sr",
    type=FILE,
    metavar="DIR",
    help="Write a DICOM Structured Report and a picture of the saliency for each image, which must be DICOM.",
)
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="P",
    help="Give the probabilities for a share P of the second class where the images come from; of two classes alone.",
)
@click.option("--store", "kept", type=FILE, metavar="FILE", help="Add the answers to this file, for a silent trial.")
@json_option()
def main(
    model: Path,
    images: tuple[Path, ...],
    csv_file: Path | None,
    dicom_sr: Path | None,
    prevalence: float | None,
    kept: Path | None,
    as_json: bool,
) -> int:
    """Classify the images named, and store or file the answers."""
    folder = model.parent if model.name in (CARD_FILE, TENSORS_FILE) else model
    flat, card = load_model(folder)
    mix = _checked(card, prevalence, kept, dicom_sr)
    paths, passed_over = files_of(images)
    asked = _Asked(Classifier(flat, card), card, kept, dicom_sr, mix)
    asked.about(paths)
    answers, unanswered = asked.answers, asked.unanswered
    reasons = "\n".join(each.error for each in unanswered)
    if not answers:
        raise DataError(f"no image could be read\n{reasons}")
    if csv_file is not None:
        write_table(csv_file, answers, unanswered, card)
    if as_json:
        for each in (*answers, *unanswered):
            print(json.dumps(vars(each)))
    else:
        _print_table(answers, card, mix)
        if passed_over:
            print(f"{passed_over} files in folders are no images and were passed over")
        if kept is not None:
            print(f"{asked.added} answers were stored, {len(answers) - asked.added} were stored before")
    if unanswered:
        raise DataError(f"{len(unanswered)} images got no answer, {len(answers)} did\n{reasons}")
    return 0


@dataclass
class _Asked:
    """What a model has said so far.

    Attributes:
        classifier: the model.
        card: what it is.
        kept: a file that answers are added to, or None.
        dicom_sr: a folder that reports go into, or None.
        mix: that the probabilities are given for; None for the model's own.
        answers: in the order of the files.
        unanswered: files that cannot be used.
        added: how many answers the file of ``kept`` lacked.
    """

    classifier: Classifier
    card: ModelCard
    kept: Path | None
    dicom_sr: Path | None
    mix: Mix | None = None
    answers: list[Prediction] = field(default_factory=list)
    unanswered: list[Unanswered] = field(default_factory=list)
    added: int = 0

    def about(self, paths: Sequence[Path]) -> None:
        """Ask about files, a few at a time; before a report is filed, all are checked.

        Raises:
            DataError: where reports are to be filed, one image cannot be used or was flagged.
        """
        size = len(paths) if self.dicom_sr is not None else _AT_ONCE
        for start in range(0, len(paths), size):
            opened, unreadable = _open_all(paths[start : start + size], self.card, go_on=self.dicom_sr is None)
            self.unanswered += unreadable
            if opened:
                self._answer(opened)

    def _answer(self, opened: Sequence[OpenedImage]) -> None:
        if self.dicom_sr is not None:
            _check_fileable(opened)
        scores = self.classifier.scores(np.stack([each.pixels for each in opened]))
        predictions = _predictions(opened, scores, self.card)
        self.answers += predictions if self.mix is None else [_mixed(each, self.mix) for each in predictions]
        if self.kept is not None:
            self.added += store(self.kept, _stored(opened, predictions, scores, self.card))
        if self.dicom_sr is not None:
            _file(self.dicom_sr, self.classifier, self.card, opened, predictions)


def predict(flat: NDArray[np.float32], card: ModelCard, images: Sequence[Path]) -> list[Prediction]:
    """Classify images, prepared exactly as a hospital prepares those it trains on.

    Args:
        flat: the model's parameters, float32, shape (d,).
        card: what the model is; its ``threshold`` decides between two classes, the largest probability between more.
        images: PNG, JPEG or DICOM files.

    Raises:
        DataError: an image cannot be used; names the file, the reason and the remedy. Nothing is classified then.
    """
    opened = [_open(image, card) for image in images]
    return _predictions(opened, Classifier(flat, card).scores(np.stack([each.pixels for each in opened])), card)


def _predictions(opened: Sequence[OpenedImage], scores: NDArray[np.float64], card: ModelCard) -> list[Prediction]:
    return [
        Prediction(
            str(each.path),
            decided(row, card),
            dict(zip(card.classes, row.tolist(), strict=True)),
            each.remarks,
        )
        for each, row in zip(opened, probabilities_of(scores, card), strict=True)
    ]


def _checked(card: ModelCard, prevalence: float | None, kept: Path | None, dicom_sr: Path | None) -> Mix | None:
    """Return the mix that probabilities are asked for, if one is; before any image is read.

    Raises:
        DataError: the model, or another option, does not allow what is asked; says why.
    """
    if card.kind is TaskKind.MULTILABEL and kept:
        raise DataError(
            "--store takes models that give one class an image, as a silent trial compares them; this one gives "
            "labels: use --csv"
        )
    if prevalence is None:
        return None
    if card.prevalence is None:
        raise DataError(
            f"--prevalence needs a model of two classes whose {CARD_FILE} says at which prevalence its probabilities "
            "were fixed; this one does not: leave the option out"
        )
    if kept or dicom_sr:
        raise DataError("--prevalence must be left out with --store and --dicom-sr, which keep the model's own answer")
    return Mix(card.prevalence, prevalence)


def _mixed(answer: Prediction, mix: Mix) -> Prediction:
    """Return an answer with its probabilities in another mix of two classes; what is predicted stays."""
    first, second = answer.probabilities
    own = mix.change(answer.probabilities[second])
    return replace(answer, probabilities={first: 1 - own, second: own}, prevalence=mix.prevalence)


def _open_all(paths: Sequence[Path], card: ModelCard, *, go_on: bool) -> tuple[list[OpenedImage], list[Unanswered]]:
    """Return the images, and why others can't be read.

    Args:
        paths: of the files.
        card: of the model.
        go_on: leave out what cannot be read: a folder's thousand answers must not end at one file.

    Raises:
        DataError: without ``go_on``, an image cannot be used; names the file, the reason and the remedy.
    """
    opened, unreadable = [], []
    for path in paths:
        try:
            opened.append(_open(path, card))
        except DataError as error:
            if not go_on:
                raise
            unreadable.append(Unanswered(str(path), str(error)))
    return opened, unreadable


def _open(path: Path, card: ModelCard) -> OpenedImage:
    """Read an image as the model takes it, and what is odd about it."""
    content = _read(path)
    try:
        with quiet():
            picture, findings = look_at(content, _contract(card))
    except UnusableImageError as problem:
        advice = ADVICE[problem.mistake]
        detail = f" ({problem.detail})" if problem.detail else ""
        raise DataError(f"{path} cannot be used: {advice.reason}{detail}; {advice.remedy}") from None
    image = Image.fromarray(picture.pixels).convert("L" if card.channels == 1 else "RGB")
    digest = hashlib.sha256(content).hexdigest()
    return OpenedImage(path, digest, _study(content), fit(image, card.image_size), findings)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} must be a readable image: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{path} must have at most {MAX_FILE_BYTES} bytes")
    return content


def _contract(card: ModelCard) -> DataContract:
    return DataContract(card.task, card.classes, card.channels, card.image_size, 1, 0.0)


def _check_fileable(opened: Sequence[OpenedImage]) -> None:
    """Refuse what gets no Structured Report, before anything is written.

    Raises:
        DataError: an image is not DICOM, was flagged, or has the name of another one.
    """
    for each in opened:
        if each.study is None:
            raise DataError(f"--dicom-sr: {each.path} must be DICOM, for a report is filed with the image's own study")
    flagged = [f"{each.path}: {'; '.join(map(_remark, each.flags))}" for each in opened if each.flags]
    if flagged:
        raise DataError(
            "--dicom-sr: no report may be filed for an image that the checks flag, and none was; leave it out, or see "
            "docs/data-manager.md for the remedy\n" + "\n".join(flagged)
        )
    names = [each.path.stem for each in opened]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"--dicom-sr: two images are called {twice}, and so would be their reports; rename one")


def _file(
    folder: Path,
    classifier: Classifier,
    card: ModelCard,
    opened: Sequence[OpenedImage],
    predictions: Sequence[Prediction],
) -> None:
    from deploy.results.dicom_answer import ImageAnswer, file_answer  # highdicom takes a second to import

    for each, prediction in zip(opened, predictions, strict=True):
        chosen = _explained(prediction, card)
        saliency = occlusion(partial(_margin, classifier, chosen, card), each.pixels)
        answer = ImageAnswer(
            prediction.predicted, card.classes[chosen], prediction.probabilities, saliency, each.pixels, each.remarks
        )
        content = _read(each.path)
        if hashlib.sha256(content).hexdigest() != each.digest:
            raise DataError(f"--dicom-sr: {each.path} was changed while it was read; run the command again")
        try:
            filed = file_answer(content, answer, card)
        except DataError as error:
            raise DataError(f"--dicom-sr: {each.path}: {error}") from None
        try:
            make_private_folder(folder)
            write_private(folder / (each.path.stem + PICTURE_ENDING), filed.picture)
            write_private(folder / (each.path.stem + REPORT_ENDING), filed.report)
        except OSError as error:
            raise DataError(f"--dicom-sr must name a folder that can be written: {error.strerror}") from None


def _explained(prediction: Prediction, card: ModelCard) -> int:
    """Return the class that the picture explains: the predicted one; of labels, that furthest above its threshold."""
    if card.kind is not TaskKind.MULTILABEL:
        return card.classes.index(prediction.predicted)
    apart = np.array([prediction.probabilities[name] for name in card.classes]) - thresholds_of(card)
    return int(apart.argmax())


def _margin(classifier: Classifier, chosen: int, card: ModelCard, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    scores = classifier.scores(images)
    return scores[:, chosen] if card.kind is TaskKind.MULTILABEL else log_odds(scores, chosen)


def _stored(
    opened: Sequence[OpenedImage], predictions: Sequence[Prediction], scores: NDArray[np.float64], card: ModelCard
) -> list[StoredAnswer]:
    reference, now, answers = _contract(card).kind.reference, time.time(), []
    for each, prediction, row in zip(opened, predictions, scores, strict=True):
        accession, study = each.study or ("", "")
        brightness, contrast, distance = input_statistics(each.pixels, reference)
        chosen = 1 if len(card.classes) == TWO_CLASSES else card.classes.index(prediction.predicted)
        stands = not each.flags
        answers.append(
            StoredAnswer(
                time=now,
                model=card.sha256,
                classes=card.classes,
                image=each.digest,
                file=each.path.name,
                accession_number=accession,
                study_instance_uid=study,
                predicted=prediction.predicted if stands else "",
                probabilities=prediction.probabilities if stands else {},
                score=float(log_odds(row[None], chosen)[0]) if stands else None,
                brightness=brightness,
                contrast=contrast,
                distance=distance,
                remarks=each.remarks,
            )
        )
    return answers


def _study(content: bytes) -> tuple[str, str] | None:
    """Return Accession Number and Study Instance UID of a DICOM file, '' where it does not say; None for another."""
    if not is_dicom(content[:HEAD_BYTES]):
        return None
    with quiet():
        dataset = parse_dicom(content)
        return str(dataset.get("AccessionNumber") or "").strip(), str(dataset.get("StudyInstanceUID") or "").strip()


def _remark(finding: Finding) -> str:
    detail = f" ({finding.detail})" if finding.detail else ""
    return f"{finding.mistake.value}: {finding.advice.reason}{detail}"


def _print_table(predictions: Sequence[Prediction], card: ModelCard, mix: Mix | None) -> None:
    rule = "each label from its threshold on" if card.kind is TaskKind.MULTILABEL else "most probable class"
    if card.threshold is not None:
        threshold = card.threshold if mix is None else mix.change(card.threshold)
        rule = f"{card.classes[1]} from {threshold:.3f} on, as validation records fixed it"
    table = Table(title=f"{card.architecture} trained on {card.data_set} ({rule})", title_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("prediction", style="bold")
    for name in card.classes:
        table.add_column(name, justify="right")
    for prediction in predictions:
        shown = (f"{probability:.3f}" for probability in prediction.probabilities.values())
        table.add_row(prediction.file, prediction.predicted + (" (!)" if prediction.remarks else ""), *shown)
    console = Console()
    console.print(table)
    for prediction in predictions:
        for remark in prediction.remarks:
            console.print(
                f"(!) {prediction.file}: {remark}", style="red", markup=False, soft_wrap=True, highlight=False
            )
    if mix is not None:
        console.print(
            f"The probabilities are for a place where {mix.prevalence:.1%} are {card.classes[1]}; of the validation "
            f"records that fixed them {mix.fixed_at:.1%} were. What is predicted does not change.",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    for line in (*card.caveats, NOT_A_DEVICE):
        console.print(line, style="yellow", soft_wrap=True, highlight=False)
