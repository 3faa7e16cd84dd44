"""Errors a user can act on."""

from __future__ import annotations

__all__ = ["ElsewhereError", "MissingExtraError", "UserError"]


class UserError(ValueError):
    """Bad input or wrong usage: the command line prints its text as one line and exits with code 2."""


class ElsewhereError(UserError):
    """Bad input that another process of the same job reports: this one ends with the same code and without a word."""


class MissingExtraError(UserError):
    """An optional dependency is not installed. The text names the ``pip install`` that brings it."""

    def __init__(self, what: str, extra: str, module: str) -> None:
        super().__init__(f'{what} needs the package "{module}": pip install "liteseg[{extra}]"')
