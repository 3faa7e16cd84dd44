"""Objects that a user names by their path, such as `mine.Lawn`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from liteseg.errors import UserError

__all__ = ["imported"]


def imported(path: str, what: str) -> Any:
    """What `mine.Lawn` or `mine:Lawn`, a module and a name in it, stands for; UserError where it is nothing.

    A module may lie in the present folder.

    Args:
        what: wants it, for messages.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    if not (module and name):
        raise UserError(f"{what}: expected the path of something in a module, such as mine.Lawn, got {path!r}")
    # where a script would look, and a command does not
    here = os.getcwd()
    sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what}: expected a module that can be imported, got {module}: {error}") from error
    finally:
        sys.path.remove(here)
    if not hasattr(found, name):
        raise UserError(f"{what}: expected a name in {module}, got {name}")
    return getattr(found, name)
