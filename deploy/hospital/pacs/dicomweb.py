"""Queries and retrieves by DICOMweb: QIDO-RS and WADO-RS (PS3.18, 10.6 and 10.4), carried by httpx."""

import datetime
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from common.shards import MAX_FILE_BYTES
from deploy.hospital.pacs.access import DicomWeb
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

_STUDY_UID, _SERIES_UID, _INSTANCE_UID = "0020000D", "0020000E", "00080018"
_ACCESSION, _DATE, _MODALITIES, _MODALITY, _BODY_PART = "00080050", "00080020", "00080061", "00080060", "00180015"
_SERIES_OF_STUDY, _OBJECTS_OF_SERIES = "00201206", "00201209"

_PAGE = 200
_MOST_PAGES = 5000
_MOST_UNLISTED = 20
"""The most matches in a row that cannot be listed; after more the query fails, not the studies."""

_MOST_DIGITS = 9

_LARGEST_ANSWER = 64 * 2**20

_TIMEOUT = httpx.Timeout(120.0, connect=15.0)
_ANY_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_JSON = "application/dicom+json"
_AWAY = frozenset({408, 429, 502, 503, 504})
_REFUSED = frozenset({401, 403, 407})
_NO_CONTENT = 204

GONE = "the PACS cannot be reached, or broke off"


