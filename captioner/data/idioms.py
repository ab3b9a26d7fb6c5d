"""成语接龙: four-character idioms in which the last character of one is the first of the next.

The list is small, but from every idiom every other one can be reached, and no idiom is a dead end.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from captioner.data.symbols import Pair, one_of

IDIOMS = (
    *("一心一意", "一鸣惊人", "一步登天", "一见钟情", "一往情深", "一帆风顺"),
    *("心口如一", "心平气和", "和盘托出", "意气风发", "意味深长", "人山人海", "人定胜天"),
    *("人面兽心", "人之常情", "天下第一", "天马行空", "地利人和", "地久天长", "长驱直入"),
    *("长年累月", "月下老人", "入不敷出", "出人头地", "出其不意", "发扬光大", "大快人心"),
    *("大打出手", "手下留情", "手足情深", "情深意长", "情急智生", "深入人心", "深居简出"),
    *("海阔天空", "海底捞月", "空穴来风", "空前绝后", "后继有人", "后来居上", "上天入地"),
    *("上下一心", "风调雨顺", "风生水起", "风花雪月", "顺水人情", "顺流而下", "下里巴人"),
    *("起死回生", "生离死别", "别有用心", "别有洞天"),
)
LINKS = 8
"""Idioms of a chain, without that of the referee."""


def followers() -> dict[str, list[str]]:
    """For each first character the idioms that begin with it."""
    table: defaultdict[str, list[str]] = defaultdict(list)
    for idiom in IDIOMS:
        table[idiom[0]].append(idiom)
    return dict(table)


def links(caption: str) -> list[str]:
    """The idioms of a chain, four characters each; the last may be shorter."""
    return [caption[place : place + 4] for place in range(0, len(caption), 4)]


def chains(source: random.Random) -> Iterator[Pair]:
    """The number of the referee's idiom as input, and LINKS more; no idiom is said twice."""
    table = followers()
    while True:
        chain = [source.choice(IDIOMS)]
        while len(chain) <= LINKS and (rest := _unused(table, chain)):
            chain.append(source.choice(rest))
        if len(chain) > LINKS:
            yield one_of(IDIOMS.index(chain[0])), "".join(chain[1:])


def _unused(table: dict[str, list[str]], chain: Sequence[str]) -> list[str]:
    return [idiom for idiom in table[chain[-1][3]] if idiom not in chain]
