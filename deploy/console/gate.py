"""Who may see an operator's page: the browser that opened the one link which its command printed, and nobody else.

Every port of the loopback interface is open to each user of the machine and, through a browser, to each web page that
an operator visits. So, in this order:

1. The address in ``Host`` must be of the loopback interface. A foreign name that resolves to it (DNS rebinding) is
   refused.
2. All pages lie under a random path, and the cookie is for that path alone: browsers send cookies of one port to all
   ports of a host, and another service here must not get it.
3. The link works once, for ten minutes, and sets the cookie. What fetches it ahead of a person does not use it up.
4. A session ends twelve hours later, or with the process. Nothing of it is on disk.
5. What changes something is a form that was sent from one of these pages: its origin is compared, and it carries a
   token of the session, because a page on another port counts as the same site.
6. Pages run no scripts, load nothing from elsewhere, are in no other page's frame, and are kept in no cache.
"""

import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "confide_console"
LINK_SECONDS, SESSION_SECONDS = 600.0, 12 * 3600.0
LONGEST_FORM_BYTES = 8192
OPEN = "open"
"""The last part of the link's path."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # no-referrer would make a form's own origin null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_HOSTS = frozenset({"127.0.0.1", "localhost"})
_FORM = "application/x-www-form-urlencoded"
_READING = frozenset({"GET", "HEAD"})
_CLOSED = "open the link that the command has printed; it works once, and a new one comes with a new start"


class Gate:
    """Stands before every page.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._once: str | None = secrets.token_urlsafe(32)
        self._made = clock()
        self._session: str | None = None
        self._opened = 0.0
        self.place = f"/{secrets.token_urlsafe(16)}"
        """What the path of every page begins with."""
        self.form_token = secrets.token_urlsafe(32)
        """What every form carries."""

    def link(self, port: int) -> str:
        """Return the link that opens the pages, once."""
        return f"http://127.0.0.1:{port}{self.place}/{OPEN}?once={self._once}"

    def before(self, pages: ASGIApp) -> ASGIApp:
        """Return the application with this gate before it."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return  # Nothing here speaks anything else.
            request = Request(scope)
            try:
                answer = self._answer(request)
            except HTTPException as refused:
                answer = PlainTextResponse(f"{refused.detail}\n", refused.status_code)
            await (answer or pages)(scope, receive, _with_headers(send))

        return guarded

    def _answer(self, request: Request) -> Response | None:
        """Return what is said to a request that no page answers; None where a page does.

        Raises:
            HTTPException: it may not be answered.
        """
        check_host(request)
        path: str = request.scope["path"]
        if not _same(path[: len(self.place) + 1], f"{self.place}/"):
            raise HTTPException(HTTPStatus.NOT_FOUND, "there is nothing here")
        if path == f"{self.place}/{OPEN}":
            return self._open(request)
        self._check_session(request)
        if request.method == "POST":
            check_origin(request)
        elif request.method not in _READING:
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, "pages are read, or a form is sent")
        return None

    def _open(self, request: Request) -> Response:
        """Begin the session, once."""
        if request.method != "GET" or "prefetch" in request.headers.get("sec-purpose", ""):
            raise HTTPException(HTTPStatus.FORBIDDEN, "the link must be opened by a person")
        is_over = self._clock() - self._made > LINK_SECONDS
        given = request.query_params.get("once", "")
        if self._once is None or is_over or not _same(given, self._once):
            raise HTTPException(HTTPStatus.FORBIDDEN, _CLOSED)
        self._once, self._session, self._opened = None, secrets.token_urlsafe(32), self._clock()
        answer = RedirectResponse(f"{self.place}/", HTTPStatus.SEE_OTHER)
        answer.set_cookie(COOKIE, self._session, path=f"{self.place}/", httponly=True, samesite="strict")
        return answer

    def _check_session(self, request: Request) -> None:
        given = request.cookies.get(COOKIE, "")
        is_over = self._clock() - self._opened > SESSION_SECONDS
        if self._session is None or is_over or not _same(given, self._session):
            raise HTTPException(HTTPStatus.FORBIDDEN, _CLOSED)

    async def form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form that was sent from one of these pages.

        Raises:
            HTTPException: it was not, or is no form, or too long.
        """
        if request.headers.get("content-type", "") != _FORM:
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a form must be sent as browsers send one")
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > LONGEST_FORM_BYTES:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the form is too long")
        try:
            fields = parse_qs(content.decode(), keep_blank_values=True, max_num_fields=8)
        except ValueError:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "the form cannot be read") from None
        if not _same(fields.pop("token", [""])[0], self.form_token):
            raise HTTPException(HTTPStatus.FORBIDDEN, "the form must be of a page of this session; load the page again")
        return {name: values[0] for name, values in fields.items()}


def check_host(request: Request) -> None:
    """Refuse what a browser sent to a foreign name that resolves to this machine."""
    hosts = request.headers.getlist("host")
    name, _, port = hosts[0].rpartition(":") if hosts and ":" in hosts[0] else ("".join(hosts[:1]), "", "")
    if len(hosts) != 1 or name not in _HOSTS or not (port.isdecimal() or port == ""):
        raise HTTPException(HTTPStatus.MISDIRECTED_REQUEST, "this page is at 127.0.0.1 or localhost alone")


def check_origin(request: Request) -> None:
    """Refuse a form that another page has sent, by what a browser says of where it comes from."""
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{request.headers['host']}":
        raise HTTPException(HTTPStatus.FORBIDDEN, "the form must be of one of these pages")
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise HTTPException(HTTPStatus.FORBIDDEN, "the form must be of one of these pages")


def _same(given: str, kept: str) -> bool:
    return hmac.compare_digest(given.encode(), kept.encode())


def _with_headers(send: Send) -> Send:
    added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return sending
