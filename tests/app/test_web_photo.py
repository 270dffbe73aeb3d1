"""The page that `make web` opens, with the photo model and the one that reads drafts, in real headless Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minigpt4.shipped import photo_lacks
from pages import served

pytest.importorskip("playwright.sync_api")
from on_the_page import done, expect, the_example_becomes_its_website

pytestmark = pytest.mark.skipif(bool(photo_lacks()), reason=f"the photo model needs {photo_lacks()}")


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    with served("web", "photo", "--port", 0) as url:
        yield url


def test_a_photograph_is_talked_about_and_the_example_of_a_draft_becomes_its_website(visit: Callable[..., Any]) -> None:
    """At the settings that the page starts with."""
    tab = visit()
    tab.get_by_role("button", name="Describe it").click()
    expect(tab.locator("#chat .bot")).to_contain_text("cat")
    done(tab)
    tab.get_by_role("tab", name="Draw").click()
    the_example_becomes_its_website(tab)
    expect(tab.locator("#chat .bot")).to_have_count(2)  # of a new chat: it told the draft first
