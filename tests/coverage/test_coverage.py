"""What `make coverage` makes of gcov's counts, and of the table of branches that are not taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import gcov, untaken

SOURCE = """\
void f(const int* a, int n) {
  for (int i = 0; i < n; ++i) {
    LITESEG_CHECK(n > 0 || a != nullptr, "f", "a",
                  n == 1 ? "one" : "more", n);
  }
  switch (n) {
    case 1:
      break;
    default:
      g(n > 2 && a[0] > 0 ? h(a) : n);
  }
  if (a == nullptr) {
    throw std::bad_alloc();
  }
}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "f.cpp").write_text(SOURCE)
    monkeypatch.setattr(gcov, "ROOT", tmp_path)
    gcov._lines.cache_clear()
    return "f.cpp"


def test_conditions_that_count(source: str) -> None:
    assert [line for line in range(1, 16) if gcov._decides((source, line))] == [2, 6, 7, 10]


def test_outcomes_of_a_line(source: str) -> None:
    assert [gcov._outcomes((source, line)) for line in (2, 6, 10)] == [2, 2, 4]


def branch(count: int, *, throw: bool = False, fallthrough: bool = False) -> dict[str, int]:
    return {"count": count, "throw": throw, "fallthrough": fallthrough}


def test_calls_that_may_throw_decide_nothing() -> None:
    call = [branch(3, fallthrough=True), branch(0, throw=True)]
    condition = [branch(0, fallthrough=True), branch(3)]
    assert gcov._decided([*condition, *call]) == gcov._decided([*call, *condition]) == [False, True]


def test_copies_of_a_line() -> None:
    assert gcov._merged([[True, False], [False, False], [True, False]]) == [True, False]
    assert gcov._merged([[True, False], [False, True]]) == [True, True]
    # a condition less
    assert gcov._merged([[True, True, False, True], [True, False]]) == [True, False, True, True, False, True]


def test_table_against_counts(source: str) -> None:
    rows = untaken.listed(
        "| file | line | why |\n|---|---|---|\n"
        "| `f.cpp` | `for (int i = 0; i < n; ++i) {` | never empty |\n"
        "| `f.cpp` | `a \\|\\| b` | gone |\n"
        "| `g.cpp` | `if (x) {` | elsewhere |\n"
        "| `f.cpp` | `if (won) {` | by chance: a race |\n"
    )
    assert rows["f.cpp", "a || b"] == "gone"
    told, wrong = untaken.compare({(source, 2): [True, False], (source, 6): [False, True]}, rows, ("f",))
    assert told == ["f.cpp:2: 1 of 2 not taken: for (int i = 0; i < n; ++i) {\n    never empty"]
    assert wrong == [
        "f.cpp:6: 1 of 2 not taken: switch (n) {\n    not listed in untaken.md",
        "f.cpp: a || b\n    listed in untaken.md, but taken, or not there any more",
    ]


def test_lines_of_the_table_exist() -> None:
    for path, code in untaken.listed(untaken.TABLE.read_text()):
        lines = [line.strip() for line in (gcov.ROOT / path).read_text().splitlines()]
        assert code in lines, f"{untaken.TABLE.name}: {path} has no line {code}"
