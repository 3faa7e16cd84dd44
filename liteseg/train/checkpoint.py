"""Checkpoints that survive a kill at any moment, and the weights file made from one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from liteseg.atomic import atomic_path


class _Watched(io.FileIO):
    """A file that remembers why a write failed: torch.save turns it into an error of its own without the reason."""

    reason: OSError | None = None

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        try:
            # an unbuffered file may take a part only
            while done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.reason = error
            raise
        return done


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and on the disk before it takes the place of the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError(f"checkpoint: storage_options: expected None, got {storage_options!r}")
        with atomic_path(path, durable=True) as temporary, _Watched(temporary, "w") as file:
            try:
                torch.save(checkpoint, file)
            except Exception as error:
                if file.reason is None:
                    raise
                raise OSError(f"{path}: not written: {file.reason.strerror}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A trainer checkpoint, loaded on the CPU without running code from it; ValueError naming a broken file."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # a damaged file makes the unpickler fail with almost any type
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path}: not a whole checkpoint ({type(error).__name__}: {reason})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "liteseg" not in checkpoint:
        raise ValueError(f"{path}: expected a checkpoint written by liteseg train")
    return checkpoint


def model_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """State dict of the network inside a trainer checkpoint; the averaged (EMA) weights where the run kept them."""
    return {
        name.removeprefix("model."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }
