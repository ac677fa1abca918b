"""The wire format of batch mode: files, batches and their lines, checked; replies are in `wire`."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from gad_jax.base.redaction import printable, redact
from gad_jax.teacher.wire import BadResponse, load

M = TypeVar("M", bound=BaseModel)


def _as_printed(name: str) -> str:
    """Raises ValueError for a name that could not be stored as it is."""
    if printable(redact(name)) != name:
        raise ValueError("it holds a secret, or codes that steer a terminal")
    return name


Name = Annotated[str, AfterValidator(_as_printed)]
"""A provider's name for a file or a batch. It is stored, and a part of URLs."""


class _Error(BaseModel):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Named(BaseModel):
    id: Name


class _Counts(BaseModel):
    completed: int = 0
    failed: int = 0


class _Errors(BaseModel):
    data: list[_Error] = []


class BatchStatus(BaseModel):
    """A provider's status of a batch."""

    id: Name
    status: str
    output_file_id: Name | None = None
    error_file_id: Name | None = None
    request_counts: _Counts | None = None
    errors: _Errors | None = None
    metadata: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether the batch is over, and no more responses will come."""
        return self.status in ("completed", "failed", "expired", "cancelled")

    @property
    def done(self) -> int:
        """The number of requests that are processed."""
        counts = self.request_counts
        return counts.completed + counts.failed if counts else 0

    @property
    def problem(self) -> str:
        """Why the whole batch failed, in the provider's words; empty where it does not say."""
        errors = self.errors.data if self.errors else []
        return "; ".join(error.message or str(error.code) for error in errors[:3])


class _Batches(BaseModel):
    data: list[BatchStatus]
    has_more: bool = False


class _LineResponse(BaseModel):
    status_code: int
    body: Any = None


class _BatchLine(BaseModel):
    custom_id: str
    response: _LineResponse | None = None
    error: _Error | None = None


_WHAT: dict[type[BaseModel], str] = {
    _Named: "file",
    BatchStatus: "batch",
    _Batches: "list of batches",
    _BatchLine: "line of a batch",
}


def _read(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate(load(body))
    except ValidationError as error:
        raise BadResponse(_problem(kind, error)) from None  # pydantic's text quotes the body


def read_file_id(body: bytes) -> str:
    """Returns the provider's name for an uploaded file. Raises BadResponse."""
    return _read(_Named, body).id


def read_batch(body: bytes) -> BatchStatus:
    """Returns a provider's status of a batch. Raises BadResponse."""
    return _read(BatchStatus, body)


def read_batches(body: bytes) -> tuple[list[BatchStatus], bool]:
    """Returns a page of a provider's batches, and whether there are more. Raises BadResponse."""
    page = _read(_Batches, body)
    return page.data, page.has_more and bool(page.data)


@dataclass(frozen=True)
class BatchResponse:
    """One line of a batch's output: the status and body that the endpoint would have sent. With
    status 0, the body says why the request was not processed."""

    custom_id: str
    status: int
    body: bytes


def read_batch_responses(body: bytes) -> list[BatchResponse]:
    """Returns the lines of a batch's output or of its errors; a damaged line is left out. Raises
    BadResponse if no line is whole, or the body ends in the middle of one."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_to_batch_response(_read(_BatchLine, line)))
        except BadResponse:
            if not found or number == len(lines):
                raise
    return found


def _to_batch_response(line: _BatchLine) -> BatchResponse:
    if line.response is None:
        failure = {"error": line.error.model_dump() if line.error else None}
        return BatchResponse(line.custom_id, 0, json.dumps(failure).encode())
    return BatchResponse(
        line.custom_id, line.response.status_code, json.dumps(line.response.body).encode()
    )


def _problem(kind: type[BaseModel], error: ValidationError) -> str:
    first: Any = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "the body"
    return (
        f"the body is no {_WHAT.get(kind, 'answer')} ({where}: {first['type'].replace('_', ' ')})"
    )
