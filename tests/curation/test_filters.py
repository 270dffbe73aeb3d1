from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from curating import TEXTS, add_texts, assert_one_line, run
from minigpt4.curation import filters, language
from minigpt4.curation.filters import DEFAULTS, caught_by, difference_hash, filter_items, load_thresholds, measure_all
from minigpt4.curation.ledger import Ledger
from minigpt4.errors import UserError
from minigpt4.text_failures import words

GOOD = "The picture shows a red ball in a meadow. A large green tree stands on the right, and the sky is mild."


def caught(tmp_path: Path, pictures: Path, text: str) -> list[str]:
    with Ledger(tmp_path / "one", create=True) as ledger:
        add_texts(ledger, pictures, (text,))
        filter_items(ledger, DEFAULTS)
        [item] = ledger.items()
        assert item.verdict is not None
        return list(item.verdict.data["caught"])


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        (GOOD, []),
        ("The image shows two cats.\n“They” are asleep on a wide, sunny window sill beside three pots.", []),
        ("I can see a dog that says sorry with its eyes, near an old man at the market.", []),
        ("A red ball.", ["too_short"]),
        (" ".join(f"There is a cup number {i} at the place {i}." for i in range(60)), ["too_long"]),
        ("The picture shows a red ball in a meadow. A large green tree stands on the", ["unfinished"]),
        (GOOD + " and blue cup. The sky is wide.", ["fragments"]),
        (GOOD + "\nSteps:\n1. Bake it.", ["fragments"]),
        (GOOD + " The picture shows a red ball in a meadow.", ["repeated_sentences"]),
        ("There is a tree and a ball and a tree and a ball and a tree and a ball and a tree.", ["repeated_ngrams"]),
        ("I'm sorry, I made a mistake: the picture shows a red ball in a green meadow.", ["apology"]),
        ("I apologize for the confusion, the picture shows a red ball in a meadow.", ["apology"]),
        ("As an AI, I can see a red ball in a green meadow. It is on the left.", ["assistant_talk"]),
        ("Here is the corrected text: a red ball lies in the meadow, and a tree is there.", ["assistant_talk"]),
        ("Das Bild zeigt einen roten Ball auf einer grünen Wiese neben einem großen Baum.", ["non_english"]),
        ("На картинке красный мяч лежит на зелёной траве рядом с большим деревом.", ["non_english"]),
        ("The picture shows <b>a red ball</b> in a meadow, and ### what is on the left.", ["markup"]),
        ("The picture shows a red ball in a meadow, see https://example.org for more of it.", ["markup"]),
    ],
)
def test_each_rule_catches_its_own(tmp_path: Path, pictures: Path, text: str, rules: list[str]) -> None:
    found = caught(tmp_path, pictures, text)
    assert set(rules) <= set(found)
    # Foreign letters also read as no words, and a sentence that comes twice as words that do.
    allowed = {
        "non_english": {"unfinished"}, "repeated_sentences": {"repeated_ngrams"}, "unfinished": {"fragments"},
    }  # fmt: skip
    assert set(found) - set(rules) <= set().union(*(allowed.get(rule, set()) for rule in rules))


def test_sentences_cover_the_text() -> None:
    text = 'It is 3 p.m. now! "A cat," she said… Then\n- a list\n\n...'
    for start, end in language.sentences(text):
        assert words(text[start:end])
        assert text[start:end] == text[start:end].strip()
    plain = "One ball. Two cups at 3.5 cm? No"
    assert [plain[start:end] for start, end in language.sentences(plain)] == ["One ball.", "Two cups at 3.5 cm?", "No"]
    assert language.sentences("...") == []


def test_similarity_forgives_what_a_refiner_should_do() -> None:
    raw = "A red ball is on the left. A red ball is on the left. A red ball is on the"
    assert language.similarity(raw, "A red ball is on the left.") == 1
    assert language.similarity(raw, "Once upon a time, three wolves ate grandmother.") < 0.3
    assert language.similarity("", "") == 1


