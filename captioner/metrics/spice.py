"""SPICE: the F-score of objects, attributes and relations in a caption and its references.

Both are parsed into scene graphs; the score of a corpus is the mean of its images' scores. The
program is the one in pycocoevalcap, its parser Stanford CoreNLP 3.6.0, which that package downloads
at first use. Nothing is downloaded here: without the parser's jars SPICE is reported as missing.

Anderson, Fernando, Johnson and Gould, "SPICE: Semantic Propositional Image Caption Evaluation",
ECCV 2016.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy

from captioner.metrics.corpus import Corpus, Metric, Result, Rows, Unavailable, mean_as
from captioner.metrics.java import coco_file, java_command

JAR = "spice/spice-1.0.jar"
PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def measure(corpus: Corpus) -> Result:
    """SPICE of a corpus.

    Raises:
        Unavailable: the captions are not English, or Java, the jar or its parser is missing.
    """
    if not corpus.english:
        raise Unavailable("SPICE supports only English; the captions are not English")
    rows = _run(corpus)
    return Result({"SPICE": rows.mean()}, "SPICE", {"version": "1.0"}, {"spice": rows})


def _run(corpus: Corpus) -> Rows:
    """SPICE of each image, 0 to 100 [n, 1]."""
    java, jar = java_command(), coco_file(JAR)
    library = jar.parent / "lib"
    if not all((library / name).is_file() for name in PARSER):
        raise Unavailable(
            f"needs {' and '.join(PARSER)}, from "
            "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip, "
            f"in {library}"
        )
    with tempfile.TemporaryDirectory() as folder:
        request, response = Path(folder) / "input.json", Path(folder) / "output.json"
        captions = [
            {"image_id": i, "test": " ".join(words), "refs": [" ".join(text) for text in texts]}
            for i, (words, texts) in enumerate(zip(corpus.candidates, corpus.references))
        ]
        request.write_text(json.dumps(captions), encoding="utf-8")
        options = ["-cache", folder, "-out", str(response), "-silent"]
        done = subprocess.run(
            [*java, "-Xmx8G", "-jar", str(jar), str(request), *options],
            cwd=jar.parent,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 or not response.is_file():
            reason = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise Unavailable(f"java could not run {JAR}: {reason}")
        answers = json.loads(response.read_text(encoding="utf-8"))
    scores = {answer["image_id"]: answer["scores"]["All"]["f"] for answer in answers}
    return 100 * numpy.array([[scores[i]] for i in range(len(captions))], dtype=numpy.float64)


METRIC = Metric(measure, ("SPICE",), {"spice": mean_as("SPICE")})
