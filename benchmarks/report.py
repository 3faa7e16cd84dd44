"""The summary page of a GPU day, made from its CSV files alone: `python -m benchmarks.report [FOLDER]`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from liteseg.bench.record import Line, fastest, grouped, latest, number, read, table, write_text

from .rows import CHECK_KEY, SPEED_KEY

# ops that do little arithmetic for their bytes: the target is a share of the copy rate
MEMORY_BOUND = ("upsample_concat", "upsample_argmax", "preprocess")


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return [table(header, lines), ""]


def _share(line: Line, column: str = "share of copy") -> str:
    return f"{100 * float(line[column]):.0f} %" if line[column] else ""


def _is_ours(line: Line) -> bool:
    return line["provider"].startswith("liteseg")


def _sections(folder: Path, device: str) -> list[str]:
    lines = latest(read(folder / f"{device}-sections.csv"), ["section"])
    header = ("section", "status", "ok", "failed", "skipped", "left", "seconds", "detail", "date")
    return ["## Sections", "", *_table(header, ([line[name] for name in header] for line in lines))] if lines else []


def _ceilings(folder: Path, device: str) -> list[str]:
    lines = latest(read(folder / f"{device}-ceilings.csv"), SPEED_KEY)
    if not lines:
        return []
    header = ("what", "dtype", "ms", "GB/s", "TFLOP/s")
    cells = (
        (f"{x['op']}, {x['shape']}", x["dtype"], number(x, "p50"), number(x, "GB/s"), number(x, "TFLOP/s"))
        for x in lines
    )
    return ["## Ceilings", "", *_table(header, cells)]


def _checks(folder: Path, device: str) -> list[str]:
    lines = latest(read(folder / f"{device}-checks.csv"), CHECK_KEY)
    if not lines:
        return []
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for line in lines:
        counts[line["check"], line["backend"]][line["status"]] += 1
    cells = (
        (check, backend, ", ".join(f"{count} {status}" for status, count in found.items()))
        for (check, backend), found in counts.items()
    )
    text = ["## Checks", "", *_table(("check", "backend", "rows"), cells)]
    bad = [line for line in lines if line["status"] not in ("ok", "skipped")]
    return [*text, *_problems("Failed checks", bad, CHECK_KEY), *_skipped(lines)]


def _skipped(lines: list[Line]) -> list[str]:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for line in lines:
        if line["status"] == "skipped":
            counts[line["check"], line["detail"]] += 1
    if not counts:
        return []
    cells = ((check, str(count), detail) for (check, detail), count in counts.items())
    return ["### Skipped", "", *_table(("check", "rows", "reason"), cells)]


def _problems(title: str, lines: list[Line], key: Sequence[str]) -> list[str]:
    if not lines:
        return []
    cells = ((", ".join(line[name] for name in key if line[name]), line["status"], line["detail"]) for line in lines)
    return [f"### {title}", "", *_table(("row", "status", "detail"), cells)]


def _bad_speed(lines: list[Line]) -> list[Line]:
    bad = [line for line in lines if line["status"] not in ("ok", "skipped")]
    return [{**line, "detail": line["detail"] or f"error {line['error']}"} for line in bad]


@dataclass(frozen=True)
class Pair:
    """The fastest of ours and the fastest of PyTorch; `complete` once PyTorch's compiled code is among the latter."""

    ours: Line
    torch: Line
    complete: bool

    @property
    def ratio(self) -> float:
        return float(self.torch["p50"]) / float(self.ours["p50"])

    @property
    def text(self) -> str:
        return f"{self.ratio:.2f}" if self.complete else f"{self.ratio:.2f} (eager only)"


def compare(lines: Iterable[Line]) -> list[Pair]:
    """A pair for each case that was measured on both sides."""
    pairs = []
    for group in grouped(lines, ("op", "mode", "shape", "dtype")).values():
        ours = fastest((line for line in group if _is_ours(line)), "p50")
        theirs = fastest((line for line in group if not _is_ours(line)), "p50")
        if ours is not None and theirs is not None:
            complete = any(line["provider"].startswith("compiled") and line["p50"] for line in group)
            pairs.append(Pair(ours, theirs, complete))
    return pairs


