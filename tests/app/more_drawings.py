"""The drafts here come from a second hand: ten sketches of a page, each a title and two to four signs below it.

They were made before the model that reads them had seen any of them. Their maker saw the page's one-click signs and
letters, not the code that makes the model's training drafts. A stroke is a list of points in fractions of the sheet.
"""

from __future__ import annotations

import math
from random import Random

Point = tuple[float, float]
Stroke = list[Point]

# Strokes part at "|", corners at "/"; two points make a straight piece, more a round one. Capitals: 0 to 10 downwards.
LETTERS = {
    "D": (6.4, "0.4,0.2 0.5,10|-0.3,0.3 2.4,0.3 4.9,1.5 6.2,4.4 5.8,7.5 3.9,9.4 1.8,10 -0.2,10"),
    "F": (5.4, "0.3,0 0.4,10.3|0,0.2 5.6,-0.1|0.3,4.7 4.2,4.5"),
    "H": (6.2, "0.2,0 0.4,10|6,-0.2 6.1,10.1|0.2,5.2 6.2,4.8"),
    "J": (4.8, "4.4,0 4.6,4 4.5,7.4 3.7,9.4 2.1,10.2 0.6,9.3 0.1,7.6"),
    "L": (5.2, "0.4,0 0.3,10/5.3,9.8"),
    "M": (8.2, "0,10.1 0.9,0.1/4.2,7.2/7.3,0/8.3,10"),
    "P": (5.6, "0.4,10.2 0.3,0.4/0.3,0.4 2.4,-0.1 4.7,0.6 5.6,2.6 4.7,4.7 2.6,5.5 0.4,5.5"),
    "W": (9.2, "0,0 2.3,10/4.6,2.6/6.8,10/9.2,-0.1"),
    "Y": (6.2, "0,0 3,4.9|6.2,-0.2 2.1,10.2"),
    "Z": (6.2, "0.2,0.3 6.1,0.1/0,9.9/6.4,9.8"),
    "a": (5, "4.5,5.2 3.1,4 1.3,4.4 0.1,6.2 0.2,8.4 1.4,9.9 3,9.5 4.2,7.9 4.6,5.4/4.6,4.4 4.6,7.2 4.7,9.2 5.5,9.9"),
    "b": (4.6, "0.2,-0.2 0.3,9.9/0.3,7.2 1.1,5 2.7,4.1 4.3,5.1 4.7,7.1 4,9.2 2.4,10.1 0.9,9.7 0.3,8.6"),
    "c": (4, "4,5.1 2.9,4 1.3,4.5 0.2,6.2 0.2,8.2 1.3,9.8 2.8,10 4.2,8.9"),
    "e": (4.5, "0.3,7.1 2.5,7 4.4,6.7/4.4,6.7 4,4.9 2.5,4 1,4.8 0.1,6.7 0.5,8.9 2,10.1 3.6,9.8 4.6,8.8"),
    "g": (
        4.7,
        "4.3,5 2.8,4 1.1,4.6 0.1,6.4 0.4,8.4 1.7,9.5 3.4,8.6 4.4,6/4.5,4.3 4.7,8 4.5,11.5 3.2,13.4 1.4,13.5 0.1,12.5",
    ),
    "h": (4.6, "0.3,-0.2 0.2,10.1/0.3,7.2 1.2,5 2.7,4.1 4.1,5 4.4,7.2 4.5,10"),
    "i": (0.7, "0.3,4.2 0.5,10|0.3,1.6 0.7,1.9 0.5,2.3 0.2,1.9"),
    "k": (4.2, "0.2,-0.2 0.3,10|4,4.2 0.3,7.3/4.4,10.1"),
    "l": (0.7, "0.4,-0.3 0.5,10.1"),
    "m": (
        7.4,
        "0.2,4.2 0.3,10/0.3,7 1.2,4.9 2.4,4.1 3.5,5.1 3.7,7.2 3.7,10/3.8,7 4.7,4.9 5.9,4.2 7,5.2 7.3,7.4 7.3,10",
    ),
    "n": (4.5, "0.2,4.1 0.3,10/0.3,7.1 1.2,4.9 2.6,4.1 4,5 4.4,7.1 4.4,10"),
    "o": (4.8, "2.6,4 1,4.5 0.1,6.3 0.3,8.5 1.6,10 3.3,9.9 4.6,8.3 4.6,6 3.6,4.4 2.3,4"),
    "r": (3.3, "0.2,4.2 0.3,10/0.3,7.2 0.9,5.2 2.1,4.2 3.5,4.6"),
    "s": (3.8, "3.6,4.9 2.4,4 0.9,4.4 0.4,5.6 1.4,6.7 2.8,7.2 3.7,8.3 3.1,9.7 1.5,10.1 0,9.2"),
    "t": (3.6, "1.6,1.3 1.6,5 1.6,8.2 2.1,9.8 3.6,9.6|-0.1,4.3 3.6,4.1"),
    "u": (4.8, "0.2,4.2 0.2,7 0.7,9.3 2.1,10.1 3.6,9.2 4.4,7.2/4.5,4.1/4.7,10"),
    "y": (4.8, "0.1,4.1 2.4,9.2|4.8,4 3.6,7.4 2.3,10.9 1,13.3 -0.2,13.5"),
    "z": (4.4, "0.2,4.4 4.3,4.2/0.1,10/4.6,9.8"),
}
# Title, height of its capital, left end, top; then each sign with its left, top, width and height.
DRAFTS = [
    ("Zoo", 0.12, 0.34, 0.06, "image .2 .28 .6 .38|button .36 .75 .28 .1"),
    ("Library", 0.1, 0.1, 0.07, "navigation .08 .27 .78 .075|input .09 .42 .66 .09|list .1 .58 .46 .24"),
    ("Farm", 0.105, 0.08, 0.08, "image .08 .25 .5 .25|text .08 .55 .72 .15|button .09 .77 .36 .11"),
    ("Weather", 0.095, 0.2, 0.06, "input .07 .26 .54 .09|button .68 .265 .23 .085|text .08 .45 .8 .2"),
    ("Jokes", 0.11, 0.27, 0.05, "list .22 .29 .56 .3|button .3 .7 .4 .12"),
    ("Museum", 0.095, 0.09, 0.07, "navigation .1 .25 .7 .07|image .09 .4 .4 .3|text .54 .42 .4 .2|button .1 .78 .3 .1"),
    ("Yoga", 0.1, 0.31, 0.05, "text .12 .26 .76 .12|list .14 .43 .4 .19|input .12 .67 .7 .085|button .13 .81 .33 .095"),
    ("Hiking", 0.1, 0.22, 0.06, "navigation .06 .28 .86 .085|image .14 .44 .7 .23|list .15 .73 .5 .2"),
    ("Puzzle", 0.11, 0.12, 0.07, "text .1 .29 .6 .18|input .1 .55 .57 .1|button .1 .72 .25 .09"),
    ("Dance", 0.115, 0.24, 0.06, "navigation .12 .3 .74 .08|text .1 .48 .82 .22"),
]  # fmt: skip


