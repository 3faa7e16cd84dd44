"""`liteseg train`: YAML configuration with overrides, resuming, and the weights file at the end."""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.connectors import checkpoint_connector
from pytorch_lightning.utilities import rank_zero, rank_zero_info
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import liteseg_kernels as lk
from liteseg.atomic import remove_leftovers
from liteseg.data import dataset
from liteseg.distributed import rank
from liteseg.errors import ElsewhereError
from liteseg.evaluate import evaluate
from liteseg.models import create_model, save_weights

from .callbacks import EMA, LastCheckpoint, Pictures
from .checkpoint import AtomicCheckpointIO, model_state, read_checkpoint
from .datamodule import SegmentationData
from .interruption import Interruption
from .module import NotFiniteError, SegmentationModule
from .options import in_options
from .presets import resolve, with_config
from .sync import LayerSync

# options that are called as in the other commands
_LONG = {"--weights": "--model.weights", "--weights-mode": "--model.weights_mode"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


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
    """Puts the full configuration, the model's and the versions into every checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        model = pl_module.model.config.to_dict()
        checkpoint["liteseg"] = {"config": self.config, "model": model, "versions": versions()}


class TrainCLI(LightningCLI):
    """LightningCLI for one job: fit, then export."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", type=str, default="runs/liteseg", help="Folder of logs, checkpoints and weights.")
        parser.add_argument("--resume", type=bool, default=True, help="Go on from OUT/checkpoints/last.ckpt.")
        parser.add_argument(
            "--before",
            type=dict | None,
            default=None,
            help="Changes that make this configuration that of a run which comes first, in OUT/before; this run starts "
            "from its weights.",
        )
        parser.add_argument("--ema_decay", type=float, default=0.998, help="Of the averaged weights; 0 for none.")
        parser.add_argument(
            "--checkpoint_steps", type=int, default=0, help="Steps between checkpoints; 0 for one an epoch."
        )
        parser.add_argument("--pictures", type=int, default=4, help="Validation pictures shown in TensorBoard.")
        parser.add_argument(
            "--export_dtype", type=Literal["float32", "float16"], default="float32", help="Of OUT/weights.safetensors."
        )
        parser.add_argument(
            "--evaluate",
            type=str | None,
            default="val",
            help="Split that OUT/weights.safetensors is evaluated on at the end, into OUT/SPLIT.json.",
        )
        parser.link_arguments("model.input_scale", "data.val_input_scale")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_data_seed)
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # the parent warns whenever arguments are given from within python
        self.arguments, self.interruption = args, Interruption()
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        if self.config["before"] is None:
            return
        folder = Path(self.config["out"]) / "before"
        if not (folder / "weights.safetensors").is_file():
            first = with_config(self.arguments, {**self.config["before"], "before": None})
            train([*first, "--out", str(folder), "--evaluate", "null"])
            self._set_seed()
        if self.config["trainer"]["fast_dev_run"]:
            return
        self.config["model"]["weights"] = str(folder / "weights.safetensors")
        self.config["model"]["backbone_weights"] = None
        self.config["model"]["weights_mode"] = "all"

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        out = Path(self.config["out"])
        folder = out / "checkpoints"
        # the last one after the best one, whose state it holds: a run killed between the two writes both again
        own: list[Callback] = [
            ModelCheckpoint(
                folder,
                "best",
                monitor="val/miou",
                mode="max",
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            ),
            LastCheckpoint(folder / "last.ckpt", self.config["checkpoint_steps"], self.interruption),
        ]
        if self.config["ema_decay"] != 0:
            own.append(EMA(self.config["ema_decay"]))
        if self.config["pictures"] > 0:
            own.append(Pictures(self.config["pictures"]))
        self._dump_config()
        own.append(_Record(self.config_dump))
        settings = self.config_init["trainer"]
        if settings["logger"] is not False:
            own.append(LearningRateMonitor(logging_interval="step"))
        if settings["logger"] is None or settings["logger"] is True:
            kwargs["logger"] = _logger(out)
        kwargs.setdefault("default_root_dir", str(out))
        kwargs["plugins"] = [*(settings["plugins"] or []), AtomicCheckpointIO()]
        if _processes() > 1:
            if settings["strategy"] == "auto":
                # statistics of batch norm are equal on all processes already; sending them at every forward would also
                # make validation wait for processes that have an image less
                kwargs["strategy"] = DDPStrategy(broadcast_buffers=False)
            if settings["sync_batchnorm"]:
                kwargs["plugins"].append(LayerSync())
                kwargs["sync_batchnorm"] = False
        kwargs["callbacks"] = own
        return super().instantiate_trainer(**kwargs)


