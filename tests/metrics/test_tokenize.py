"""The tokenization of captions, compared with the tokenizer of coco-caption.

The expected words are the output of Stanford CoreNLP 3.4.1 through coco-caption. Where Java and
pycocoevalcap are installed, `test_expected_words_equal_those_of_the_jar` runs it again.
"""

from __future__ import annotations

import gc
import os
import random
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.metrics.scores import score
from captioner.metrics.tokenize import (
    _IDEOGRAPHS,
    TOKENIZE,
    _ptb_tokens,
    characters,
    clustered,
    ptb_words,
)

EXPECTED = [
    # clitics
    ("A man's dog isn't barking.", "a man 's dog is n't barking"),
    ("The dogs' owner can't see them.", "the dogs owner ca n't see them"),
    (
        "They're sure we've seen it; he'd say she'll come, I'm told.",
        "they 're sure we 've seen it he 'd say she 'll come i 'm told",
    ),
    ("It's James's ball.", "it 's james 's ball"),
    ("You shouldn't've gone.", "you should n't 've gone"),
    ("DON'T WALK, says the boy's sign.", "do n't walk says the boy 's sign"),
    ("We cannot see her face.", "we can not see her face"),
    ("Gonna, gotta, wanna, gimme, lemme", "gon na got ta wan na gim me lem me"),
    ("'Tis a dog and 'twas a cat", "'t is a dog and 't was a cat"),
    ("Get 'em off 'til noon 'cause it's late.", "get 'em off 'til noon 'cause it 's late"),
    ("A slip 'n' slide", "a slip 'n' slide"),
    ("A boy from the '80s, in '95", "a boy from the '80s in '95"),
    ("The 1950s' cars and the 1980's style", "the 1950s cars and the 1980 's style"),
    ("y'all know what y'know", "y' all know what y' know"),
    (
        "It's five o'clock at O'Neil's and D'Angelo's.",
        "it 's five o'clock at o'neil 's and d'angelo 's",
    ),
    ("A jack-o'-lantern, hors d'oeuvre and ma'am", "a jack-o lantern hors d'oeuvre and ma'am"),
    ("nothin' doin' ol' man", "nothin doin ol' man"),
    ("Don`t and don´t", "do n`t and don ´ t"),
    # quotes
    ('A sign that says "No diving!"', "a sign that says no diving"),
    ("A dog's 'single' and ``latex'' quotes", "a dog 's single and latex quotes"),
    ("It’s the girls’ team, they don’t “lose”", "it 's the girls team they do n't lose"),
    ("“‘Nested’ quotes”", "``` nested quotes"),
    ("«guillemets» and „German“", "guillemets and „ german"),
    ('12" ruler, a 5\'10" man and 5′10″', "12 ruler a 5 10 man and 5 ′ 10 ″"),
    # hyphens and dots
    (
        "a black-and-white dog - a cat -- a cow ----- pig",
        "a black-and-white dog a cat a cow ----- pig",
    ),
    ("dog—cat and dog–cat", "dog cat and dog cat"),
    ("the end- -start a---b", "the end start a b"),
    ("a dog... running..fast . . . wait…what", "a dog running fast wait what"),
    ("Hello!! What?? Really?!", "hello !! what ?? really ?!"),
    ("He ran.Then bro!The end", "he ran.then bro!the end"),
    ("a dog., a cat", "a dog. a cat"),
    # numbers
    ("1,000 people, 3.14 pies and .5", "1,000 people 3.14 pies and .5"),
    ("$5.00, £3.50, €10, 50¢ and US$5", "$ 5.00 # 3.50 $ 10 50 cents and us$ 5"),
    ("100% wool, 50 % off", "100 % wool 50 % off"),
    (
        "1/2 cup, 1 1/2 cups, 2-1/2 cups, ½ cup, 1½ cups",
        "1/2 cup 1 1/2 cups 2-1/2 cups 1/2 cup 1 1/2 cups",
    ),
    ("10:30 a.m. or 12:30pm, at 5 p.m.", "10:30 a.m. or 12:30 pm at 5 p.m."),
    ("01/02/2003 or 1-2-03 or 2003-01-02", "01/02/2003 or 1-2-03 or 2003-01-02"),
    ("1st, 2nd, 21st, a 4x4 truck, 5-10 people", "1st 2nd 21st a 4x4 truck 5-10 people"),
    ("player #12 and # 13", "player # 12 and # 13"),
    ("No. 5 is no. 7, no. The dog", "no. 5 is no. 7 no the dog"),
    ("-5 to +5 degrees, 90° turn", "-5 to +5 degrees 90 ° turn"),
    ("call 555-1234 or (555) 555-1234", "call 555-1234 or -lrb-555-rrb- 555-1234"),
    ("1.5-litre, 2.5x zoom, mid-1990s", "1.5-litre 2.5 x zoom mid-1990s"),
    # abbreviations
    (
        "Mr. Smith, Mrs. Jones and Dr. Who on St. Mary's Ave.",
        "mr. smith mrs. jones and dr. who on st. mary 's ave.",
    ),
    (
        "dogs, cats, etc., e.g. poodles, i.e. pets vs. cats",
        "dogs cats etc. e.g. poodles i.e. pets vs. cats",
    ),
    (
        "The U.S. flag, U.S.-based, in Washington, D.C.",
        "the u.s. flag u.s.-based in washington d.c.",
    ),
    ("a t.v. on a table. An R.V. park. TV. set", "a t.v. on a table an r.v. park tv set"),
    ("Mass. and mass. and approx. five", "mass. and mass and approx five"),
    ("you and I. The dog ran", "you and i the dog ran"),
    ("a Ph.D. student, J. K. Rowling", "a ph.d. student j. k. rowling"),
    (
        "AT&T and at&t, rock & roll, M&M's, salt&pepper",
        "at&t and at & t rock & roll m&m 's salt & pepper",
    ),
    # signs
    (
        "(a dog) [a cat] {a cow} dog(s)",
        "-lrb- a dog -rrb- -lsb- a cat -rsb- -lcb- a cow -rcb- dog -lrb- s -rrb-",
    ),
    ("and/or he/she w/o w/ a/b/c/d", "and/or he/she w/o w / a/b/c / d"),
    ("a black/white-striped shirt", "a black/white-striped shirt"),
    ("Barnes &amp; Noble &lt;b&gt; &quot;x&quot; AT&amp;T", "barnes & noble < b > x at&t"),
    ("<b>bold</b> <end> <pad> a < b > c", "<b> bold </b> <end> <pad> a < b > c"),
    ("C++ and C# * bullet ** two + = | ~ ^", "c++ and c# * bullet ** two + = | ~ ^"),
    ("snake_case __init__ c:\\dogs", "snake_case __ init __ c \\ dogs"),
    (":) :-( ;D =) <3 ^_^ o_O", ":-rrb- :--lrb- ;d =-rrb- < 3 ^_^ o_o"),
    # addresses
    ("see https://example.com/a?b=c.", "see https://example.com/a?b=c"),
    ("www.example.com and example.com/photos", "www.example.com and example.com/photos"),
    ("me@example.com @user #hashtag photo.jpg", "me@example.com @user #hashtag photo.jpg"),
    # scripts
    ("naïve café über straße ΣΑΣ собака и кошка.", "naïve café über straße σας собака и кошка"),
    ("日本語 中文。 한국어 العربية، हिन्दी", "日本語 中文 。 한국어 العربية ، हिन्दी"),
    ("😀 a dog ★ ☺ © ™ ¿Qué? ¡Hola!", "a dog ★ ☺ © ™ ¿ qué ¡ hola"),
    ("soft\xadhyphen zero\u200bwidth tab\tspace", "softhyphen zero width tab space"),
]
# Where this tokenizer differs from coco-caption's: what that gives.
KNOWN_DIFFERENCES = [
    ("caf&eacute;", "caf&eacute;"),  # an entity inside a word
    ("photo 1.jpg", "photo 1.jpg"),  # a file name that starts with a number
    ("a 3.5-café", "a 3.5-caf é"),  # letters beyond ASCII after a number and a hyphen
]
_WORDS = "A dog The cat U.S. it don can o'clock Mr. 5 1,000 3.5 1/2 2nd é café mid-air won".split()
_JOINTS = [
    *" .,'\"-/!?;()&$%#",
    " ",
    " ",
    "’",
    "“",
    "”",
    "—",
    "…",
    "'s",
    "n't",
    "'ll",
    "’s",
    "...",
    ", ",
]


