"""The n-grams of a corpus as integer ids, so that numpy can count them.

Every word has an id, and every n-gram an id among those of its order. An n-gram is the id of its
first n - 1 words and the id of its last word, packed into one integer of 64 bits,

    key = id(w_1 ... w_{n-1}) * 2^32 + id(w_n)

and its own id is the index of that key among the sorted keys of the references. Different n-grams
have different ids, whatever the size of the vocabulary. Counting an n-gram in a text is then the
length of a run of equal integers in a sorted array, and looking it up is a binary search.

The ids of the references are computed once (`References`), for any number of candidates:
self-critical training scores new samples against the same references at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4)

Words = Sequence[str]
"""The words of a caption."""

Integers = NDArray[numpy.int64]

_SHIFT = 32


@dataclass(frozen=True)
class Texts:
    """S texts as word ids.

    Attributes:
        ids: the word ids of all texts, concatenated [W].
        lengths: the number of words of each text [S].
    """

    ids: Integers
    lengths: Integers

    def padded(self, texts: Integers, *, empty: int, padding: int) -> Integers:
        """Some of the texts as one array, [B, length of the longest].

        Args:
            texts: their indices [B].
            empty: the id that an empty text has as its only word.
            padding: the id that shorter texts are padded with.
        """
        sizes = self.lengths[texts]
        rows = numpy.full((len(texts), max(1, sizes.max(initial=0))), padding)
        rows[sizes == 0, 0] = empty
        ends = self.lengths.cumsum()[texts]
        owners, members = expand(ends - sizes, ends)
        rows[owners, members - (ends - sizes)[owners]] = self.ids[members]
        return rows


@dataclass(frozen=True)
class Order:
    """The n-grams of one order in the references of I images.

    Attributes:
        keys: of the G n-grams, sorted; the id of an n-gram is its index here [G].
        frequencies: the number of images whose references have the n-gram [G].
        bits: of an n-gram id.
        pairs: image << bits | n-gram, for each n-gram of an image's references, sorted [P].
        starts: the first entry of each pair, and the end of the last one [P + 1].
        most: the largest count of the pair's n-gram in one reference [P].
        texts: of each entry, the reference that has the n-gram [E].
        counts: of each entry, the number of times that it has it [E].
    """

    keys: Integers
    frequencies: Integers
    bits: int
    pairs: Integers
    starts: Integers
    most: Integers
    texts: Integers
    counts: Integers

    @property
    def grams(self) -> Integers:
        """The n-gram of each entry [E]."""
        return numpy.repeat(self.pairs & _mask(self.bits), numpy.diff(self.starts))


@dataclass(frozen=True)
class Matches:
    """The n-grams of one order in C candidates, matched with those of the references.

    Attributes:
        candidates: the candidate that has the n-gram [M].
        grams: its id; ids from G on are n-grams that are in no reference [M].
        counts: the number of times that the candidate has it [M].
        places: the pair of `Order` with the same n-gram in the references of the candidate's
            image; -1 if they do not have it [M].
    """

    candidates: Integers
    grams: Integers
    counts: Integers
    places: Integers


class References:
    """The references of I images with ids for words and n-grams.

    Args:
        references: for each image the words of one or more references.
        documents: for each image of another set the words of one or more references, in which
            document frequencies are counted; None counts them in `references`.

    Attributes:
        texts: all references as word ids, those of `documents` first.
        orders: their n-grams, orders 1 to 4.
        documents: the number of images that document frequencies are counted in.

    Raises:
        ValueError: an image has no references.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Words]],
        *,
        documents: Sequence[Sequence[Words]] | None = None,
    ) -> None:
        images = [*(documents or ()), *references]
        self._first = len(images) - len(references)  # the first image to be scored
        self.documents = self._first if documents is not None else len(images)
        if not all(images):
            raise ValueError("an image has no reference; give one or more, or leave it out")
        texts = [text for image in images for text in image]
        words = dict.fromkeys(chain.from_iterable(texts))
        self._vocabulary = {word: number for number, word in enumerate(words)}
        counts = numpy.array([len(image) for image in images], dtype=numpy.int64)
        self._ends = counts.cumsum()  # [I]
        self._text_images = numpy.repeat(numpy.arange(len(images)), counts)  # [S]
        self.texts = self.number(texts)
        self.orders = self._orders(counts)

    @property
    def images(self) -> int:
        """The number of images to be scored."""
        return len(self._ends) - self._first

    def places(self, images: Integers | None, candidates: int) -> Integers:
        """The index of each candidate's image among all images, those of `documents` included [C].

        Raises:
            ValueError: more or fewer candidates than images, or an image that does not exist.
        """
        if images is None:
            if candidates != self.images:
                raise ValueError(
                    f"{candidates} candidates for {self.images} images; give one per "
                    "image, or the image of each as images="
                )
            images = numpy.arange(self.images)
        images = numpy.asarray(images, dtype=numpy.int64)
        if images.shape != (candidates,) or (
            candidates and not (0 <= images.min() <= images.max() < self.images)
        ):
            raise ValueError(
                f"images must be {candidates} numbers from 0 to {self.images - 1}, one per "
                "candidate"
            )
        return images + self._first

    def reference_pairs(self, places: Integers) -> tuple[Integers, Integers]:
        """The references of images: index into `places`, and text, both [C * refs]."""
        begins = numpy.concatenate([[0], self._ends])[places]
        return expand(begins, self._ends[places])

    def match(
        self, candidates: Sequence[Words], images: Integers | None = None
    ) -> tuple[Matches, ...]:
        """Match the n-grams of candidates with those of their images' references.

        Args:
            candidates: C captions.
            images: which image each describes [C], 0 to I - 1; None: one per image, in order.

        Returns:
            the matches of orders 1 to 4.
        """
        places = self.places(images, len(candidates))
        stream, matches = _Stream(self.number(candidates)), []
        for n, order in zip(ORDERS, self.orders):
            starts, keys = stream.keys(n)
            grams = keys if n == 1 else _look_up(order.keys, keys)
            stream.number(starts, grams)
            bits = int(grams.max(initial=0)).bit_length()
            runs = (stream.text[starts] << bits) | grams
            entries, counts = _counted(runs)
            owners, grams = entries >> bits, entries & _mask(bits)
            spots = _search(order.pairs, (places[owners] << order.bits) | grams)
            spots[grams >= len(order.keys)] = -1
            matches.append(Matches(owners, grams, counts, spots))
        return tuple(matches)

    def number(self, texts: Sequence[Words]) -> Texts:
        """Texts as word ids; words that are in no reference get ids past the vocabulary."""
        flat = list(chain.from_iterable(texts))
        known = map(self._vocabulary.get, flat, repeat(-1))
        ids = numpy.fromiter(known, dtype=numpy.int64, count=len(flat))
        new: dict[str, int] = {}
        for position in numpy.flatnonzero(ids < 0).tolist():
            ids[position] = new.setdefault(flat[position], len(self._vocabulary) + len(new))
        return Texts(ids, numpy.fromiter(map(len, texts), dtype=numpy.int64, count=len(texts)))

    def _orders(self, counts: Integers) -> tuple[Order, ...]:
        keys, stream, orders = numpy.arange(len(self._vocabulary)), _Stream(self.texts), []
        for n in ORDERS:
            starts, grams = stream.keys(n)
            if n > 1:
                keys, grams = numpy.unique(grams, return_inverse=True)
            stream.number(starts, grams)
            orders.append(self._count(keys, stream.text[starts], grams, counts))
        return tuple(orders)

    def _count(self, keys: Integers, text: Integers, grams: Integers, counts: Integers) -> Order:
        bits, width = len(keys).bit_length(), int(counts.max(initial=0)).bit_length()
        image = self._text_images[text]
        first = self._ends - counts  # the first reference of each image
        # Sorted by image, then by n-gram, then by reference.
        runs = (((image << bits) | grams) << width) | (text - first[image])
        runs, times = _counted(runs)
        of_entry = runs >> width
        new = numpy.flatnonzero(numpy.diff(of_entry, prepend=-1))
        pairs = of_entry[new]
        most = numpy.maximum.reduceat(times, new) if len(new) else times
        counted = pairs[: numpy.searchsorted(pairs, self.documents << bits)]
        return Order(
            keys=keys,
            frequencies=numpy.bincount(counted & _mask(bits), minlength=len(keys)),
            bits=bits,
            pairs=pairs,
            starts=numpy.append(new, len(runs)),
            most=most,
            texts=(runs & _mask(width)) + first[of_entry >> bits],
            counts=times,
        )


