"""What an endpoint answers, before it is a response of any framework; and an answer that is raised."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from accel.errors import AccelError, CorruptArtifact, UsageError

STATUS: tuple[tuple[type[AccelError], int], ...] = ((UsageError, 400), (CorruptArtifact, 400), (AccelError, 500))
"""Our errors as they come out of an engine that is open: what was sent is wrong, or else we are."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A whole response."""

    status: int
    body: bytes
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    content_type: str = "application/json"

    @classmethod
    def of(cls, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        """`data` as JSON; raises ValueError for a number that JSON cannot say."""
        return cls(status, json.dumps(data, allow_nan=False).encode(), headers or {})

    @property
    def encoded_headers(self) -> list[tuple[bytes, bytes]]:
        """All of them as ASGI has them, Content-Type and Content-Length first."""
        headers = {"content-type": self.content_type, "content-length": str(len(self.body)), **self.headers}
        return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


class Refusal(Exception):
    """A request that ends here.

    Args:
        status: of HTTP.
        message: one sentence, with what mends it; the `error` of the body.
        headers: beside those that every reply has.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})

    @property
    def reply(self) -> Reply:
        return Reply.of({"error": str(self)}, self.status, self.headers)


def of_error(error: AccelError) -> Reply:
    """An error of ours as a reply; its `error` is the message and, after a semicolon, the remedy."""
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    return Refusal(status, f"{error.message}; {error.remedy}" if error.remedy else error.message).reply