def straight(hand: Random, a: Point, b: Point) -> Stroke:
    dx, dy, bend = b[0] - a[0], b[1] - a[1], hand.gauss(0, 0.012)
    steps = max(2, round(math.dist(a, b) / 0.02))
    bows = [(i / steps, bend * math.sin(math.pi * i / steps)) for i in range(steps + 1)]
    return [(a[0] + dx * t - dy * s, a[1] + dy * t + dx * s) for t, s in bows]


def chain(hand: Random, corners: Stroke) -> Stroke:
    return [point for a, b in zip(corners, corners[1:], strict=False) for point in straight(hand, a, b)]


def rounded(points: Stroke) -> Stroke:
    ends, line = [points[0], *points, points[-1]], [points[0]]
    for p, q, r, s in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for t in (0.2, 0.4, 0.6, 0.8, 1.0):
            w = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            x, y = (sum(k * c[axis] for k, c in zip(w, (p, q, r, s), strict=True)) / 2 for axis in (0, 1))
            line.append((x, y))
    return line


def letter(hand: Random, strokes: str, left: float, top: float, unit: float, slant: float) -> list[Stroke]:
    slant, wide, tall, lines = slant + hand.gauss(0, 0.03), hand.gauss(1, 0.05), hand.gauss(1, 0.04), []
    for stroke in strokes.split("|"):
        line: Stroke = []
        for piece in stroke.split("/"):
            pairs = [map(float, pair.split(",")) for pair in piece.split()]
            points = [(x + hand.gauss(0, 0.13), 10 + (y - 10) * tall + hand.gauss(0, 0.13)) for x, y in pairs]
            points = [(left + (x * wide + (10 - y) * slant) * unit, top + y * unit) for x, y in points]
            straights = points[:1] if len(points) > 2 else points
            line += chain(hand, line[-1:] + straights) + (rounded(points) if len(points) > 2 else [])
        lines.append(line)
    return lines


def near(hand: Random, *points: Point) -> Stroke:
    return [(x + hand.gauss(0, 0.006), y + hand.gauss(0, 0.005)) for x, y in points]


