"""Weights files as such: reading them safely, comparing their keys with a model's, writing them whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

METADATA_KEY = "liteseg"
_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin")
# what wrappers put in front of every key
_WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")

StateDict = dict[str, torch.Tensor]


class Checkpoint(NamedTuple):
    """Tensors of a weights file by key, and its configuration metadata where it has any."""

    state: StateDict
    metadata: dict[str, Any] | None


def _some(keys: list[str], limit: int = 3) -> str:
    """The first few keys, for error messages."""
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # about pickle protocols; what matters of it is in the error below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise ValueError(
                f"{path}: refused: the pickle calls code ({code.group(1)}); expected tensors only (a state dict)"
            ) from error
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"PK" or start[:1] == pickle.PROTO:
            raise ValueError(
                f"{path}: refused: the pickle may call code; expected tensors only (a state dict, pickle protocol 2)"
            ) from error
        raise ValueError(f"{path}: not a weights file, or a damaged one") from error
    # damaged files raise many types, none of them documented
    except Exception as error:
        raise ValueError(f"{path}: not a weights file, or a damaged one") from error


def unwrap(loaded: Any, origin: str) -> StateDict:
    """The state dict in what a file held, without ``state_dict`` wrapper and common key prefix; ValueError if none."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"{origin}: expected a state dict (names -> tensors), got {type(loaded).__name__}")
    wrong = [key for key, value in loaded.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)]
    if wrong:
        raise ValueError(f"{origin}: expected a state dict (names -> tensors), but {wrong[0]!r} is not a tensor's name")
    state = dict(loaded)
    for prefix in _WRAPPER_PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _parse_metadata(metadata: dict[str, str] | None, path: Path) -> dict[str, Any] | None:
    if not metadata or METADATA_KEY not in metadata:
        return None
    try:
        parsed = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: the model configuration in the file is damaged ({error})") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{path}: the model configuration in the file is damaged (expected an object)")
    return parsed


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Tensors (on the CPU) and metadata of a ``.safetensors`` or ``.pth``-like file; ValueError if it is neither.

    Pickles are read with ``weights_only=True``: one that would run code is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected an existing weights file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata()
                state = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a safetensors file, or a damaged one ({error})") from error
        return Checkpoint(unwrap(state, str(path)), _parse_metadata(metadata, path))
    if path.suffix in _TORCH_SUFFIXES:
        return Checkpoint(unwrap(_torch_load(path), str(path)), None)
    allowed = ", ".join((".safetensors", *_TORCH_SUFFIXES))
    raise ValueError(f"{path}: expected a weights file ({allowed}), got suffix {path.suffix!r}")


def check_state(
    model: nn.Module, state: Mapping[str, torch.Tensor], origin: str, optional: tuple[str, ...] = ()
) -> None:
    """ValueError unless `state` has the model's keys (those starting with `optional` may lack), shapes and kinds."""
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(optional or "\0")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        parts = [
            f"{len(keys)} {kind} ({_some(keys)})"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise ValueError(f"{origin}: keys do not match the model: {'; '.join(parts)}")
    wrong = [
        f"{key}: expected {list(own[key].shape)}, got {list(value.shape)}"
        for key, value in state.items()
        if own[key].shape != value.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{origin}: shapes do not match the model: {wrong[0]}{more}")
    for key, value in state.items():
        if own[key].is_floating_point() != value.is_floating_point():
            raise ValueError(f"{origin}: {key}: expected {own[key].dtype}, got {value.dtype}")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the folder of `path`, then move what it wrote to `path`."""
    final = Path(path)
    if not final.parent.is_dir():
        raise ValueError(f"{final}: expected an existing folder, got {final.parent}")
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
