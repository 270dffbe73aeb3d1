"""What the page shows, made from what was said: text, web pages in a frame, heat maps, files to keep.

Everything that a model or a visitor wrote is untrusted: text is escaped, and a web page is shown only in a frame in
which nothing runs and from which nothing is fetched.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from minigpt4 import images

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from minigpt4.app.session import Turn

#: A drawn stand-in for pictures that a page names and that nobody has: hills under a sun.
_NO_PICTURE = base64.b64encode(
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 60"><path fill="#e3ded2" d="M0 0h120v60H0z"/>'
    b'<circle cx="84" cy="20" r="7" fill="#cbbf9f"/><path fill="#b9b3a3" d="M20 52l24-30 16 18 10-9 26 21z"/></svg>'
).decode()
#: What stands before a page in its frame. It may show styles and pictures that it holds itself, and nothing else;
#: where it says nothing of its looks, it is a plain page, and a picture that is not there is a box.
_FRAME_HEAD = (
    '<!doctype html><meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"><style>"
    ":where(body){font:14px/1.45 system-ui,sans-serif;margin:1rem;color:#222;background:#fff}"
    ":where(h1){margin:0 0 .5rem;font-size:1.5rem}:where(nav){display:flex;gap:1rem;margin:.5rem 0}"
    ":where(img){display:block;width:60%;height:5rem;object-fit:cover;background:#e3ded2}:where(ul,p){margin:.5rem 0}"
    f":where(img:not([src^='data:'])){{content:url('data:image/svg+xml;base64,{_NO_PICTURE}')}}"
    ":where(input,button){font:inherit;padding:.35rem .7rem;margin:.2rem .4rem .2rem 0}</style>"
)
_HTML_PAGE = re.compile(r"(?is)<(?:!doctype html|html|head|body)\b.*")
#: What Markdown makes a link of, up to the character without which it does not.
_ADDRESS = re.compile(r"(?i)\b(?:https?|ftp):|\bwww\.|@")
_AFTER_PAGE = re.compile(r"(?is)^(.*</html>)")


def find_page(answer: str) -> str | None:
    """The web page in an answer, without the prose or code fence around it, or None. A page cut off is one too."""
    match = _HTML_PAGE.search(answer)
    if match is None:
        return None
    whole = _AFTER_PAGE.match(match.group())
    return (whole.group(1) if whole else match.group().split("```")[0]).strip()


def as_markdown(text: str) -> str:
    """Text as the chat shows it: no tag in it is one, and a web page is a block of code."""
    page = find_page(text)
    if page is not None:
        before = text.partition(page)[0].replace("```html", "").replace("```", "").strip()
        fence = "`" * (max(map(len, re.findall(r"`+", page)), default=0) + 3)
        return (
            f"{as_markdown(before)}\n\n{fence}html\n{page}\n{fence}".strip()
            if before
            else f"{fence}html\n{page}\n{fence}"
        )
    # Markdown would take these for pictures and links, and a bare address too: nothing that was said is an address.
    safe = escape(text, quote=False).replace("![", "!\\[").replace("](", "]\\(")
    return _ADDRESS.sub(lambda found: found.group()[:-1] + f"&#{ord(found.group()[-1])};", safe)


def website(page: str, drawing: Image.Image | None) -> str:
    """The drawing, and beside it the page in a frame that runs no script and reads nothing of what is around it."""
    frame = (
        '<figure><iframe sandbox="" referrerpolicy="no-referrer" title="The website that the model wrote" '
        f'srcdoc="{escape(_FRAME_HEAD + page)}"></iframe><figcaption>The page it wrote</figcaption></figure>'
    )
    shown = ""
    if drawing is not None:
        source = data_url(drawing, 512)
        shown = f'<figure><img src="{source}" alt="The draft"><figcaption>The draft</figcaption></figure>'
    return f'<div class="pair">{shown}{frame}</div>'


def heat_maps(pictures: Sequence[Image.Image], heats: Sequence[Tensor], about: str) -> str:
    """Each picture under its heat (rows, columns); the hottest place of all pictures is the brightest."""
    hottest = max(float(heat.max()) for heat in heats) or 1.0
    figures = []
    for number, (picture, heat) in enumerate(zip(pictures, heats, strict=True), 1):
        figures.append(
            f'<figure><img src="{data_url(_heated(picture, heat / hottest), 448)}" '
            f'alt="Heat map for {escape(about)} over picture {number}"></figure>'
        )
    return f'<div class="heat">{"".join(figures)}</div><p class="quiet">Bright is where {escape(about)} came from.</p>'


def _heated(picture: Image.Image, heat: Tensor) -> Image.Image:
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    # The vision tower saw the picture squeezed to a square, so its patches lie evenly over height and width.
    size = (448, max(1, round(448 * picture.height / picture.width)))
    grey = Image.fromarray((heat.numpy() * 255).astype("uint8")).resize(size, Image.Resampling.BICUBIC)
    warmth = np.asarray(grey, dtype=np.float32) / 255
    colours = colormaps["inferno"](warmth)[..., :3] * 255
    opacity = (0.35 + 0.5 * warmth)[..., None]  # cold places are darkened too, so that warm ones stand out
    below = np.asarray(picture.resize(size).convert("RGB"), dtype=np.float32)
    return Image.fromarray((below * (1 - opacity) + colours * opacity).astype("uint8"))


def data_url(picture: Image.Image, side: int) -> str:
    """A picture of at most `side` pixels as a JPEG in an address."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return images.data_url(buffer.getvalue(), "jpeg")


def conversation_json(turns: Sequence[Turn], model: str) -> str:
    """The conversation for programs: messages, with the pictures as data URLs."""
    messages = []
    for turn in turns:
        images = [data_url(picture, 512) for picture in turn.pictures]
        messages += [
            {"role": "user", "text": turn.question, "images": images},
            {"role": "assistant", "text": turn.answer, "stopped": turn.stopped},
        ]
    return json.dumps({"model": model, "messages": messages}, indent=2, ensure_ascii=False) + "\n"


def conversation_markdown(turns: Sequence[Turn], model: str) -> str:
    """The conversation to read, with the pictures at its end, where they disturb nobody who reads it as text."""
    lines = [f"# A conversation with MiniGPT-4 ({model})"]
    addresses: list[str] = []
    for turn in turns:
        names = range(len(addresses) + 1, len(addresses) + len(turn.pictures) + 1)
        addresses += [f"[picture {n}]: {data_url(p, 512)}" for n, p in zip(names, turn.pictures, strict=True)]
        lines += [f"![picture {n}]" for n in names]
        lines += [f"**You:** {as_markdown(turn.question)}", f"**MiniGPT-4:** {as_markdown(turn.answer)}"]
    return "\n\n".join([*lines, *addresses]) + "\n"


def conversation_page(turns: Sequence[Turn], model: str) -> str:
    """The conversation as one HTML file to send to somebody: pictures and websites are in it, scripts are not."""
    parts = []
    for turn in turns:
        shown = "".join(f'<img src="{data_url(picture, 512)}" alt="picture">' for picture in turn.pictures)
        parts.append(f"<section>{shown}<h2>{escape(turn.question)}</h2><pre>{escape(turn.answer)}</pre>")
        page = find_page(turn.answer)
        parts.append((website(page, None) if page else "") + "</section>")
    empty = resources.files("minigpt4.app").joinpath("assets/conversation.html").read_text(encoding="utf-8")
    return empty.replace("__MODEL__", escape(model)).replace("__PARTS__", "\n".join(parts))
