"""Word lists for comparing captions: things, colors and numbers, in English and in Chinese.

Captions are compared by looking up their words. Each word for a thing belongs to a concept, and
concepts form a tree: a boy is a child is a person. Two captions agree on a thing if one concept is
the other or an ancestor of it. Comparing objects by a list of synonyms is the idea of CHAIR
(Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018); the lists are our own,
for the everyday photographs of Flickr8k, Flickr30k and COCO and for the drawn scenes of the
built-in dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product, takewhile

# concept: words; "a < b" means that b is the parent of a. A word may have several concepts; its
# plural is added.
_THINGS = """
person: person individual adult someone somebody human people crowd audience spectator family team
person: player rider runner skier snowboarder skateboarder skater surfer swimmer climber hiker
person: biker cyclist bicyclist motorcyclist dancer performer wrestler athlete worker soldier
person: teenager teen youth couple friend pedestrian musician singer fisherman driver passenger
person: jogger kayaker bride student officer policeman cowboy clown catcher
man < person: man guy gentleman dude groom male cowboy fisherman businessman policeman
woman < person: woman lady bride female businesswoman
child < person: child kid toddler baby infant youngster teenager
boy < child: boy
girl < child: girl
animal: animal creature
dog < animal: dog puppy pup greyhound poodle retriever labrador lab shepherd terrier collie husky
dog < animal: pug dalmatian beagle bulldog canine pooch dachshund hound spaniel doggy
cat < animal: cat kitten
horse < animal: horse pony bronco
cow < animal: cow bull cattle
sheep < animal: sheep lamb
goat < animal: goat
bird < animal: bird duck seagull pigeon swan goose parrot eagle hawk chicken flamingo owl
elephant < animal: elephant
bear < animal: bear
zebra < animal: zebra
giraffe < animal: giraffe
monkey < animal: monkey
rabbit < animal: rabbit bunny
camel < animal: camel
vehicle: vehicle
car < vehicle: car suv taxi cab minivan jeep sedan racecar
truck < vehicle: truck pickup lorry
bus < vehicle: bus
train < vehicle: train tram trolley locomotive subway
bicycle < vehicle: bicycle bike biker cyclist bicyclist biking cycling bmx unicycle tricycle
motorcycle < vehicle: motorcycle motorbike dirtbike moped motorcyclist bike biker motocross
scooter < vehicle: scooter
quad < vehicle: atv quad buggy
boat < vehicle: boat canoe kayak raft sailboat ship kayaker kayaking rafting rowboat canoeing ferry
airplane < vehicle: airplane plane jet aeroplane helicopter
skateboard < board: skateboard skateboarder skateboarding skating skater
board < vehicle: board
snowboard < board: snowboard snowboarder snowboarding
surfboard < board: surfboard surfer surfing surf wakeboard wakeboarder wakeboarding bodyboard
ski < vehicle: ski skier skiing
skate < vehicle: skate rollerblade rollerblading rollerskate skater skating rollerblader
sled < vehicle: sled sledding sleigh
football < sport: football rugby tackle
soccer < sport: soccer football
basketball < sport: basketball
baseball < sport: baseball softball
tennis < sport: tennis racket racquet badminton
hockey < sport: hockey
volleyball < sport: volleyball
frisbee < toy: frisbee disc disk
ball < toy: ball football soccer basketball baseball volleyball softball rugby tennis
stick < toy: stick branch log twig
kite < toy: kite
balloon < toy: balloon
bubble < toy: bubble
trampoline < ride: trampoline
swing < ride: swing swinging
slide < ride: slide sliding
beach < place: beach sand sandy shore seashore coast shoreline
snow < place: snow snowy field ski skiing snowboard snowboarding slope sled
grass < place: grass grassy lawn field meadow pasture
street < place: street road sidewalk intersection crosswalk pavement highway
forest: forest woods jungle
desert < place: desert dune
pool < water: pool
ocean < water: ocean sea wave surf surfing
lake < water: lake pond river stream creek waterfall
fountain < water: fountain sprinkler
water: water splash splashing wading swim swimming puddle underwater
shirt < top: shirt tee t-shirt tshirt jersey blouse
jacket < top: jacket coat vest parka hoodie sweatshirt sweater
uniform < top: uniform outfit costume
top: top clothing clothes
dress < top: dress gown
suit < top: suit tuxedo wetsuit swimsuit
pants < trousers: pants jeans trouser
shorts < trousers: shorts trunks
skirt < trousers: skirt
hat < headgear: hat cap beanie
helmet < headgear: helmet
bandanna < headgear: bandanna bandana headband
collar < gear: collar leash harness
backpack < gear: backpack
guitar < instrument: guitar
violin < instrument: violin fiddle cello
drum < instrument: drum
piano < instrument: piano keyboard
trumpet < instrument: trumpet horn saxophone trombone tuba
pizza < food: pizza
cake < food: cake cupcake
sandwich < food: sandwich burger hotdog
fruit < food: fruit banana apple
bed < furniture: bed
couch < furniture: couch sofa
bench < furniture: bench
chair < furniture: chair seat stool
table < furniture: table desk
circle < shape: circle
square < shape: square
triangle < shape: triangle
star < shape: star
heart < shape: heart
flower < shape: flower
house < shape: house
tree < shape: tree
fish < shape: fish
"""
_PLURALS = {
    **{"man": "men", "woman": "women", "child": "children", "person": "persons"},
    **{"policeman": "policemen", "fisherman": "fishermen", "businessman": "businessmen"},
    **{"gentleman": "gentlemen", "businesswoman": "businesswomen", "goose": "geese"},
}
_ONLY_PLURAL = frozenset("people cattle pants jeans shorts trunks clothes woods".split())
_UNCHANGED = frozenset(
    "sheep fish splash surf swim tackle snowy sandy grassy underwater bmx motocross rugby hockey "
    "soccer tennis badminton baseball softball".split()
)
_PHRASES = {
    **{("hot", "dog"): "hotdog", ("teddy", "bear"): "teddy", ("dirt", "bike"): "dirtbike"},
    **{("tank", "top"): "shirt", ("bathing", "suit"): "swimsuit", ("wet", "suit"): "wetsuit"},
    **{
        ("polar", "bear"): "bear",
        ("golden", "retriever"): "retriever",
        ("tennis", "shoes"): "shoes",
    },
    **{("horse", "drawn"): "drawn", ("swing", "set"): "swing", ("bird", "bath"): "bath"},
    **{("orange", "juice"): "juice", ("red", "bull"): "drink", ("white", "water"): "water"},
    **{("motor", "bike"): "motorbike", ("tree", "house"): "treehouse", ("guide", "dog"): "dog"},
}

COLORS = {
    **{color: (color,) for color in "red orange yellow green blue purple pink".split()},
    **{color: (color,) for color in "white black grey brown".split()},
    **{"gray": ("grey",), "silver": ("grey", "white"), "navy": ("blue", "black")},
    **{"maroon": ("red", "brown"), "violet": ("purple",), "gold": ("yellow", "brown")},
    **{"golden": ("yellow", "brown"), "blond": ("yellow", "brown"), "blonde": ("yellow", "brown")},
    **{"turquoise": ("blue", "green"), "teal": ("blue", "green"), "tan": ("brown", "yellow")},
    **{"beige": ("brown", "white", "yellow"), "cream": ("white", "brown", "yellow")},
    **{"dark": ("black", "brown", "grey", "blue"), "light": ("white", "brown", "yellow", "grey")},
}
"""Word -> the colors it may mean."""

_INFINITY = 99
NUMBERS = {
    **dict.fromkeys("a an one another single lone the 1".split(), (1, 1)),
    **dict.fromkeys("two 2 both".split(), (2, 2)),
    **{"three": (3, 3), "four": (4, 4), "five": (5, 5), "six": (6, 6), "seven": (7, 7)},
    **{"eight": (8, 8), "nine": (9, 9), "ten": (10, 10), "3": (3, 3), "4": (4, 4), "5": (5, 5)},
    **dict.fromkeys("several many few multiple numerous".split(), (2, _INFINITY)),
}
"""Word -> the smallest and the largest number it may mean."""

_COLLECTIVES = {
    **dict.fromkeys("group crowd bunch team pack herd flock line lot row".split(), (3, _INFINITY)),
    **dict.fromkeys("couple pair".split(), (2, 2)),
    "trio": (3, 3),
}
_COUNTED_KINDS = frozenset({"person", "animal", "vehicle", "shape"})
_COUNTLESS = frozenset("crowd audience family team couple someone somebody people's".split())
_LINKS = frozenset(
    "in on of at by with and or to from for into onto over under near behind beside while as is "
    "are his her their its 's that who which left right above below has have up down".split()
)
"""Words that cannot be in a noun phrase before its noun, so they are its left border."""


def _regular_plural(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "sh", "ch", "x")) else f"{word}s"


class Concepts:
    """The tree of things.

    Attributes:
        of: word -> its concepts.
        plurals: the words that mean more than one thing.
    """

    def __init__(self, table: str) -> None:
        self.of: dict[str, frozenset[str]] = {}
        self.plurals: set[str] = set(_ONLY_PLURAL)
        self._above: dict[str, str] = {}
        for line in table.strip().splitlines():
            head, _, words = line.partition(":")
            concept, _, above = (part.strip() for part in head.partition("<"))
            if above:
                self._above[concept] = above
            for word in words.split():
                self._add(word, concept)

    def _add(self, word: str, concept: str) -> None:
        forms = {word}
        if word not in _ONLY_PLURAL | _UNCHANGED and not word.endswith("ing"):
            plural = _PLURALS.get(word) or _regular_plural(word)
            self.plurals.add(plural)
            forms.add(plural)
        for form in forms:
            self.of[form] = self.of.get(form, frozenset()) | {concept}

    def lineage(self, concept: str) -> list[str]:
        """The concept itself and its ancestors, upwards."""
        ancestors = [concept]
        while ancestors[-1] in self._above:
            ancestors.append(self._above[ancestors[-1]])
        return ancestors

    def kinds(self, concepts: Iterable[str]) -> set[str]:
        """The roots of some concepts."""
        return {self.lineage(concept)[-1] for concept in concepts}

    def agree(self, first: Iterable[str], second: Iterable[str]) -> bool:
        """Whether a concept of `first` is one of `second`, or its ancestor or descendant."""
        pairs = product(first, list(second))
        return any(a in self.lineage(b) or b in self.lineage(a) for a, b in pairs)


@cache
def concepts() -> Concepts:
    """The tree of the things listed above."""
    return Concepts(_THINGS)


# Mentions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mention:
    """A thing that a caption names.

    Attributes:
        concepts: what the word may mean.
        number: the smallest and the largest number that is stated; None if there is none.
        colors: the color words of its phrase.
        definite: whether it has "the", so that it may be a thing named before.
        text: the words of the phrase.
    """

    concepts: frozenset[str]
    number: tuple[int, int] | None
    colors: tuple[str, ...]
    definite: bool
    text: str

    @property
    def hues(self) -> set[str]:
        """The colors that its color words may mean."""
        return {hue for color in self.colors for hue in COLORS[color]}


def mentions(words: Sequence[str]) -> list[Mention]:
    """The things of `concepts` that an English caption names, in order.

    Args:
        words: as `captioner.metrics.tokenize.ptb_words` splits them.
    """
    words = _joined(words)
    return [_mention(words, place) for place in range(len(words)) if _names(words, place)]


def _names(words: list[str], place: int) -> bool:
    """Whether a word names a thing by itself, unlike "snowy" in "snowy field"."""
    of, word, after = concepts().of, words[place], words[place + 1 : place + 2]
    if word not in of or (word in _COLLECTIVES and after == ["of"]):
        return False
    return not after or after[0] not in of or not concepts().agree(of[word], of[after[0]])


def _joined(words: Sequence[str]) -> list[str]:
    """The words, with misleading phrases of two words as one word."""
    joined: list[str] = []
    for word in words:
        if joined and (joined[-1], word) in _PHRASES:
            joined[-1] = _PHRASES[joined[-1], word]
        else:
            joined.append(word)
    return joined


def _mention(words: list[str], place: int) -> Mention:
    """The mention by a noun, with its number and colors among the five words before it."""
    tree, word = concepts(), words[place]
    if place + 1 < len(words) and words[place + 1] in tree.of:  # such as soccer in "soccer players"
        return Mention(tree.of[word], None, (), False, word)
    number, colors, first = None, [], place
    for first in range(place - 1, max(-1, place - 6), -1):
        before = words[first]
        if before in COLORS:
            colors.append(before)
        elif before in NUMBERS:
            number = NUMBERS[before]
            break
        elif before == "of" and first and words[first - 1] in _COLLECTIVES:
            first -= 1
            number = _COLLECTIVES[words[first]]
            break
        elif before == "and" and words[first - 1] in COLORS and words[first + 1] in COLORS:
            continue
        elif _ends_phrase(before) or _is_other(words, first, place):
            first += 1
            break
    definite = words[first] == "the"
    text = " ".join(words[first : place + 1])
    return Mention(tree.of[word], _counted(word, number), tuple(colors), definite, text)


def _ends_phrase(word: str) -> bool:
    """Whether a word before a noun is not in its phrase: a link, or a verb by its ending."""
    verb = word.endswith("ing") or (word.endswith("s") and not word.endswith(("ss", "us")))
    return word in _LINKS or verb


def _is_other(words: list[str], place: int, noun: int) -> bool:
    """Whether a word before a noun names another thing."""
    return words[place] in concepts().of and place + 1 < noun


def _counted(word: str, number: tuple[int, int] | None) -> tuple[int, int] | None:
    if (
        word in _COUNTLESS
        or word.endswith("ing")
        or not concepts().kinds(concepts().of[word]) <= _COUNTED_KINDS
    ):
        return None
    if word in concepts().plurals:
        return number if number and number[1] > 1 else (2, _INFINITY)
    return number or (1, 1)


def totals(mentioned: Sequence[Mention]) -> dict[str, tuple[int, int]]:
    """Concept -> number of each thing with a number; things that are named separately are added.

    A man, a boy and another man are two men and one boy; a boy and a child are two children. A
    thing with "the" is assumed to be one that was named before, if there is one.
    """
    numbered = [m for m in mentioned if len(m.concepts) == 1 and m.number]
    result: dict[str, tuple[int, int]] = {}
    for concept in {next(iter(mention.concepts)) for mention in numbered}:
        low = high = 0
        for mention in numbered:
            below = concept in concepts().lineage(next(iter(mention.concepts)))
            if below and mention.number and not (low and mention.definite):
                low, high = low + mention.number[0], high + mention.number[1]
        result[concept] = (low, high)
    return result


def loose_colors(words: Sequence[str]) -> set[str]:
    """Colors without a thing ("a man in red and white"), which may belong to any thing."""
    hues: set[str] = set()
    for place, word in enumerate(words):
        if word == "in":
            run = list(takewhile(lambda w: w in COLORS or w == "and", words[place + 1 :]))
            after = words[place + 1 + len(run) :][:1]
            if not (after and after[0] in concepts().of):
                hues.update(hue for color in run for hue in COLORS.get(color, ()))
    return hues


# Chinese --------------------------------------------------------------------------------------

_CHINESE_COLORS = {
    **{"红": "红", "黄": "黄", "蓝": "蓝", "绿": "绿", "白": "白", "黑": "黑", "紫": "紫"},
    **{"橙": "橙", "橘": "橙", "棕": "棕", "褐": "棕", "灰": "灰", "粉": "粉"},
}
_CHINESE_NUMBERS = {"二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8}
_NO_COLOR = re.compile("白天|黄昏|黑暗|黑夜|黄油|面粉|花粉|粉丝|红绿灯|黑板|绿茵|明白|空白|黄瓜")
_COUNTED = re.compile("([二两三四五六七八])(?:个|名|位|只|条|匹|辆|头|架|艘|人)")


def chinese_colors(text: str) -> set[str]:
    """The colors in a Chinese caption."""
    return {_CHINESE_COLORS[c] for c in _NO_COLOR.sub("", text) if c in _CHINESE_COLORS}


def chinese_numbers(text: str) -> set[int]:
    """The numbers from two on before a measure word in a Chinese caption."""
    return {_CHINESE_NUMBERS[number] for number in _COUNTED.findall(text)}
