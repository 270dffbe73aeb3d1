"""Ten website drafts from a third hand.

They were made before the model that reads them had seen any of them, by a maker who did not see the code that makes
the model's training drafts. Each is a title and two to four signs below it, as strokes in fractions of the sheet.
"""

import math
import random

Point = tuple[float, float]
Stroke = list[Point]

#: Letters as strokes of "x y" pairs in percent of a capital's height, y downwards; a doubled point is a corner.
GLYPHS = {
    "B": "6 2 4 50 8 101/-3 4 35 -2 50 22 32 45 6 50 6 50 45 52 60 78 36 102 0 100",
    "C": "58 16 40 -1 14 14 0 52 12 90 38 102 60 86",
    "E": "50 2 4 4 4 4 2 52 4 100 4 100 54 97/5 50 42 47",
    "G": "60 16 38 -2 12 14 0 54 14 92 42 102 62 86 64 58 64 58 36 57",
    "H": "3 0 2 50 5 102/54 -2 56 50 52 100/4 52 54 48",
    "P": "6 0 4 50 2 104/0 6 34 -4 56 20 44 48 8 56",
    "R": "5 3 3 50 6 102/-4 6 30 -3 52 20 38 46 8 54 8 54 32 76 58 103",
    "S": "50 13 30 -2 6 10 6 34 30 50 52 68 46 94 22 103 -2 88",
    "T": "-4 4 30 0 66 2/30 2 32 50 29 102",
    "W": "-2 0 12 50 22 100 22 100 34 65 44 26 44 26 56 65 68 99 68 99 80 50 90 -3",
    "a": "44 57 24 46 4 62 2 86 18 102 36 92 46 56 46 56 44 84 53 101",
    "b": "4 -4 3 50 5 98 5 98 28 102 44 80 34 54 16 54 5 70",
    "e": "4 76 24 76 42 68 36 50 20 46 4 62 4 88 20 102 44 92",
    "f": "46 8 30 -3 17 10 16 50 17 102/0 50 38 47",
    "g": "44 57 24 46 4 60 2 82 18 97 38 88 45 55 45 55 46 110 34 138 14 138 0 124",
    "h": "4 -4 3 50 4 101/4 70 18 51 34 51 40 70 40 101",
    "i": "8 50 7 75 9 101/6 22 10 26 8 31 5 27",
    "k": "4 -3 3 50 4 101/38 46 6 76 6 76 22 86 42 102",
    "l": "6 -4 5 50 6 86 18 100",
    "m": "2 50 4 75 3 100 3 100 5 64 18 49 30 54 33 74 32 99 32 99 34 64 47 49 60 55 64 78 63 101",
    "n": "3 49 4 76 3 100 3 100 6 64 20 49 35 52 40 72 40 101",
    "o": "24 48 6 56 2 80 16 101 36 96 44 72 34 52 20 47",
    "r": "4 49 6 76 5 101 5 101 8 68 20 51 36 55",
    "s": "36 55 20 47 6 54 8 68 26 76 36 88 24 102 2 96",
    "t": "18 12 16 50 17 86 26 101 38 95/0 47 36 44",
    "v": "0 48 10 76 20 100 20 100 30 74 40 46",
    "y": "2 48 11 72 22 95/43 46 24 92 4 140",
}

#: Title, its left edge, top and capital height in percent; then each sign, its manner, left edge, top, width, height.
DRAFTS = [
    "Bakery 6 5 12.5/navigation 3 7 29 70 8.5/image cross 8 47 36 31/text 4wave 53 52 37 22",
    "Robots 28 6 12/image hills 20 27 52 37/button round 36 74 25 11",
    "Coffee 42 4.5 13/list 4ring 7 29 38 30/image cross 57 27 34 33/button square 64 73 23 12",
    "Winter 8 7 11.5/input near 6 33 53 10/button round 68 32 22 12/text 5zigzag 11 59 62 24",
    "Sailing 26 4 12/navigation 4 12 27 78 9/text 3straight 17 45 56 15/list 3dot 22 71 44 19",
    "Planets 5 4.5 10.5/image hills 55 21 37 28/text 3wave 8 57 55 13/input far 7 80 50 8.5/button square 66 78 24 11",
    "Games 36 5.5 13.5/button round 9 32 27 13/list 4dot 45 34 46 27/navigation 3 15 78 68 9.5",
    "Theatre 38 4 12/navigation 4 6 23 80 8/text 4zigzag 7 41 38 25/image cross 54 39 38 30/input near 22 81 55 9",
    "Events 10 8 14/list 3ring 13 33 60 22/input near 19 70 66 11.5",
    "Harbor 42 5 13/input far 9 26 58 9/image hills 6 43 41 27/list 3dot 56 46 36 19/navigation 3 18 82 70 8.5",
]


