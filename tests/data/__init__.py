"""Data of the tests: pictures and folders that are made, and one real picture."""

from __future__ import annotations

from pathlib import Path

import pytest


def street_file() -> Path:
    """The real street (README.md beside it); skips the test where it is not, as in a source distribution."""
    file = Path(__file__).resolve().parent / "street.jpg"
    if not file.is_file():
        pytest.skip("the real street is in the repository only, for its licence")
    return file