def _processes() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _trainer_defaults() -> dict[str, Any]:
    # the loaders shard themselves; the summary shows no more than the parameter count
    defaults: dict[str, Any] = {"use_distributed_sampler": False, "enable_model_summary": False, "sync_batchnorm": True}
    if _processes() > 1:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        defaults.update(devices=local, num_nodes=_processes() // local)
    return defaults


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


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C ended a run; the text says what is left of it."""


def _left_behind(saved: tuple[Path, int] | None, last: Path) -> str:
    again = "the same command goes on from there"
    if saved is not None:
        return f"interrupted; saved step {saved[1]} in {saved[0]}: {again}"
    return f"interrupted; not saved, {last} is of an earlier step: {again}" if last.is_file() else "interrupted"


def _check_resumable(cli: TrainCLI, path: Path) -> int:
    """The step that a checkpoint was written at; ValueError where it is another run's."""
    checkpoint = read_checkpoint(path)
    stored = checkpoint["liteseg"]["config"]["model"]
    for key in ("name", "num_classes", "class_names", "switches"):
        if stored[key] != cli.config_dump["model"][key]:
            raise ValueError(
                f"{path}: holds a run with model.{key} {stored[key]}, not {cli.config_dump['model'][key]}; "
                "choose another --out, or start over with --resume false"
            )
    return checkpoint["global_step"]


def train(argv: Sequence[str]) -> Path | None:
    """Run one training as the command line would.

    Returns the path of the weights file; None after `--trainer.fast_dev_run`, which keeps nothing.
    """
    cli = TrainCLI(
        SegmentationModule,
        SegmentationData,
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        trainer_defaults=_trainer_defaults(),
        parser_kwargs={
            "prog": "liteseg train",
            "description": "Train a model; presets are in the package's configs folder.",
            "exit_on_error": False,
        },
        args=resolve(argv),
        run=False,
        auto_configure_optimizers=False,
        seed_everything_default=0,
    )
    out = Path(cli.config["out"])
    last = out / "checkpoints" / "last.ckpt"
    if cli.trainer.is_global_zero:
        # of a run killed while it wrote
        for folder in (out, last.parent):
            remove_leftovers(folder)
    resume = last if cli.config["resume"] and last.is_file() else None
    if resume is not None:
        step = _check_resumable(cli, resume)
        rank_zero_info(f"RESUMING at step {step} from {resume} (--resume false starts over)")
    with cli.interruption:
        try:
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=resume, weights_only=True)
        # what lightning makes of an interruption
        except (KeyboardInterrupt, SystemExit) as end:
            if isinstance(end, SystemExit) and not isinstance(end.__context__, KeyboardInterrupt):
                raise
            raise InterruptedRun(_left_behind(cli.interruption.saved, last)) from end
    if cli.config["trainer"]["fast_dev_run"]:
        return None
    weights = out / "weights.safetensors"
    if cli.trainer.is_global_zero:
        export(cli, last, weights)
        rank_zero_info(f"wrote {weights}")
    cli.trainer.strategy.barrier()
    if cli.config["evaluate"] is not None:
        _evaluate(cli, weights, cli.config["evaluate"])
    return weights


