"""The battery: the tests with the mark ``reliability(group)``, counted by group.

A test is one case, a property-based test as many as it has examples, and a test that loops over
cases says how many: ``record_property("cases", n)``. If it fails, none of its cases has passed. The
counts travel in the reports, so the table is the same with any number of workers. An expected
failure must give its reason: it counts as a case that did not pass, and is listed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest

from captioner.files import write_whole
from captioner.process import processor

GROUPS = (
    "files decide nothing",
    "damaged files",
    "limits",
    "interrupted",
    "disks",
    "shared objects",
    "processes",
    "versions",
    "properties",
    "fuzzing",
)
ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- table: written by make battery -->", "<!-- end of the table -->"


@dataclass
class Count:
    """Cases of a group: how many, how many passed, and the seconds of all workers together."""

    cases: int = 0
    passed: int = 0
    seconds: float = 0.0


class Battery:
    """A plugin of pytest: counts cases by group, prints the table, writes it on request."""

    def __init__(self) -> None:
        self.counts = {group: Count() for group in GROUPS}
        self.remarks: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the group of each test where workers report it."""
        for item in items:
            mark = item.get_closest_marker("reliability")
            if mark is not None:
                if mark.args not in {(group,) for group in GROUPS}:
                    raise pytest.UsageError(f"{item.nodeid}: {mark} names no group; use {GROUPS}")
                item.user_properties.append(("reliability", mark.args[0]))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Count the examples of a property-based test."""
        prepared = getattr(getattr(item, "obj", None), "hypothesis", None)
        if prepared is None:
            return (yield)
        inner, examples = prepared.inner_test, 0

        def counted(*args: object, **values: object) -> object:
            nonlocal examples
            examples += 1
            return inner(*args, **values)

        prepared.inner_test = counted
        try:
            return (yield)
        finally:
            prepared.inner_test = inner
            item.user_properties.append(("cases", examples))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of a test: setup, call or teardown."""
        properties = dict(report.user_properties)
        if "reliability" not in properties:
            return
        count = self.counts[properties["reliability"]]
        count.seconds += report.duration
        expected = report.outcome == "skipped" and hasattr(report, "wasxfail")
        if report.outcome == "skipped":
            reason = report.wasxfail if expected else report.longrepr[2]
            self.remarks.append(f"{report.nodeid}: {reason}")
        if expected or report.failed or (report.when == "call" and report.passed):
            cases = properties.get("cases", 1)
            count.cases += cases
            count.passed += cases if report.passed else 0

    def pytest_terminal_summary(self, terminalreporter, exitstatus: int, config) -> None:  # type: ignore[no-untyped-def]
        """Print the table after a run of the battery alone; write it where it is asked for."""
        if hasattr(config, "workerinput") or "reliability" not in config.option.markexpr:
            return
        terminalreporter.section("reliability")
        for line in [*self.table(), *self.remarks]:
            terminalreporter.line(line)
        page = config.option.reliability_page
        if page is not None and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            write_table(page, [*self.table(), "", self.origin(), *map("- {}".format, self.remarks)])

    def table(self) -> list[str]:
        """The lines of the table, in Markdown."""
        total = Count()
        lines = ["| group | cases | passed | time |", "|---|---:|---:|---:|"]
        for group, count in self.counts.items():
            lines.append(row(group, count))
            total.cases += count.cases
            total.passed += count.passed
            total.seconds += count.seconds
        return [*lines, row("all", total)]

    @staticmethod
    def origin() -> str:
        """Where and when the table was made."""
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        ).stdout.strip()
        day = datetime.now(timezone.utc).date()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"`make battery` at commit {commit}, {day}, on {cores} cores of {processor()}."


def row(name: str, count: Count) -> str:
    """A line of the table."""
    minutes, seconds = divmod(round(count.seconds), 60)
    return f"| {name} | {count.cases:,} | {count.passed:,} | {minutes}:{seconds:02} |"


def write_table(page: Path, lines: list[str]) -> None:
    """Replace what is between the two comments of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    if not after:
        raise pytest.UsageError(f"{page} lacks the lines {BEGIN!r} and {END!r}")
    write_whole(page, "\n".join([before + BEGIN, *lines, END]) + after)
