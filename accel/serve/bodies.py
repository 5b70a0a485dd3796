"""Bodies of requests: read within limits of size, time and memory, and decompressed within the same limit of size."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence

from accel.serve.reply import Refusal
from accel.types import ITEMSIZE, TensorSpec

PICTURE_BYTES = 16 << 20
TENSOR_BYTES = 64 << 20
"""The most for tensors as binary data, unless a single row is longer."""

JSON_BYTES = 4 << 20
"""The same for JSON: a thread that parses it holds the interpreter's lock, and everybody waits, for tens of milliseconds a megabyte."""

JSON_NUMBER = 32
"""Bytes of one number in JSON with its separators; the longest float32 that Python writes has 24."""

HEADER = 64 << 10
"""For all else in a request's JSON."""

MOST_HELD = 512 << 20
"""Bytes of bodies at one time, of all requests together."""

WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""Content-Encoding → zlib's name of the container."""


def json_limit(inputs: Sequence[TensorSpec], rows: int) -> int:
    """The longest JSON of an inference request, in bytes: `rows` rows, but no more than JSON_BYTES if they are several."""
    return _limit([JSON_NUMBER * math.prod(spec.fixed(1)) for spec in inputs], rows, JSON_BYTES)


def tensor_limit(inputs: Sequence[TensorSpec], rows: int) -> int:
    """The longest body of an inference request, in bytes: as much JSON as may be, or the same rows as binary data if that is more."""
    binary = _limit([ITEMSIZE[spec.dtype] * math.prod(spec.fixed(1)) for spec in inputs], rows, TENSOR_BYTES)
    return max(json_limit(inputs, rows), binary)


def _limit(row: Sequence[int], rows: int, most: int) -> int:
    return HEADER + max(sum(row), min(rows * sum(row), most))


class Ledger:
    """How many bytes all bodies hold, so that many slow uploads cannot fill the memory. Of one thread, the event loop's."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self.most, self.held = most, 0

    def take(self, size: int) -> None:
        if self.held + size > self.most:
            raise Refusal(503, "too many large requests are being read", {"Retry-After": "1"})
        self.held += size


class Body:
    """One request's body; a context manager, which gives back what the body holds of the ledger.

    Args:
        limit: bytes.
        declared: the Content-Length if it was sent. It is believed only if it is too large.
    """

    def __init__(self, ledger: Ledger, limit: int, declared: str | None) -> None:
        self._ledger, self._limit, self._held = ledger, limit, 0
        self._declared = int(declared) if declared is not None and declared.isascii() and declared.isdigit() else 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.held -= self._held

    async def read(self, chunks: AsyncIterator[bytes], seconds: float) -> bytes:
        """All of it.

        Raises:
            Refusal: 413 as soon as it is over the limit, 408 if it is not there in time, 503 if all bodies together hold too much.
        """
        try:
            with within(seconds):
                return await self._read(chunks)
        except asyncio.TimeoutError as error:
            raise Refusal(408, "the body of the request did not arrive in time", {"Connection": "close"}) from error

    async def _read(self, chunks: AsyncIterator[bytes]) -> bytes:
        if self._declared > self._limit:
            raise too_large(self._limit)
        parts = []
        async for chunk in chunks:
            if self._held + len(chunk) > self._limit:
                raise too_large(self._limit)
            self._ledger.take(len(chunk))
            self._held += len(chunk)
            parts.append(chunk)
        return b"".join(parts)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if what the block awaits takes longer.

    `asyncio.timeout`, which Python 3.10 has not. wait_for() has a task of its own for it, which costs the loop three rounds even if the
    body is there; under load a round is all that came meanwhile.
    """
    task, expired = asyncio.current_task(), False
    assert task is not None

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError as error:
        if not expired:
            raise
        if sys.version_info >= (3, 11):
            task.uncancel()
        raise asyncio.TimeoutError from error
    finally:
        timer.cancel()


def decompressed(body: bytes, encoding: str | None, limit: int) -> bytes:
    """`body` without its Content-Encoding, gzip or deflate.

    Raises:
        Refusal: 415 for another encoding, 413 if it would be over `limit` bytes, 400 if it is damaged or cut off.
    """
    if encoding is None or encoding.strip().lower() in ("", "identity"):
        return body
    bits = WINDOW_BITS.get(encoding.strip().lower())
    if bits is None:
        raise Refusal(415, f"Content-Encoding {encoding!r} is not supported", {"Accept-Encoding": ", ".join(WINDOW_BITS)})
    stream = zlib.decompressobj(bits)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal(400, f"the body is not {encoding}: {error}") from error
    if len(plain) > limit:
        raise too_large(limit)
    if not stream.eof or stream.unused_data:
        raise Refusal(400, f"the body is not one whole {encoding} stream")
    return plain


def too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is over the limit of {limit} bytes")