def _evaluate(cli: TrainCLI, weights: Path, split: str) -> None:
    """Scores of the exported weights, as `liteseg evaluate` gives them."""
    model = lk.fuse(create_model(weights=weights).eval().to(cli.trainer.strategy.root_device))
    data = dataset(cli.datamodule.name, cli.datamodule.root, split, **cli.datamodule.reading)
    flip = cli.config["model"]["val_flip"]
    result = evaluate(model, data, flip=flip, progress=cli.trainer.progress_bar_callback is not None)
    if cli.trainer.is_global_zero:
        result.settings.update(dataset=cli.datamodule.name, split=split, model=model.config.name, dtype="float32")
        result.write(weights.parent / f"{split}.json")
        rank_zero_info(f"{split}, {result.images} images{', with mirrored ones' if flip else ''}:\n{result.table()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: exit code 0 on success; one line on stderr otherwise, with the traceback after `--debug`.

    2: bad input, or a file that cannot be read or written. 1: the run stopped: the loss is no longer finite, a loader
    process died, memory is exhausted. 130: interrupted; once there are steps, the last one is finished and saved first.
    """
    with _quiet():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    # lightning's own help has everything
    arguments = ["--help" if argument == "--help-all" else _long(argument) for argument in arguments]
    if "--deterministic" in arguments:
        position = arguments.index("--deterministic")
        arguments[position : position + 1] = ["--trainer.deterministic", "true"]
    try:
        train(arguments)
        _leave()
    except KeyboardInterrupt as end:
        if rank() == 0:
            print(f"liteseg: {end or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        code, reason = _explain(error)
        if debug or code is None:
            raise
        if not isinstance(error, ElsewhereError):
            who = f"process {rank()}: " if rank() else ""
            print(f"liteseg: error: {who}{reason}", file=sys.stderr)
        return code
    return 0


# of lightning's warnings, those about its own use of torch, and what it cannot know: the sampler goes on within an
# epoch, a folder of checkpoints is there because the run was, scores are of the counts of all processes
_NO_WARNINGS = (
    ".*LeafSpec.*",
    ".*your dataloader is not resumable.*",
    ".*Checkpoint directory .* is not empty.*",
    ".*It is recommended to use `self.log.*",
)
# of what it says: advertisements, and what nobody could act on
_NO_INFO = ("\N{ELECTRIC LIGHT BULB} Tip:", "`weights_only` was not set", "\nDetected KeyboardInterrupt")


def _worth_saying(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NO_INFO)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning without the place and the text of the source it comes from."""
    return f"liteseg: warning: {' '.join(str(message).split())}\n"


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's warnings and messages as far as they are worth reading, one line each."""
    loggers = [logging.getLogger(module.__name__) for module in (rank_zero, checkpoint_connector)]
    with warnings.catch_warnings():
        for message in _NO_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        shown, warnings.formatwarning = warnings.formatwarning, _one_line
        for logger in loggers:
            logger.addFilter(_worth_saying)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_worth_saying)
            warnings.formatwarning = shown


def _long(argument: str) -> str:
    """An option of the whole command line in the trainer's own words."""
    name, equals, value = argument.partition("=")
    return _LONG.get(name, name) + equals + value


def _leave() -> None:
    """Ends the threads of the process group, as lightning does not: the model wrapped for DDP still holds the group.

    One that lets go of its last tensor while the interpreter shuts down aborts the process.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


_BAD_INPUT = (ValueError, TypeError, OSError, MisconfigurationException)


def _explain(error: Exception) -> tuple[int | None, str]:
    """Exit code and reason; None for errors that no user can act on."""
    if isinstance(error, NotFiniteError):
        return 1, _reason(error)
    if isinstance(error, argparse.ArgumentError):
        return 2, f"{_reason(error)} (see liteseg train --help)"
    if isinstance(error, _BAD_INPUT):
        return 2, in_options(_reason(error))
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return 1, f"out of memory; try a smaller --data.batch_size or --data.augment.crop ({_reason(error)})"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return 1, f"a loader process died, killed from outside or for memory; run again to go on ({_reason(error)})"
    return None, ""


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not lines[0].startswith("Caught "):
        return " ".join(lines)
    # errors of loader processes arrive with their whole traceback as text; the reason is its last line
    return lines[-1].partition(": ")[2] or lines[-1]


if __name__ == "__main__":
    sys.exit(main())