def coco_words(texts: list[str]) -> list[list[str]]:
    """The output of coco-caption's tokenizer, with a neutral line after each text."""
    if shutil.which("java") is None:
        pytest.skip("needs java")
    coco = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    captions = {i: [{"caption": text}, {"caption": "a dog ."}] for i, text in enumerate(texts)}
    tokenized = coco.PTBTokenizer().tokenize(captions)
    assert [after for _, after in tokenized.values()] == ["a dog"] * len(texts)
    return [words.split() for words, _ in tokenized.values()]


@pytest.mark.parametrize(("text", "words"), EXPECTED)
def test_words_equal_those_of_coco_caption(text: str, words: str) -> None:
    assert ptb_words(text) == words.split()


def test_expected_words_equal_those_of_the_jar() -> None:
    pairs = [*EXPECTED, *KNOWN_DIFFERENCES]
    assert coco_words([text for text, _ in pairs]) == [words.split() for _, words in pairs]
    assert all(ptb_words(text) != words.split() for text, words in KNOWN_DIFFERENCES)


def test_random_captions_are_split_as_by_coco_caption() -> None:
    draw = random.Random(7)
    texts = set()
    for _ in range(3000):
        parts = [draw.choice(_WORDS if draw.random() < 0.55 else _JOINTS) for _ in range(7)]
        texts.add("".join(parts).strip())
    captions = sorted(text for text in texts if text)
    wrong = sum(ptb_words(t) != words for t, words in zip(captions, coco_words(captions)))
    assert wrong <= 0.01 * len(captions)


