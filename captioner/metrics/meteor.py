"""METEOR 1.5, computed by the authors' program: an alignment of candidate and reference.

Words match exactly, by stem, by synonym or as a paraphrase. With matches weighted by kind
(1, 0.6, 0.8, 0.6) and by content or function word (delta, 1 - delta), P is the weighted
fraction of matched words in the candidate and R that in the reference:

    F = P R / (alpha P + (1 - alpha) R)        METEOR = F (1 - gamma (chunks / matches)^beta)

alpha = 0.85, beta = 0.2, gamma = 0.6, delta = 0.75, the program's values for English. Each image
is scored by its best reference. The score of a corpus is computed from summed counts, as BLEU is,
and is not the mean of the images' scores.

Denkowski and Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target
Language", WMT 2014. The jar, its data and this way to call it are from pycocoevalcap.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread
from typing import IO

import numpy

from captioner.metrics.corpus import Corpus, Metric, Result, Rows, Unavailable
from captioner.metrics.java import coco_file, java_command
from captioner.metrics.ngrams import Words

JAR = "meteor/meteor-1.5.jar"
COLUMNS = 23
_KINDS = (1.0, 0.6, 0.8, 0.6)  # exact, stem, synonym, paraphrase
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def measure(corpus: Corpus) -> Result:
    """METEOR of a corpus, as the program reports it.

    Raises:
        Unavailable: the captions are not English, or Java or the jar is missing.
    """
    if not corpus.english:
        raise Unavailable("METEOR supports only English; the captions are not English")
    value, rows = meteor(corpus.candidates, corpus.references)
    return Result({"METEOR": value}, "METEOR", {"version": "1.5"}, {"meteor": rows})


def meteor(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[float, Rows]:
    """Score candidates against their references.

    Args:
        candidates: the words of each of C candidates.
        references: for each candidate, the words of one or more references.

    Returns:
        the corpus score, 0 to 100, and the program's counts for each image [C, 23].

    Raises:
        Unavailable: Java or the jar is missing, or the program fails.
    """
    lines = [
        " ||| ".join(["SCORE", *(" ".join(text) for text in texts), " ".join(candidate)])
        for candidate, texts in zip(candidates, references)
    ]
    with _program() as (requests, answers):
        counts = _ask(requests, answers, lines, len(lines))
        # The scores of the images come first, then that of the corpus.
        scores = _ask(requests, answers, [" ||| ".join(["EVAL", *counts])], len(lines) + 1)
    rows = numpy.array([line.split() for line in counts], dtype=numpy.float64)
    if rows.shape != (len(lines), COLUMNS):
        raise Unavailable(f"{JAR} answered with {rows.shape[-1]} counts, not {COLUMNS}")
    # The program counts no chunk for a candidate that equals its reference.
    same = (rows[:, :2] == rows[:, 21:23]).all(axis=1) & (rows[:, 20] == 1)
    rows[same, 20] = 0
    return 100 * float(scores[-1]), rows


def from_meteor_rows(means: Rows) -> dict[str, Rows]:
    """METEOR (0 to 100) of mean counts [..., 23].

    The columns: words of candidate and reference, function words of each; for each kind of match
    the content words of candidate and reference, then the function words of each; chunks (0 if
    the texts are equal), matched words of candidate and reference.
    """
    lengths, functions, matched = means[..., :2], means[..., 2:4], means[..., 4:20]
    kinds = matched.reshape(*means.shape[:-1], 4, 4)  # [..., kind, content 2 | function 2]
    weighted = _DELTA * kinds[..., :2] + (1 - _DELTA) * kinds[..., 2:]  # [..., kind, 2]
    matches = (numpy.array(_KINDS)[:, None] * weighted).sum(axis=-2)  # [..., 2]
    words = _DELTA * (lengths - functions) + (1 - _DELTA) * functions  # [..., 2]
    with numpy.errstate(divide="ignore", invalid="ignore"):
        precision, recall = numpy.moveaxis(matches / words, -1, 0)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        chunks = means[..., 20] / means[..., 21:23].mean(axis=-1)
        scores = mean * (1 - _GAMMA * chunks**_BETA)
    return {"METEOR": numpy.where(numpy.isfinite(scores), 100 * scores, 0.0)}


@contextmanager
def _program() -> Iterator[tuple[IO[str], IO[str]]]:
    """Run the program; yields its standard input and output."""
    jar = coco_file(JAR)
    command = [*java_command(), "-Xmx2G", "-jar", str(jar), *"- - -stdio -l en -norm".split()]
    with subprocess.Popen(
        command,
        cwd=jar.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            yield program.stdin, program.stdout
        finally:
            program.kill()
            with suppress(OSError):  # a program that ended early leaves input unread
                program.stdin.close()


def _ask(requests: IO[str], answers: IO[str], lines: Sequence[str], count: int) -> list[str]:
    """Send lines and read `count` answers at the same time, since either pipe may become full."""

    def send() -> None:
        try:
            requests.writelines(f"{line}\n" for line in lines)
            requests.flush()
        except OSError:
            pass  # the program has ended, so answers are missing below

    sender = Thread(target=send)
    sender.start()
    received = [answers.readline().strip() for _ in range(count)]
    sender.join()
    if not all(received):
        raise Unavailable(f"java could not run {JAR}; see what `java -jar {JAR}` says")
    return received


METRIC = Metric(measure, ("METEOR",), {"meteor": from_meteor_rows})
