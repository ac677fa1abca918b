"""Errors in OpenAI's form."""

import json

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.testclient import TestClient

from gad_jax.base.errors import UserError
from gad_jax.serve import errors
from gad_jax.serve.errors import Refused


def test_a_refusal_is_an_error_object() -> None:
    response = Refused(400, "x" * 5000, "code", "field").response()
    error = json.loads(bytes(response.body))["error"]
    assert {**error, "message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": "field",
        "code": "code",
    }
    assert len(error["message"]) == 1001
    assert Refused(500, "", "").body["error"]["type"] == "server_error"
    assert int(Refused(429, "", "").response().headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/refused", 418, "a teapot"),
        ("/mistake", 400, "a sentence"),
        ("/fault", 500, "its log says why"),
        ("/missing", 404, "GET /missing is not served here"),
        ("/post", 405, "use POST"),
    ],
)
def test_whatever_goes_wrong(path: str, status: int, says: str) -> None:
    def refuse(request: Request) -> None:
        raise Refused(418, "a teapot", "teapot")

    def mistake(request: Request) -> None:
        raise UserError("a sentence")

    def fault(request: Request) -> None:
        raise ZeroDivisionError("the secret of the server")

    routes = [Route("/refused", refuse), Route("/mistake", mistake), Route("/fault", fault)]
    routes.append(Route("/post", fault, methods=["POST"]))
    application = Starlette(routes=routes, exception_handlers=errors.HANDLERS)
    with TestClient(application, raise_server_exceptions=False) as client:
        response = client.get(path)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]
    assert "secret" not in response.text
    if status == 405:
        assert response.headers["Allow"] == "POST"