def test_captions_of_flickr8k_are_split_as_by_coco_caption() -> None:
    """All captions of the official release, if CAPTIONER_FLICKR8K names its folder."""
    folder = os.environ.get("CAPTIONER_FLICKR8K")
    if not folder:
        pytest.skip("CAPTIONER_FLICKR8K does not name the folder of Flickr8k")
    text = (Path(folder).expanduser() / "Flickr8k.token.txt").read_text(encoding="utf-8")
    captions = [line.partition("\t")[2] for line in text.splitlines() if "\t" in line]
    assert len(captions) > 30000
    wrong = [t for t, words in zip(captions, coco_words(captions)) if ptb_words(t) != words]
    assert wrong == []


@pytest.mark.reliability("properties")
@given(st.lists(st.sampled_from(["a", "Dog", "cannot", "gonna", "I", " ", ",", ".", "s"])))
def test_fast_path_for_plain_captions_equals_slow_path(parts: list[str]) -> None:
    for text in (" ".join(parts), "".join(parts), " ".join([*parts, "."])):
        assert ptb_words(text) == _ptb_tokens(text)


@pytest.mark.reliability("properties")
@given(st.text(max_size=60))
def test_any_text_gives_lower_case_words_without_blanks(text: str) -> None:
    for word in ptb_words(text):
        assert word
        assert word.split() == [word]
        assert word == word.lower()


@pytest.mark.reliability("properties")
@given(st.lists(st.sampled_from(["a", "dog", "runs", "fast", "über", "red"]), max_size=9))
def test_plain_words_are_unchanged(words: list[str]) -> None:
    assert ptb_words("  ".join(words)) == words
    assert ptb_words(", ".join(words).upper() + " .") == words


