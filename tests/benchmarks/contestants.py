"""Contestants for the tests of `liteseg.bench.turns`, in a module that a process loads quickly."""

from __future__ import annotations

import functools
import os

import numpy as np

from liteseg.bench.turns import Contestant


def contestant(mark: str, folder: str) -> Contestant:
    """One that writes its mark into a file at each call, or fails as its mark says; "d" dies in its fifth call."""
    if mark == "raises":
        raise ValueError("cannot\nrun")
    if mark == "dies":
        os._exit(3)
    calls: list[str] = []

    def call() -> None:
        calls.append("call")
        with open(os.path.join(folder, "order"), "a") as file:
            file.write(mark)
        if mark == "d" and calls.count("call") == 5:
            os._exit(3)

    result = [np.ones(4, np.float32), np.array([1, 2, 3, 4 + (mark == "b")], np.uint8)]
    prepare = functools.partial(calls.append, "prepare")
    return Contestant(call, prepare, facts={"mark": mark}, result=result, finish=lambda: {"last": mark})
