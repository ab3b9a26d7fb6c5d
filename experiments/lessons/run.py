"""Train the runs of the lessons, measure their claims, draw their figures and write their pages.

    python experiments/lessons/run.py [NAME ...] [--seeds 1 2 3]
    python experiments/lessons/run.py [NAME ...] --rewrite     # only the pages, from results/

writes docs/lessons/NAME.png, NAME.md and NAME.zh.md, and results/NAME.json in this folder. A page
states each claim with the number that was measured, also one that does not hold.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time

from lesson import ROOT, facts_of, write_pages, write_texts

LESSONS = (
    *("memorization", "frequency", "forgetting", "agreement", "idiom_chain", "delayed_copy"),
    *("other_inputs", "end_token", "free_running", "memory", "without_forget_gate"),
)


def run(name: str, seeds: list[int]) -> None:
    """Run one lesson."""
    lesson, start = importlib.import_module(name), time.perf_counter()
    measured = lesson.measure(seeds)
    facts = facts_of(lesson.DATA, seeds, start, lesson.TRAININGS * len(seeds))
    write_pages(name, measured, facts, lesson.draw)
    for claim in measured.claims:
        print(f"{name}: {'holds' if claim.holds else 'FAILS'}: {claim.english} {claim.value}")


def main() -> None:
    """Read the command line, and run the lessons from the root of the repository."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LESSONS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rewrite", action="store_true", help="write the pages from results/")
    options = parser.parse_args()
    unknown = set(options.names) - set(LESSONS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose {', '.join(LESSONS)}")
    os.chdir(ROOT)
    for name in options.names or LESSONS:
        write_texts(name) if options.rewrite else run(name, options.seeds)


if __name__ == "__main__":
    main()
