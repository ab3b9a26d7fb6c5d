"""Tokenization of captions for metrics.

Scores are comparable only if captions are tokenized alike. For English the standard is
coco-caption's PTBTokenizer: Stanford CoreNLP's Penn Treebank tokenizer, lower-cased, without a list
of punctuation marks. `ptb_words` gives the same words without Java. Conventions of the treebank
(Marcus et al., Computational Linguistics 19(2), 1993): clitics are words of their own (dog 's,
do n't, can not), abbreviations keep their period, brackets have names (-lrb-, which are not removed
since they are in lower case).

Stanford's tokenizer takes the longest match at each position, `re` the first one. So the
alternatives below are ordered such that none comes before a longer one.
"""

from __future__ import annotations

import gc
import re
import subprocess
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import product
from typing import Any

__all__ = ["TOKENIZE", "characters", "clustered", "composed", "ptb_jar_words", "ptb_words"]

# Letters with their combining marks, by blocks of Unicode's basic plane. Stanford's tokenizer
# drops characters outside that plane, such as emoji.
_LETTERS = (
    "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u037d\u0386\u0388-\u0481"
    "\u0483-\u0587\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7-\u05f2\u0615-\u061a"
    "\u0620-\u0669\u066e-\u06d3\u06d5-\u06ff\u0710-\u07f5\u0800-\u0963\u0966-\u0e3a\u0e40-\u0e4e"
    "\u0e50-\u0f00\u0f20-\u0f29\u0f40-\u1fbc\u1fbe\u1fc2-\u1fcc\u1fd0-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ffc\u2071\u207f\u2090-\u209c\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124"
    "\u2126\u2128\u212a-\u212d\u212f-\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183-\u2184"
    "\u2c00-\u2dff\u3005-\u3006\u3031-\u3035\u303b-\u303c\u3041-\u30fa\u30fc-\u318e\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\ua48c\ua4d0-\ud7fb\uf900-\ufdfb\ufe70-\ufefc\uff10-\uff19\uff21-\uff3a"
    "\uff41-\uff5a\uff66-\uffdc"
)
# Signs that are tokens of their own; other signs are dropped.
_SIGNS = (
    r"$%&*/<=>\\^|~+#@\[\]{}()_"
    "\u0080\u00a1-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bc-\u00bf\u00d7\u00f7\u0387\u0589\u05be"
    "\u05c0\u05c3\u05c6\u05f3-\u060c\u061b\u061e-\u061f\u066a-\u066d\u06d4\u0964-\u0965\u0e3f"
    "\u0e4f\u2016-\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070-\u208e"
    "\u20a0\u20a4\u20ac\u2100-\u215e\u2190-\u2bff\u3001-\u3002\u3012\u30fb\uff01-\uff0f"
    "\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe1\uffe5-\uffe6"
)

# Abbreviations keep their period, some only as names ("Mass." but "a mass."), some only before a
# number ("no. 5").
_ABBREVIATIONS = (
    "adj|adm|adv|al|ala|alex|apr|ariz|assn|assoc|asst|attys?|aug|ave|bhd|"
    "bldg|blvd|brig|bros|calif|capt|cf|cie|cmdr|co|col|colo|comdr|conn|corp|"
    "cos|cpl|ct|dak|dec|dept|det|drs?|elec|ens|esq|est|etc|ext|feb|fla|fri|"
    "ft|ga|gen|govs?|hon|inc|ind|insp|intl|invt|jan|jos|jr|jul|jun|kans?|"
    "ky|lieut|ltd?|maj|mar|md|messrs|mfg|mich|minn|mlle|mme|mo|mon|mont|"
    "mrs?|ms|msgr|mt|mtg|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|"
    "p?pt[ey]s?|pres|profs?|pvt|rd|reps?|rev|rt|sens?|sept?|seq|sfc|sgt|spc|"
    "sq|sr|ste?|supts?|sys|tel|tenn|thu|thurs|treas|tues?|univ|va|vs|vt|wed|"
    "wisc?|wm|wyo"
)
_NAMES = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
_BEFORE_NUMBERS = "art|ca|figs?|nos?|op|pp|prop"
# After a single letter with a period these words begin a new sentence: "you and I. The dog".
_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|"
    r"However|If|In|It|Last|Many|More|Mr\.|Now|Once|One|Other|Our|She|Since|"
    "So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|"
    "While|Yet|You"
)


def _any(*patterns: str) -> str:
    return f"(?:{'|'.join(patterns)})"


