"""The pocket world: what can be in a picture, and pictures drawn from it at random.

A `Picture` is ground truth only: names and boxes. How it looks is `draw.py`'s business, how people talk
about it is `pocket.text`'s. Everything follows from one integer seed, so a picture is named by its seed,
and a range of seeds is a dataset.

Seeds are handed out in disjoint ranges (see `SEEDS`): no evaluation picture was ever trained on.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "large")
BACKGROUNDS = ("meadow", "beach", "desert", "street", "room", "night")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
PLACES = (
    "top-left", "top", "top-right",
    "left", "centre", "right",
    "bottom-left", "bottom", "bottom-right",
)  # fmt: skip

KINDS = (
    "ball", "box", "cup", "bottle", "book", "chair", "lamp", "tree", "flower", "house", "car", "boat",
    "star", "heart", "hat", "umbrella", "key", "clock", "guitar", "balloon", "mushroom", "kite", "tent",
    "apple", "ladder", "drum",
)  # fmt: skip

INGREDIENTS = (
    "tomato", "cheese", "basil", "olive", "egg", "carrot", "onion", "pepper", "corn", "shrimp", "broccoli",
    "lemon", "bacon", "avocado", "cucumber", "salmon",
)  # fmt: skip
DISHES = ("pizza", "salad", "soup", "rice", "pasta")

PRODUCTS = ("watch", "shoe", "bag", "headphones", "teapot", "camera", "backpack", "sunglasses", "lamp", "bottle")
BACKDROPS = ("marble", "wood", "velvet", "sand")

ANIMALS = ("cat", "dog", "fish", "penguin", "frog", "rabbit")
PROPS = ("bicycle", "guitar", "umbrella", "skateboard", "laptop", "trumpet", "bathtub", "crown")
#: How an animal is shown with a prop: the verb phrase that goes between their names.
DOING = {
    "bicycle": "riding a", "guitar": "playing a", "umbrella": "holding an", "skateboard": "riding a",
    "laptop": "typing on a", "trumpet": "playing a", "bathtub": "sitting in a", "crown": "wearing a",
}  # fmt: skip

TITLES = (
    "Harbor", "Garden", "Bakery", "Cinema", "Travel", "Music", "Recipes", "Planets", "Forest", "Chess",
    "Jokes", "Photos", "Poetry", "Weather", "Sailing", "Hiking", "Cats", "Robots", "Museum", "Library",
    "Coffee", "Flowers", "Tennis", "Yoga", "Market", "School", "Zoo", "Theatre", "Bikes", "Camping",
    "Pizza", "Ocean", "Winter", "Games", "News", "Tools", "Wedding", "Puzzle", "Dance", "Farm",
    "Studio", "Events", "Birds", "Toys",
)  # fmt: skip
#: The parts of a website draft, in the order in which they can stand on the page.
ELEMENTS = ("navigation", "image", "text", "list", "input", "button")

TYPES = ("scene", "food", "product", "odd", "draft")
#: Every single word by which a thing, or what is true of it, is named.
WORDS = (*COLOURS, *SIZES, *KINDS, *PLACES, *BACKGROUNDS, *INGREDIENTS, *DISHES, *PRODUCTS, *ANIMALS, *PROPS)

#: Where each use of pictures takes its seeds: (first, count). Disjoint, so that held-out means held out.
SEEDS = {
    "towers": (0, 10_000_000),  # pretraining of the vision tower and Q-Former
    "stage1": (10_000_000, 1_000_000),
    "stage2": (11_000_000, 1_000_000),
    "development": (12_000_000, 1_000_000),  # looked at while building
    "evaluation": (13_000_000, 1_000_000),  # measured, never trained on
    "text": (20_000_000, 100_000_000),  # scenes that are only ever described in words
}

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the picture's side


@dataclass(frozen=True)
class Thing:
    """One thing in a picture. `boxes` says where it is drawn: one box, or several pieces of an ingredient."""

    kind: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    boxes: tuple[Box, ...] = ()

    @property
    def attributes(self) -> tuple[str | None, str | None, str | None]:
        """Its colour, size and place, each None where it has none."""
        return self.colour, self.size, self.place


@dataclass(frozen=True)
class Picture:
    """The truth about one picture.

    A picture is what an image of this world shows, known before it is drawn; what a model sees is an image.

    `setting` is the background of a scene or odd scene, the dish under the ingredients, the backdrop of a
    product, the title of a website draft. `items` are in reading order (scene), drawing order (food), top to
    bottom (draft), or animal then prop (odd).
    """

    type: str
    setting: str
    items: tuple[Thing, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, ready for JSON."""
        return asdict(self)


#: `facts` never returns more words than this: type, setting, and four items of four words.
MAX_FACTS = 18


def facts(picture: Picture) -> list[str]:
    """Every fact of the picture, one word each, in a fixed order: at most `MAX_FACTS` words.

    Type, setting, then for each item its size, colour, kind and place, where it has them.
    """
    words = [picture.type, picture.setting]
    for item in picture.items:
        words += [word for word in (item.size, item.colour, item.kind, item.place) if word]
    return words


