"""Makes the screenshot of the rating page in evaluation.md: a poem of the pocket model beside the baseline's caption.

minigpt4 eval abilities pocket pocket-stage1 pocket-blip2 --out runs/eval
python tools/rating_picture.py runs/eval/abilities      # into docs/assets; needs Chromium
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

TASK = "poem"


def main(directory: Path) -> None:
    """Serve the page for a copy of the results with a poem only, and take a picture of it."""
    with tempfile.TemporaryDirectory() as name:
        results = json.loads((directory / "results.json").read_text())
        results["answers"] = [row for row in results["answers"] if row["task"] == TASK]
        (Path(name) / "results.json").write_text(json.dumps(results))
        command = [sys.executable, "-c", "from minigpt4.cli import main; main()", "eval", "rate", name, "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        ) as process, sync_playwright() as playwright:  # fmt: skip
            assert process.stdout is not None
            url = process.stdout.readline().split("at ")[1].split()[0]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1100, "height": 760})
            tab.goto(url)
            tab.fill("#name", "Ann")
            tab.get_by_role("button", name="Start").click()
            tab.locator("#picture").evaluate("image => image.decode()")
            shot = Image.open(io.BytesIO(tab.screenshot())).quantize(192)
            shot.save(Path(__file__).parents[1] / "docs" / "assets" / "eval-rating.png", optimize=True)
            browser.close()
            process.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
