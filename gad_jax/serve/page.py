"""The chat page: plain HTML, its style and its script, which ask the same API as all clients."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
FILES = {
    "/": ("chat.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/favicon.svg": ("chat.svg", "image/svg+xml"),
}


def routes() -> list[Route]:
    """Returns the routes of the page."""
    return [_route(path, name, kind) for path, (name, kind) in FILES.items()]


def _route(path: str, name: str, kind: str) -> Route:
    content = (HERE / name).read_text("utf-8")

    async def show(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return Route(path, show, name=name)
