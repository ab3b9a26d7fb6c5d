"""Captions to ids and back, and stored tokenizers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.metrics.tokenize import TOKENIZE, characters
from captioner.tokenizers import (
    END,
    PAD,
    SPACE,
    START,
    TOKENIZERS,
    UNKNOWN,
    CharacterTokenizer,
    JiebaTokenizer,
    Vocabulary,
    WordTokenizer,
    _jieba,
    build_tokenizer,
    restore_tokenizer,
)

CAPTIONS = ["A man's hat.", "A man runs, a dog runs!", "Two dogs don't run."]
CHINESE = ["穿着红色T恤的人。", "两只狗在看NBA", "一个人"]


def words() -> WordTokenizer:
    tokenizer = build_tokenizer(CAPTIONS, name="word", min_count=1)
    assert isinstance(tokenizer, WordTokenizer)
    return tokenizer


# Vocabulary -----------------------------------------------------------------------------------


def test_words_are_sorted_by_count_then_alphabetically() -> None:
    vocabulary = Vocabulary.build([["b", "c", "a"], ["b", "d", "a"], ["b"]])
    assert vocabulary.words == (PAD, START, END, UNKNOWN, "b", "a", "c", "d")
    assert [vocabulary.id(word) for word in "bacd"] == [4, 5, 6, 7]
    assert [vocabulary.word(id) for id in range(8)] == list(vocabulary.words)
    assert len(vocabulary) == 8
    assert (vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.unknown) == (0, 1, 2, 3)
    assert vocabulary.special == (PAD, START, END, UNKNOWN)
    assert vocabulary.special_count == len(vocabulary.special)
    assert vocabulary.ordinary == ("b", "a", "c", "d")
    assert [vocabulary.word(id) for id in vocabulary.never_generated] == [PAD, START, UNKNOWN]


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=5), min_size=1), st.integers(1, 3))
def test_a_vocabulary_equals_counted_words(sentences: list[list[str]], min_count: int) -> None:
    counts = Counter(word for sentence in sentences for word in sentence)
    expected = {word for word, count in counts.items() if count >= min_count}
    if not expected:
        with pytest.raises(ValueError, match=f"no word occurs min_count={min_count} times"):
            Vocabulary.build(sentences, min_count=min_count)
        return
    vocabulary = Vocabulary.build(sentences, min_count=min_count)
    assert set(vocabulary.ordinary) == expected
    keys = [(-counts[word], word) for word in vocabulary.ordinary]
    assert keys == sorted(keys)
    assert vocabulary == Vocabulary.build(reversed(sentences), min_count=min_count)


@pytest.mark.parametrize("min_count", [0, -1, 1.5, "2", True, None])
def test_min_count_is_a_whole_number_from_one(min_count: int) -> None:
    with pytest.raises(ValueError, match=f"min_count={min_count!r} is not accepted"):
        Vocabulary.build([["a"]], min_count=min_count)


@pytest.mark.parametrize("id", [-1, 5, 10**6])
def test_ids_outside_the_vocabulary_are_refused(id: int) -> None:
    with pytest.raises(ValueError, match=f"id {id} is not in the vocabulary; ids go from 0 to 4"):
        Vocabulary.build([["a"]]).word(id)


@pytest.mark.reliability("shared objects")
def test_a_vocabulary_can_be_pickled() -> None:
    vocabulary = Vocabulary.build([["a", "b"]])
    again = pickle.loads(pickle.dumps(vocabulary))
    assert again == vocabulary
    assert again.id("b") == 5


# Special words --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["<end>", "<END>", "<pad> <start> <unk>", "a <end> man", "<end>."])
def test_special_words_in_a_text_do_not_become_special_ids(text: str) -> None:
    poisoned = build_tokenizer([*CAPTIONS, text, text], name="word", min_count=1)
    assert Counter(poisoned.vocabulary.words).most_common(1)[0][1] == 1
    for tokenizer in (words(), poisoned):
        ids = tokenizer.encode(text)
        assert not {0, 1, 2} & set(ids)
        assert tokenizer.vocabulary.unknown in ids


def test_special_tokens_are_not_counted_as_words() -> None:
    vocabulary = words().vocabulary
    assert {vocabulary.id(word) for word in (PAD, START, END, UNKNOWN)} == {vocabulary.unknown}


def test_special_tokens_are_split_by_the_character_tokenizer() -> None:
    tokenizer = build_tokenizer(CHINESE, name="character", min_count=1)
    assert tokenizer.split("狗<end>人") == ["狗", "end", "人"]
    assert tokenizer.encode("狗<end>人")[1] == tokenizer.vocabulary.unknown


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_names_a_tokenization_of_the_metrics(name: str) -> None:
    assert TOKENIZERS[name].scored_by in TOKENIZE


# Ids ------------------------------------------------------------------------------------------


def test_encode_and_decode() -> None:
    tokenizer = words()
    ids = tokenizer.encode("The MAN'S dogs don't run...")
    vocabulary = tokenizer.vocabulary
    decoded = [vocabulary.word(id) for id in ids]
    assert decoded == ["<unk>", "man", "'s", "dogs", "do", "n't", "run"]
    assert tokenizer.decode(ids[1:]) == "man's dogs don't run"
    framed = [vocabulary.start, *ids[1:], vocabulary.end, *ids, vocabulary.pad]
    assert tokenizer.decode(framed) == "man's dogs don't run"
    assert tokenizer.decode([vocabulary.pad, vocabulary.pad]) == ""


def test_rare_words_become_unknown_and_coverage_counts_them() -> None:
    tokenizer = build_tokenizer(CAPTIONS, name="word", min_count=2)
    assert set(tokenizer.vocabulary.ordinary) == {"a", "man", "runs"}
    assert tokenizer.encode("a dog runs") == [4, 3, 6]
    assert tokenizer.coverage(CAPTIONS) == pytest.approx(7 / 15)
    assert words().coverage(CAPTIONS) == 1
    assert words().coverage(["...", ""]) == 1


# Joining --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "text"),
    [
        ("the man 's hat", "the man's hat"),
        ("they do n't ca n't wo n't", "they don't can't won't"),
        ("she 'd 've gone", "she'd've gone"),
        ("we can not see", "we cannot see"),
        ("gon na wan na", "gonna wanna"),
        ("'t is a dog", "'tis a dog"),
        ("y' all", "y'all"),
        ("a -lrb- small -rrb- dog", "a (small) dog"),
        ("[ 5 ]".replace("[", "-lsb-").replace("]", "-rsb-"), "[5]"),
        ("$ 5 and 50 %", "$5 and 50%"),
        ("# 5 and # five", "#5 and # five"),
        (":-rrb- a dog", ":) a dog"),
        ("= -rrb-", "= )"),
        ("an at&t sign", "an AT&T sign"),
        ("no. 5 of miss. street", "no. 5 of Miss. street"),
        ("a dog", "a dog"),
        ("", ""),
    ],
)
def test_words_are_written_as_running_text(cut: str, text: str) -> None:
    assert WordTokenizer.join(cut.split()) == text
    assert WordTokenizer.split(text) == cut.split()


_WORDS = """
    A dog THE cat's don't can't cannot gonna wanna 'tis y'all o'clock O'Neil's T-shirt & and/or
    black-and-white U.S. D.C. Mr. St. etc. e.g. no. Mass. 5 10 1,000 3.5 1/2 2nd 1950s '80s $5 50%
    #12 5'10" café naïve AT&T R&B w/o :) <end> www.example.com me@example.com … ... -- - ( ) [ ]
    “ ” ‘ ’ " ' 'n' I a she'll they've we're you'd I'm dogs' isn't it’s rock'n'roll 10-year-old
    6:30 p.m. C++ ½ £3 €4 + = * / é 犬 😀 dog., wow!! what?? stop!The he.She 'em ma'am -5 red,blue
