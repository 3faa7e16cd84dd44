"""The paper's ablation on CamVid, equal budgets: `python -m benchmarks.ablation --data DIR --backbone-weights FILE`.

Rows of Table I but for coarse labels, which CamVid has not: baseline, + DASPP (standard convolutions), + multi-scale
training, + separable convolutions. Every run takes the same number of steps of the same batch: an epoch of multi-scale
training is four passes over the images, so it gets a quarter of the epochs. Its crops have other sizes; the column
"pixels" is the mean of a step against the first row. Everything else is the preset `camvid_BACKBONE`.

A run is a folder of --out. What is in the CSV for the same budget is not run again, and an interrupted run goes on. The
split is scored once, with the weights of the end of the run. Prints mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import ENVIRONMENT, append
from liteseg.bench.record import read

ROWS = {"baseline": "baseline", "+ DASPP": "dense", "+ MS": "dense_ms", "+ DW": "ms"}
KEY = ("row", "backbone", "passes", "split", "seed")
COLUMNS = (*KEY, "mean IoU", "pixel accuracy", "pixels", "steps", "batch", "preset", *ENVIRONMENT)


def _pixels(data: dict[str, Any]) -> float:
    crops = [one.get("crop", data["augment"]["crop"]) for one in data.get("passes", [{}])]
    first = data["augment"]["crop"]
    return sum(height * width for height, width in crops) / len(crops) / (first[0] * first[1])


def train(config: dict[str, Any], data: Path, out: Path, seed: int, split: str, options: list[str]) -> dict[str, Any]:
    """Trains a configuration in the folder `out`, or goes on with it; scores, steps and batch of the CSV."""
    # the documentation reads the tables without a trainer
    from liteseg.train.checkpoint import read_checkpoint
    from liteseg.train.cli import main
    from liteseg.train.presets import merge

    changes: dict[str, Any] = {
        "out": str(out),
        "seed_everything": seed,
        "evaluate": split,
        "data": {"root": str(data)},
        # scored once, at the end
        "trainer": {"limit_val_batches": 0, "logger": False, "enable_progress_bar": False},
    }
    code = main(["--config", json.dumps(merge(config, changes)), *options])
    if code:
        raise SystemExit(code)
    checkpoint = read_checkpoint(out / "checkpoints" / "last.ckpt")
    scores = json.loads((out / f"{split}.json").read_text())
    return {
        "mean IoU": f"{100 * scores['mean_iou']:.2f}",
        "pixel accuracy": f"{100 * scores['pixel_accuracy']:.2f}",
        "steps": checkpoint["global_step"],
        "batch": checkpoint["liteseg"]["config"]["data"]["batch_size"],
    }


def missing(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether no line of the CSV has these values."""
    return not any(all(done[key] == str(value) for key, value in wanted.items()) for done in read(path))


def run(args: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    """Trains one row with one seed, or goes on with it; what is new in its line of the CSV."""
    from liteseg.train.presets import merge, preset

    name = f"camvid_{args.backbone}_{ROWS[row]}"
    config = preset(name)
    pixels = _pixels(config["data"])
    changes: dict[str, Any] = {"trainer": {"max_epochs": args.passes // len(config["data"].get("passes", [{}]))}}
    if args.backbone_weights is not None:
        changes["model"] = {"backbone_weights": str(args.backbone_weights)}
    out = args.out / f"{name}_{args.passes}_{seed}"
    done = train(merge(config, changes), args.data, out, seed, args.split, args.option)
    return {**done, "pixels": f"{pixels:.2f}", "preset": name}


def table(rows: list[dict[str, str]]) -> str:
    """Mean and spread of each row, as markdown."""
    lines = ["| | mean IoU | standard deviation | seeds | steps | pixels |", "|---|---|---|---|---|---|"]
    for name in ROWS:
        found = [row for row in rows if row["row"] == name]
        if found:
            values = [float(row["mean IoU"]) for row in found]
            spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
            lines.append(
                f"| {name} | {statistics.mean(values):.2f} | {spread} | {len(values)} | {found[0]['steps']} | "
                f"{found[0]['pixels']} |"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid's folder")
    parser.add_argument("--backbone-weights", type=Path, help="ImageNet weights")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--passes", type=int, default=40, help="over the training images; a multiple of 4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", help="that is scored")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, help="default: OUT/ablation.csv")
    parser.add_argument("option", nargs="*", help="after --: further options of liteseg train, for every run")
    args = parser.parse_args(argv)
    if args.passes < 4 or args.passes % 4:
        parser.error(f"--passes: expected a multiple of 4, got {args.passes}")
    path = args.csv or args.out / "ablation.csv"
    for seed in args.seeds:
        for row in ROWS:
            wanted = {"row": row, "backbone": args.backbone, "passes": args.passes, "split": args.split, "seed": seed}
            if missing(path, wanted):
                append(path, COLUMNS, {**wanted, **run(args, row, seed)})
    budget = (args.backbone, str(args.passes), args.split)
    print(table([one for one in read(path) if (one["backbone"], one["passes"], one["split"]) == budget]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
