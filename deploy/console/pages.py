"""What an operator's page shows, as data, and the pages themselves: rendered here, on the server, with no script.

Every word is escaped by the template, whoever wrote it: a hospital's reason, a run's name, an error.
"""

import datetime
import threading
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from common.errors import ConfideError
from common.telemetry.events import printable
from deploy.console.gate import Gate
from deploy.terminal import Fact

LONGEST_WORDS = 400
"""How many characters of what an operator types are taken."""

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Cell:
    """Words in a table; with ``run``, a link to that run's page."""

    words: str
    run: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and what is so, under a heading."""

    heading: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class RowsTable:
    """Rows under a heading.

    Attributes:
        heading: of the section.
        columns: names of the columns.
        rows: as many cells each.
        otherwise: what is said where there are no rows.
        hint: by which command more is done; empty for none.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    otherwise: str
    hint: str = ""


@dataclass(frozen=True)
class Action:
    """A button.

    Attributes:
        name: the last part of its path.
        button: what stands on it.
        explains: what happens then.
        asks: the label of a field for words that go with it; empty for none.
    """

    name: str
    button: str
    explains: str
    asks: str = ""


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        title: its heading.
        problems: what needs a person.
        parts: its sections.
        actions: what can be done here.
    """

    title: str
    problems: tuple[str, ...]
    parts: tuple[Facts | RowsTable, ...]
    actions: tuple[Action, ...] = ()


class Side(Protocol):
    """Whose pages they are: the consortium's, or a hospital's."""

    def overview(self, now: datetime.datetime) -> Page:
        """Return the first page."""

    def run(self, run_id: str, now: datetime.datetime) -> Page:
        """Return the page of one run, with what can be done to it.

        Raises:
            ConfideError: there is no such run.
        """

    def act(self, run_id: str, action: str, words: str) -> str:
        """Do what a button of a run's page says; returns what is so then.

        Raises:
            ConfideError: it cannot be done, or there is no such action.
        """


class Pages:
    """The pages of one side.

    Args:
        side: whose.
        gate: that stands before them.
    """

    def __init__(self, side: Side, gate: Gate) -> None:
        self._side = side
        self._gate = gate
        self._said = ""
        self._one = threading.Lock()  # An operator who clicks twice does one thing after the other.
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.globals.update(place=gate.place, form_token=gate.form_token)
        self._template = environment.get_template("page.html.j2")

    def application(self) -> ASGIApp:
        """Return the pages behind their gate."""
        place = self._gate.place
        return self._gate.before(
            Starlette(
                routes=[
                    Route(f"{place}/", self._overview),
                    Route(f"{place}/style.css", _style),
                    Route(f"{place}/runs/{{run}}", self._run),
                    Route(f"{place}/runs/{{run}}/{{action}}", self._act, methods=["POST"]),
                ],
                exception_handlers={ConfideError: self._failed},
            )
        )

    def _overview(self, _request: Request) -> Response:
        now = _now()
        return self._shown(self._side.overview(now), now)

    def _run(self, request: Request) -> Response:
        now = _now()
        run = request.path_params["run"]
        return self._shown(self._side.run(run, now), now, run)

    async def _act(self, request: Request) -> Response:
        fields = await self._gate.form(request)
        run, action = request.path_params["run"], request.path_params["action"]
        self._said = await run_in_threadpool(
            self._done, run, action, printable(fields.get("words", ""))[:LONGEST_WORDS]
        )
        return RedirectResponse(f"{self._gate.place}/runs/{run}", HTTPStatus.SEE_OTHER)

    def _done(self, run: str, action: str, words: str) -> str:
        with self._one:
            return self._side.act(run, action, words)

    def _failed(self, _request: Request, error: Exception) -> Response:
        """Say what is not so, in the words of the command that would say it."""
        page = Page("This cannot be done", (str(error),), ())
        return self._shown(page, _now(), status=HTTPStatus.CONFLICT)

    def _shown(
        self, page: Page, now: datetime.datetime, run: str = "", status: HTTPStatus = HTTPStatus.OK
    ) -> HTMLResponse:
        said, self._said = self._said, ""
        content = self._template.render(page=page, run=run, said=said, now=f"{now:%Y-%m-%d %H:%M:%S} UTC")
        return HTMLResponse(content, status)


def _style(_request: Request) -> Response:
    return Response((_TEMPLATES / "style.css").read_text(encoding="utf-8"), media_type="text/css")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
