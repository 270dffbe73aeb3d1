"""A look at a source before training on it: counts, captions, images, problems, and a contact sheet."""

import hashlib
import re
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from minigpt4.data.mixture import tell
from minigpt4.data.pairs import Cause
from minigpt4.data.sources import Source, open_source
from minigpt4.errors import UserError
from minigpt4.files import write_atomically
from minigpt4.images import encoded, kind_of, open_image
from minigpt4.telling import shown

COLUMNS, THUMBNAIL, TEXT_HEIGHT, LETTERS = 6, 160, 60, 24
STOPS = "it ends an answer in Vicuna's format, so training with that format takes it out"
#: Of words in three pieces or more: an LLM that learnt from captions has 6 % of photographs' so, the pocket LLM 25 %.
STRANGE = 0.1


@dataclass
class Inspection:
    """What was found among the first pairs of a source."""

    shards: int
    known: int | None  # pairs in all, if the source says
    notes: tuple[str, ...]  # of the reader
    pairs: int = 0
    words: list[int] = field(default_factory=list)  # of each text
    sides: list[int] = field(default_factory=list)  # the shorter side of each image, pixels
    formats: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    vocabulary: Counter[str] = field(default_factory=Counter)
    problems: Counter[Cause] = field(default_factory=Counter)  # each with its first place
    shown: list[tuple[Image.Image, str]] = field(default_factory=list)

    def __str__(self) -> str:
        in_all = "" if self.known is None else f" of {self.known}" + " records" * (self.known < self.pairs)
        lines = [*map(shown, self.notes), f"shards: {self.shards}", f"pairs looked at: {self.pairs}{in_all}"]
        if self.words:
            lines += [f"words in a text: {_spread(self.words)}", f"shorter side in pixels: {_spread(self.sides)}"]
            lines.append("images: " + tell(self.formats))
        if self.forms:
            lines.append("forms: " + tell(self.forms))
        return "\n".join([*lines, *(self.told or ["no problems"])])

    @property
    def told(self) -> list[str]:
        """A line for each problem."""
        return [shown(f"problem: {cause} {n}, first at {cause.detail}") for cause, n in self.problems.most_common()]


def inspect(source: Source, *, stage: int = 1, limit: int = 1000, shown: int = 24) -> Inspection:
    """Look at up to `limit` pairs from the start; `shown` of them are for the contact sheet. Raises UserError."""
    reader = open_source(source)
    found = Inspection(len(reader.shards()), reader.count(), reader.notes)
    seen: set[bytes] = set()
    last = ""
    every = 1  # of the usable pairs one is kept for the sheet; it doubles whenever twice as many are kept as wanted
    for item in islice((item for shard in reader.shards() for item in reader.read(shard, 0, 1, stage)), limit):
        found.pairs += 1
        if isinstance(item, Cause):
            found.problems[item] += 1
            continue
        try:
            image = open_image(item.image)
        except UserError as error:
            why = str(error).partition(": ")[2].partition(";")[0].partition(" (")[0]
            found.problems[Cause(f"unreadable image ({why})", item.name)] += 1
            continue
        found.words.append(len(item.text.split()))
        found.vocabulary.update(re.findall(r"[^\W\d_]+", item.text))
        found.sides.append(min(image.size))
        found.formats[kind_of(item.image) or "?"] += 1
        if stage == 2:
            found.forms["conversation" if item.messages else "instruction" if item.instruction else "description"] += 1
        digest = hashlib.sha256(item.image).digest()
        if digest in seen and item.name != last:  # captions of one image share its name
            found.problems[Cause("an image that came before", item.name)] += 1
        elif stage == 2 and any("###" in text for text in (item.text, *(m.text for m in item.messages))):
            found.problems[Cause(f"### in a text ({STOPS})", item.name)] += 1
        seen.add(digest)
        last = item.name
        if (len(found.words) - 1) % every == 0:
            image.thumbnail((THUMBNAIL, THUMBNAIL))  # keeps a pixel of a line, of which `pad` would keep none
            found.shown.append((ImageOps.pad(image, (THUMBNAIL, THUMBNAIL), color="white"), item.text))
            if len(found.shown) == 2 * shown:
                found.shown, every = found.shown[::2], 2 * every
    if not found.words:
        raise UserError(f"data {source.path}: none of {found.pairs} pairs can be used ({'; '.join(found.told)})")
    places = np.linspace(0, len(found.shown) - 1, min(shown, len(found.shown))).round().astype(int)
    found.shown = [found.shown[place] for place in places]
    return found


def spelling(found: Inspection, tokenizer: Any) -> str:
    """How many words of the texts an LLM's tokenizer has in three pieces or more, or not at all; a line."""
    start, words = len(tokenizer("the").input_ids), found.vocabulary
    rows = zip(words, tokenizer([f"the {word}" for word in words]).input_ids if words else (), strict=True)
    odd = [word for word, row in rows if len(row) > start + 2 or tokenizer.unk_token_id in row[start:]]
    share = sum(words[word] for word in odd) / max(1, words.total())
    often = ", ".join(sorted(odd, key=words.__getitem__, reverse=True)[:5])
    hint = "; it hardly learnt from such texts: choose a model whose LLM did" if share > STRANGE else ""
    return shown(f"words that the LLM has in three pieces or more: {share:.0%} ({often or 'none'}){hint}")


def _spread(values: list[int]) -> str:
    low, middle, high, most = np.percentile(values, (0, 50, 95, 100)).astype(int)
    return f"{low} to {most}, median {middle}, 95 % up to {high}"


def contact_sheet(found: Inspection, path: Path) -> None:
    """Write the images that `inspect` chose, each above the start of its text, as one PNG."""
    rows = -(-len(found.shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, rows * (THUMBNAIL + TEXT_HEIGHT)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, (image, text) in enumerate(found.shown):
        x, y = i % COLUMNS * THUMBNAIL, i // COLUMNS * (THUMBNAIL + TEXT_HEIGHT)
        sheet.paste(image, (x, y))
        written = text.encode("latin-1", "replace").decode("latin-1")  # what the font has signs for
        start = "\n".join(textwrap.wrap(written, LETTERS, max_lines=4, placeholder=" ..."))
        draw.multiline_text((x + 3, y + THUMBNAIL + 2), start, "black", font, spacing=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encoded(sheet, "PNG"))