def box(hand: Random, x: float, y: float, w: float, h: float) -> list[Stroke]:
    corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)]
    if hand.random() < 0.5:
        return [straight(hand, *near(hand, a, b)) for a, b in zip(corners, corners[1:], strict=False)]
    return [chain(hand, near(hand, *corners))]


def zigzag(hand: Random, x: float, y: float, w: float, h: float) -> Stroke:
    count = max(5, round(w / (h * hand.uniform(0.8, 1.1))))
    ups = [(i + hand.uniform(-0.2, 0.2), i % 2 + hand.uniform(-0.2, 0.2)) for i in range(count + 1)]
    ups = [(x + w * across / count, y + h * down) for across, down in ups]
    return rounded(ups) if hand.random() < 0.3 else ups


def sign(hand: Random, name: str, x: float, y: float, w: float, h: float) -> list[Stroke]:
    if name == "image":
        return box(hand, x, y, w, h) + [straight(hand, *near(hand, (x + d, y), (x + w - d, y + h))) for d in (0, w)]
    if name == "navigation":
        lines, each = [], w / 3.4
        for left in (x, x + 1.2 * each, x + 2.4 * each):
            lines += box(hand, left, y + hand.gauss(0, 0.003), each + hand.gauss(0, 0.006), h + hand.gauss(0, 0.003))
            lines.append(zigzag(hand, left + each * 0.2, y + h * 0.36, each * hand.uniform(0.5, 0.64), h * 0.28))
        return lines
    rows = max(2, round(h / 0.06)) if name == "text" else max(3, round(h / 0.075))
    tops = [y + h * row / rows + hand.gauss(0, 0.003) for row in range(rows)]
    if name == "text":
        widths = [w * hand.uniform(0.92, 1) for _ in tops[1:]] + [w * hand.uniform(0.5, 0.85)]
        return [zigzag(hand, x + hand.gauss(0, 0.006), *row, 0.02) for row in zip(tops, widths, strict=True)]
    if name == "list":
        lines = []
        for top in tops:
            r, first, turn = hand.uniform(0.009, 0.014), hand.uniform(-2.2, -1), hand.uniform(5.9, 6.6)
            turns, mid = [first - turn * i / 16 for i in range(17)], top + h / rows / 2
            lines.append([(x + 0.02 + r * math.cos(a), mid + (r + hand.gauss(0, 0.0005)) * math.sin(a)) for a in turns])
            lines.append(straight(hand, *near(hand, (x + 0.07, mid), (x + w * hand.uniform(0.75, 1), mid))))
        return lines
    if name == "input":
        return [*box(hand, x, y, w, h), straight(hand, *near(hand, (x + 0.035, y + h * 0.2), (x + 0.035, y + h * 0.8)))]
    r, edge = min(w, h) * hand.uniform(0.3, 0.42), []
    for cx, cy, first in ((x + w - r, y + r, 3), (x + w - r, y + h - r, 0), (x + r, y + h - r, 1), (x + r, y + r, 2)):
        turns = [((first + i / 6) * math.pi / 2, r + hand.gauss(0, 0.0015)) for i in range(7)]
        edge += [(cx + far * math.cos(a), cy + far * math.sin(a)) for a, far in turns]
    edge += near(hand, edge[0])
    count = round(w / hand.uniform(0.036, 0.05))
    feet = [x + (w - 0.05) * (i + 0.5) / count for i in range(count)]
    return [edge, *(straight(hand, *near(hand, (f, y + h * 0.92), (f + 0.05, y + h * 0.1))) for f in feet)]


def more_drawings() -> list[tuple[str, list[str], list[list[tuple[float, float]]]]]:
    drafts = []
    for number, (title, height, left, top, signs) in enumerate(DRAFTS):
        hand, unit, lines = Random(4100 + number), height / 10, []
        slant, rise, pen = hand.uniform(-0.02, 0.14), hand.gauss(0, 0.012), left
        for character in title:
            width, strokes = LETTERS[character]
            size = unit * hand.gauss(1, 0.03)
            foot = top + height + (pen - left) * rise + hand.gauss(0, 0.002)
            lines += letter(hand, strokes, pen, foot - 10 * size, size, slant)
            pen += (width + hand.uniform(1.7, 2.5)) * size
        parts = [part.split() for part in signs.split("|")]
        for name, *place in parts:
            lines += sign(hand, name, *map(float, place))
        rounds = [[(round(x, 4), round(y, 4)) for x, y in line] for line in lines]
        drafts.append((title, [part[0] for part in parts], rounds))
    return drafts