def _curve(rng: random.Random, points: list[Point], shake: float = 0.002) -> Stroke:
    """A smooth line through the points, each a little missed; a doubled point is a corner."""
    missed: Stroke = []
    for at, point in enumerate(points):
        same = at > 0 and point == points[at - 1]
        missed.append(missed[-1] if same else (point[0] + rng.gauss(0, shake), point[1] + rng.gauss(0, shake)))
    ends, stroke = [missed[0], *missed, missed[-1]], missed[:1]
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        if b == c:
            continue
        steps = max(3, int(math.dist(b, c) / 0.008))
        for t in (step / steps for step in range(1, steps + 1)):
            w = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            x, y = (sum(k * p[axis] for k, p in zip(w, (a, b, c, d), strict=True)) / 2 for axis in (0, 1))
            stroke.append((x, y))
    return stroke


def _line(rng: random.Random, a: Point, b: Point) -> Stroke:
    """A line that wants to be straight: slightly bowed."""
    bow, at = rng.gauss(0, 0.012), rng.uniform(0.35, 0.65)
    dx, dy = b[0] - a[0], b[1] - a[1]
    return _curve(rng, [a, (a[0] + at * dx - bow * dy, a[1] + at * dy + bow * dx), b])


def _frame(rng: random.Random, x: float, y: float, w: float, h: float, loose: float = 0.007) -> list[Stroke]:
    """A four-sided frame: in one go, ending near its start, or as two angles that nearly meet."""
    corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    corners = [(px + rng.gauss(0, loose), py + rng.gauss(0, loose)) for px, py in corners]
    first = rng.randrange(4)
    a, b, c, d = (corners[first:] + corners[:first])[:: rng.choice((1, -1))]
    close = (a[0] + rng.gauss(0, loose), a[1] + rng.gauss(0, loose))
    if rng.random() < 0.35:
        miss = (c[0] + rng.gauss(0, loose), c[1] + rng.gauss(0, loose))
        return [_line(rng, a, b) + _line(rng, b, c), _line(rng, close, d) + _line(rng, d, miss)]
    return [_line(rng, a, b) + _line(rng, b, c) + _line(rng, c, d) + _line(rng, d, close)]


def _round(rng: random.Random, x: float, y: float, w: float, h: float) -> list[Stroke]:
    """A frame with round ends, drawn past its start."""
    r, points = 0.48 * h, list[Point]()
    for cx, cy, turn in ((x + w - r, y + r, 0), (x + w - r, y + h - r, 1), (x + r, y + h - r, 2), (x + r, y + r, 3)):
        for angle in ((turn - 1 + step) * math.pi / 2 for step in (0.2, 0.8)):
            points.append((cx + r * math.cos(angle), cy + r * math.sin(angle)))
    return [_curve(rng, [*points, (points[0][0] + 0.012, points[0][1] + 0.009)], 0.003)]


def _squiggle(rng: random.Random, x: float, y: float, w: float, tall: float, sharp: bool) -> Stroke:
    """A line of waves or zigzags, of uneven length and height."""
    points, side, end = [(x, y)], -1, x + w
    while (x := x + tall * rng.uniform(0.7, 1.25)) < end:
        points.append((x, y + side * tall * rng.uniform(0.35, 0.65)))
        side = -side
    return _curve(rng, [p for p in points for _ in range(2 if sharp else 1)], 0.0012)


