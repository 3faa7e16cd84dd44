"""Named configurations, put together from the small files of `liteseg/configs` (its README lists the words).

The trainer's library can compose files too: several `--config`, merged in their order, which users may add on top here
as well. It is not enough for the presets. Its order is the command line's, where here a word's file knows its place
(changes come after recipes, however the name is spelled); it has no file for a pair of words (`official_darknet19`,
`camvid_ms`, `cityscapes_coarse_official`), which would have to be named by hand, and is silently missing when it is
not; words that do not go together would merge into some configuration instead of being refused; and `before`, the run
in front of this one, is a configuration inside of one. So the words stay, 60 lines over the library's own reading and
checking of what they give.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from liteseg.models.encoders import ENCODERS
from liteseg.models.peers import PEERS

_DATA = ("camvid", "cityscapes", "folder")
# LiteSeg by its backbone, the peers by their names
_NETWORKS = (*ENCODERS, *PEERS)
_RECIPES = ("modern", "official")


def _words(name: str) -> set[str]:
    """The words of a name. A network's name is one word, though some have a `_` in them."""
    words: set[str] = set()
    rest = f"_{name}_"
    for network in _NETWORKS:
        if "_" in network and f"_{network}_" in rest:
            words.add(network)
            rest = rest.replace(f"_{network}_", "_")
    return words | set(rest[1:-1].split("_")) if rest != "_" else words


def _parts() -> dict[frozenset[str], Any]:
    """Files of the folder by the words of their names."""
    files = (resources.files("liteseg") / "configs").iterdir()
    found = {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}
    return {frozenset(_words(name)): found[name] for name in sorted(found)}


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `changes`, mappings merged and everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def preset(name: str) -> dict[str, Any]:
    """The configuration of a preset, whose name is words joined by `_` in any order.

    One data set, one network (LiteSeg's backbone, or a peer), a recipe ("modern" unless named) and the words of
    changes. Every file all of whose words are in the name is read, those of changes last, else those of fewer words
    first. ValueError for unknown words and for words that do not go together.
    """
    words = _words(name)
    parts = _parts()
    known = frozenset().union(*parts)
    base = frozenset((*_DATA, *_NETWORKS, *_RECIPES))

    def expected(what: str) -> ValueError:
        return ValueError(f"config: expected {what}, got {name!r}")

    if not words <= known:
        changes = ", ".join(sorted(known - base))
        raise expected(
            "a file or a preset such as camvid_mobilenetv2: words joined by _, one of "
            f"{', '.join(_DATA)}; one of {', '.join(_NETWORKS)}; one of {', '.join(_RECIPES)}; any of {changes}"
        )
    if not words.intersection(_RECIPES):
        words.add("modern")
    for group in (_DATA, _NETWORKS, _RECIPES):
        if len(words.intersection(group)) != 1:
            raise expected(f"a preset with one of {', '.join(group)}")
    used = sorted((part for part in parts if part <= words), key=lambda part: (len(part - base), len(part)))
    lost = words.difference(*used)
    if lost:
        raise expected(f"no {', '.join(sorted(lost))} with {', '.join(sorted(words - lost))}")
    config: dict[str, Any] = {"out": f"runs/{name}"}
    for part in used:
        config = merge(config, yaml.safe_load(parts[part].read_text(encoding="utf-8")) or {})
    return config


def find_config(name: str) -> str:
    """What `--config NAME` stands for: the path `name` itself if it is a file, else the text of the preset.

    `configs/NAME.yaml`, `NAME.yaml` and `NAME` all name a preset; ValueError for other names.
    """
    if os.path.isfile(name) or name.lstrip().startswith("{"):
        return name
    if Path(name).parent not in (Path("."), Path("configs")):
        raise ValueError(f"config: expected an existing file or the name of a preset, got {name!r}")
    return json.dumps(preset(Path(name).name.removesuffix(".yaml")))


def resolve(argv: Sequence[str]) -> list[str]:
    """The arguments with every `--config NAME` that names a preset replaced by its text."""
    resolved: list[str] = []
    for position, argument in enumerate(argv):
        if position and argv[position - 1] in ("--config", "-c"):
            argument = find_config(argument)
        elif argument.startswith("--config="):
            argument = f"--config={find_config(argument.removeprefix('--config='))}"
        resolved.append(argument)
    return resolved


def with_config(argv: Sequence[str], changes: dict[str, Any]) -> list[str]:
    """The arguments with one more configuration after the given ones, before single overrides."""
    position = 0
    for index, argument in enumerate(argv):
        if argument in ("--config", "-c"):
            position = index + 2
        elif argument.startswith("--config="):
            position = index + 1
    return [*argv[:position], "--config", json.dumps(changes), *argv[position:]]
