"""Does a page of HTML hold exactly what a website draft shows?"""

from collections.abc import Sequence
from html.parser import HTMLParser

#: The tag that stands for each element of a draft.
_ELEMENT_OF = {
    "nav": "navigation", "img": "image", "p": "text", "ul": "list", "ol": "list", "input": "input", "button": "button",
}  # fmt: skip
#: Tags without an end tag.
_VOID = {"img", "input", "br", "hr", "meta", "link"}
#: Tags that give a page its structure and look, and add nothing that a visitor sees as an element of its own.
_STRUCTURE = {
    "html", "head", "body", "title", "h1", "header", "main", "section", "article", "div", "form", "label", "span", "li",
    "a", "b", "i", "em", "strong", "br", "hr", "meta", "link", "style",
}  # fmt: skip
#: What stands inside these is a part of them: links and lists in a navigation bar are no elements of their own.
_CONTAINERS = {"nav", "ul", "ol", "p", "button"}


class _Page(HTMLParser):
    """Collects a page's elements in order, its title and heading, and the first fault in its nesting."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.seen: set[str] = set()
        self.text = {"title": "", "h1": ""}
        self.fault: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in _ELEMENT_OF and tag not in _STRUCTURE:
            self.fault = self.fault or f"adds <{tag}>, which was not drafted"
        if tag in _ELEMENT_OF and not _CONTAINERS & set(self.open):
            kind = dict(attrs).get("type") if tag == "input" else None
            self.elements.append("button" if kind in ("submit", "button") else _ELEMENT_OF[tag])
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            self.fault = self.fault or f"closes <{tag}>, which has no end tag"
        elif not self.open or self.open[-1] != tag:
            self.fault = self.fault or f"closes <{tag}> inside <{self.open[-1] if self.open else 'nothing'}>"
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.text:
            self.text[self.open[-1]] += data


def check_page(text: str, title: str, elements: Sequence[str]) -> str | None:
    """What is wrong with the HTML in `text`, or None: it must be well formed, carry `title` as title and as heading,
    and hold exactly `elements` (names of `world.ELEMENTS`) in that order.

    Prose or a code fence around the page is passed over.
    """
    start, end = text.find("<"), text.rfind(">")
    if start < 0 or end < start:
        return "holds no HTML"
    page = _Page()
    page.feed(text[start : end + 1])
    page.close()
    if page.fault:
        return page.fault
    if page.open:
        return f"never closes <{page.open[-1]}>"
    if not {"html", "body"} <= page.seen:
        return "is not a whole page: no <html> or no <body>"
    for tag, said in page.text.items():
        if said.strip().casefold() != title.casefold():
            return f"has {said.strip()!r} as <{tag}>, not {title!r}"
    if page.elements != list(elements):
        return f"holds {', '.join(page.elements) or 'nothing'}, not {', '.join(elements)}"
    return None
