"""How many bytes an Arrow message holds once its buffers are decompressed, from its header.

pyarrow decompresses a whole batch at once, and does not say before how large it will be. The header
is a flatbuffer; the few of its fields that are needed are read here.
"""

import struct
from typing import Any

_BATCHES = {"record batch", "dictionary"}
_HEADER, _BUFFERS, _COMPRESSION, _DATA = 2, 2, 3, 1  # numbers of fields in their tables


class Damaged(ValueError):
    """A message whose header cannot be read."""


def expanded_bytes(message: Any) -> int:
    """Returns the bytes of a message's buffers after decompression; 0 where none is compressed.

    Raises Damaged.
    """
    if message.type not in _BATCHES:
        return 0
    header, body = memoryview(message.metadata), memoryview(message.body)
    try:
        batch = _table(header, _field(header, _offset(header, 0), _HEADER))
        if message.type == "dictionary":
            batch = _table(header, _field(header, batch, _DATA))
        buffers = _field(header, batch, _BUFFERS)
        if not buffers or not _field(header, batch, _COMPRESSION):
            return 0
        start = _table(header, buffers)
        (count,) = struct.unpack_from("<I", header, start)
        return sum(_buffer_bytes(header, body, start + 4 + 16 * n) for n in range(count))
    except (struct.error, ValueError, IndexError) as error:
        raise Damaged(f"its header cannot be read: {error}") from error


def _buffer_bytes(header: memoryview, body: memoryview, place: int) -> int:
    """Returns the size of a buffer, which stands in front of its compressed bytes; -1: it is not
    compressed."""
    offset, length = struct.unpack_from("<qq", header, place)
    if length == 0:
        return 0
    (size,) = struct.unpack_from("<q", body, offset)
    if size < -1 or offset < 0:
        raise Damaged("a buffer has a negative size")
    return length if size == -1 else size


def _offset(data: memoryview, place: int) -> int:
    return place + struct.unpack_from("<I", data, place)[0]


def _table(data: memoryview, place: int) -> int:
    """Returns where what a field points to begins."""
    if not place:
        raise Damaged("a field is missing")
    return _offset(data, place)


def _field(data: memoryview, table: int, number: int) -> int:
    """Returns where a field of a table stands; 0 if it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    if 6 + 2 * number > size:
        return 0
    (relative,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + relative if relative else 0
