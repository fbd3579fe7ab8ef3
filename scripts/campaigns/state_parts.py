"""What saved states of ours are made of: their numbers, and their checksums, which can be made right again.

A state of the whole context begins with the architecture's name. A memory of several parts (sliding windows, recurrent
states) puts a frame before its parts' states, the first of which is ours: a header, the numbers of cells, and
upstream's state of cells and rows.
"""

from __future__ import annotations

import struct

from campaigns.mutations import Field
from minicache_cpp.modelfile.fingerprint import hash_words

HEADER, FRAME = b"MCKV", b"MCKP"
HEADER_BYTES, FRAME_BYTES = 96, 40
# the places of the payload's size and of the checksum, in the header and in the frame
HEADER_SIZE_AT, HEADER_HASH_AT, N_STREAM_AT = 64, 72, 80
FRAME_SIZE_AT, FRAME_HASH_AT = 24, 32
CELL_WORDS = 60  # of the first words behind the header
TAIL_WORDS = 200  # before the end, where the retained tokens of the last group are


def state_fields(data: bytes) -> list[Field]:
    """The words of headers, of cells and of retained tokens, and some of the rows between them."""
    fields = []
    for magic, size in ((FRAME, FRAME_BYTES), (HEADER, HEADER_BYTES)):
        if (at := data.find(magic)) >= 0:
            fields += words(data, at, at + size)
    start = data.find(HEADER) + HEADER_BYTES
    cells = words(data, start, start + 4 * CELL_WORDS)
    return (
        fields
        + 3 * cells
        + words(data, len(data) - 4 * TAIL_WORDS, len(data))
        + words(data, start, len(data), 97)
    )


def words(data: bytes, start: int, end: int, step: int = 1) -> list[Field]:
    return [Field(at, 4, "number") for at in range(max(start, 0), min(end, len(data)) - 3, 4 * step)]


def with_right_checksums(data: bytes) -> bytes:
    """The state with the checksums and lengths of what it has now. One that has lost its header stays as it is."""
    result = bytearray(data)
    frame, header = result.find(FRAME), result.find(HEADER)
    if header >= 0 and len(result) >= header + HEADER_BYTES:
        (n_stream,) = struct.unpack_from("<I", result, header + N_STREAM_AT)
        start = header + HEADER_BYTES + 4 * min(n_stream, 64)
        # a frame's further parts follow, and only the header knows where
        (size,) = struct.unpack_from("<Q", result, header + HEADER_SIZE_AT)
        if frame < 0 or start + size > len(result):
            size = max(len(result) - start, 0)
            struct.pack_into("<Q", result, header + HEADER_SIZE_AT, size)
        struct.pack_into("<Q", result, header + HEADER_HASH_AT, 0)
        value = hash_words(bytes(result[header : header + HEADER_BYTES]))
        value = hash_words(bytes(result[header + HEADER_BYTES : start]), value)
        value = hash_words(bytes(result[start : start + size]), value)
        struct.pack_into("<Q", result, header + HEADER_HASH_AT, value)
    if frame >= 0 and len(result) >= frame + FRAME_BYTES:
        struct.pack_into("<Q", result, frame + FRAME_SIZE_AT, len(result) - frame - FRAME_BYTES)
        struct.pack_into("<Q", result, frame + FRAME_HASH_AT, 0)
        value = hash_words(bytes(result[frame : frame + FRAME_BYTES]))
        value = hash_words(bytes(result[frame + FRAME_BYTES :]), value)
        struct.pack_into("<Q", result, frame + FRAME_HASH_AT, value)
    return bytes(result)
