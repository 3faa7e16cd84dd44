"""Errors of the library in the words of a command line: options in the place of functions and their arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

__all__ = ["counted", "in_options"]

# `function: argument: expected ...` or `argument: expected ...`, behind the file that an error is about too
_ARGUMENT = re.compile(r"(?:^|(?<=: ))(?:(?P<function>[A-Za-z]\w*): )?(?P<argument>[a-z]\w*): (?=expected )")
# says where it comes from itself
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


def in_options(text: str, has: Callable[[str], str | None], renamed: Mapping[str, str]) -> str:
    """The text of an error with the option for `function: argument: `, or the argument alone where it has no option.

    Args:
        text: of an error, such as ``create_model: num_classes: expected 11, got 3``.
        has: the option that gives an argument of this name, such as ``--num-classes``, or None.
        renamed: options of other names than their arguments, by ``function: argument``; "" for what is no option.
    """

    def said(found: re.Match[str]) -> str:
        function, argument = found["function"], found["argument"]
        if function is not None and _VARIABLE.fullmatch(function):
            return found[0]
        option = renamed.get(f"{function}: {argument}") if function else None
        if option is None:
            option = has(argument) or argument
        return f"{option}: " if option else ""

    return _ARGUMENT.sub(said, text)


def counted(count: int, what: str) -> str:
    """`1 input`, `2 inputs`."""
    return f"{count} {what}" + ("" if count == 1 else "s")
