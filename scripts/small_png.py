"""Makes PNG files small: at most 256 colours and no filters, which is all that a picture of text needs.

python scripts/small_png.py FILE.png...
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections import Counter
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG file by their names, those of one name joined. Raises ``ValueError`` for another file."""
    if data[:8] != SIGNATURE:
        raise ValueError("not a PNG file")
    found: dict[bytes, bytes] = {}
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        found[name] = found.get(name, b"") + data[at + 8 : at + 8 + length]
        at += 12 + length
    return found


def unfiltered(raw: bytes, width: int, height: int, size: int) -> list[bytes]:
    """The rows of a picture with ``size`` bytes a pixel (the five filters of the PNG specification, section 9)."""
    long = width * size
    rows: list[bytes] = []
    above = bytearray(long)
    for y in range(height):
        start = y * (long + 1)
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + long])
        if kind == 1:
            for i in range(size, long):
                row[i] = (row[i] + row[i - size]) & 255
        elif kind == 2:
            row = bytearray((a + b) & 255 for a, b in zip(row, above, strict=True))
        elif kind == 3:
            for i in range(long):
                row[i] = (row[i] + ((row[i - size] if i >= size else 0) + above[i]) // 2) & 255
        elif kind == 4:
            for i in range(long):
                left, corner = (row[i - size], above[i - size]) if i >= size else (0, 0)
                up = above[i]
                by_left, by_up, by_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
                near = left if by_left <= by_up and by_left <= by_corner else up if by_up <= by_corner else corner
                row[i] = (row[i] + near) & 255
        rows.append(bytes(row))
        above = row
    return rows


def palette_of(seen: Counter[bytes]) -> tuple[list[bytes], dict[bytes, int]]:
    """The 256 colours that occur most, and for every colour the place of the nearest of them."""
    kept = [colour for colour, _ in seen.most_common(256)]
    places = {colour: place for place, colour in enumerate(kept)}
    for r, g, b in seen.keys() - places.keys():
        near = min(range(256), key=lambda p: (kept[p][0] - r) ** 2 + (kept[p][1] - g) ** 2 + (kept[p][2] - b) ** 2)
        places[bytes((r, g, b))] = near
    return kept, places


def small(data: bytes) -> bytes:
    """The same picture with a palette. Raises ``ValueError`` for what Chromium does not write."""
    found = chunks(data)
    width, height, depth, colours, *_, interlaced = struct.unpack(">IIBBBBB", found[b"IHDR"])
    if colours == 3:
        return data
    if depth != 8 or colours not in (2, 6) or interlaced:
        raise ValueError("only RGB and RGBA with 8 bits, not interlaced")
    size = 3 if colours == 2 else 4
    rows = unfiltered(zlib.decompress(found[b"IDAT"]), width, height, size)
    pixels = [[row[i : i + 3] for i in range(0, len(row), size)] for row in rows]
    kept, places = palette_of(Counter(colour for row in pixels for colour in row))
    body = b"".join(b"\0" + bytes(places[colour] for colour in row) for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", b"".join(kept)),
        (b"IDAT", zlib.compress(body, 9)),
        (b"IEND", b""),
    )
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


def make_small(path: Path) -> None:
    """Rewrites a file where that makes it smaller, and says what became of it."""
    before = path.read_bytes()
    after = small(before)
    if len(after) < len(before):
        path.write_bytes(after)
    print(f"{path}: {len(before)} to {min(len(before), len(after))} bytes")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        make_small(Path(name))
