"""What the page shows, made from what was said: text, web pages in a frame, heat maps, files to keep.

That is untrusted: text is escaped, and a web page is in a frame in which nothing runs and nothing is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from minigpt4 import images
from minigpt4.telling import UNFAMILIAR

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt4.app.page.session import Turn

_ASSETS = resources.files("minigpt4.app.page") / "assets"
#: What stands before a page in its frame: it may show styles and images that it holds itself, and nothing else. Images
#: that it only names are drawn as hills under a sun.
_FRAME_HEAD = (_ASSETS / "frame.html").read_text(encoding="utf-8").replace("\n", "")
#: A web page, up to its end if that is there.
_HTML_PAGE = re.compile(r"(?is)<(?:!doctype html|html|head|body)\b(?:.*</html>|.*)")
#: What Markdown makes a link of, up to the character without which it does not.
_ADDRESS = re.compile(r"(?i)\b(?:https?|ftp):|\bwww\.|@")


def hint(text: str) -> str:
    """Text of ours beside a control."""
    return f'<p class="quiet">{text}</p>'


def problem(text: str | None) -> str:
    """What went wrong, or nothing."""
    return f'<p role="alert" class="problem">{escape(text.rstrip("."))}.</p>' if text else ""


def find_page(answer: str) -> str | None:
    """The web page in an answer, without the prose or code fence around it, or None. A page cut off is one too."""
    if (match := _HTML_PAGE.search(answer)) is None:
        return None
    page = match.group()
    return page if page.lower().endswith("</html>") else page.split("```")[0].strip()


def as_markdown(text: str) -> str:
    """Text as the chat shows it: no tag in it is one, and a web page is a block of code."""
    page = find_page(text)
    if page is not None:
        around = (part.replace("```html", "").replace("```", "").strip() for part in text.split(page, 1))
        before, after = map(as_markdown, around)
        fence = "`" * (max(map(len, re.findall(r"`+", page)), default=0) + 3)
        return f"{before}\n\n{fence}html\n{page}\n{fence}\n\n{after}".strip("\n")
    # Markdown would take these for images and links, and a bare address too: no text is an address.
    safe = escape(text, quote=False).replace("![", "!\\[").replace("](", "]\\(").replace("]:", "]\\:")
    return _ADDRESS.sub(lambda found: found.group()[:-1] + f"&#{ord(found.group()[-1])};", safe)


def kept(told: dict[str, Any]) -> str:
    """What the visitor's browser shall keep of a conversation, for `chats.js`."""
    return f'<data value="{escape(json.dumps(told))}"></data>'


def website(page: str, drawing: Image.Image | None) -> str:
    """The drawing, and beside it the page in a frame that runs no script and reads nothing of what is around it."""
    draft = ""
    if drawing is not None:
        draft = f"<figure>{image_tag(drawing, 512, 'The draft')}<figcaption>The draft</figcaption></figure>"
    frame = '<iframe sandbox="" referrerpolicy="no-referrer" title="The website that the model wrote"'
    frame = f'<figure>{frame} srcdoc="{escape(_FRAME_HEAD + page)}"></iframe>'
    return f'<div class="pair">{draft}{frame}<figcaption>The page it wrote</figcaption></figure></div>'


def model_answer(name: str, answer: str, ended: bool = False, unfamiliar: bool = False) -> str:
    """One model's answer beside those of others; a web page is rendered when it is whole."""
    page = find_page(answer) if ended else None
    shown = f"<pre>{escape(answer)}</pre>"
    if page is not None:
        shown = f"{website(page, None)}<details><summary>What it said</summary>{shown}</details>"
    return f"<h2>{escape(name)}</h2>{hint(f'{UNFAMILIAR}.') if unfamiliar else ''}{shown}"


def heat_maps(images: Sequence[Image.Image], heats: Sequence[Tensor], about: str) -> str:
    """Each image, as far as it was seen, under its heat (rows, columns); the hottest place of all is the brightest."""
    hottest = max(float(heat.max()) for heat in heats) or 1.0
    figures = ""
    for number, (image, heat) in enumerate(zip(images, heats, strict=True), 1):
        alt = f"Heat map for {about} over image {number}"
        figures += f"<figure>{image_tag(_heated(image, heat / hottest), 448, alt)}</figure>"
    return f'<div class="heat">{figures}</div>' + hint(f"Bright is where {escape(about)} came from.")


def _heated(image: Image.Image, heat: Tensor) -> Image.Image:
    from matplotlib import colormaps

    # The vision encoder saw this squeezed to a square, so its patches lie evenly over height and width.
    size = (448, max(1, round(448 * image.height / image.width)))
    grey = Image.fromarray((heat.numpy() * 255).astype("uint8")).resize(size, Image.Resampling.BICUBIC)
    warmth = np.asarray(grey, dtype=np.float32) / 255
    colours = colormaps["inferno"](warmth)[..., :3] * 255
    opacity = (0.35 + 0.5 * warmth)[..., None]  # cold places are darkened too, so that warm ones stand out
    below = np.asarray(image.resize(size).convert("RGB"), dtype=np.float32)
    return Image.fromarray((below * (1 - opacity) + colours * opacity).astype("uint8"))


def image_tag(image: Image.Image, side: int, alt: str) -> str:
    return f'<img src="{_data_url(image, side)}" alt="{escape(alt)}">'


def _data_url(image: Image.Image, side: int = 512) -> str:
    """An image of at most `side` pixels as a JPEG in an address."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return images.data_url(images.encoded(small, "JPEG", quality=88), "jpeg")


def conversation_json(turns: Sequence[Turn], model: str) -> str:
    """The conversation for programs: messages, with the images as data URLs."""
    messages = []
    for turn in turns:
        messages += [
            {"role": "user", "text": turn.question, "images": list(map(_data_url, turn.images))},
            {"role": "assistant", "text": turn.answer, "stopped": turn.stopped},
        ]
    return json.dumps({"model": model, "messages": messages}, indent=2, ensure_ascii=False) + "\n"


def conversation_markdown(turns: Sequence[Turn], model: str) -> str:
    """The conversation to read, with the images at its end, where they disturb nobody who reads it as text."""
    lines, addresses = [f"# A conversation with MiniGPT-4 ({model})"], list[str]()
    for turn in turns:
        for image in turn.images:
            name = f"image {len(addresses) + 1}"
            lines.append(f"![{name}]")
            addresses.append(f"[{name}]: {_data_url(image)}")
        lines += [f"**You:** {as_markdown(turn.question)}", f"**MiniGPT-4:** {as_markdown(turn.answer)}"]
    return "\n\n".join([*lines, *addresses]) + "\n"


def conversation_page(turns: Sequence[Turn], model: str) -> str:
    """The conversation as one HTML file to send to somebody: images and websites are in it, scripts are not."""
    parts = []
    for turn in turns:
        shown = "".join(image_tag(image, 512, "image") for image in turn.images)
        page = find_page(turn.answer)
        frame = website(page, None) if page else ""
        answer = f"<h2>{escape(turn.question)}</h2><pre>{escape(turn.answer)}</pre>{frame}"
        parts.append(f"<section>{shown}{answer}</section>")
    empty = (_ASSETS / "conversation.html").read_text(encoding="utf-8")
    return empty.replace("__MODEL__", escape(model)).replace("__PARTS__", "\n".join(parts))
