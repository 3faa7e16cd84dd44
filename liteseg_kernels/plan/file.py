"""The network file: a program with its weights as they are, for the C library, which packs them where it runs.

csrc/engine/c_api/network_file.h says what lies where.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import compiled
from .contract import constant
from .packing import PlainWriter
from .program import Program

MAGIC = b"\x89LSN\r\n\x1a\n"
VERSION = 1


@dataclass(frozen=True)
class Description:
    """What a network file says of its network besides the program.

    Attributes:
        classes: channels of the logits.
        mean, std: of its input, one number a channel, for values in 0..1.
        input_scale: pictures are resized by it before the network sees them.
        smallest_side: of the network's input.
        class_names: one a class, or None.
        more: anything that JSON can hold, for people.
    """

    classes: int
    mean: Sequence[float]
    std: Sequence[float]
    input_scale: float = 1.0
    smallest_side: int = 32
    class_names: Sequence[str] | None = None
    more: dict[str, Any] = field(default_factory=dict)


def _text(text: str) -> bytes:
    data = text.encode()
    if b"\0" in data:
        raise ValueError(f"network file: expected texts without a zero character, got {text!r}")
    return struct.pack("<I", len(data)) + data


def _pieces(program: Program, about: Description) -> Iterator[bytes]:
    """The file from its description on."""
    out = PlainWriter()
    compiled.write(program, out)
    yield _text(json.dumps(about.more))
    names = about.class_names
    if names is not None and len(names) != about.classes:
        raise ValueError(f"network file: expected {about.classes} class names, got {len(names)}")
    yield struct.pack("<II", about.classes, names is not None)
    yield from map(_text, names or ())
    yield struct.pack("<dII", about.input_scale, about.smallest_side, len(about.mean))
    yield np.array([*about.mean, *about.std], "<f8").tobytes()
    yield struct.pack("<Q", len(out.words)) + np.array(out.words, "<i8").tobytes()
    yield struct.pack("<Q", len(out.weights))
    for weight in out.weights:
        yield struct.pack("<Q4q", weight.place, constant(f"weight.{weight.kind}"), *weight.dims)
    for weight in out.weights:
        yield weight.values.numpy().astype("<f4", copy=False).tobytes()


def write(path: str | os.PathLike[str], program: Program, about: Description) -> None:
    """Write a network file. Raises Unplannable where no plan covers the program, and leaves what it wrote then to the
    caller."""
    size, checksum = 24, 0
    with Path(path).open("wb") as file:
        file.write(bytes(size))
        for piece in _pieces(program, about):
            file.write(piece)
            size += len(piece)
            checksum = zlib.crc32(piece, checksum)
        file.seek(0)
        file.write(MAGIC + struct.pack("<IIQ", VERSION, checksum, size))
