"""What `liteseg train --help` says, and its options' names: no part of this needs the extra `train`."""

from __future__ import annotations

from liteseg.wording import in_options as said_in_options

__all__ = ["HELP", "in_options"]

HELP = """\
usage: liteseg train --config NAME --data.root DIR [--out DIR] [OPTION ...]

Trains a model and writes its weights, checkpoints, logs and scores below --out. Run again with the same --out, it goes
on where it was; Ctrl-C finishes the step and saves it.

what to train
  --config NAME             camvid_mobilenetv2, cityscapes_mobilenetv2, folder_mobilenetv2 (your own data) and others:
                            words joined by _, listed in liteseg/configs/README.md; or your own YAML file
  --data.root DIR           folder of the data set
  --weights W               weights to start from: a bundled name (camvid) or a file
  --weights-mode M          all (default), all-but-classifier (for other classes) or backbone
  --model.backbone_weights FILE
                            ImageNet weights of the backbone, instead of --weights
  --out DIR                 default runs/NAME
  --resume false            start over although there is a checkpoint in --out

what it costs
  --trainer.max_epochs N    how long
  --data.batch_size N       images a step and process; less needs less memory
  --data.augment.crop "[H,W]"
                            part of an image that a step sees; less needs less memory
  --data.num_workers N      loader processes
  --trainer.precision P     32-true, bf16-mixed or 16-mixed
  --trainer.devices N       GPUs; several processes also by torchrun --nproc-per-node N -m liteseg train ...

how
  --model.head_lr RATE, --model.backbone_lr RATE
                            learning rates
  --checkpoint_steps N      also save every N steps, not only at the end of an epoch
  --deterministic           the same numbers in every run

  --print_config            show all values that this command line gives, and end
  --help-all                every option there is (about 600 lines)
  --debug                   show the traceback of an error

Every value of --print_config is an option too: --model.label_smoothing 0.1. More: docs/training.md.
"""

_RENAMED = {
    "create_model: name": "--model.name",
    "create_model: num_classes": "--model.num_classes",
    "create_model: weights_mode": "--weights-mode",
    "create_model: backbone_weights": "--model.backbone_weights",
    "dataset: name": "--data.name",
    "dataset: labels_on": "--data.labels_on",
    "training: loss": "",
}
_GROUPS = {"model": "--model", "data": "--data", "augment": "--data.augment"}
# the trainer's own, and those of the groups that errors name without their group
_OPTIONS = {
    "config": "--config",
    "ema_decay": "--ema_decay",
    "checkpoint_steps": "--checkpoint_steps",
    "weights": "--weights",
    "input_scale": "--model.input_scale",
}


def in_options(text: str) -> str:
    """The text of an error, with options in the place of functions and arguments."""
    group, colon, rest = text.partition(": ")
    if colon and group in _GROUPS and ": expected" in rest:
        return f"{_GROUPS[group]}.{rest}"
    return said_in_options(text, _OPTIONS.get, _RENAMED)
