"""`liteseg train`: YAML configuration with overrides, resuming, and the weights file at the end."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from liteseg.models import save_weights

from .checkpoint import AtomicCheckpointIO, model_state, read_checkpoint
from .datamodule import SegmentationData
from .ema import EMA
from .module import NotFiniteError, SegmentationModule

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def find_config(name: str) -> str:
    """Path of a configuration: `name` itself if it exists, else the preset of that name shipped with liteseg.

    `configs/NAME.yaml`, `NAME.yaml` and `NAME` all name a preset. ValueError that lists the presets for other names.
    """
    if os.path.isfile(name):
        return name
    presets = {path.name.removesuffix(".yaml"): path for path in (resources.files("liteseg") / "configs").iterdir()}
    if Path(name).parent in (Path("."), Path("configs")):
        preset = presets.get(Path(name).name.removesuffix(".yaml"))
        if preset is not None:
            return str(preset)
    raise ValueError(f"config: expected a file or one of the presets {', '.join(sorted(presets))}, got {name!r}")


def _resolve_configs(argv: Sequence[str]) -> list[str]:
    resolved: list[str] = []
    for position, argument in enumerate(argv):
        if position and argv[position - 1] in ("--config", "-c"):
            argument = find_config(argument)
        elif argument.startswith("--config="):
            argument = f"--config={find_config(argument.removeprefix('--config='))}"
        resolved.append(argument)
    return resolved


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    found = {"python": platform.python_version()}
    for package in ("liteseg", "torch", "pytorch-lightning", "numpy", "pillow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


class _Record(Callback):
    """Puts the full configuration and the versions into every checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["liteseg"] = {"config": self.config, "versions": versions()}


