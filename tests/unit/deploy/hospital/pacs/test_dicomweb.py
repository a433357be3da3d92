"""What a DICOMweb server may answer, and what is made of it; the server here says what each test wants."""

import datetime
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from deploy.hospital.pacs import dicomweb
from deploy.hospital.pacs.access import DicomWeb
from deploy.hospital.pacs.dicomweb import WebPacs
from deploy.hospital.pacs.files import file_of
from deploy.hospital.pacs.studies import PacsAwayError, PacsError, PacsRefusesError, PacsStudy, Series

DAY = datetime.date(2024, 1, 5)
STUDY, SERIES = PacsStudy("1.1", "A1"), Series("1.2", "DX")
BOUNDARY = "b0undary"
Answer = tuple[int, Mapping[str, str], bytes]
JSON = {"Content-Type": "application/dicom+json"}
PARTS = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}


@dataclass
class Server:
    """Answers each request as ``answer`` says, which gets the path and the query."""

    answer: Callable[[str, Mapping[str, str]], Answer] = lambda _path, _query: (404, {}, b"")
    asked: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            made.asked.append(self.path)
            made.headers.append(dict(self.headers))
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, headers, content = made.answer(parts.path.removeprefix("/dicom-web/"), query)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        made.url = f"http://127.0.0.1:{http.server_address[1]}/dicom-web"
        yield made
        http.shutdown()


@pytest.fixture
def pacs(server: Server) -> Iterator[WebPacs]:
    access = DicomWeb(url=server.url, user="me", password="secret-9d", unencrypted=True)
    made = WebPacs(access)
    yield made
    made.close()


def match(uid: str, key: str = "0020000D", **more: str) -> dict[str, object]:
    values = {key: uid, **more}
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in values.items()}


def listing(items: list[dict[str, object]]) -> Answer:
    return 200, JSON, json.dumps(items).encode()


def part(content: bytes, *, ended: bool = True) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return head + content + f"\r\n--{BOUNDARY}{'--' if ended else ''}\r\n".encode()


def one_instance(answer: Answer) -> Callable[[str, Mapping[str, str]], Answer]:
    def answering(path: str, query: Mapping[str, str]) -> Answer:
        if not path.endswith("/instances"):
            return answer
        return listing([match("1.3", "00080018")] if query["offset"] == "0" else [])

    return answering


def paging(studies: int, bad: set[int]) -> Callable[[str, Mapping[str, str]], Answer]:
    """List so many studies; a page that holds a bad one is an error, as Orthanc's is."""

    def answering(_path: str, query: Mapping[str, str]) -> Answer:
        first = int(query["offset"])
        page = range(first, min(studies, first + int(query["limit"])))
        return (500, {}, b"") if bad & set(page) else listing([match(f"1.{number}") for number in page])

    return answering


@pytest.mark.parametrize(("studies", "bad"), [(0, set()), (450, set()), (450, {0, 7, 8, 449}), (3, {0, 1, 2})])
def test_every_study_is_listed_or_counted_however_many_pages_fail(
    server: Server, pacs: WebPacs, studies: int, bad: set[int]
) -> None:
    server.answer = paging(studies, bad)
    found = pacs.studies_of_day(DAY, ("DX",))
    assert {study.uid for study in found.studies} == {f"1.{number}" for number in set(range(studies)) - bad}
    assert found.unlisted == len(bad)


def test_a_query_that_fails_for_every_study_is_the_servers_fault(server: Server, pacs: WebPacs) -> None:
    server.answer = lambda _path, _query: (500, {}, b"")
    with pytest.raises(PacsError, match="HTTP 500"):
        pacs.studies_of_day(DAY, ("DX",))
    assert len(server.asked) < 40


def test_a_server_that_knows_no_pages_is_asked_twice(server: Server, pacs: WebPacs) -> None:
    server.answer = lambda _path, _query: listing([match(f"1.{number}") for number in range(500)])
    assert len(pacs.studies_of_day(DAY, ("DX",)).studies) == 500
    assert len(server.asked) == 2


def counted(series: str, objects: str) -> Callable[[str, Mapping[str, str]], Answer]:
    """Answer with a study of two series of two objects each, and say how many there are of them."""

    def answering(path: str, query: Mapping[str, str]) -> Answer:
        if "/instances/" in path:
            return 200, {"Content-Type": "application/dicom"}, b"content"
        first = int(query["offset"])
        if path.endswith("/instances"):
            everything = [match(f"1.3.{number}", "00080018") for number in range(2)]
        elif path.endswith("/series"):
            more = {"00080060": "DX", "00201209": objects}
            everything = [match(f"1.2.{number}", "0020000E", **more) for number in range(2)]
        else:
            everything = [match("1.1", **{"00080050": "A1", "00201206": series})]
        return listing(everything[first : first + int(query["limit"])])

    return answering


@pytest.mark.parametrize("said", ["2", " 2 "])
def test_where_the_server_says_how_many_there_are_no_further_page_is_asked_for(
    said: str, server: Server, pacs: WebPacs, tmp_path: Path
) -> None:
    server.answer = counted(said, said)
    (study,) = pacs.studies_of_accession("A1")
    series = pacs.series_of(study)
    assert [one.uid for one in series] == ["1.2.0", "1.2.1"]
    pacs.retrieve(study, series[0], tmp_path)
    listings = [path for path in server.asked if "?" in path]
    assert len(listings) == 2 + 1 + 1


@pytest.mark.parametrize("said", ["1", "3", "0", "-2", "two", "", "2" * 30, "²"])
def test_a_number_that_is_not_that_of_what_is_listed_is_not_believed(said: str, server: Server, pacs: WebPacs) -> None:
    server.answer = counted(said, said)
    (study,) = pacs.studies_of_accession("A1")
    assert [one.uid for one in pacs.series_of(study)] == ["1.2.0", "1.2.1"]
    assert len(server.asked) == 2 + 2


def test_studies_of_other_modalities_and_accession_numbers_are_left_out(server: Server, pacs: WebPacs) -> None:
    items = [
        match("1.1", **{"00080061": "DX", "00080050": "A1"}),
        match("1.2", **{"00080061": "CT", "00080050": "A12"}),
    ]
    server.answer = lambda _path, query: listing(items if query["offset"] == "0" else [])
    assert [study.uid for study in pacs.studies_of_day(DAY, ("CR", "DX")).studies] == ["1.1"]
    assert [study.uid for study in pacs.studies_of_accession("A12")] == ["1.2"]


@pytest.mark.parametrize("content", [b"<html>", b"{}", b"[1]", b"[" * 100_000, json.dumps([match("../x")]).encode()])
def test_what_is_no_list_of_matches_is_refused(server: Server, pacs: WebPacs, content: bytes) -> None:
    server.answer = lambda _path, _query: (200, JSON, content)
    with pytest.raises(PacsError):
        pacs.series_of(STUDY)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, PacsRefusesError, "HTTP 401"),
        (403, PacsRefusesError, "HTTP 403"),
        (302, PacsRefusesError, "leads elsewhere"),
        (503, PacsAwayError, "HTTP 503"),
        (429, PacsAwayError, "HTTP 429"),
    ],
)
def test_a_status_says_whether_another_try_helps(
    server: Server, pacs: WebPacs, status: int, kind: type[PacsError], said: str
) -> None:
    server.answer = lambda _path, _query: (status, {"Location": "http://127.0.0.1:9/elsewhere"}, b"")
    with pytest.raises(kind, match=said) as caught:
        pacs.studies_of_accession("A1")
    assert len(server.asked) == 1
    assert "secret-9d" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [(200, PARTS, part(b"DICM" * 99)), (200, {"Content-Type": "application/dicom"}, b"DICM" * 99)],
    ids=["in parts", "plain"],
)
def test_an_object_is_written_as_it_was_sent(server: Server, pacs: WebPacs, tmp_path: Path, answer: Answer) -> None:
    server.answer = one_instance(answer)
    received = pacs.retrieve(STUDY, SERIES, tmp_path)
    assert received.not_sent == 0
    assert received.files == (file_of(tmp_path, "1.3"),)
    assert received.files[0].read_bytes() == b"DICM" * 99
    assert server.headers[-1]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "answer",
    [
        (200, PARTS, part(b"x", ended=False) + part(b"y")),
        (200, {"Content-Type": "text/html"}, b"<html>"),
        (200, {"Content-Type": "multipart/related"}, part(b"x")),
        (200, PARTS, b"no parts at all"),
        (404, {}, b""),
        (500, {}, b""),
    ],
    ids=["two objects", "a page", "no boundary", "no parts", "not there", "an error"],
)
def test_an_object_that_does_not_come_costs_itself_and_leaves_nothing(
    server: Server, pacs: WebPacs, tmp_path: Path, answer: Answer
) -> None:
    server.answer = one_instance(answer)
    received = pacs.retrieve(STUDY, SERIES, tmp_path)
    assert (received.files, received.not_sent) == ((), 1)
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_ends_early_is_tried_again(server: Server, pacs: WebPacs, tmp_path: Path) -> None:
    server.answer = one_instance((200, PARTS, part(b"x" * 500)[:300]))
    with pytest.raises(PacsAwayError):
        pacs.retrieve(STUDY, SERIES, tmp_path)


def test_an_object_that_never_ends_is_cut_off(
    server: Server, pacs: WebPacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "MAX_FILE_BYTES", 1000)
    server.answer = one_instance((200, PARTS, part(bytes(2000))))
    assert pacs.retrieve(STUDY, SERIES, tmp_path).not_sent == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_away() -> None:
    access = DicomWeb(url="http://127.0.0.1:9/dicom-web", unencrypted=True)
    pacs = WebPacs(access)
    with pytest.raises(PacsAwayError):
        pacs.series_of(STUDY)
    pacs.close()
