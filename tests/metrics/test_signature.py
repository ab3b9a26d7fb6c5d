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


def test_the_text_is_the_one_that_was_always_written() -> None:
    assert str(FULL) == TEXT
    assert str(COMMON) == TEXT.removeprefix("CIDEr-D|df:references|")
    assert str(Signature(metric="BLEU", count=1)) == "BLEU|n:1"
    assert str(Signature()) == ""


def test_fields_survive_json() -> None:
    other = replace(FULL, metric="BLEU", parts={"nltk": "3.10"})
    content = json.loads(json.dumps(to_json(COMMON, {"CIDEr-D": FULL, "BLEU-1": other})))
    assert content["signature"] == str(COMMON)
    assert content["signatures"] == {"CIDEr-D": TEXT, "BLEU-1": str(other)}
    assert from_json(content) == (COMMON, {"CIDEr-D": FULL, "BLEU-1": other})
    content["fields"]["common"]["of_a_later_version"] = 1
    assert from_json(content)[0] == COMMON


def test_fields_are_read_and_the_text_beside_them_is_not() -> None:
    content = to_json(COMMON, {"CIDEr-D": FULL})
    content |= {"signature": "tok:other", "signatures": {"CIDEr-D": "BLEU|tok:other"}}
    assert from_json(content) == (COMMON, {"CIDEr-D": FULL})


def test_files_from_before_there_were_fields_are_read() -> None:
    content = to_json(COMMON, {"CIDEr-D": FULL})
    del content["fields"]
    known = {"max_length": 12}  # all that a label says of the options, for the report
    common, signatures = from_json(content)
    assert common == replace(COMMON, options=known)
    assert signatures == {"CIDEr-D": replace(FULL, options=known)}
    assert from_old_text("tok:ptb|decoding:beam3").options == {}
    assert from_old_text("tok:ptb|decoding:max9-ban.max7_x").options == {"max_length": 9}


@pytest.mark.parametrize(
    "content",
    [{}, {"fields": {}}, {"fields": {"common": [], "metrics": {}}}, {"signature": 3}]
    + [{"signature": "tok:ptb|n:many", "signatures": {}}]
    + [{"fields": {"common": {}, "metrics": {"BLEU-1": "BLEU"}}}],
)
def test_a_damaged_file_is_an_error(content: dict) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        from_json(content)


def test_options_move_no_text_and_are_no_difference() -> None:
    assert FULL.differences(replace(FULL, options={})) == {}
    assert str(replace(FULL, options={})) == str(FULL)


def test_a_context_fills_the_fields_that_it_names() -> None:
    options = {"beam_size": 3}
    scores = score(["a"], [["a"]], context={"options": options, "split": "dev", "mine": "x"})
    assert (scores.signature.options, scores.signature.split) == (options, "dev")
    assert scores.signature.others == {"mine": "x"}
    assert "|split:dev|mine:x|references:" in str(scores.signature)


def test_two_signatures_are_told_apart_by_their_parts() -> None:
    context = {"decoding": "beam3", "data": "shapes"}
    one = score(["a"], [["a"]], context=context, metrics=["bleu", "cider-d"])
    other = score(["a", "b"], [["a"], ["a"]], context={"decoding": "greedy", "data": "shapes"})
    assert differences(one.signature, one.signature) == {}
    assert differences(one.signature, other.signature) == {
        "n": ("1", "2"),
        "decoding": ("beam3", "greedy"),
        "references": (reference_hash([""], [["a"]]), reference_hash(["", ""], [["a"], ["a"]])),
    }
    bleu_1, cider_d = one.signatures["BLEU-1"], one.signatures["CIDEr-D"]
    assert differences(bleu_1, cider_d).keys() == {"metric", "nltk", "df"}
    assert differences(bleu_1, cider_d)["metric"] == ("BLEU", "CIDEr-D")
    assert differences(bleu_1, cider_d)["df"] == ("", "references")


def test_references_are_signed_by_their_texts_in_any_order() -> None:
    said = {"b": ["Two dogs .", "a dog"], "a": ["café"]}
    rows = '[["a", ["caf\\u00e9"]], ["b", ["Two dogs .", "a dog"]]]'
    expected = hashlib.sha256(rows.encode()).hexdigest()[:8]
    assert reference_hash(said, said.values()) == expected
    assert reference_hash("ab", [["cafe\u0301 "], ["a  dog", "Two dogs ."]]) == expected
    scored = score(["a", "b"], list(said.values()), images=list(said))
    assert scored.signature.references == expected
    for others in (
        [["Two dogs .", "a dog"], ["cafe"]],
        [["Two dogs .", "a dog", "a dog"], ["café"]],
        [["café"], ["Two dogs .", "a dog"]],
    ):
        assert reference_hash("ba", others) != expected
