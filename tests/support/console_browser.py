"""What a browser does with an operator's page, without one: asks an application, keeps its cookies, sends its forms."""

import asyncio
import re
from collections.abc import Mapping
from html import unescape

import httpx

from deploy.console.gate import Gate
from deploy.console.pages import Pages, Side

PORT = 8502
ADDRESS = f"http://127.0.0.1:{PORT}"


class Browser:
    """One browser before the pages of one side."""

    def __init__(self, side: Side, gate: Gate | None = None) -> None:
        self.gate = gate or Gate()
        self.pages = Pages(side, self.gate).application()
        self.cookies = httpx.Cookies()

    def ask(
        self, path: str, method: str = "GET", *, headers: Mapping[str, str] | None = None, content: bytes = b""
    ) -> httpx.Response:
        """Ask for a path below the address, or for a whole address; redirects are not followed."""

        async def asking() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.pages)
            async with httpx.AsyncClient(transport=transport, base_url=ADDRESS, cookies=self.cookies) as client:
                answer = await client.request(method, path, headers=headers, content=content)
                self.cookies = client.cookies
                return answer

        return asyncio.run(asking())

    def open(self) -> httpx.Response:
        """Open the link that a person was shown, and return the first page."""
        begun = self.ask(self.gate.link(PORT))
        assert begun.status_code == 303
        return self.ask(begun.headers["location"])

    def at(self, rest: str = "") -> httpx.Response:
        """Return a page by the rest of its path."""
        return self.ask(f"{self.gate.place}/{rest}")

    def send(self, rest: str, fields: Mapping[str, str], **headers: str) -> httpx.Response:
        """Send a form as a browser does."""
        told = {
            "content-type": "application/x-www-form-urlencoded", "origin": ADDRESS, "sec-fetch-site": "same-origin",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }  # fmt: skip
        content = httpx.QueryParams(dict(fields)).__str__().encode()
        return self.ask(f"{self.gate.place}/{rest}", "POST", headers=told, content=content)

    def press(self, rest: str, action: str, **fields: str) -> httpx.Response:
        """Press a button of a page with what its form holds, and return the page that follows."""
        page = self.at(rest).text
        form = re.search(
            rf'<form method="post" action="[^"]*/{re.escape(rest)}/{action}">(.*?)</form>', page, re.DOTALL
        )
        assert form is not None, f"there must be a button {action}"
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form[1]))
        sent = self.send(f"{rest}/{action}", {**hidden, **fields})
        return self.ask(sent.headers["location"]) if sent.status_code == 303 else sent


def text_of(answer: httpx.Response) -> str:
    """Return the words of a page, without tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())
