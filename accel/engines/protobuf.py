"""The wire format of protobuf, read without a schema: numbers and length-delimited parts."""

from __future__ import annotations

from collections.abc import Iterator


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Every field of one message as (number, value); the wire types are those of the protobuf encoding.

    Raises:
        ValueError, IndexError: the bytes break off, or are no message.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        wire = key & 7
        value: int | memoryview
        if wire == 0:
            value, at = varint(data, at)
        else:
            if wire == 2:
                length, at = varint(data, at)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire} at byte {at}")
            if at + length > end:
                raise BreaksOff(f"it breaks off at byte {at} of a part of {end}")
            value, at = data[at : at + length], at + length
        yield key >> 3, value


def messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields: messages, texts and packed numbers."""
    return ((number, value) for number, value in fields(data) if isinstance(value, memoryview))


def text(data: memoryview) -> str:
    return bytes(data).decode("utf-8")


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at byte `at` and where the next one begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"no number at byte {at}")


class BreaksOff(ValueError):
    """The part that a length announces is longer than what is left."""
