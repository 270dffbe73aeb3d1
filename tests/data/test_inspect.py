from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from formats import FORMATS, picture, tars, text
from minigpt4.data.inspect import COLUMNS, TEXT_HEIGHT, THUMBNAIL, contact_sheet, inspect, spelling
from minigpt4.data.sources import Source
from minigpt4.errors import UserError
from minigpt4.model.parts import load_tokenizer


def test_counts_lengths_and_problems(tmp_path: Path) -> None:
    path = Path(FORMATS["jsonl"](tmp_path / "data", range(40)))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["caption"] = ""
    rows[9]["caption"] = None
    rows[20]["image"] = "pictures/19.png"
    (path.parent / "pictures" / "30.png").write_bytes(picture(30)[:40])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect(Source(str(path)))
    told = str(found)
    assert (found.pairs, found.known, len(found.words)) == (40, 40, 37)
    assert "words in a text: 3 to 3, median 3" in told
    assert "shorter side in pixels: 4 to 4" in told
    assert "images: PNG 37" in told
    assert f"problem: no caption 2, first at {path}:4: no text under caption" in told
    assert f"problem: an image that came before 1, first at {path}:21" in told
    assert re.search(rf"problem: unreadable image \([a-z ]+\) 1, first at {path}:31", told)
    assert "no problems" in str(inspect(Source(tars(tmp_path / "tars", range(9)))))


@pytest.mark.parametrize("size", [(600, 1), (1, 600)])
def test_an_image_of_one_line_is_shown(tmp_path: Path, size: tuple[int, int]) -> None:
    path = Path(FORMATS["jsonl"](tmp_path / "data", range(1)))
    Image.new("RGB", size, "black").save(path.parent / "pictures" / "0.png")
    [(image, _)] = inspect(Source(str(path))).shown
    assert image.size == (THUMBNAIL, THUMBNAIL)
    assert (np.asarray(image) < 128).all(-1).sum() == THUMBNAIL


def test_words_that_the_llm_hardly_knows_are_counted(tmp_path: Path) -> None:
    """By the pocket world's LLM: captions of its own world, and captions of photographs."""
    tokenizer = load_tokenizer("pocket/language")
    found = inspect(Source(tars(tmp_path / "tars", range(2))))
    found.vocabulary = Counter(["a", "small", "red", "ball", "lies", "to", "the", "left", "of", "a", "large", "cup"])
    assert spelling(found, tokenizer) == "words that the LLM has in three pieces or more: 0% (none)"
    found.vocabulary = Counter()  # of texts that are numbers, say
    assert spelling(found, tokenizer) == "words that the LLM has in three pieces or more: 0% (none)"
    found.vocabulary = Counter(["a", "skateboarder", "grinds", "at", "the", "skatepark", "skatepark"])
    told = spelling(found, tokenizer)
    assert re.search(r": \d\d% \(skatepark, .*skateboarder.*\); it hardly learnt from such texts", told)


def test_forms_of_stage_2(tmp_path: Path) -> None:
    path = Path(FORMATS["jsonl"](tmp_path / "data", range(6)))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["instruction"] = rows[1]["instruction"] = "What is it?"
    rows[2]["messages"] = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert inspect(Source(str(path)), stage=2).forms == {"description": 3, "instruction": 2, "conversation": 1}


def test_only_so_many_are_looked_at(tmp_path: Path) -> None:
    found = inspect(Source(tars(tmp_path / "tars", range(50))), limit=20, shown=5)
    assert (found.shards, found.pairs) == (8, 20)
    assert [words for _, words in found.shown] == [text(i) for i in (0, 4, 8, 12, 16)]


def test_the_contact_sheet_shows_pictures_and_texts(tmp_path: Path) -> None:
    found = inspect(Source(tars(tmp_path / "tars", [*range(100, 108)])), shown=8)
    found.shown[0] = (found.shown[0][0], "Wörter, 漢字 and " + "many more words " * 20)
    contact_sheet(found, tmp_path / "new" / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert sheet.shape == (2 * (THUMBNAIL + TEXT_HEIGHT), COLUMNS * THUMBNAIL, 3)
    assert tuple(sheet[THUMBNAIL // 2, THUMBNAIL // 2]) == (100, 0, 7)
    assert (sheet[THUMBNAIL : THUMBNAIL + TEXT_HEIGHT, :THUMBNAIL] < 128).any()
    assert (sheet[THUMBNAIL + TEXT_HEIGHT :, 2 * THUMBNAIL :] == 255).all()  # eight pictures, twelve places


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    path = Path(FORMATS["jsonl"](tmp_path / "data", range(3)))
    with pytest.raises(UserError, match=r"none of 3 pairs .*no caption 3, first at .*:1: no text under .alt."):
        inspect(Source(str(path), caption_key="alt"))
