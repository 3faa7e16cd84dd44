"""libliteseg from Python: network files run by the C library (csrc/engine/c_api/liteseg.h), without torch.

For checks and comparisons; `liteseg.predict` is what Python programs use.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from . import _loader


class _Options(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("threads", ctypes.c_int),
        ("bfloat16", ctypes.c_int),
        ("memory_limit", ctypes.c_int64),
    ]


class _Image(ctypes.Structure):
    _fields_ = [
        ("pixels", ctypes.c_void_p),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("row_bytes", ctypes.c_ssize_t),
        ("order", ctypes.c_int),
    ]


def path() -> Path:
    """Where the library of this installation is, whether or not it was built."""
    return _loader.FOLDER / "libliteseg.so"


@functools.cache
def library() -> ctypes.CDLL:
    """The library with its functions declared; OSError where it cannot be loaded."""
    loaded = ctypes.CDLL(str(path()))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "version": (text, []),
        "instruction_set": (text, []),
        "last_error": (text, []),
        "open": (number, [text, ctypes.POINTER(_Options), ctypes.POINTER(pointer)]),
        "open_memory": (number, [pointer, ctypes.c_size_t, ctypes.POINTER(_Options), ctypes.POINTER(pointer)]),
        "close": (None, [pointer]),
        "classes": (number, [pointer]),
        "class_name": (text, [pointer, number]),
        "input_scale": (ctypes.c_double, [pointer]),
        "smallest_side": (number, [pointer]),
        "description": (text, [pointer]),
        "threads": (number, [pointer]),
        "labels": (number, [pointer, ctypes.POINTER(_Image), pointer, number, number]),
        "logits": (number, [pointer, ctypes.POINTER(_Image), pointer, number, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, f"liteseg_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


class LibraryError(Exception):
    """A function of the library failed.

    Attributes:
        status: the number of liteseg_status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(library().liteseg_last_error().decode())
        self.status = status


def _checked(status: int) -> None:
    if status != 0:
        raise LibraryError(status)


class Network:
    """A network file, opened by the C library.

    Args:
        file: its path, or its bytes.
        threads: that work on one call; 0: one for each processor.
        bfloat16: compute in bfloat16, where processor and network can.
        memory_limit: bytes for the weights, and for the maps of a call; 0: none.

    Raises: LibraryError.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | bytes,
        *,
        threads: int = 0,
        bfloat16: bool = False,
        memory_limit: int = 0,
    ) -> None:
        self._network: ctypes.c_void_p | None = None
        lib = library()
        options = _Options(ctypes.sizeof(_Options), threads, bfloat16, memory_limit)
        network = ctypes.c_void_p()
        arguments = (ctypes.byref(options), ctypes.byref(network))
        if isinstance(file, bytes):
            _checked(lib.liteseg_open_memory(file, len(file), *arguments))
        else:
            _checked(lib.liteseg_open(os.fsencode(file), *arguments))
        self._network = network
        self.classes: int = lib.liteseg_classes(network)
        self.input_scale: float = lib.liteseg_input_scale(network)
        self.smallest_side: int = lib.liteseg_smallest_side(network)
        self.threads: int = lib.liteseg_threads(network)
        self.description: dict[str, Any] = json.loads(lib.liteseg_description(network))
        names = [lib.liteseg_class_name(network, index) for index in range(self.classes)]
        self.class_names = None if None in names else [name.decode() for name in names]

    def close(self) -> None:
        """Twice does no harm."""
        network, self._network = self._network, None
        if network is not None:
            library().liteseg_close(network)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def labels(self, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [H, W, 3] RGB -> uint8 labels, of the picture's size or `size`."""
        out = np.empty(size or image.shape[:2], np.uint8)
        self._run("labels", image, out, size)
        return out

    def logits(self, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [H, W, 3] RGB -> float32 [K, *size], whose arg max the labels are."""
        out = np.empty((self.classes, *(size or image.shape[:2])), np.float32)
        self._run("logits", image, out, size)
        return out

    def _run(self, what: str, image: np.ndarray, out: np.ndarray, size: tuple[int, int] | None) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{what}: image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        image = np.ascontiguousarray(image)
        picture = _Image(image.ctypes.data, image.shape[0], image.shape[1], 0, 0)
        call = getattr(library(), f"liteseg_{what}")
        _checked(call(self._network, ctypes.byref(picture), out.ctypes.data, *(size or (0, 0))))