def _memory(lines: list[Line]) -> list[str]:
    """Peak memory of the loss with its gradient, of which the full-size logits are the most."""
    chosen = [x for x in lines if x["op"] == "upsample_cross_entropy" and x["mode"] == "fwd+bwd" and x["peak MB"]]
    eager = {(x["shape"], x["dtype"]): float(x["peak MB"]) for x in chosen if x["provider"] == "eager"}
    ours = [(float(x["peak MB"]), eager.get((x["shape"], x["dtype"]))) for x in chosen if _is_ours(x)]
    shares = [mine / theirs for mine, theirs in ours if theirs]
    if not shares:
        return []
    spread = f"{min(shares):.2g} to {max(shares):.2g}"
    return [f"Peak memory of upsample_cross_entropy with its gradient: {spread} of eager's (target 0.1).", ""]


def _ops(folder: Path, device: str) -> list[str]:
    lines = latest(read(folder / f"{device}-ops.csv"), SPEED_KEY)
    if not lines:
        return []
    pairs = compare(lines)
    about = (
        "Median times with a cold L2 cache, every provider in a CUDA graph where it can be captured; PyTorch is the "
        "fastest of eager, channels_last and compiled. float32 products are exact (no tf32) on both sides."
    )
    text = ["## Ops", "", about, ""]
    losses = sorted((pair for pair in pairs if pair.ratio < 1), key=lambda pair: pair.ratio)
    complete = [pair for pair in pairs if pair.complete]
    met = sum(pair.ratio >= 1.5 for pair in complete)
    shares = [line for line in lines if _is_ours(line) and line["op"] in MEMORY_BOUND and "1024x2048" in line["shape"]]
    near = sum(float(line["share of copy"] or 0) >= 0.8 for line in shares)
    text += [
        f"{len(pairs)} cases were measured on both sides, {len(complete)} of them against compiled PyTorch too. "
        f"Of these {met} are at least 1.5 times as fast (the target). {len(losses)} of all are slower. "
        f"Memory-bound rows at 1024x2048 with at least 80 % of the copy rate: {near} of {len(shares)}.",
        "",
        *_memory(lines),
    ]
    measured = ("ours", "ms", "PyTorch", "ms", "ratio", "GB/s", "of copy", "MB", "MB PyTorch")
    header = ("op", "mode", "shape", "dtype", *measured)

    def cells(pair: Pair) -> list[str]:
        a, b = pair.ours, pair.torch
        return [
            *(a[name] for name in ("op", "mode", "shape", "dtype")),
            *(a["provider"].removeprefix("liteseg "), number(a, "p50"), b["provider"], number(b, "p50")),
            *(pair.text, number(a, "GB/s", ".0f"), _share(a)),
            *(number(a, "peak MB"), number(b, "peak MB")),
        ]

    if losses:
        text += ["### Losses", "", *_table(header, map(cells, losses))]
    text += ["### All", "", *_table(header, map(cells, pairs))] if pairs else []
    return [*text, *_problems("Ops that failed or gave wrong results", _bad_speed(lines), SPEED_KEY)]


def _networks(folder: Path, device: str) -> list[str]:
    lines = latest(read(folder / f"{device}-networks.csv"), SPEED_KEY)
    if not lines:
        return []
    text = ["## Networks", ""]
    for mode, title in (("labels", "uint8 picture to labels"), ("logits", "normalised input to full-size logits")):
        # a race has a line of its own, which holds no time
        chosen = [line for line in lines if line["mode"] == mode and line["status"] == "ok" and line["p50"]]
        if not chosen:
            continue
        best = {(p.torch["op"], p.torch["shape"], p.torch["dtype"]): p for p in compare(chosen)}
        header = ("network", "H x W", "dtype", "provider", "ms", "20 %", "80 %", "images/s", "over best PyTorch", "MB")
        cells = []
        for line in chosen:
            reference = best.get((line["op"], line["shape"], line["dtype"]))
            over = replace(reference, ours=line).text if reference and _is_ours(line) else ""
            cells.append(
                [
                    *(line[name] for name in ("op", "shape", "dtype", "provider")),
                    *(number(line, name) for name in ("p50", "p20", "p80", "images/s")),
                    *(over, number(line, "peak MB")),
                ]
            )
        text += [f"### {title[0].upper()}{title[1:]}", "", *_table(header, cells)]
    return [*text, *_problems("Networks that failed or gave wrong results", _bad_speed(lines), SPEED_KEY)]


