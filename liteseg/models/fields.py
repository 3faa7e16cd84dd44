"""Checks that the configurations of all models share."""

from __future__ import annotations

import math
from typing import Any, NoReturn


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def reject(config: Any, field: str, expected: str, value: Any) -> NoReturn:
    raise ValueError(f"{type(config).__name__}: {field}: expected {expected}, got {value!r}")


def check_counts(config: Any, *fields: str) -> None:
    """ValueError unless these fields are integers of at least 1."""
    for field in fields:
        value = getattr(config, field)
        if not is_int(value) or value < 1:
            reject(config, field, "an integer of at least 1", value)


def check_choice(config: Any, field: str, allowed: tuple[str, ...]) -> None:
    """ValueError unless the field is one of these strings."""
    if getattr(config, field) not in allowed:
        reject(config, field, f"one of {', '.join(allowed)}", getattr(config, field))


def check_flags(config: Any, *fields: str) -> None:
    """ValueError unless these fields are True or False."""
    for field in fields:
        if not isinstance(getattr(config, field), bool):
            reject(config, field, "True or False", getattr(config, field))


def check_use(config: Any) -> None:
    """ValueError for a wrong `class_names` or `input_scale`; makes them a tuple and a float."""
    names = config.class_names
    if names is not None:
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            reject(config, "class_names", "a tuple of strings or None", names)
        if len(names) != config.num_classes:
            reject(config, "class_names", f"{config.num_classes} names (num_classes)", f"{len(names)} names")
        object.__setattr__(config, "class_names", tuple(names))
    scale = config.input_scale
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not (math.isfinite(scale) and scale > 0):
        reject(config, "input_scale", "a positive number", scale)
    object.__setattr__(config, "input_scale", float(scale))
