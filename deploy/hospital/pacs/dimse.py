"""Queries and retrieves by DICOM's own protocol, C-FIND with C-GET or C-MOVE (PS3.4, annex C), by pynetdicom."""

import datetime
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # they are made when the module is loaded
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MRImageStorage,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicPhotography16BitImageStorage,
    SecondaryCaptureImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    UltrasoundImageStorage,
)

from common.errors import RunError
from deploy.hospital.pacs.access import Dicom
from deploy.hospital.pacs.files import file_of
from deploy.hospital.pacs.studies import (
    PacsAwayError,
    PacsError,
    PacsRefusesError,
    PacsStudy,
    Received,
    Series,
    StudyList,
    is_uid,
)

_IMAGES: tuple[UID, ...] = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicPhotography16BitImageStorage,
    UltrasoundImageStorage,
    CTImageStorage,
    MRImageStorage,
)
_ENCODINGS: tuple[tuple[UID, ...], ...] = (
    (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
    (JPEGBaseline8Bit,),
    (JPEGExtended12Bit,),
    (JPEGLossless,),
    (JPEGLosslessSV1,),
    (JPEGLSLossless,),
    (JPEGLSNearLossless,),
    (JPEG2000Lossless,),
    (JPEG2000,),
    (RLELossless,),
    (DeflatedExplicitVRLittleEndian,),
)
"""Transfer syntaxes with a context each, so that the PACS sends an image as it is kept; 128 have room."""

_PENDING = (0xFF00, 0xFF01)
_SUCCESS = 0x0000
_STORED, _NOT_STORED = 0x0000, 0xA700
_TRANSIENT = 2
"""The result of a rejection that may not last (PS3.8, 9.3.4)."""

_CONNECT_SECONDS, _ANSWER_SECONDS, _IDLE_SECONDS = 15.0, 120.0, 600.0
_LARGEST_PDU = 2**17

GONE = "the PACS cannot be reached, or broke off"


@dataclass
class _Delivery:
    """Takes the objects that the PACS sends; it takes none while no series is asked for."""

    folder: Path | None = None
    files: dict[str, Path] = field(default_factory=dict, repr=False)
    problem: OSError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, event: evt.Event) -> int:
        """Write one object; returns the status of its C-STORE."""
        with self.lock:
            if self.folder is None:
                return _NOT_STORED
            uid = str(getattr(event.request, "AffectedSOPInstanceUID", ""))
            path = file_of(self.folder, uid)
            try:
                path.write_bytes(event.encoded_dataset())
            except OSError as error:
                self.problem = error
                return _NOT_STORED
            self.files[uid] = path
            return _STORED

    def begin(self, folder: Path) -> None:
        """Take objects into a folder from now on."""
        with self.lock:
            self.folder, self.files, self.problem = folder, {}, None

    def end(self) -> tuple[Path, ...]:
        """Take no more, and return what came.

        Raises:
            OSError: the disk refused an object.
        """
        with self.lock:
            self.folder = None
            if self.problem is not None:
                raise self.problem
            return tuple(self.files.values())