def expand(begins: Integers, ends: Integers) -> tuple[Integers, Integers]:
    """All integers of ranges [begin, end): the index of the range, and the integer."""
    sizes = ends - begins
    owners = numpy.repeat(numpy.arange(len(sizes)), sizes)
    steps = numpy.arange(len(owners)) - numpy.repeat(sizes.cumsum() - sizes, sizes)
    return owners, begins[owners] + steps


class _Stream:
    """Concatenated texts [W], in which n-grams are built from the left, order by order."""

    def __init__(self, texts: Texts) -> None:
        self._ids, self._grams = texts.ids, texts.ids.copy()
        self.text = numpy.repeat(numpy.arange(len(texts.lengths)), texts.lengths)  # [W]
        ends = numpy.repeat(texts.lengths.cumsum(), texts.lengths)
        self._left = ends - numpy.arange(
            len(texts.ids)
        )  # number of words to the end of the text [W]

    def keys(self, n: int) -> tuple[Integers, Integers]:
        """The starts of n-grams, and their keys; those of order n - 1 must have ids."""
        if n == 1:
            return numpy.arange(len(self._ids)), self._ids
        starts = numpy.flatnonzero(self._left >= n)
        return starts, (self._grams[starts] << _SHIFT) | self._ids[starts + n - 1]

    def number(self, starts: Integers, grams: Integers) -> None:
        """Set the ids of the n-grams with these starts."""
        self._grams[starts] = grams


def _counted(values: Integers) -> tuple[Integers, Integers]:
    """The unique values, sorted, and their counts; sorts `values` in place."""
    values.sort()  # numpy.unique is several times slower
    starts = numpy.flatnonzero(numpy.diff(values, prepend=-1))
    return values[starts], numpy.diff(starts, append=len(values))


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def _look_up(keys: Integers, wanted: Integers) -> Integers:
    """Indices of wanted keys in sorted keys; missing keys get indices past the end."""
    places = _search(keys, wanted)
    new = places < 0
    places[new] = len(keys) + numpy.unique(wanted[new], return_inverse=True)[1]
    return places


def _search(keys: Integers, wanted: Integers) -> Integers:
    """Indices of wanted keys in sorted keys, -1 for missing keys."""
    if not len(keys):
        return numpy.full(len(wanted), -1)
    places = numpy.searchsorted(keys, wanted)
    places[places == len(keys)] = 0
    places[keys[places] != wanted] = -1
    return places
