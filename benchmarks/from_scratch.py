"""LiteSeg and its peers on CamVid, from nothing and with equal budgets: `python -m benchmarks.from_scratch --data DIR`.

Every network starts from random numbers (no ImageNet weights) and takes the same number of steps of the same batches,
crops and learning rate, with the same seed: the preset `camvid_NETWORK`, with one rate for the whole network. So short
a training ranks how fast networks learn from few pictures, not how good they get: the peers' authors trained theirs for
hundreds of epochs, most from ImageNet weights.

A run is a folder of --out. What is in the CSV for the same budget is not run again, and an interrupted run goes on from
its last checkpoint. The split is scored once, with the weights of the end of the run. SegNet, whose step costs the most
by far, comes last.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.ablation import missing, train
from benchmarks.rows import ENVIRONMENT, append
from liteseg.bench.record import read

# what a preset calls them, cheap ones first
NETWORKS = (
    *("shufflenet", "skipnet_shufflenet", "mobilenetv2", "skipnet_mobilenet", "ccc2", "enet", "espnet", "dsnet"),
    *("erfnet", "darknet19", "segnet"),
)
KEY = ("network", "passes", "split", "seed")
COLUMNS = (*KEY, "mean IoU", "pixel accuracy", "parameters", "steps", "batch", "preset", *ENVIRONMENT)
CHECKPOINT_STEPS = 20


def run(args: argparse.Namespace, network: str) -> dict[str, Any]:
    """Trains one network, or goes on with it; what is new in its line of the CSV."""
    from liteseg.models import create_model
    from liteseg.train.presets import merge, preset

    name = f"camvid_{network}"
    config = preset(name)
    changes: dict[str, Any] = {
        # nothing is trained yet, so nothing deserves a lower rate
        "model": {"backbone_lr": config["model"]["head_lr"]},
        "trainer": {"max_epochs": args.passes},
        "checkpoint_steps": CHECKPOINT_STEPS,
    }
    out = args.out / f"{name}_{args.passes}_{args.seed}"
    done = train(merge(config, changes), args.data, out, args.seed, args.split, args.option)
    model = create_model(weights=out / "weights.safetensors")
    return {**done, "parameters": sum(p.numel() for p in model.parameters()), "preset": name}


def table(rows: list[dict[str, str]]) -> str:
    """Best first, as markdown."""
    lines = ["| | mean IoU | pixel accuracy | parameters, M |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: -float(row["mean IoU"])):
        ours = row["network"] in ("mobilenetv2", "shufflenet", "darknet19")
        name = f"liteseg_{row['network']}" if ours else row["network"]
        millions = f"{int(row['parameters']) / 1e6:.2f}"
        lines.append(f"| {name} | {row['mean IoU']} | {row['pixel accuracy']} | {millions} |")
    return "\n".join(lines)


def budget(row: dict[str, str]) -> str:
    """What every row of a table had."""
    return (
        f"CamVid {row['split']}, {row['passes']} passes over the training images ({row['steps']} steps of "
        f"{row['batch']}), seed {row['seed']}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid's folder")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--passes", type=int, default=8, help="over the training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", help="that is scored")
    parser.add_argument("--out", type=Path, default=Path("runs/from_scratch"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, help="default: OUT/from-scratch.csv")
    parser.add_argument("option", nargs="*", help="after --: further options of liteseg train, for every run")
    args = parser.parse_args(argv)
    if args.passes < 1:
        parser.error(f"--passes: expected at least 1, got {args.passes}")
    path = args.csv or args.out / "from-scratch.csv"
    same = {"passes": args.passes, "split": args.split, "seed": args.seed}
    for network in args.networks:
        wanted = {"network": network, **same}
        if missing(path, wanted):
            append(path, COLUMNS, {**wanted, **run(args, network)})
    rows = [row for row in read(path) if all(row[key] == str(value) for key, value in same.items())]
    print(f"{budget(rows[-1])}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