_LETTER = f"[{_LETTERS}]"
_CHAR = f"[{_LETTERS}0-9]"
_WORD = f"{_CHAR}+"
_RUN = f"{_LETTER}{_CHAR}*"
_END = f"(?!{_LETTER})"
_APOSTROPHE = "['\u2019\u0092]"
_QUOTE = "['\u2019\u0092\u2018\u0091`]"
_SUFFIX = "(?i:[smd]|re|ve|ll)"
_NOT = rf"[nN](?:{_QUOTE}|&apos;)[tT]"
_NAME = rf"[dDlLoO]{_QUOTE}(?!{_SUFFIX}{_END}){_LETTER}{_CHAR}+"  # o'clock, D'Angelo
_INITIALS = rf"[A-Za-z](?:\.[A-Za-z])+\.{_END}"
_INITIAL = rf"[A-Za-z]\.{_END}(?!\s+(?:{_STARTERS}|{_STARTERS.upper()})(?!\S))"
_ABBREVIATION = _any(
    rf"(?i:{_ABBREVIATIONS})\.",
    rf"(?:{_NAMES}|{_NAMES.upper()})\.",
    rf"(?i:{_BEFORE_NUMBERS})\.(?=\s?[0-9])",
    r"(?i:ph|ed)\.[dD]\.",
)
_PART = _any(_INITIALS, _NAME, _WORD)
_PERIOD = r"(?:\.(?=[,;:]))?"  # "a dog.," reads as an abbreviation
_SLASHED = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_EYE = r"[\^x=~<>'\-]"
_TAG = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_URL = r"[^\s\"<>|(){}]"
_URL_END = r"[^\s\"<>|(){}.!?,\-]"
_MAIL = r"[^\s\"<>|(){}.]"
_HOST = r"[^\s\"<>|(){}\[\].!?,\-_$'/:0-9]"

_KEPT = (
    "[A-Za-z]+(?=,? |$)",  # most words, in one step
    # Markup and addresses.
    rf"</?{_TAG}(?:\s+{_TAG}(?:\s*=\s*(?:'[^']*'|\"[^\"]*\"))?)*\s*/?>",
    r"<[!?][A-Za-z\-][^>]*>",
    "&(?:[aeiouAEIOU](?:acute|grave|uml)|#[0-9]+|[oc]dq|QL|(?i:amp|lt|gt));",
    f"(?i:https?)://{_URL}+{_URL_END}",
    rf"<?(?:mailto:)?[A-Za-z0-9]{_URL}*@(?:{_MAIL}+\.)*{_MAIL}+>?",
    rf"(?:www\.(?:[^\s\"<>|(){{}}.!?,]+\.)+[A-Za-z]{{2,4}}|(?:{_HOST}+\.)+(?i:com|net|org|edu))"
    rf"(?:/{_URL}+{_URL_END})?(?!{_CHAR}|\.{_LETTER})",
    f"@[A-Za-z_][A-Za-z0-9_]*|#{_LETTER}+",
    # Smileys; adjacent curly quotes.
    r"[<>]?[:;=]['o*\-]?[()DdPpO\[\]|\\{@](?![A-Za-z0-9])",
    rf"{_EYE}_{_EYE}|\({_EYE}[_.\-^]?{_EYE}\)",
    "(?!``)[\u2018\u2019\u201c\u201d`]{2}",
    # Hyphens join across points and commas: 1.5-litre, U.S.-based, "red,white-striped".
    rf"[A-Za-z0-9]+[.,][A-Za-z0-9.,]*(?:-{_any(_INITIALS, '[A-Za-z0-9]+')})+(?![-_]?{_CHAR})",
    # Clitics, and words with an apostrophe.
    f"[A-Za-z]*[A-MO-Za-mo-z](?={_NOT})|{_NOT}{_END}",
    f"'{_SUFFIX}(?![A-Za-z])|&apos;{_SUFFIX}|[\u2019\u0092]{_SUFFIX}",
    rf"{_APOSTROPHE}[nN]{_APOSTROPHE}|'[nN](?!\S)|[\u2019\u0092][nN]",
    rf"{_APOSTROPHE}(?:(?i:em|till?|cause)|[0-9]{{2}}(?:[sS]|(?!\S)))|'[tT](?=(?i:is|was))",
    f"[A-HJ-XZn]{_QUOTE}(?!{_SUFFIX}{_END}){_LETTER}{{2,}}",
    f"[A-Za-z]+[aeiouyAEIOUY]{_QUOTE}(?!{_SUFFIX}{_END})[aeiouA-Z][A-Za-z]*",
    f"(?i:c'(?:mon|est)|li'l|ev'ry|cap'n|s'mores|e{_QUOTE}er|[a-z]*qu{_QUOTE}[a-z]+|ol{_QUOTE})",
    f"(?:[yY]{_APOSTROPHE}(?={_LETTER})|[jJ]{_APOSTROPHE}|[dDlL]{_APOSTROPHE}(?!{_LETTER}{_CHAR}))"
    f"(?!{_SUFFIX})",
    # Numbers: telephone numbers, dates, fractions, decimals.
    r"\([0-9]{3}\)[ \u00a0]?[0-9]{3}[\- .][0-9]{4}",
    "[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}(?![0-9])",
    "[0-9]{1,4}[- \u00a0][0-9]{1,4}/[0-9]{1,4}",
    f"{_SLASHED}(?:/{_SLASHED}){{1,2}}",
    r"[+\-]?[0-9]*(?:[.:,][0-9]+)+|[+\-][0-9]+",
    # Words with dots (a missing space makes one word: "ball.The"), then all others.
    r"[A-Z]+(?:(?:&(?:amp;)?|\+)[A-Z]+)+|[A-Z]+\$|[cC]\+\+|[cCfF]#",
    rf"{_RUN}(?:\.{_RUN})*(?:[!?]{_RUN}(?:\.{_RUN})*)+",
    rf"(?:{_ABBREVIATION}{_END}|{_INITIALS}|{_RUN}(?:\.{_RUN})+|{_INITIAL})"
    f"(?:-{_PART}(?:[-_]{_PART})*)?{_PERIOD}",
    f"(?:{_NAME}|{_WORD})(?:[-_]{_PART})*{_PERIOD}",
    # Signs.
    r"-{5,}|[?!]{2,}|\*{2,}|\\\*|_{2,}|#{2,}|@{2,}|<<|>>",
    f"[{_SIGNS}]",
)
# What coco-caption removes, if it is longer than one character; single marks need no pattern.
_REMOVED = (
    r"\s+|[.,](?!\S)",
    r"\.{3,5}",
    "-{2,4}(?!-)",
    "''|``",
    f"&(?:(?i:quot|nbsp|mdash|ndash)|MD|(?i:apos)(?!;{_SUFFIX}));",
)

