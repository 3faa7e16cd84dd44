"""Puts results into the pages: `<!-- results: NAME -->` becomes the table of benchmarks/results/NAME.csv."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def _cpu_networks(lines: list[dict[str, str]]) -> str:
    """Ours against the fastest other, of the last rows of each case."""
    from liteseg.bench.record import grouped, latest, table

    key = [name for name in ("network", "size", "output", "threads", "dtype") if name in lines[0]]
    # a row without a ratio did not run, or gave another result
    groups = grouped((line for line in latest(lines, [*key, "provider"]) if line["against liteseg"]), key)
    cells = []
    for case, group in groups.items():
        mine = next((x for x in group if x["provider"] == "liteseg"), None)
        others = [x for x in group if not x["provider"].startswith("liteseg")]
        if mine is None or not others:
            continue
        best = min(others, key=lambda x: float(x["p50 ms"]))
        ratio = float(best["p50 ms"]) / float(mine["p50 ms"])
        times = (mine["p50 ms"], best["p50 ms"], best["provider"], mine["commit"])
        cells.append([case[0], f"{ratio:.2f}", *case[1:], *times])
    return table((key[0], "ratio", *key[1:], "ours, ms", "best other, ms", "which", "commit"), cells)


def _results(name: str) -> str:
    from benchmarks import ablation, from_scratch
    from liteseg.bench import kernels, networks, tables
    from liteseg.bench.record import read

    lines = read(RESULTS / f"{name}.csv")
    if not lines:
        return f"*Not measured yet: `benchmarks/results/{name}.csv` is missing.*"
    if name == "tables":
        # its headings one level down, under the page's own
        return re.sub(r"^#", "##", tables.report(lines).split("\n", 1)[1], flags=re.MULTILINE)
    last = lines[-1]
    if name == "ablation":
        passes = f"{last['passes']} passes over the training images, batch {last['batch']}"
        return f"{ablation.table(lines)}\n\nCamVid {last['split']}, {passes}, {last['date'][:10]}."
    if name == "from-scratch":
        lines = [line for line in lines if all(line[key] == last[key] for key in ("passes", "split", "seed"))]
        return f"{from_scratch.table(lines)}\n\n{from_scratch.budget(last)}, {last['date'][:10]}."
    text = {"fps": networks.summary, "kernels": kernels.summary, "cpu-networks": _cpu_networks}[name](lines)
    where = f"{last.get('device') or last.get('machine')}, torch {last['torch']}, {last['date'][:10]}"
    text += f"\n\nA ratio below 1 is a loss. {where}."
    plots = sorted(RESULTS.glob(f"{name}-*.svg"))
    return text + "".join(f"\n\n![{path.stem}](images/results/{path.name})" for path in plots)


def on_files(files: Any, config: Any) -> Any:
    for path in sorted(RESULTS.glob("*.svg")):
        files.append(File.generated(config, f"images/results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"<!-- results: ([\w-]+) -->", lambda match: _results(match[1]), markdown)
