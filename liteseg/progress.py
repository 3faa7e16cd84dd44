"""Progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(items: Iterable[Any] | None = None, *, show: bool, **options: Any) -> tqdm:
    """A tqdm bar; in a log file, where every refresh adds a line, it is refreshed every ten seconds only."""
    return tqdm(items, disable=not show, mininterval=0.1 if sys.stderr.isatty() else 10.0, **options)
