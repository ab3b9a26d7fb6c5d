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

CAPTIONS_BYTES = 2**29
"""Size of captions.jsonl: that of a million images has 400 MB."""

PICKLE_BYTES = 2**23
"""Size of the plain data in a checkpoint: ours have 70 kB, with 250,000 words 5 MB. Torch's
unpickler takes a second for 2 MB of the worst data, which become 150 MB in memory."""

VALUES = 200_000
"""Lists and dicts in a checkpoint: ours have a few hundred, some for each parameter."""

WORDS = 250_000
"""Words of a vocabulary: those of COCO's captions are 27,000 without any threshold."""

INFLATED_BYTES, INFLATION = 2**26, 100
"""Size of the content of a compressed file, and how many times the file's own size it may have
if it is larger: rows of statistics have 2 to 20 times, a bomb has 1,000."""

ELEMENTS = 2**31
"""Elements of a decoder's weights: 8 GiB in float32, 200 times those of the largest recipe."""

IMAGE_SIDE = 4096
"""Pixels of the side of an encoder's input: the largest networks take about 1,000."""

DECODED = 10_000
"""Tokens of a caption, and captions of an image."""

IMAGE_BYTES = 2**30
"""Size of an image that is read from an open file: 8 bytes for each of the 89 million pixels that
Pillow accepts are 720 MB."""
