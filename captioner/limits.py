"""Limits on what is read from a file, which may come from anywhere.

Each is far above what captioner writes and what a person needs, and low enough that a file that
exceeds it is refused within seconds, before memory is allocated for it.
"""

from __future__ import annotations

DEPTH = 32
"""Levels of nested plain data: a checkpoint has 7, its configuration 3. Functions that recurse fail
at a few hundred."""

CONFIG_VALUES = 10_000
"""Values of a configuration: ours have about 100. References to one list are counted each time, so
that a small file cannot expand to a large tree."""

CONFIG_TEXT = 10_000
"""Characters of a text in a configuration; the longest ones are paths, with at most 4,096."""

CONFIG_BYTES = 2**16
"""Size of a YAML file: ours have 4 kB; without libyaml the parser takes 3 s for this size."""

JSON_BYTES = 2**24
"""Size of a JSON file: model.json with 500,000 words has 10 MB. Lists take 30 times their text."""
