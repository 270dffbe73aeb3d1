"""Makes the pictures that the web page's examples start with, and the screenshots of the page in the README.

    python tools/web_pictures.py examples      # into src/minigpt4/app/page/assets
    python tools/web_pictures.py screenshots   # into docs/assets; needs Chromium

The pictures are of development seeds (not those that are measured), chosen among ten each as ones that the pocket model
answers right.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
#: Ability of the example, seed and type of its picture.
EXAMPLES = (
    ("describe", 12_400_001, "scene"),
    ("website", 12_400_130, "draft"),
    ("funny", 12_400_204, "odd"),
    ("recipe", 12_400_301, "food"),
    ("advertise", 12_400_402, "product"),
    ("poem", 12_400_503, "scene"),
    ("story", 12_400_602, "odd"),
    ("diagnose", 12_400_706, "odd"),
)


def examples() -> None:
    """Draw the examples' pictures: 256 colours and as many pixels a side, so that they weigh little."""
    from pocket.world.draw import draw
    from pocket.world.world import sample

    folder = ROOT / "src" / "minigpt4" / "app" / "page" / "assets"
    for name, seed, kind in EXAMPLES:
        picture = draw(sample(seed, kind), 256).quantize(256)
        picture.save(folder / f"{name}.png", optimize=True)


def screenshots() -> None:
    """Start the page as people do, use it in headless Chromium, and take three pictures of it."""
    folder = ROOT / "docs" / "assets"
    command = [sys.executable, "-c", "from minigpt4.cli import main; main()", "web", "pocket", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process, sync_playwright() as playwright:  # fmt: skip
        assert process.stdout is not None
        url = process.stdout.readline().split("at ")[1].split()[0]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def opened(**look: Any) -> Page:
            tab = browser.new_page(**look)
            tab.set_default_timeout(120_000)
            tab.goto(url)
            tab.wait_for_selector("#composer textarea")
            return tab

        tab = opened(viewport={"width": 1280, "height": 860})
        tab.get_by_role("button", name="Draft to website").click()
        tab.wait_for_selector("#site iframe")
        _take(tab, folder / "web-website.png")
        tab.get_by_role("button", name="New chat").click()
        tab.get_by_role("button", name="Describe it").click()
        tab.get_by_role("tab", name="Looked at").click()
        tab.locator("#words label", has_text="lamp").first.click()
        tab.wait_for_selector("#heat img")
        _take(tab, folder / "web-looked-at.png")
        phone = opened(viewport={"width": 390, "height": 780}, color_scheme="dark")
        phone.wait_for_timeout(2000)
        phone.get_by_role("button", name="A poem").click()
        phone.wait_for_selector("#chat .bot")
        phone.wait_for_selector("#composer .submit-button")
        _take(phone, folder / "web-phone.png")
        browser.close()
        process.terminate()


def _take(tab: Page, path: Path) -> None:
    tab.wait_for_timeout(2000)  # until everything has found its place
    Image.open(io.BytesIO(tab.screenshot())).quantize(192).save(path, optimize=True)


if __name__ == "__main__":
    {"examples": examples, "screenshots": screenshots}[sys.argv[1]]()