""".split()


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from(_WORDS), max_size=12), st.sampled_from(["", ".", "!", ",", "?", '"'])
)
def test_split_inverts_join_for_words(parts: list[str], last: str) -> None:
    words = WordTokenizer.split(" ".join(parts) + last)
    assert WordTokenizer.split(WordTokenizer.join(words)) == words


@given(st.lists(st.sampled_from(["dog", "man", "'s", "n't", "-lrb-", "-rrb-", "$", "5"])))
def test_any_order_of_words_keeps_their_letters(cut: list[str]) -> None:
    """A model may generate tokens in any order; joining them must not lose letters."""
    text = WordTokenizer.join(cut)
    letters = "".join(cut).replace("-lrb-", "(").replace("-rrb-", ")")
    assert text.replace(" ", "") == letters


def test_characters_are_written_without_spaces() -> None:
    cut = ["穿", "t", "恤", "看", "nba", "3", "d"]
    assert CharacterTokenizer.join(cut) == "穿t恤看nba 3 d"
    assert CharacterTokenizer.join(["狗", UNKNOWN, "狗"]) == "狗 <unk> 狗"
    assert CharacterTokenizer.join([]) == ""


@given(st.text(alphabet="一二人々テ한。，Ab1é -<", max_size=30))
def test_split_inverts_join_for_characters(text: str) -> None:
    cut = CharacterTokenizer.split(text)
    assert CharacterTokenizer.split(CharacterTokenizer.join(cut)) == cut


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("एक आदमी, घोड़े पर।", "ए क ▁ आ द मी ▁ घो ड़े ▁ प र"),
        ("নীল pen 3", "নী ল ▁ pen 3"),
        ("ผู้ชาย ขี่ม้า", "ผู้ ช า ย ขี่ ม้ า"),
        ("狗 नी 狗", "狗 ▁ नी ▁ 狗"),
        (" नी ", "नी"),
    ],
)
def test_words_of_clusters_keep_their_spaces(text: str, words: str) -> None:
    assert CharacterTokenizer.split(text) == words.split()
    written = CharacterTokenizer.join(words.split())
    assert CharacterTokenizer.split(written) == words.split()
    assert characters(written) == [word for word in words.split() if word != SPACE]


def test_hindi_and_thai_are_joined_as_they_were_written() -> None:
    for text in ("एक आदमी घोड़े पर", "একটি কুকুর দৌড়াচ্ছে", "ผู้ชายขี่ม้าที่ชายหาด"):
        tokenizer = build_tokenizer([text], name="character", min_count=1)
        composed = unicodedata.normalize("NFC", text)
        assert tokenizer.decode(tokenizer.encode(text)) == composed
        assert tokenizer.encode(unicodedata.normalize("NFD", text)) == tokenizer.encode(text)


@given(st.lists(st.sampled_from([*"नमकยa犬。1, ", "हि", "न्दी", "टि", "ผู้", "q\u0301"])))
def test_split_inverts_join_for_clusters(parts: list[str]) -> None:
    cut = CharacterTokenizer.split("".join(parts))
    assert CharacterTokenizer.split(CharacterTokenizer.join(cut)) == cut


# Chinese words --------------------------------------------------------------------------------


def test_chinese_words_are_those_of_jieba_without_punctuation(tmp_path, monkeypatch) -> None:
    import jieba

    monkeypatch.setattr(jieba.dt, "tmp_dir", str(tmp_path))
    for text in CHINESE:
        cut = [word.lower() for word in jieba.lcut(text) if word != "。"]
        assert JiebaTokenizer.split(text) == cut
        assert JiebaTokenizer.split(JiebaTokenizer.join(cut)) == cut
    assert JiebaTokenizer.split("穿着红色T恤的人。") == ["穿着", "红色", "t恤", "的", "人"]


@given(st.lists(st.sampled_from(["一个", "人", "t恤", "nba", "3", "d", "穿着", "é"]), max_size=8))
def test_any_order_of_chinese_words_keeps_their_characters(words: list[str]) -> None:
    written = characters(JiebaTokenizer.join(words))
    assert written == [character for word in words for character in characters(word)]


def test_chinese_words_are_written_without_spaces() -> None:
    assert JiebaTokenizer.join(["两只", "狗", "在", "看", "nba", "3", "d"]) == "两只狗在看nba 3 d"
    assert JiebaTokenizer.join(["狗", UNKNOWN, "狗"]) == "狗 <unk> 狗"


def test_chinese_words_need_jieba_only_to_be_cut(monkeypatch) -> None:
    tokenizer = build_tokenizer(CHINESE, name="jieba", min_count=1)
    ids = tokenizer.encode("两只狗")
    monkeypatch.setitem(sys.modules, "jieba", None)
    _jieba.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'captioner\[chinese\]'"):
        tokenizer.encode("两只狗")
    assert restore_tokenizer(tokenizer.as_dict()).decode(ids) == "两只狗"


def test_jieba_uses_no_file_outside_its_package(tmp_path) -> None:
    code = "from captioner.tokenizers import JiebaTokenizer as J; print(J.split('一个女人'))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert (done.stdout.strip(), done.stderr) == ("['一个', '女人']", "")
    assert not list(tmp_path.iterdir())


# Storing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "captions"), [("word", CAPTIONS), ("character", CHINESE), ("jieba", CHINESE)]
)
def test_a_stored_tokenizer_is_the_same(name: str, captions: list[str]) -> None:
    tokenizer = build_tokenizer(captions, name=name, min_count=1)
    assert tokenizer.name == name
    again = restore_tokenizer(json.loads(json.dumps(tokenizer.as_dict())))
    assert type(again) is type(tokenizer) is TOKENIZERS[name]
    assert again.vocabulary == tokenizer.vocabulary
    assert [again.encode(text) for text in captions] == [tokenizer.encode(t) for t in captions]


SPECIALS = [PAD, START, END, UNKNOWN]


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("word", "entries name and words, not str"),
        (None, "entries name and words, not NoneType"),
        ({"name": "word"}, r"entries name and words, not \['name'\]"),
        ({"name": "word", "words": SPECIALS, "_target_": "os.system"}, "_target_"),
        ({"name": "wrod", "words": SPECIALS}, r"'wrod' is not known; .*did you mean word\?"),
        ({"name": ["word"], "words": SPECIALS}, "not list and list"),
        ({"name": "word", "words": "abc"}, "not str and str"),
        ({"name": "word", "words": dict.fromkeys(SPECIALS)}, "not str and dict"),
        ({"name": "word", "words": []}, r"starts with \[\]; it must start with <pad>"),
        ({"name": "word", "words": ["a", "b", "c", "d"]}, "it must start with <pad>, <start>"),
        ({"name": "word", "words": [*SPECIALS, 5]}, "token 4 of the vocabulary is 5;"),
        ({"name": "word", "words": [*SPECIALS, ["a"]]}, r"token 4 of the vocabulary is \['a'\]"),
        ({"name": "word", "words": [*SPECIALS, "a", " "]}, "token 5 of the vocabulary is ' '"),
        ({"name": "word", "words": [*SPECIALS, "a b"]}, "tokens are strings without spaces"),
        ({"name": "word", "words": [*SPECIALS, ""]}, "token 4 of the vocabulary is ''"),
        ({"name": "word", "words": [*SPECIALS, "a", "b", "a"]}, "has 'a' 2 times"),
        ({"name": "word", "words": [*SPECIALS, END]}, "has '<end>' 2 times"),
    ],
)
def test_damaged_data_are_refused_in_one_line(data: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        restore_tokenizer(data)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


# Building -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captions", "name", "says"),
    [
        (CAPTIONS, "chars", "tokenizer.name='chars' is not known; choose word, character"),
        ("a dog", "word", "captions is a string"),
        (["a dog", None], "word", "caption 1 is None"),
        ([], "word", "no word occurs"),
        (["...", "!"], "word", "no word occurs"),
    ],
)
def test_invalid_arguments_of_build_tokenizer(captions: list[str], name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_tokenizer(captions, name=name, min_count=1)


def test_captions_may_come_from_a_generator() -> None:
    lazily = build_tokenizer((text for text in CAPTIONS), name="word", min_count=1)
    assert lazily.vocabulary == words().vocabulary


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, captioner.tokenizers; print({'torch', 'nltk', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