@pytest.mark.parametrize(
    "unit", ["a", "a.", "a'", "-a", "<a ", "http://", "1,", "A&", " ", "\t", "a@"]
)
def test_a_long_caption_is_unchanged(unit: str) -> None:
    """No pattern may take exponential time; with one, this test would not end."""
    assert ptb_words(unit * 3000 + " dog")[-1] == "dog"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一个穿着红色T恤的人。", "一 个 穿 着 红 色 t 恤 的 人"),
        ("骑着225号车，看NBA！", "骑 着 225 号 车 看 nba"),
        ("摆着 pose 的 DJ、café", "摆 着 pose 的 dj café"),
        ("“两只狗”（黑、白）…… (2只)", "两 只 狗 黑 白 2 只"),
        ("人々は公園で。テレビ", "人 々 は 公 園 で テ レ ビ"),
        ("𠀀𠀁 한국", "𠀀 𠀁 한 국"),
        ("A dog_cat, 3D", "a dog cat 3d"),
        ("。，！ ...", ""),
        # grapheme clusters, as defined by Unicode's Annex 29
        ("हिन्दी में।", "हि न्दी में"),
        ("একটি কুকুর", "এ ক টি কু কু র"),
        ("ผู้ชายขี่ม้า", "ผู้ ช า ย ขี่ ม้ า"),
        ("நாய் 3๒", "நா ய் 3 ๒"),
        ("ကလေး", "က လေ း"),
        ("café Cafe\u0301 A\u030angstrom q\u0301", "café café ångstrom q\u0301"),
        ("か\u3099 \u1112\u1161\u11ab", "が 한"),  # composed first
        ("שָׁלוֹם می\u200cخواهم", "שָׁלוֹם می\u200cخواهم"),
        ("狗\ufe0f 👩\u200d👧 \uf914", "狗 \uf914"),  # a compatibility ideograph is unchanged
    ],
)
def test_characters(text: str, expected: str) -> None:
    assert characters(text) == expected.split()


@pytest.mark.reliability("properties")
@given(st.text(alphabet="一二三犬。，Ab1 -", max_size=30))
def test_characters_lose_nothing_but_punctuation(text: str) -> None:
    signs = "".join(sign for sign in text.lower() if sign not in "。， -")
    assert "".join(characters(text)) == signs
    assert all(len(token) == 1 or token.isascii() for token in characters(text))


def test_characters_without_clusters_are_unchanged() -> None:
    """Every Unicode character except marks and scripts with clusters is split as in version 0.1."""
    old = re.compile(f"[{_IDEOGRAPHS}]|[^\\W_{_IDEOGRAPHS}]+")
    for code in range(0x20000 + 0x800):
        sign = chr(code)
        if unicodedata.category(sign)[0] in "MC" or clustered([sign]):
            continue
        if sign == "\u0130":  # has a mark in lower case
            continue
        text = f"一{sign}犬T{sign}恤"
        assert characters(text) == old.findall(text.lower()), hex(code)


def test_the_signature_says_if_clusters_were_split() -> None:
    for text, parts in (
        ("一只狗", "tok:character|case"),
        ("café", "tok:character|case"),
        ("cafe\u0301", "tok:character|case"),  # composed: no cluster is left
        ("ผู้ชาย", "tok:character|units:clusters|case"),
        ("हिन्दी", "tok:character|units:clusters|case"),
    ):
        assert str(score([text], [[text]], tokenize="character").signature).startswith(parts)
    assert score(["हिन्दी"], [["हिन्दी"]]).signature.units is None


@pytest.mark.reliability("properties")
@pytest.mark.parametrize("collects", [True, False])
def test_splitting_many_texts_gives_the_same_and_restores_garbage_collection(
    collects: bool,
) -> None:
    texts = ["A dog's ball.", "", "Two men run"]
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        assert TOKENIZE["ptb"](texts) == [ptb_words(text) for text in texts]
        assert gc.isenabled() == collects
        with pytest.raises(AttributeError):
            TOKENIZE["ptb"]([None])  # type: ignore[list-item]
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
