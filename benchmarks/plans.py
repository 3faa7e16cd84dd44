"""The plans of a GPU day: which sections run, in which call, and for how long at most.

A section is a process of its own that runs the rows of one function; `main` of gpu_day runs the sections of a call one
after another. `short` is for a device that can be had for a quarter of an hour in two calls, `train` spends such a
quarter on training, `long` measures everything over as many calls as it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

SHEETS = ("checks", "networks", "ceilings", "ops", "training")


@dataclass(frozen=True)
class Section:
    """One part of a plan.

    Attributes:
        name: of the section.
        place: the module of this package and its function that gives the rows, "module.function".
        sheet: the CSV they go to, one of SHEETS.
        seconds: the most it may take while others wait; the last one of a call may use what the others left.
        call: the call of the plan that it belongs to; 0: every one.
    """

    name: str
    place: str
    sheet: str
    seconds: int
    call: int = 0


@dataclass(frozen=True)
class DayPlan:
    """Sections in the order of what one wants to know of a day that ends early; seconds that each call may take, the
    last number for all calls after it."""

    sections: tuple[Section, ...]
    budgets: tuple[int, ...]

    def budget(self, call: int) -> int:
        return self.budgets[min(max(call, 1), len(self.budgets)) - 1]

    def calls(self) -> tuple[int, ...]:
        return tuple(sorted({section.call for section in self.sections} - {0}))


PLANS = {
    "short": DayPlan(
        (
            # libraries that were carried need no build
            Section("ready", "machine.ready", "checks", 220, 1),
            Section("networks", "race.networks", "networks", 100, 1),
            Section("launches", "launches.launches", "checks", 45, 1),
            Section("counters", "counters.counters", "checks", 60, 1),
            Section("switches", "checks.switches", "checks", 40, 1),
            Section("parity", "parity.parity", "checks", 190, 1),
            Section("compiled", "race.compiled", "networks", 170, 2),
            Section("training", "training_times.training", "training", 45, 2),
            # racecheck is the first thing to go where time runs out
            Section("sanitizer", "checks.sanitizer", "checks", 130, 2),
        ),
        # two calls, the machine's start and the transfers have to fit into 900 s
        (350,),
    ),
    "train": DayPlan(
        (Section("camvid", "train.train", "checks", 600, 1), Section("camvid", "train.train", "checks", 600, 2)),
        (550, 190),
    ),
    "long": DayPlan(
        (
            Section("ready", "machine.ready", "checks", 300),
            Section("ceilings", "op_times.ceilings", "ceilings", 40),
            Section("parity", "parity.parity", "checks", 300),
            Section("switches", "checks.switches", "checks", 40),
            Section("networks", "network_times.networks", "networks", 150),
            Section("compiled", "race.compiled", "networks", 200),
            Section("ops", "op_times.ops", "ops", 150),
            Section("graphs", "checks.graphs", "checks", 90),
            Section("launches", "launches.launches", "checks", 40),
            Section("counters", "counters.counters", "checks", 100),
            Section("training", "training_times.training", "training", 120),
            Section("large", "checks.large", "checks", 90),
            Section("sanitizer", "checks.sanitizer", "checks", 150),
        ),
        # of the 600 s that a call on a lent machine may take
        (540,),
    ),
}
