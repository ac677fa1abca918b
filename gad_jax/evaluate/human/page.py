"""The voting page, which only this computer can reach.

All text from models is escaped, and the content security policy lets the page load only its own
style and script. The page does not contain who wrote an answer.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import jinja2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from gad_jax.base import console, listening
from gad_jax.base.errors import StorageError
from gad_jax.evaluate.human.ballots import CHOICES, Ballot, Votes, order, same
from gad_jax.evaluate.human.settings import Human

HERE = Path(__file__).parent
HOST = "127.0.0.1"
LONGEST_NAME = 40
LONGEST_BODY = 4096
LONGEST_SECONDS = 86400.0
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send Origin: null
    "Cache-Control": "no-store",
}


def serve(ballots: Sequence[Ballot], votes: Votes, human: Human) -> None:
    """Serves the page until Ctrl-C."""

    def say(address: str) -> None:
        print(
            f"{address}/ has {len(ballots)} pairs to vote on; Ctrl-C ends, every vote is kept",
            flush=True,
        )

    with listening.bind(HOST, human.port) as bound:
        listening.serve(make(ballots, votes, human.seed), bound, say)


def make(ballots: Sequence[Ballot], votes: Votes, seed: int) -> Starlette:
    """Returns the application."""
    page = _Page([ballot for ballot in ballots if not same(ballot)], votes, seed)
    return Starlette(
        routes=[
            Route("/", page.start),
            Route("/vote", page.show, methods=["GET"]),
            Route("/vote", page.take, methods=["POST"]),
            Route("/vote.css", lambda request: _asset("vote.css", "text/css")),
            Route("/vote.js", lambda request: _asset("vote.js", "text/javascript")),
        ],
        # DNS rebinding: a site whose name resolves to this computer may not read or vote.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


class _Page:
    def __init__(self, ballots: Sequence[Ballot], votes: Votes, seed: int):
        self.ballots, self.votes, self.seed = ballots, votes, seed
        self.by_key = {ballot.key: ballot for ballot in ballots}
        loader = jinja2.FileSystemLoader(HERE)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self.template = environment.get_template("vote.html.jinja")

    def start(self, request: Request) -> Response:
        """Shows the form for the annotator's name."""
        return self._render(annotator="", total=len(self.ballots))

    def show(self, request: Request) -> Response:
        """Shows a pair: the requested one, or the first without a vote."""
        annotator = _name(request.query_params.get("annotator", ""))
        if not annotator:
            return RedirectResponse("/", 303, headers=HEADERS)
        done = self.votes.of(annotator)
        voted = [key for key in done if key in self.by_key]
        requested = self.by_key.get(request.query_params.get("ballot", ""))
        ordered = order(self.ballots, annotator, self.seed)
        ballot = requested or next((b for b in ordered if b.key not in done), None)
        earlier = voted[: voted.index(ballot.key)] if ballot and ballot.key in voted else voted
        about: dict[str, Any] = {"annotator": annotator, "total": len(self.ballots)}
        about |= {"done": len(voted), "back": _address(annotator, earlier[-1]) if earlier else ""}
        if ballot is not None:
            left, right = ballot.shown(annotator, self.seed)
            about |= {
                "ballot": ballot.key,
                "prompt": console.printable(ballot.prompt),
                "left": console.printable(left.text.strip()),
                "right": console.printable(right.text.strip()),
                "chosen": done[ballot.key]["choice"] if ballot.key in done else "",
                "shown_at": f"{time.time():.1f}",
            }
        return self._render(**about)

    async def take(self, request: Request) -> Response:
        """Stores a vote and shows the next pair."""
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.headers.get('host')}":
            return self._render(403, problem="This vote came from another page.")
        body = b""
        try:
            async for part in request.stream():
                body += part
                if len(body) > LONGEST_BODY:
                    return self._render(413, problem="This vote is too long.")
        except ClientDisconnect:  # nobody sees the answer, but a traceback would be logged
            return self._render(400, problem="This vote did not come whole.")
        form = {
            name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()
        }
        annotator, choice = _name(form.get("annotator", "")), form.get("choice", "")
        ballot = self.by_key.get(form.get("ballot", ""))
        if not annotator or ballot is None or choice not in CHOICES:
            return self._render(400, problem="This is no vote on a pair that is here.")
        try:
            self.votes.add(ballot, annotator, choice, self.seed, _seconds(form.get("shown_at", "")))
        except StorageError as error:
            return self._render(507, problem=f"{error}. Free some space, then vote again.")
        return RedirectResponse(_address(annotator), 303, headers=HEADERS)

    def _render(self, status: int = 200, **about: Any) -> Response:
        about = {"problem": "", "annotator": "", "ballot": ""} | about
        return HTMLResponse(self.template.render(about), status, headers=HEADERS)


def _asset(name: str, kind: str) -> Response:
    return Response((HERE / name).read_text(), media_type=kind, headers=HEADERS)


def _address(annotator: str, ballot: str = "") -> str:
    return "/vote?" + urlencode({"annotator": annotator} | ({"ballot": ballot} if ballot else {}))


def _name(text: str) -> str:
    return " ".join(console.printable(text).split())[:LONGEST_NAME].strip()


def _seconds(shown_at: str) -> float:
    """Returns how long a pair was shown; 0 if the form has no valid time."""
    try:
        seconds = time.time() - float(shown_at)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds <= LONGEST_SECONDS else 0.0
