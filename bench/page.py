"""How soon the page is there: `minigpt4 web` in a process of its own, seen from real headless Chromium.

    python bench/page.py

Each visit has a browser profile of its own, so nothing is in its cache. First paint is the browser's own
`first-contentful-paint`; "usable" is when a question can be typed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time

from playwright.sync_api import sync_playwright

VISITS = 7
COMMAND = [sys.executable, "-c", "from minigpt4.cli import main; main()", "web", "--port", "0"]
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("needs Chromium (apt-get install chromium)")
    started = time.perf_counter()
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as server, sync_playwright() as playwright:  # fmt: skip
        assert server.stdout is not None
        url = server.stdout.readline().split("at ")[1].split()[0]
        print(f"served after {time.perf_counter() - started:.1f} s")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        paints, usable = [], []
        for _ in range(VISITS):
            with browser.new_context() as context:
                tab = context.new_page()
                begun = time.perf_counter()
                tab.goto(url)
                tab.wait_for_selector("#composer textarea", timeout=120_000)
                usable.append(time.perf_counter() - begun)
                paints.append(tab.evaluate(PAINT))
        for name, seconds in (("first paint", paints), ("usable", usable)):
            print(f"{name}: {statistics.median(seconds):.2f} s (median of {VISITS}; best {min(seconds):.2f})")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