_PLAIN = {"\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", "`": "`"}
# Tokens that are written differently from the text.
_WRITTEN = {
    **{"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"},
    **{"lemme": "lem me", "gimme": "gim me"},
    **{"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"\u00a2": "cents", "\u00a3": "#", **dict.fromkeys("\u00a4\u0080\u20a0\u20ac", "$")},
    **{"&lt;": "<", "&gt;": ">"},
    **{
        mark + suffix: f"'{suffix}"
        for mark in ("\u2019", "\u0092", "&apos;")
        for suffix in ("s", "m", "d", "re", "ve", "ll")
    },
    **{f"n{mark}t": "n't" for mark in ("\u2019", "\u0092", "&apos;")},
    **{"".join(run): "".join(_PLAIN[mark] for mark in run) for run in product(_PLAIN, repeat=2)},
    **dict.fromkeys(("\u2018\u2018", "\u2018`", "`\u2018", "\u2019\u2019"), ""),
}


@cache
def _token() -> re.Pattern[str]:
    """Compiled at the first caption, since it takes a tenth of a second."""
    return re.compile(f" ?(?:{'|'.join(_REMOVED)}|({'|'.join(_KEPT)}))")


# Scripts without spaces between words: radicals, kana, bopomofo, ideographs, hangul.
_IDEOGRAPHS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u3041-\u3096\u3099-\u309f"
    "\u30a1-\u30fa\u30fc-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
    "\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# Scripts whose characters are clusters, a consonant with its vowel signs: those of India and Sri
# Lanka, which have spaces between words, and Thai, Lao, Tibetan, Burmese and Khmer, which do not.
_INDIC = "\u0900-\u0dff\ua8e0-\ua8ff\U00011000-\U00011fff"
_CLUSTERS = f"{_INDIC}\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f"


@cache
def _character() -> Any:
    """Compiled when the first caption is split by characters.

    `regex` has grapheme clusters, X, as Unicode's Annex 29 defines them. An ideograph is always a
    cluster by itself; accents and joiners do not end a run of other letters.
    """
    import regex

    return regex.compile(
        rf"[{_IDEOGRAPHS}]|(?=[\p{{L}}\p{{N}}\p{{M}}])(?=[{_CLUSTERS}])\X"
        rf"|(?:(?![{_IDEOGRAPHS}{_CLUSTERS}])[\p{{L}}\p{{N}}]"
        r"(?:(?![\ufe00-\ufe0f])[\p{Mn}\p{Mc}]|[\u200c\u200d](?=\p{L}))*)+"
    )


@cache
def _cluster() -> Any:
    import regex

    return regex.compile(r"\X")


def composed(text: str) -> str:
    """Compose letters and accents into one character if there is one (Unicode's NFC).

    Single characters are kept, also compatibility ideographs, which NFC would replace.
    """
    if unicodedata.is_normalized("NFC", text):
        return text
    pieces = _cluster().findall(text)
    return "".join(unicodedata.normalize("NFC", p) if len(p) > 1 else p for p in pieces)


def clustered(texts: Iterable[str]) -> bool:
    """Whether texts have grapheme clusters, which `characters` splits and a signature states."""
    import regex

    cluster = regex.compile(rf"[{_CLUSTERS}]|\p{{L}}\p{{M}}")
    return any(not text.isascii() and cluster.search(composed(text)) for text in texts)


_PLAIN_RUN = re.compile("[a-z0-9]+")


def ptb_words(text: str) -> list[str]:
    """Split an English caption into lower-case words as coco-caption's PTBTokenizer does.

    Args:
        text: one caption, as written.

    Returns:
        the words, without punctuation.
    """
    # Most captions are letters, blanks and a few commas. Without patterns they are much faster.
    plain = text.removesuffix(" .").replace(", ", " ")
    if plain.isascii() and plain.replace(" ", "").isalpha():
        words = plain.lower().split()
        if _WRITTEN.keys().isdisjoint(words):
            return words
    return _ptb_tokens(text)


def _ptb_tokens(text: str) -> list[str]:
    tokens = " ".join(_token().findall(text.replace("\u00ad", ""))).lower()
    tokens = tokens.replace("(", "-lrb-").replace(")", "-rrb-").replace("&amp;", "&")
    return " ".join([_WRITTEN.get(token, token) for token in tokens.split()]).split()


def characters(text: str) -> list[str]:
    """Split a caption into characters, the unit in which Chinese captions are scored.

    Args:
        text: one caption, as written.

    Returns:
        one token per ideograph, and one per grapheme cluster of Thai and the scripts of India
        ("\u0e17\u0e35\u0e48" is one, its vowel and tone included); a run of other letters and
        digits is one lower-case token ("T\u6064" gives "t", "\u6064"). Letters and accents are
        composed first. Punctuation and spaces are dropped.
    """
    if text.isascii():
        return _PLAIN_RUN.findall(text.lower())
    return _character().findall(composed(text).lower())


_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_JAR_REMOVES = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())


