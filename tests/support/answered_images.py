"""A model, a chest's header and answers, for tests of what ./confide predict writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.uid import generate_uid

from common.models import registry
from common.models.flat import flat_parameters
from common.run.model_facts import ModelFacts
from deploy.results.model_file import save_model
from deploy.results.stored_answers import StoredAnswer

STUDY, SERIES = generate_uid(), generate_uid()
HEADER: Mapping[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg", "PatientID": "4711", "PatientSex": "M",
    "PatientBirthDate": "19500102", "AccessionNumber": "A-1", "StudyID": "S1", "StudyDate": "20260102",
    "StudyTime": "101112", "ReferringPhysicianName": "Dr Weiß", "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES,
    "BodyPartExamined": "CHEST", "ViewPosition": "PA", "InstitutionName": "St. Elsewhere", "OperatorsName": "Doe^Jane",
}  # fmt: skip


def small_model(folder: Path) -> Path:
    """Save a model of chests of 28 pixels in a folder, and return it."""
    torch.set_num_threads(1)
    name = "scattering_linear"
    network = registry.build(name, 2, 1, 28, seed=3)
    flat = np.random.default_rng(2).normal(0, 0.1, flat_parameters(network).shape).astype(np.float32)
    facts = ModelFacts(
        architecture=name, classes=("normal", "pneumonia"), channels=1, image_size=28, threshold=0.4, run_id="0" * 32,
        task="pneumonia", data_set="phantom", privacy={"mode": "none"},
    )  # fmt: skip
    save_model(folder, flat, facts)
    return folder


def answer(number: int, **fields: object) -> StoredAnswer:
    usual: dict[str, object] = {
        "time": 1.8e9, "model": "a" * 64, "classes": ("normal", "pneumonia"), "image": f"{number:064x}",
        "file": f"{number}.dcm", "accession_number": f"A{number}", "study_instance_uid": "", "predicted": "normal",
        "probabilities": {"normal": 0.7, "pneumonia": 0.3}, "score": -0.85, "brightness": 0.5, "contrast": 0.2,
        "distance": 0.3, "remarks": (),
    }  # fmt: skip
    return StoredAnswer.model_validate({**usual, **fields})