class TrainCLI(LightningCLI):
    """LightningCLI for one job: fit, then export."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", type=str, default="runs/liteseg", help="Folder of logs, checkpoints and weights.")
        parser.add_argument("--resume", type=bool, default=True, help="Go on from OUT/checkpoints/last.ckpt.")
        parser.add_argument("--ema_decay", type=float, default=0.998, help="Of the averaged weights; 0 for none.")
        parser.add_argument(
            "--export_dtype", type=Literal["float32", "float16"], default="float32", help="Of OUT/weights.safetensors."
        )
        parser.link_arguments("model.input_scale", "data.val_input_scale")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_data_seed)
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # the parent warns whenever arguments are given from within python
        self.config = parser.parse_args(args)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        out = Path(self.config["out"])
        own: list[Callback] = [
            ModelCheckpoint(
                out / "checkpoints", "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
            ),
            ModelCheckpoint(out / "checkpoints", "best", monitor="val/miou", mode="max", enable_version_counter=False),
        ]
        if self.config["ema_decay"] != 0:
            own.append(EMA(self.config["ema_decay"]))
        self._dump_config()
        own.append(_Record(self.config_dump))
        settings = self.config_init["trainer"]
        if settings["logger"] is not False:
            own.append(LearningRateMonitor(logging_interval="step"))
        if settings["logger"] is None or settings["logger"] is True:
            kwargs["logger"] = _logger(out)
        kwargs.setdefault("default_root_dir", str(out))
        kwargs["plugins"] = [*(settings["plugins"] or []), AtomicCheckpointIO()]
        kwargs["callbacks"] = own
        return super().instantiate_trainer(**kwargs)


def _data_seed(seed: bool | int) -> int:
    return 0 if isinstance(seed, bool) else seed


def _logger(out: Path) -> Logger:
    if importlib.util.find_spec("tensorboard") is not None:
        return TensorBoardLogger(out, name="", version="")
    return CSVLogger(out, name="", version="")


def _recipe(config: dict[str, Any]) -> dict[str, Any]:
    """What has to be known to repeat a run, without the folders of the machine it ran on."""
    model = {key: value for key, value in config["model"].items() if value is not None and key != "class_names"}
    for key in ("backbone_weights", "weights"):
        if key in model:
            digest = hashlib.sha256(Path(model[key]).read_bytes()).hexdigest() if os.path.isfile(model[key]) else None
            model[key] = {"file": Path(model[key]).name, "sha256": digest}
    data = {key: value for key, value in config["data"].items() if value is not None and key != "root"}
    keys = (
        "max_epochs",
        "max_steps",
        "precision",
        "accumulate_grad_batches",
        "gradient_clip_val",
        "limit_train_batches",
    )
    trainer = {key: config["trainer"][key] for key in keys if config["trainer"][key] not in (None, -1)}
    return {"model": model, "data": data, "trainer": trainer}


def export(cli: TrainCLI, checkpoint_path: Path, path: Path) -> None:
    """Write the weights of a checkpoint (averaged ones where kept) as safetensors, with where they come from."""
    checkpoint = read_checkpoint(checkpoint_path)
    cli.model.model.load_state_dict(model_state(checkpoint))
    data: SegmentationData = cli.datamodule
    provenance = {
        "dataset": data.name,
        "split": data.train_split,
        "images": len(data.train_set),
        "epochs": checkpoint["epoch"] + 1,
        "steps": checkpoint["global_step"],
        "seed": cli.config["seed_everything"],
        "ema_decay": cli.config["ema_decay"],
        "recipe": _recipe(cli.config_dump),
        "versions": versions(),
    }
    save_weights(cli.model.model, path, dtype=_DTYPES[cli.config["export_dtype"]], metadata={"provenance": provenance})


def _check_resumable(cli: TrainCLI, path: Path) -> None:
    stored = read_checkpoint(path)["liteseg"]["config"]["model"]
    for key in ("name", "num_classes", "class_names", "switches"):
        if stored[key] != cli.config_dump["model"][key]:
            raise ValueError(
                f"{path}: holds a run with model.{key} {stored[key]}, not {cli.config_dump['model'][key]}; "
                "choose another --out, or start over with --resume false"
            )


def train(argv: Sequence[str]) -> Path | None:
    """Run one training as the command line would.

    Returns the path of the weights file; None after `--trainer.fast_dev_run`, which keeps nothing.
    """
    cli = TrainCLI(
        SegmentationModule,
        SegmentationData,
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        # the sampler shards itself; the summary shows no more than the parameter count
        trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
        parser_kwargs={
            "prog": "liteseg train",
            "description": "Train a model; presets are in the package's configs folder.",
            "exit_on_error": False,
        },
        args=_resolve_configs(argv),
        run=False,
        auto_configure_optimizers=False,
        seed_everything_default=0,
    )
    out = Path(cli.config["out"])
    last = out / "checkpoints" / "last.ckpt"
    resume = last if cli.config["resume"] and last.is_file() else None
    if resume is not None:
        _check_resumable(cli, resume)
        rank_zero_info(f"resuming from {resume}")
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=resume, weights_only=True)
    if cli.config["trainer"]["fast_dev_run"]:
        return None
    weights = out / "weights.safetensors"
    if cli.trainer.is_global_zero:
        export(cli, last, weights)
        rank_zero_info(f"wrote {weights}")
    return weights


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: exit code 0 on success, 2 on bad input, 1 when the loss is no longer finite; one line on stderr.

    `--debug` shows the traceback instead.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    # lightning's own use of torch, nothing a user could act on
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    try:
        train(arguments)
    except (ValueError, TypeError, OSError, argparse.ArgumentError, MisconfigurationException, NotFiniteError) as error:
        if debug:
            raise
        print(f"liteseg train: {_reason(error)}", file=sys.stderr)
        return 1 if isinstance(error, NotFiniteError) else 2
    return 0


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not lines[0].startswith("Caught "):
        return " ".join(lines)
    # errors of loader processes arrive with their whole traceback as text; the reason is its last line
    return lines[-1].partition(": ")[2] or lines[-1]


if __name__ == "__main__":
    sys.exit(main())
