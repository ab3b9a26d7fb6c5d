"""Leave out the images that cannot be read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from captioner.data.records import SPLITS, Dataset
from captioner.images import find_fault
from captioner.progress import progress_bar

UNREADABLE = "unreadable image, skipped"
"""The warning of a dataset that counts them; its places are the images with the reason."""


def without_unreadable(dataset: Dataset) -> Dataset:
    """Open all images of a dataset, and return it without those that cannot be read.

    Raises:
        ValueError: none can be read.
    """
    paths = [record.image for record in dataset.records]
    bar = progress_bar("opening images", len(paths))
    faults = []
    # Decoding releases the GIL, so threads share the work.
    with bar as advance, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for fault in pool.map(find_fault, paths):
            faults.append(fault)
            advance(1)
    pairs = list(zip(dataset.records, faults))
    bad = [(record.split, f"{record.image_id}: {fault}") for record, fault in pairs if fault]
    if not bad:
        return dataset
    if len(bad) == len(paths):
        raise ValueError(f"data.on_bad_image=skip: no image can be read; the first is {bad[0][1]}")
    return replace(
        dataset,
        records=tuple(r for r, fault in pairs if not fault),
        warnings={**dataset.warnings, UNREADABLE: len(bad)},
        places={**dataset.places, UNREADABLE: tuple(place for _, place in bad)},
        unreadable={name: tuple(p for split, p in bad if split == name) for name in SPLITS},
    )
