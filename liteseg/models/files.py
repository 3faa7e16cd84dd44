"""Weights files as such: reading them safely, and comparing their keys with a model's."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

METADATA_KEY = "liteseg"
_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin")
# what wrappers put in front of every key
_WRAPPER_PREFIXES = ("module.", "model.", "net.")
# where a checkpoint keeps its state dict, the one to use first: averages are what is meant to be used
_CONTAINERS = ("ema", "state_dict", "model_state_dict", "model", "net")
# the counter beside the weights of torch's AveragedModel
_AVERAGED = "n_averaged"
# what is worth naming of what was found instead
_NAMED = 6

StateDict = dict[str, torch.Tensor]


class Checkpoint(NamedTuple):
    """Tensors of a weights file by key, and its configuration metadata where it has any.

    That of a trainer's checkpoint made by older versions may lack fields.
    """

    state: StateDict
    metadata: dict[str, Any] | None


def _some(keys: list[str], limit: int = 3) -> str:
    """The first few keys, for error messages."""
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")


def _harmless() -> list[Any]:
    """What checkpoints hold beside tensors, for torch's list of what may be unpickled: values, nothing that acts.

    Scores as NumPy scalars and arrays, options as a namespace, paths (as names of either system, whatever this one is).
    """
    multiarray = getattr(np, "_core", None) or np.core
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefdgFDUS"}
    found: list[Any] = [np.ndarray, np.dtype, argparse.Namespace, *sorted(kinds, key=str)]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        found.append((multiarray.multiarray.scalar, f"{module}.scalar"))
        found.append((multiarray.multiarray._reconstruct, f"{module}._reconstruct"))
    for module in ("pathlib", "pathlib._local"):
        found.append((pathlib.PurePosixPath, f"{module}.PosixPath"))
        found.append((pathlib.PureWindowsPath, f"{module}.WindowsPath"))
    return found


# torch keeps one list for the whole process
_ALLOWING = threading.Lock()


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), _ALLOWING:
            # about pickle protocols; what matters of it is in the error below
            warnings.simplefilter("ignore")
            known = torch.serialization.get_safe_globals()
            # what is allowed already must stay so afterwards
            with torch.serialization.safe_globals([one for one in _harmless() if one not in known]):
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


def _state_in(loaded: Any) -> Mapping[Any, Any] | None:
    """The mapping of names to tensors that `loaded` is or holds."""
    if not isinstance(loaded, Mapping) or not loaded:
        return None
    if all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()):
        return loaded
    return next((state for name in _CONTAINERS if (state := _state_in(loaded.get(name))) is not None), None)


def _described(loaded: Any) -> str:
    """What a file held, in a few words."""
    if not isinstance(loaded, Mapping):
        return type(loaded).__name__
    others = [key for key, value in loaded.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    # of a state dict with something beside it, that is what is in the way
    kinds = [f"{key!r} ({type(loaded[key]).__name__})" for key in others[:_NAMED]]
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    beside = f"{len(loaded) - len(others)} tensors and " if len(others) < len(loaded) else ""
    return f"{beside}{', '.join(kinds)}{more}" if kinds else "an empty one"


def unwrap(loaded: Any, origin: str) -> StateDict:
    """The state dict in what a file held, without the containers and key prefixes that wrappers add.

    Containers: ``ema``, ``state_dict``, ``model_state_dict``, ``model``, ``net``, nested in each other, the first that
    holds one. Prefixes of every key: ``module.``, ``model.``, ``net.``, any number of them; ``_orig_mod.`` anywhere.

    Raises:
        ValueError: no state dict; the text says what was found.
    """
    found = _state_in(loaded)
    if found is None:
        raise ValueError(
            f"{origin}: expected a state dict (names -> tensors), on its own or as {', '.join(_CONTAINERS)}, "
            f"got {_described(loaded)}"
        )
    # left by modules compiled on their own
    state = {key.replace("_orig_mod.", ""): value for key, value in found.items()}
    if _AVERAGED in state and len(state) > 1 and all(key.startswith("module.") for key in state if key != _AVERAGED):
        del state[_AVERAGED]
    while prefix := next((p for p in _WRAPPER_PREFIXES if all(key.startswith(p) for key in state)), None):
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


def _trainer_metadata(loaded: Any, path: Path) -> dict[str, Any] | None:
    """The model's configuration in a checkpoint that `liteseg train` wrote."""
    own = loaded.get(METADATA_KEY) if isinstance(loaded, Mapping) else None
    if not isinstance(own, Mapping):
        return None
    if isinstance(own.get("model"), Mapping):
        return dict(own["model"])
    # older versions kept the arguments that the model was made from
    try:
        given = own["config"]["model"]
        metadata = {"name": given["name"], "input_scale": given["input_scale"], **(given["switches"] or {})}
        names, count = given["class_names"], given["num_classes"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: the model configuration in the file is damaged ({error!r})") from error
    metadata |= {} if names is None else {"class_names": names, "num_classes": len(names)}
    return metadata if count is None else {**metadata, "num_classes": count}


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Tensors (on the CPU) and metadata of a ``.safetensors`` or ``.pth``-like file; ValueError if it is neither.

    A trainer's checkpoint gives the weights that it would export and the model's configuration. Pickles are read with
    ``weights_only=True``: one that would run code is refused. NumPy values, ``argparse`` options and paths beside the
    tensors are let pass.
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
        loaded = _torch_load(path)
        return Checkpoint(unwrap(loaded, str(path)), _trainer_metadata(loaded, path))
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


def check_folder(path: str | os.PathLike[str]) -> None:
    """ValueError unless the folder that a weights file goes to exists: a mistyped one should not be made."""
    if not Path(path).parent.is_dir():
        raise ValueError(f"{path}: expected an existing folder, got {Path(path).parent}")
