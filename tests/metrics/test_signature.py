"""Signatures: a value with fields, its text, and files from before there were fields."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from captioner.metrics.scores import score
from captioner.metrics.signature import (
    Signature,
    differences,
    from_json,
    from_old_text,
    reference_hash,
    to_json,
)

FULL = Signature(
    metric="CIDEr-D",
    parts={"df": "references"},
    tokenization="ptb",
    units="clusters",
    case="lower",
    references_per_image="3-5",
    count=1000,
    decoding="beam3-lp0.7-max12",
    options={"beam_size": 3, "max_length": 12, "banned_words": ["a dog"]},
    data="flickr8k",
    split="dev",
    images="51c9cff8",
    others={"note": "mine"},
    references="ff5f8e09",
    version="0.1.0",
)
TEXT = (
    "CIDEr-D|df:references|tok:ptb|units:clusters|case:lower|refs:3-5|n:1000"
    "|decoding:beam3-lp0.7-max12|data:flickr8k|split:dev|images:51c9cff8|note:mine"
    "|references:ff5f8e09|captioner:0.1.0"
)
COMMON = replace(FULL, metric=None, parts={})


def test_the_text_has_not_changed() -> None:
    assert str(FULL) == TEXT
    assert str(COMMON) == TEXT.removeprefix("CIDEr-D|df:references|")
    assert str(Signature(metric="BLEU", count=1)) == "BLEU|n:1"
    assert str(Signature()) == ""


def test_fields_round_trip_through_json() -> None:
    bleu = replace(FULL, metric="BLEU", parts={"nltk": "3.10"})
    content = json.loads(json.dumps(to_json(COMMON, {"CIDEr-D": FULL, "BLEU-1": bleu})))
    assert content["signature"] == str(COMMON)
    assert content["signatures"] == {"CIDEr-D": TEXT, "BLEU-1": str(bleu)}
    assert from_json(content) == (COMMON, {"CIDEr-D": FULL, "BLEU-1": bleu})
    content["fields"]["common"]["of_a_later_version"] = 1
    assert from_json(content)[0] == COMMON


def test_fields_are_read_instead_of_the_text() -> None:
    content = to_json(COMMON, {"CIDEr-D": FULL})
    content |= {"signature": "tok:other", "signatures": {"CIDEr-D": "BLEU|tok:other"}}
    assert from_json(content) == (COMMON, {"CIDEr-D": FULL})


def test_files_without_fields_are_read() -> None:
    content = to_json(COMMON, {"CIDEr-D": FULL})
    del content["fields"]
    known = {"max_length": 12}  # the only option in a label that the report needs
    common, signatures = from_json(content)
    assert common == replace(COMMON, options=known)
    assert signatures == {"CIDEr-D": replace(FULL, options=known)}
    assert from_old_text("tok:ptb|decoding:beam3").options == {}
    assert from_old_text("tok:ptb|decoding:max9-ban.max7_x").options == {"max_length": 9}


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize(
    "content",
    [{}, {"fields": {}}, {"fields": {"common": [], "metrics": {}}}, {"signature": 3}]
    + [{"signature": "tok:ptb|n:many", "signatures": {}}]
    + [{"fields": {"common": {}, "metrics": {"BLEU-1": "BLEU"}}}],
)
def test_a_damaged_file_is_an_error(content: dict) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        from_json(content)


def test_options_are_neither_in_the_text_nor_a_difference() -> None:
    assert FULL.differences(replace(FULL, options={})) == {}
    assert str(replace(FULL, options={})) == str(FULL)


def test_a_context_fills_the_fields_that_it_names() -> None:
    options = {"beam_size": 3}
    scores = score(["a"], [["a"]], context={"options": options, "split": "dev", "mine": "x"})
    assert (scores.signature.options, scores.signature.split) == (options, "dev")
    assert scores.signature.others == {"mine": "x"}
    assert "|split:dev|mine:x|references:" in str(scores.signature)


def test_signatures_differ_by_their_parts() -> None:
    context = {"decoding": "beam3", "data": "shapes"}
    first = score(["a"], [["a"]], context=context, metrics=["bleu", "cider-d"])
    second = score(["a", "b"], [["a"], ["a"]], context={"decoding": "greedy", "data": "shapes"})
    assert differences(first.signature, first.signature) == {}
    assert differences(first.signature, second.signature) == {
        "n": ("1", "2"),
        "decoding": ("beam3", "greedy"),
        "references": (reference_hash([""], [["a"]]), reference_hash(["", ""], [["a"], ["a"]])),
    }
    bleu_1, cider_d = first.signatures["BLEU-1"], first.signatures["CIDEr-D"]
    assert differences(bleu_1, cider_d).keys() == {"metric", "nltk", "df"}
    assert differences(bleu_1, cider_d)["metric"] == ("BLEU", "CIDEr-D")
    assert differences(bleu_1, cider_d)["df"] == ("", "references")


def test_reference_hash_depends_on_texts_but_not_on_order() -> None:
    references = {"b": ["Two dogs .", "a dog"], "a": ["café"]}
    rows = '[["a", ["caf\\u00e9"]], ["b", ["Two dogs .", "a dog"]]]'
    expected = hashlib.sha256(rows.encode()).hexdigest()[:8]
    assert reference_hash(references, references.values()) == expected
    assert reference_hash("ab", [["cafe\u0301 "], ["a  dog", "Two dogs ."]]) == expected
    scored = score(["a", "b"], list(references.values()), images=list(references))
    assert scored.signature.references == expected
    for changed in (
        [["Two dogs .", "a dog"], ["cafe"]],
        [["Two dogs .", "a dog", "a dog"], ["café"]],
        [["café"], ["Two dogs .", "a dog"]],
    ):
        assert reference_hash("ba", changed) != expected