def photo(seed: int) -> Image.Image:
    """Smooth shapes, as photos have and noise has not."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 120), tuple(rng.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, size = (int(value) for value in rng.integers(0, 100, 3))
        draw.ellipse((x, y, x + size, y + size), tuple(rng.integers(0, 255, 3).tolist()))
    return image


def test_duplicates_are_found_though_they_are_scaled_and_recompressed(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        photo(number).save(folder / f"{number}.png")
    photo(2).resize((97, 71), Image.Resampling.LANCZOS).save(folder / "5.png")
    buffer = io.BytesIO()
    photo(3).save(buffer, "JPEG", quality=60)
    Image.open(io.BytesIO(buffer.getvalue())).save(folder / "6.png")
    with Ledger(tmp_path / "p", create=True) as ledger:
        add_texts(ledger, folder, (*TEXTS[:6], TEXTS[0].upper()))
        found = filter_items(ledger, {**DEFAULTS, "ungrounded_text": 0.5})
        assert found["kept"] == 5
        verdicts = {item.image.name: item.verdict.data["caught"] for item in ledger.items() if item.verdict}
    assert [name for name, rules in verdicts.items() if "duplicate_picture" in rules] == ["5", "6"]
    assert verdicts["6"] == ["duplicate_picture", "duplicate_text"]
    assert verdicts["0"] == []  # the first of its sort stays; and without grounding its rules rest


def test_different_pictures_are_far_apart() -> None:
    hashes = np.stack([difference_hash(photo(seed)) for seed in range(40)])
    distances = [int(np.bitwise_count(a ^ b).sum()) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 6 * DEFAULTS["duplicate_picture"]  # type: ignore[operator]


def test_filtering_again_changes_nothing_and_new_thresholds_change_what_they_touch(project: Path) -> None:
    with Ledger(project) as ledger:
        first = filter_items(ledger, DEFAULTS)
        assert (first["kept"], first["changed"]) == (12, 12)
        assert filter_items(ledger, DEFAULTS)["changed"] == 0
        strict = {**DEFAULTS, "too_short": 1000}
        assert filter_items(ledger, strict, only=["4"]) | {"caught": 0} == {"kept": 0, "caught": 0, "changed": 1}
        assert filter_items(ledger, strict)["caught"]["too_short"] == 12
        assert filter_items(ledger, {**strict, "too_short": None})["kept"] == 12
        assert len([event for event in ledger.events("filter") if event.image == "4"]) == 3


def test_rules_from_a_file(tmp_path: Path, project: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("too_short: 20\nmarkup: null\n")
    thresholds = load_thresholds(file)
    assert (thresholds["too_short"], thresholds["markup"], thresholds["too_long"]) == (20, None, 300)
    result = run("filter", project, "--rules", file)
    assert result.returncode == 0, result.stderr
    assert "too_short: 12" in result.stdout.splitlines()
    assert "kept: 0" in result.stdout.splitlines()
    assert not any(line.endswith(": 0") for line in result.stdout.splitlines() if not line.startswith("kept"))
    for step in (["filter", project, "--rules", file], ["select", project, "--best", 3], ["review", project],
                 ["export", project, "--out", tmp_path / "out"]):  # fmt: skip
        said = run(*step)
        assert "of 12 texts 0 are kept; caught by rules: too_short 12; " in said.stdout + said.stderr, step
    for text, says in (
        ("too_shart: 3", "did you mean 'too_short'"),
        ("too_short: many", "expected a number"),
        ("too_short: true", "expected a number"),
        ("- 3", "lines"),
        ("a: [", "YAML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            load_thresholds(file)
    assert_one_line(run("filter", project, "--rules", tmp_path / "none.yaml"), "none.yaml")


def test_what_is_not_measured_is_not_caught() -> None:
    values: dict[str, float | None] = dict.fromkeys(DEFAULTS)
    assert caught_by(values, DEFAULTS) == []
    assert measure_all([], {}) == []


def test_stats_show_texts_on_both_sides(tmp_path: Path, project: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("too_short: 17.5\nmarkup: null\n")
    out = tmp_path / "stats"
    result = run("stats", project, "--out", out, "--rules", rules)
    assert result.returncode == 0, result.stderr
    assert "described: 12" in result.stdout.splitlines()
    page = (out / "stats.md").read_text()
    section = page.partition("## too_short")[2].partition("##")[0]
    assert "Just caught" in section or "Just kept" in section
    assert TEXTS[0] in section
    assert "Switched off." in page.partition("## markup")[2].partition("##")[0]
    assert Image.open(out / "stats.png").width > 800
    assert load_thresholds(out / "rules.yaml") == load_thresholds(rules)
    assert all(f"## {rule.name}" in page for rule in filters.RULES)