class WebPacs:
    """One client of a DICOMweb server; it asks no proxy, because a PACS is a neighbour."""

    def __init__(self, access: DicomWeb) -> None:
        """Take the credentials; connect later.

        Raises:
            ConfigError: a certificate or key cannot be used.
        """
        token = access.token.get_secret_value()
        self._client = httpx.Client(
            base_url=access.url.rstrip("/") + "/",
            auth=(access.user, access.password.get_secret_value()) if access.user else None,
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})},
            verify=access.tls.client_context() if access.url.startswith("https") else False,
            timeout=_TIMEOUT,
            trust_env=False,
        )

    def studies_of_day(self, day: datetime.date, modalities: Sequence[str]) -> StudyList:
        """Ask for a whole day and choose here.

        Orthanc's paging loses studies when it must look up the modalities of each (``limit`` then counts those that
        ``offset`` left out), and not every server knows that filter.
        """
        found = self._studies({"StudyDate": f"{day:%Y%m%d}"})
        wanted = [study for study in found.studies if not study.modalities or study.modalities & set(modalities)]
        return StudyList(tuple(wanted), found.unlisted)

    def studies_of_accession(self, accession: str) -> list[PacsStudy]:
        """Ask for one accession number, and keep no other that the PACS may answer with."""
        found = self._studies({"AccessionNumber": accession})
        if found.unlisted:
            raise PacsError("the PACS cannot list it")
        return [study for study in found.studies if study.accession == accession]

    def series_of(self, study: PacsStudy) -> list[Series]:
        """Ask for the series of a study."""
        place = f"studies/{study.uid}/series"
        items, unlisted = self._every(place, {"includefield": _BODY_PART}, _SERIES_UID, study.series)
        if unlisted:
            raise PacsError("the PACS cannot list its series")
        return [
            Series(uid, _value(item, _MODALITY), _value(item, _BODY_PART), _count(item, _OBJECTS_OF_SERIES))
            for uid, item in items.items()
        ]

    def retrieve(self, study: PacsStudy, series: Series, folder: Path) -> Received:
        """Retrieve a series object by object, so that a broken one costs none of the others."""
        place = f"studies/{study.uid}/series/{series.uid}/instances"
        files = []
        listed, not_sent = self._every(place, {}, _INSTANCE_UID, series.objects)
        for uid in listed:
            path = file_of(folder, uid)
            try:
                self._download(f"{place}/{uid}", path)
                files.append(path)
            except (PacsAwayError, PacsRefusesError):
                raise
            except PacsError:
                path.unlink(missing_ok=True)  # what had come of it
                not_sent += 1
        return Received(tuple(files), not_sent)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _studies(self, query: Mapping[str, str]) -> StudyList:
        items, unlisted = self._every("studies", {**query, "includefield": _MODALITIES}, _STUDY_UID)
        studies = [
            PacsStudy(
                uid,
                _value(item, _ACCESSION),
                _value(item, _DATE),
                frozenset(_values(item, _MODALITIES)),
                _count(item, _SERIES_OF_STUDY),
            )
            for uid, item in items.items()
        ]
        return StudyList(tuple(studies), unlisted)

    def _every(
        self, place: str, query: Mapping[str, str], key: str, expected: int | None = None
    ) -> tuple[dict[str, dict[str, Any]], int]:
        """Return all matches by their UID, and how many cannot be listed.

        It asks page after page until one brings nothing new, or until there are as many as the PACS has said.

        Orthanc opens a file of each match, and answers a whole page with an error where one file is damaged; so a page
        that fails is asked for in smaller ones, down to the match that fails alone.
        """
        found: dict[str, dict[str, Any]] = {}
        offset, limit, unlisted, in_a_row = 0, _PAGE, 0, 0
        for _ in range(_MOST_PAGES):
            try:
                items = self._page(place, {**query, "limit": str(limit), "offset": str(offset)})
            except (PacsAwayError, PacsRefusesError):
                raise
            except PacsError:
                if limit == 1:
                    offset, unlisted, in_a_row = offset + 1, unlisted + 1, in_a_row + 1
                if in_a_row > _MOST_UNLISTED:
                    raise
                limit = max(1, limit // 4)
                continue
            before, in_a_row = len(found), 0
            for item in items:
                found.setdefault(_checked_uid(item, key), item)
            if len(found) == before or len(found) + unlisted == expected:
                return found, unlisted
            offset, limit = offset + len(items), min(_PAGE, 2 * limit)
        raise PacsError("the PACS sends pages without end")

    def _page(self, place: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        with _telling_troubles(), self._client.stream("GET", place, params=query, headers={"Accept": _JSON}) as answer:
            _check_status(answer)
            if answer.status_code == _NO_CONTENT:
                return []
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _LARGEST_ANSWER:
                    raise PacsError(f"the PACS answered a query with more than {_LARGEST_ANSWER} bytes")
        return read_matches(bytes(content))

    def _download(self, place: str, path: Path) -> None:
        with (
            _telling_troubles(),
            self._client.stream("GET", place, headers={"Accept": _ANY_DICOM}) as answer,
            path.open("wb") as file,
        ):
            _check_status(answer)
            written = 0
            for piece in _first_part(answer):
                written += len(piece)
                if written > MAX_FILE_BYTES:
                    raise PacsError(f"an object has more than {MAX_FILE_BYTES} bytes")
                file.write(piece)


@contextmanager
def _telling_troubles() -> Iterator[None]:
    """Turn a failure of the line into a reason; httpx's own messages name addresses with identifiers in them."""
    try:
        yield
    except httpx.TransportError as error:
        if _is_about_certificates(error):
            raise PacsRefusesError(
                "the PACS's certificate must be signed by tls.authority and name the host of url"
            ) from None
        raise PacsAwayError(GONE) from None
    except httpx.HTTPError:
        raise PacsError("the PACS's answer breaks HTTP") from None


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_status(answer: httpx.Response) -> None:
    code = answer.status_code
    if code in _REFUSED:
        raise PacsRefusesError(f"the PACS must let us in: HTTP {code}; look at user and password, or token")
    if answer.is_redirect:
        raise PacsRefusesError(f"url must be where the DICOMweb service is: HTTP {code} leads elsewhere")
    if code in _AWAY:
        raise PacsAwayError(f"the PACS is busy: HTTP {code}")
    if not answer.is_success:
        raise PacsError(f"the PACS answered HTTP {code}")


def _first_part(answer: httpx.Response) -> Iterator[bytes]:
    """Yield the first part of a multipart answer, piece by piece, or the whole of one that has no parts.

    Raises:
        PacsError: it is neither, has a second part, or ends early.
    """
    kind, options = parse_options_header(answer.headers.get("content-type", ""))
    if kind == b"application/dicom":
        yield from answer.iter_bytes()
        return
    if kind != b"multipart/related" or not options.get(b"boundary"):
        raise PacsError("the PACS sent something else than DICOM")
    pieces: list[bytes] = []
    parts = ended = 0

    def begin() -> None:
        nonlocal parts
        parts += 1

    def end() -> None:
        nonlocal ended
        ended += 1

    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": begin,
            "on_part_data": lambda data, start, stop: pieces.append(data[start:stop]),
            "on_end": end,
        },
    )
    try:
        for received in answer.iter_bytes():
            parser.write(received)
            if parts > 1:
                raise PacsError("the PACS sent several objects for one")
            yield from pieces
            pieces.clear()
    except MultipartParseError:
        raise PacsError("the PACS sent parts that cannot be told apart") from None
    if not ended:
        raise PacsAwayError(GONE)


def read_matches(content: bytes) -> list[dict[str, Any]]:
    """Return the matches of a query as DICOM JSON lists them (PS3.18, F.2).

    Raises:
        PacsError: it is no such list.
    """
    try:
        items = json.loads(content or b"[]")
    except (ValueError, RecursionError):
        raise PacsError("the PACS answered a query with no JSON; url must be the root of its DICOMweb") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise PacsError("the PACS answered a query with JSON that is no list of matches")
    return items


def _checked_uid(item: Mapping[str, Any], key: str) -> str:
    uid = _value(item, key)
    if not is_uid(uid):
        raise PacsError("the PACS answered with an invalid UID")
    return uid


def _value(item: Mapping[str, Any], key: str) -> str:
    return next(iter(_values(item, key)), "")


def _count(item: Mapping[str, Any], key: str) -> int | None:
    """Return a number of things, None where it is not said or is no number above 0."""
    text = _value(item, key)
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) <= _MOST_DIGITS and int(text) else None


def _values(item: Mapping[str, Any], key: str) -> list[str]:
    """Return the values of an attribute of DICOM JSON (PS3.18, F.2)."""
    attribute = item.get(key)
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    return [str(value).strip() for value in values if isinstance(value, str | int)] if isinstance(values, list) else []
