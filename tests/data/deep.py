"""PNG and TIFF files with 12 or 16 bits a sample, which Pillow can read (in part) but not write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

# PNG's colour types by channels
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def write_png(path: Path, samples: np.ndarray) -> Path:
    """uint16 [H, W, 1 to 4] (grey, grey and alpha, RGB, RGBA) as a PNG of 16 bits."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return path


def write_tiff(
    path: Path, samples: np.ndarray, *, order: str = "<", deflate: bool = False, bits: int = 16, orientation: int = 1
) -> Path:
    """uint16 [H, W, 1 or 3] as a TIFF of one strip. order: "<" little-endian, ">" big-endian. bits: 12 (grey) or 16."""
    height, width, channels = samples.shape
    if bits == 12:
        digits = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)[:, :, 4:]
        data = np.packbits(digits.reshape(height, -1), axis=1).tobytes()
    else:
        data = samples.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflate else data
    # values of more than four bytes lie behind the directory
    entries = 11
    behind = 8 + 2 + 12 * entries + 4
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, behind if channels > 2 else bits),
        (259, 3, 1, 8 if deflate else 1),
        (262, 3, 1, 2 if channels == 3 else 1),
        (273, 4, 1, behind + 2 * channels),
        (274, 3, 1, orientation),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
    ]
    assert len(tags) == entries
    with path.open("wb") as file:
        file.write(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8))
        file.write(struct.pack(f"{order}H", entries))
        for tag, kind, count, value in tags:
            file.write(struct.pack(f"{order}HHI", tag, kind, count))
            file.write(struct.pack(f"{order}I" if kind == 4 or count > 2 else f"{order}H2x", value))
        file.write(struct.pack(f"{order}I", 0))
        file.write(struct.pack(f"{order}{channels}H", *[bits] * channels))
        file.write(data)
    return path