class DicomPacs:
    """One association with a PACS, made when it is needed and made again when it broke."""

    def __init__(self, access: Dicom) -> None:
        """Listen for what a C-MOVE delivers, if that is how studies are retrieved; connect later.

        Raises:
            ConfigError: a certificate or key cannot be used.
            RunError: the port for C-MOVE is taken.
        """
        self._access = access
        self._delivery = _Delivery()
        self._association: Association | None = None
        self._own = AE(access.calling)
        self._own.maximum_pdu_size = _LARGEST_PDU
        self._own.connection_timeout = self._own.acse_timeout = _CONNECT_SECONDS
        self._own.dimse_timeout, self._own.network_timeout = _ANSWER_SECONDS, _IDLE_SECONDS
        self._tls = (access.tls.client_context(), access.host) if access.tls is not None else None
        self._moves = access.retrieve == "move"
        self._listener = self._listen() if self._moves else None

    def studies_of_day(self, day: datetime.date, modalities: Sequence[str]) -> StudyList:
        """Ask once for each modality: a list of them is no query that every PACS knows."""
        found: dict[str, PacsStudy] = {}
        for modality in modalities:
            studies = self._studies(StudyDate=f"{day:%Y%m%d}", ModalitiesInStudy=modality)
            found.update({study.uid: study for study in studies})
        wanted = (study for study in found.values() if not study.modalities or study.modalities & set(modalities))
        return StudyList(tuple(wanted))

    def studies_of_accession(self, accession: str) -> list[PacsStudy]:
        """Ask for one accession number, and keep no other that the PACS may answer with."""
        studies = self._studies(AccessionNumber=accession, StudyDate="", ModalitiesInStudy="")
        return [study for study in studies if study.accession == accession]

    def series_of(self, study: PacsStudy) -> list[Series]:
        """Ask for the series of a study."""
        fields = {"SeriesInstanceUID": "", "Modality": "", "BodyPartExamined": ""}
        answers = self._find("SERIES", StudyInstanceUID=study.uid, **fields)
        return [
            Series(_uid(answer, "SeriesInstanceUID"), _text(answer, "Modality"), _text(answer, "BodyPartExamined"))
            for answer in answers
        ]

    def retrieve(self, study: PacsStudy, series: Series, folder: Path) -> Received:
        """Retrieve a series by C-GET over the same association, or by C-MOVE to our own port."""
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES"
        query.StudyInstanceUID, query.SeriesInstanceUID = study.uid, series.uid
        self._delivery.begin(folder)
        try:
            failed, status = 0, _SUCCESS
            for answer in self._ask(self._move if self._moves else self._get, query):
                failed, status = int(answer.get("NumberOfFailedSuboperations", 0) or 0), int(answer.Status)
        finally:
            files = self._delivery.end()
        if status != _SUCCESS and not files and not failed:
            raise PacsError(f"the PACS ended the retrieval with status {status:#06x}")
        return Received(files, failed)

    def close(self) -> None:
        """Release the association and stop listening."""
        if self._association is not None and self._association.is_established:
            self._association.release()
        if self._listener is not None:
            self._listener.shutdown()

    def _studies(self, **fields: str) -> list[PacsStudy]:
        wanted = {"StudyInstanceUID": "", "AccessionNumber": "", **fields}
        return [
            PacsStudy(
                _uid(answer, "StudyInstanceUID"),
                _text(answer, "AccessionNumber"),
                _text(answer, "StudyDate"),
                frozenset(_texts(answer, "ModalitiesInStudy")),
            )
            for answer in self._find("STUDY", **wanted)
        ]

    def _find(self, level: str, **fields: str) -> list[Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in fields.items():
            setattr(query, keyword, value)
        found = []
        for association, status, answer in self._answers(
            lambda association: association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)
        ):
            if status.Status in _PENDING and answer is None:
                association.abort()
                raise PacsError("the PACS sent an answer that cannot be decoded")
            if status.Status in _PENDING and answer is not None:
                found.append(answer)
            elif status.Status != _SUCCESS:
                raise PacsError(f"the PACS ended the query with status {int(status.Status):#06x}")
        return found

    def _ask(self, send: Callable[[Association, Dataset], Any], query: Dataset) -> Iterator[Dataset]:
        for _, status, _ in self._answers(lambda association: send(association, query)):
            yield status

    def _answers(self, send: Callable[[Association], Any]) -> Iterator[tuple[Association, Dataset, Dataset | None]]:
        association = self._associated()
        try:
            for status, answer in send(association):
                if "Status" not in status:
                    association.abort()
                    raise PacsAwayError(GONE)
                yield association, status, answer
        except RuntimeError:
            raise PacsAwayError(GONE) from None
        except ValueError:
            raise PacsRefusesError(
                f"the PACS must allow C-FIND and C-{self._access.retrieve.upper()} to our title; try the other way, "
                "or ask its administrator"
            ) from None

    @staticmethod
    def _get(association: Association, query: Dataset) -> Any:  # noqa: ANN401 - pynetdicom gives it no public name
        return association.send_c_get(query, StudyRootQueryRetrieveInformationModelGet)

    def _move(self, association: Association, query: Dataset) -> Any:  # noqa: ANN401 - as above
        return association.send_c_move(query, self._access.calling, StudyRootQueryRetrieveInformationModelMove)

    def _associated(self) -> Association:
        if self._association is not None and self._association.is_established:
            return self._association
        association = self._own.associate(
            self._access.host,
            self._access.port,
            contexts=self._contexts(),
            ae_title=self._access.called,
            ext_neg=[] if self._moves else [build_role(kind, scp_role=True) for kind in _IMAGES],
            tls_args=self._tls,
            evt_handlers=[(evt.EVT_CONN_OPEN, _send_at_once), (evt.EVT_C_STORE, self._delivery.take)],
        )
        if association.is_rejected:
            answer = association.acceptor.primitive
            if answer is not None and answer.result == _TRANSIENT:
                raise PacsAwayError("the PACS has no association free")
            raise PacsRefusesError("the PACS must know our titles: it rejects 'called' or 'calling' of the access file")
        if not association.is_established:
            raise PacsAwayError(f"{GONE}; host, port and tls of the access file must be right")
        self._association = association
        return association

    def _contexts(self) -> list[PresentationContext]:
        if self._moves:
            models = (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove)
            return [build_context(model) for model in models]
        models = (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet)
        images = [build_context(kind, list(encoding)) for kind in _IMAGES for encoding in _ENCODINGS]
        return [*(build_context(model) for model in models), *images]

    def _listen(self) -> Any:  # noqa: ANN401 - pynetdicom's server class is no public name
        receiver = AE(self._access.calling)
        receiver.maximum_pdu_size = _LARGEST_PDU
        receiver.require_called_aet = True
        receiver.require_calling_aet = [self._access.called]
        every = [syntax for encoding in _ENCODINGS for syntax in encoding]
        for kind in _IMAGES:
            receiver.add_supported_context(kind, every)
        try:
            return receiver.start_server(
                (self._access.listen_host, self._access.listen_port),
                block=False,
                ssl_context=self._access.tls.server_context() if self._access.tls is not None else None,
                evt_handlers=[(evt.EVT_CONN_OPEN, _send_at_once), (evt.EVT_C_STORE, self._delivery.take)],
            )
        except OSError as error:
            raise RunError(f"listen_port {self._access.listen_port} must be free: {error.strerror}") from None


def _send_at_once(event: evt.Event) -> None:
    """Turn Nagle's algorithm off: it holds back the second half of each request for 40 ms."""
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _text(answer: Dataset, keyword: str) -> str:
    return str(answer.get(keyword, "") or "").strip()


def _texts(answer: Dataset, keyword: str) -> list[str]:
    value = answer.get(keyword)
    values = [value] if isinstance(value, str) else list(value or ())
    return [str(one).strip() for one in values if str(one).strip()]


def _uid(answer: Dataset, keyword: str) -> str:
    uid = _text(answer, keyword)
    if not is_uid(uid):
        raise PacsError(f"the PACS answered with a {keyword} that is no UID")
    return uid