def ptb_jar_words(texts: Sequence[str]) -> list[list[str]]:
    """Split English captions with Stanford's program, as coco-caption runs it.

    Args:
        texts: captions, as written.

    Returns:
        the words of each.

    Raises:
        ValueError: Java or pycocoevalcap are missing, or the program fails.
    """
    from captioner.metrics.java import Unavailable, coco_file, java_command

    try:
        java, jar = java_command(), coco_file(_JAR)
    except Unavailable as reason:
        raise ValueError(f"tokenize='ptb-jar' {reason}. 'ptb' gives the same words") from None
    options = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    command = [*java, "-cp", str(jar), *options]
    text = "".join(f"{' '.join(text.splitlines())}\n" for text in texts)
    try:
        process = subprocess.run(
            command,
            input=text,
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="replace",
        )
        lines = process.stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError):  # OSError: it ended before reading all input
        lines = []
    if len(lines) != len(texts):
        raise ValueError(f"tokenize='ptb-jar': java could not run {jar}; 'ptb' needs no java")
    return [[word for word in line.split() if word not in _JAR_REMOVES] for line in lines]


def _over_texts(split: Callable[[str], list[str]]) -> Callable[[Sequence[str]], list[list[str]]]:
    """Split many captions, without garbage collection, since lists of words have no cycles."""

    def split_all(texts: Sequence[str]) -> list[list[str]]:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return [split(text) for text in texts]
        finally:
            if enabled:
                gc.enable()

    return split_all


TOKENIZE: dict[str, Callable[[Sequence[str]], list[list[str]]]] = {
    "ptb": _over_texts(ptb_words),
    "character": _over_texts(characters),
    "ptb-jar": ptb_jar_words,
}
"""Name of a tokenization -> texts to the words of each."""