def _jittered_box(rng: random.Random, place: str, side: float) -> Box:
    """A square box of about `side` whose centre lies well inside the cell `place` of the 3 x 3 grid."""
    index = PLACES.index(place)
    centre_x = (index % 3 + 0.5) / 3 + rng.uniform(-0.05, 0.05)
    centre_y = (index // 3 + 0.5) / 3 + rng.uniform(-0.05, 0.05)
    half = side * rng.uniform(0.94, 1.06) / 2
    centre_x = min(max(centre_x, half + 0.01), 0.99 - half)
    centre_y = min(max(centre_y, half + 0.01), 0.99 - half)
    return (centre_x - half, centre_y - half, centre_x + half, centre_y + half)


def _scene(rng: random.Random, seed: int, counts: tuple[int, ...] = (1, 2, 2, 3, 3, 4)) -> Picture:
    count = rng.choice(counts)
    kinds = rng.sample(KINDS, count)
    return _filled(rng, seed, kinds, sorted(rng.sample(PLACES, count), key=PLACES.index))


def _filled(rng: random.Random, seed: int, kinds: Sequence[str], places: Sequence[str]) -> Picture:
    items = []
    for kind, place in zip(kinds, places, strict=True):
        size = rng.choice(SIZES)
        box = _jittered_box(rng, place, 0.32 if size == "large" else 0.19)
        items.append(Thing(kind, rng.choice(COLOURS), size, place, (box,)))
    return Picture("scene", rng.choice(BACKGROUNDS), tuple(items), seed)


def crowd(seed: int) -> Picture:
    """A scene with something in every place: never sampled, but a picture from which a tower learns nine kinds."""
    rng = random.Random(f"crowd-{seed}")
    return _filled(rng, seed, rng.sample(KINDS, len(PLACES)), PLACES)


def busy(seed: int) -> Picture:
    """A scene of four objects, the hardest to keep apart: for training, as `sample` draws few of them."""
    return _scene(random.Random(f"busy-{seed}"), seed, (4,))


def _food(rng: random.Random, seed: int) -> Picture:
    ingredients = sorted(rng.sample(INGREDIENTS, rng.choice((2, 3, 3, 4))), key=INGREDIENTS.index)
    # Pieces lie on a jittered ring-and-centre layout, dealt round-robin so that every ingredient shows.
    spots = [(0.5, 0.5)]
    for ring, number in ((0.16, 5), (0.29, 8)):
        turn = rng.uniform(0, 1)
        for k in range(number):
            angle = math.tau * (k + turn) / number
            spots.append((0.5 + ring * math.cos(angle), 0.5 + ring * math.sin(angle)))
    rng.shuffle(spots)
    pieces: list[list[Box]] = [[] for _ in ingredients]
    for k, (x, y) in enumerate(spots):
        x, y, half = x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02), rng.uniform(0.065, 0.085)
        pieces[k % len(ingredients)].append((x - half, y - half, x + half, y + half))
    items = tuple(Thing(name, boxes=tuple(boxes)) for name, boxes in zip(ingredients, pieces, strict=True))
    return Picture("food", rng.choice(DISHES), items, seed)


def _product(rng: random.Random, seed: int) -> Picture:
    half = rng.uniform(0.24, 0.31)
    x, y = rng.uniform(0.45, 0.55), rng.uniform(0.45, 0.53)
    item = Thing(rng.choice(PRODUCTS), rng.choice(COLOURS), boxes=((x - half, y - half, x + half, y + half),))
    return Picture("product", rng.choice(BACKDROPS), (item,), seed)


def _odd(rng: random.Random, seed: int) -> Picture:
    # The animal and its prop share one box: a prop is drawn with the animal on, in, under or behind it.
    half = rng.uniform(0.30, 0.38)
    x, y = rng.uniform(0.42, 0.58), rng.uniform(0.48, 0.58)
    box = (x - half, y - half, x + half, y + half)
    animal = Thing(rng.choice(ANIMALS), rng.choice(COLOURS), boxes=(box,))
    return Picture("odd", rng.choice(BACKGROUNDS), (animal, Thing(rng.choice(PROPS), boxes=(box,))), seed)


def _draft(rng: random.Random, seed: int) -> Picture:
    count = rng.choice((2, 3, 3, 4, 4, 5, 6))
    chosen = sorted(rng.sample(ELEMENTS, count), key=ELEMENTS.index)
    weights = {"navigation": 0.07, "image": 0.2, "text": 0.16, "list": 0.17, "input": 0.09, "button": 0.1}
    heights = [weights[name] * rng.uniform(0.9, 1.1) for name in chosen]
    top, room = 0.27, 0.69
    gap = 0.025
    scale = min(1.25, (room - gap * (count - 1)) / sum(heights))
    items = []
    for name, height in zip(chosen, heights, strict=True):
        height *= scale
        left = rng.uniform(0.08, 0.12)
        right = {"button": left + 0.38, "image": left + 0.6}.get(name, rng.uniform(0.86, 0.92))
        items.append(Thing(name, boxes=((left, top, right, top + height),)))
        top += height + gap
    return Picture("draft", rng.choice(TITLES), tuple(items), seed)


_MAKERS = {"scene": _scene, "food": _food, "product": _product, "odd": _odd, "draft": _draft}
#: Scenes are the world's richest type, so they get the largest share.
_SHARES = {"scene": 0.45, "food": 0.15, "product": 0.1, "odd": 0.12, "draft": 0.18}


def sample(seed: int, type: str | None = None) -> Picture:
    """The picture that `seed` names; with `type`, the picture of that type that it names.

    Raises:
        ValueError: `type` is not one of `TYPES`.
    """
    rng = random.Random(seed)
    drawn = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    if type is not None and type not in TYPES:
        raise ValueError(f"picture type {type!r} is not one of {', '.join(TYPES)}")
    return _MAKERS[type or drawn](rng, seed)