def _kernels(folder: Path, device: str) -> list[str]:
    groups = grouped(read(folder / f"{device}-profile.csv"), ("network", "provider"))
    text = ["## Where the time goes", ""] if groups else []
    for (network, provider), group in groups.items():
        last = max(line["date"] for line in group)
        group = [line for line in group if line["date"] == last][:12]
        cells = ((line["kernel"], number(line, "calls"), number(line, "us"), _share(line, "share")) for line in group)
        text += [f"### {network}, {provider}", "", *_table(("kernel", "calls", "us", "share"), cells)]
    return text


def _launches(folder: Path, device: str) -> list[str]:
    groups = grouped(read(folder / f"{device}-launches.csv"), ("network", "provider"))
    about = "Each launch by itself, by the profiler: without what early launches hide, and without a graph's gaps."
    text = ["## Launches, measured beside predicted", "", about, ""] if groups else []
    header = ("launch", "layer", "kernel", "us", "predicted us", "measured/predicted")
    for (network, provider), group in groups.items():
        last = max(line["date"] for line in group)
        group = [line for line in group if line["date"] == last]
        numbers = ("us", "predicted us", "measured/predicted")
        cells = (
            [line["launch"], line["layer"], line["kernel"][:60], *(number(line, name, ".3g") for name in numbers)]
            for line in group
        )
        sources = sorted({line["source"] for line in group if line["source"]})
        text += [f"### {network}, {provider}", "", *_table(header, cells)]
        text += [f"Predictions: {'; '.join(sources)}.", ""] if sources else []
    return text


def _training(folder: Path, device: str) -> list[str]:
    lines = latest(read(folder / f"{device}-training.csv"), SPEED_KEY)
    if not lines:
        return []
    header = ("network", "H x W", "precision", "provider", "ms a step", "images/s", "peak MB", "loss")
    cells = (
        [
            *(line[name] for name in ("op", "shape", "dtype", "provider")),
            *(number(line, name) for name in ("p50", "images/s", "peak MB")),
            line["detail"],
        ]
        for line in lines
        if line["status"] == "ok"
    )
    return ["## Training", "", *_table(header, cells), *_problems("Training that failed", _bad_speed(lines), SPEED_KEY)]


def summary(folder: Path, device: str) -> str:
    """The page for one device (its name as in the file names)."""
    sections = read(folder / f"{device}-sections.csv")
    last = sections[-1] if sections else {}
    text = [f"# GPU day: {last.get('device', device)}", ""]
    if last:
        text += [
            f"{last['device']}, driver {last['driver']}, torch {last['torch']}, triton {last['triton']}, commit "
            f"{last['commit']} (sources {last['sources']}), {last['date']}. Made by `benchmarks.gpu_day` from "
            f"`{device}-*.csv`; rows of former sources stay until they are measured again.",
            "",
        ]
    parts = (_sections, _checks, _ceilings, _networks, _launches, _ops, _kernels, _training)
    for part in parts:
        text += part(folder, device)
    return "\n".join(text).rstrip() + "\n"


def write(folder: Path, device: str) -> Path:
    """Write `<device>-summary.md` beside the CSV files."""
    path = folder / f"{device}-summary.md"
    write_text(path, summary(folder, device))
    return path


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results")
    for found in sorted(place.glob("*-sections.csv")):
        print(write(place, found.name.removesuffix("-sections.csv")))