def _sign(rng: random.Random, name: str, manner: str, x: float, y: float, w: float, h: float) -> list[Stroke]:
    """The strokes of one sign."""
    strokes: list[Stroke] = []
    if name == "navigation":
        pitch = w / int(manner)
        for box in range(int(manner)):
            left, top, wide = x + box * pitch, y + rng.gauss(0, 0.005), pitch * rng.uniform(0.76, 0.86)
            strokes += _frame(rng, left, top, wide, h * rng.uniform(0.92, 1.08), 0.004)
            strokes.append(_squiggle(rng, left + wide * 0.2, top + h * 0.5, wide * 0.62, h * 0.24, box % 2 == 1))
    elif name == "image":
        strokes = _frame(rng, x, y, w, h)
        if manner == "cross":
            near, far = rng.uniform(0.02, 0.05), rng.uniform(0.95, 0.98)
            strokes.append(_line(rng, (x + near * w, y + near * h), (x + far * w, y + far * h)))
            strokes.append(_line(rng, (x + far * w, y + near * h), (x + near * w, y + far * h)))
        else:
            ridge = [(0.04, 0.9), (0.32, 0.38), (0.52, 0.72), (0.7, 0.5), (0.96, 0.86)]
            peaks = [(x + px * w + rng.gauss(0, 0.008), y + py * h + rng.gauss(0, 0.008)) for px, py in ridge]
            strokes.append(_curve(rng, [p for p in peaks for _ in range(2)]))
            cx, cy, r = x + 0.74 * w, y + 0.23 * h, 0.1 * h
            strokes.append(_curve(rng, [(cx + r * math.cos(t), cy + r * math.sin(t)) for t in range(1, 8)]))
    elif name in ("text", "list"):
        count, style = int(manner[0]), manner[1:]
        for row in range(count):
            at, wide = y + (row + 0.5) * h / count + rng.gauss(0, 0.003), w * rng.uniform(0.9, 1.0)
            left = x + rng.gauss(0, 0.006)
            if name == "list":
                turns = [0.5 + step * 1.05 for step in range(7 if style == "ring" else 16)]
                radii = [0.013 if style == "ring" else 0.009 * (1 - step / 20) for step in range(len(turns))]
                spots = [(r * math.cos(t), r * math.sin(t)) for t, r in zip(turns, radii, strict=True)]
                strokes.append(_curve(rng, [(left + 0.013 + dx, at + dy) for dx, dy in spots], 0.001))
                left, wide = left + 0.06, wide * rng.uniform(0.8, 1.0) - 0.06
            elif row == count - 1:
                wide *= rng.uniform(0.45, 0.6)
            if style in ("wave", "zigzag", "ring"):
                strokes.append(_squiggle(rng, left, at, wide, rng.uniform(0.017, 0.022), style == "zigzag"))
            else:
                strokes.append(_line(rng, (left, at), (left + wide, at + rng.gauss(0, 0.005))))
    elif name == "input":
        strokes = _frame(rng, x, y, w, h, 0.005)
        cursor = x + (0.035 if manner == "near" else 0.05)
        strokes.append(_line(rng, (cursor + rng.gauss(0, 0.002), y + 0.24 * h), (cursor, y + 0.76 * h)))
    else:
        strokes = _round(rng, x, y, w, h) if manner == "round" else _frame(rng, x, y, w, h, 0.005)
        lean, foot = 0.5 * h, x + (0.11 if manner == "round" else 0.08) * w
        while foot + lean < x + 0.93 * w:
            strokes.append(_line(rng, (foot + lean, y + rng.uniform(0.12, 0.2) * h), (foot, y + 0.84 * h)))
            foot += rng.uniform(0.024, 0.034)
    return strokes


def _title(rng: random.Random, word: str, x: float, y: float, size: float) -> list[Stroke]:
    """The word in print letters: uneven in size, gap, lean and base line."""
    strokes: list[Stroke] = []
    lean, climb, base = rng.uniform(-0.02, 0.14), rng.gauss(0, 0.012), y + size
    for letter in word:
        scale, own, drop = size * rng.uniform(0.95, 1.06), lean + rng.gauss(0, 0.03), rng.gauss(0, 0.02) * size
        right = 0.0
        for part in GLYPHS[letter].split("/"):
            numbers = [float(number) / 100 for number in part.split()]
            pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
            right = max(right, *numbers[::2])
            spots = [(x + (px + own * (1 - py)) * scale, base + drop + (py - 1) * scale) for px, py in pairs]
            strokes.append(_curve(rng, spots, 0.014 * size))
        x += (right + rng.uniform(0.17, 0.25)) * scale
        base += climb * size
    return strokes


def third_drawings() -> list[tuple[str, list[str], list[Stroke]]]:
    """Ten drafts: each one's title, the names of its signs from top to bottom and left to right, and its strokes."""
    drawings: list[tuple[str, list[str], list[Stroke]]] = []
    for number, draft in enumerate(DRAFTS):
        rng = random.Random(7300 + number)
        (title, *place), *signs = (part.split() for part in draft.split("/"))
        strokes = _title(rng, title, *(float(value) / 100 for value in place))
        for name, manner, *spot in signs:
            strokes += _sign(rng, name, manner, *(float(value) / 100 for value in spot))
        drawings.append((title, [sign[0] for sign in signs], strokes))
    return drawings
