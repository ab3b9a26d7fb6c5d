"""The n-grams of a corpus as numbers, so that scores are counted by numpy instead of word by word.

Every word gets a number, and every n-gram one for its order: an n-gram is the number of its first
n - 1 words and its last word, packed into one integer of 64 bits,

    key = number(w_1 ... w_{n-1}) * 2^32 + number(w_n)

and its own number is the place of that key among the sorted keys of the references. Two n-grams
never share a number, however large the vocabulary. How often an n-gram stands in a text is then a
run of equal integers in a sorted array, and looking it up a binary search.

The references are numbered once (`References`) and then compared with as many candidates as
wanted: training by rewards scores new samples against the same references at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4)

Words = Sequence[str]
"""A caption cut into words."""

Integers = NDArray[numpy.int64]

_SHIFT = 32


@dataclass(frozen=True)
class Texts:
    """S texts as word numbers.

    Attributes:
        ids: the words of all texts, one after the other [W].
        lengths: words of each text [S].
    """

    ids: Integers
    lengths: Integers

    def padded(self, texts: Integers, *, empty: int, padding: int) -> Integers:
        """Some of the texts, [B, length of the longest].

        Args:
            texts: their places [B].
            empty: a number that stands for the only word of an empty text.
            padding: a number that fills up shorter texts.
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
        keys: of the G n-grams, sorted; an n-gram's number is its place here [G].
        frequencies: images whose references hold the n-gram [G].
        bits: how many an n-gram's number takes.
        pairs: image << bits | n-gram, for each n-gram of an image's references, sorted [P].
        starts: where each pair's entries begin, and the end of the last [P + 1].
        most: how often the pair's n-gram stands in the one reference that has it most [P].
        texts: of each entry, the reference that holds the n-gram [E].
        counts: of each entry, how often [E].
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
    """The n-grams of one order in C candidates, each with its place among the references'.

    Attributes:
        candidates: which candidate holds the n-gram [M].
        grams: its number; numbers from G on stand for n-grams that no reference holds [M].
        counts: how often it stands there [M].
        places: the pair of `Order` with the same n-gram in the references of the candidate's
            image; -1 where they do not hold it [M].
    """

    candidates: Integers
    grams: Integers
    counts: Integers
    places: Integers


class References:
    """The references of I images, numbered once.

    Args:
        references: for each image the words of one or more references.
        documents: likewise, of the images in which document frequencies are counted; None counts
            them in the references themselves.

    Attributes:
        texts: all references as word numbers, those of `documents` first.
        orders: their n-grams, orders 1 to 4.
        documents: images in which document frequencies are counted.

    Raises:
        ValueError: an image without references.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Words]],
        *,
        documents: Sequence[Sequence[Words]] | None = None,
    ) -> None:
        images = [*(documents or ()), *references]
        self._first = len(images) - len(references)  # where the images to be scored begin
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
        """How many images can be scored."""
        return len(self._ends) - self._first

    def places(self, images: Integers | None, candidates: int) -> Integers:
        """The image of each candidate as it is numbered here [C].

        Raises:
            ValueError: another number of candidates than images, or an image that is not there.
        """
        if images is None:
            if candidates != self.images:
                raise ValueError(
                    f"{candidates} candidates for {self.images} images; give one an image, or say "
                    "with images= which image each describes"
                )
            images = numpy.arange(self.images)
        images = numpy.asarray(images, dtype=numpy.int64)
        if images.shape != (candidates,) or (
            candidates and not (0 <= images.min() <= images.max() < self.images)
        ):
            raise ValueError(
                f"images must be {candidates} numbers from 0 to {self.images - 1}, one a candidate"
            )
        return images + self._first

    def texts_of(self, places: Integers) -> tuple[Integers, Integers]:
        """The references of images: owner (an index of `places`) and text, both [C * refs]."""
        begins = numpy.concatenate([[0], self._ends])[places]
        return expand(begins, self._ends[places])

    def match(
        self, candidates: Sequence[Words], images: Integers | None = None
    ) -> tuple[Matches, ...]:
        """Number the n-grams of candidates and find them among their images' references.

        Args:
            candidates: C captions.
            images: which image each describes [C], 0 to I - 1; None takes one an image, in order.

        Returns:
            the matches of orders 1 to 4.
        """
        places = self.places(images, len(candidates))
        stream, found = _Stream(self.number(candidates)), []
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
            found.append(Matches(owners, grams, counts, spots))
        return tuple(found)

    def number(self, texts: Sequence[Words]) -> Texts:
        """Number words; those of no reference get numbers of their own past the vocabulary."""
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
    """All members of ranges [begin, end): which range each belongs to, and the member."""
    sizes = ends - begins
    owners = numpy.repeat(numpy.arange(len(sizes)), sizes)
    steps = numpy.arange(len(owners)) - numpy.repeat(sizes.cumsum() - sizes, sizes)
    return owners, begins[owners] + steps


class _Stream:
    """Texts word after word [W]; n-grams are built up from the left, order by order."""

    def __init__(self, texts: Texts) -> None:
        self._ids, self._grams = texts.ids, texts.ids.copy()
        self.text = numpy.repeat(numpy.arange(len(texts.lengths)), texts.lengths)  # [W]
        ends = numpy.repeat(texts.lengths.cumsum(), texts.lengths)
        self._left = ends - numpy.arange(len(texts.ids))  # words to the end of the text [W]

    def keys(self, n: int) -> tuple[Integers, Integers]:
        """Where n-grams start, and their keys; those of order n - 1 must be numbered."""
        if n == 1:
            return numpy.arange(len(self._ids)), self._ids
        starts = numpy.flatnonzero(self._left >= n)
        return starts, (self._grams[starts] << _SHIFT) | self._ids[starts + n - 1]

    def number(self, starts: Integers, grams: Integers) -> None:
        """Set the numbers of the n-grams that start there."""
        self._grams[starts] = grams


def _counted(values: Integers) -> tuple[Integers, Integers]:
    """The different values, sorted, and how often each occurs; sorts them in place."""
    values.sort()  # numpy.unique copies and masks, and takes several times as long
    starts = numpy.flatnonzero(numpy.diff(values, prepend=-1))
    return values[starts], numpy.diff(starts, append=len(values))


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def _look_up(keys: Integers, wanted: Integers) -> Integers:
    """Places of wanted keys among sorted ones; those that are not there are numbered past them."""
    places = _search(keys, wanted)
    new = places < 0
    places[new] = len(keys) + numpy.unique(wanted[new], return_inverse=True)[1]
    return places


def _search(keys: Integers, wanted: Integers) -> Integers:
    """Places of wanted keys among sorted ones, -1 where they are not."""
    if not len(keys):
        return numpy.full(len(wanted), -1)
    places = numpy.searchsorted(keys, wanted)
    places[places == len(keys)] = 0
    places[keys[places] != wanted] = -1
    return places
