"""The demo's measurements, each against texts whose truth is plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from minigpt4.curation.ledger import Ledger
from minigpt4.endpoint import Endpoint
from minigpt4.errors import UserError
from minigpt4.statistics import Rate
from pocket.curation_demo import refiner as mender
from pocket.curation_demo import run as demo
from pocket.curation_demo.measures import truth_of
from pocket.curation_demo.report import compare_models, report_text
from pocket.measure.truth import statements
from pocket.text.phrases import description
from pocket.world import world

BALL = world.Thing("ball", "red", "large", "left")
CUP = world.Thing("cup", "blue", "small", "top-right")
SCENE = world.Picture("scene", "beach", (BALL, CUP), 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A large red ball is on the left.", (4, 0)),
        ("A large green ball is on the right.", (2, 2)),
        ("There is a small blue cup at the top-right and a small white boat in the centre.", (4, 4)),
        ("The picture shows a beach scene with two objects.", (2, 0)),
        ("The picture shows a desert scene with three objects.", (0, 2)),
        ("The picture is a product photo of a red ball.", (2, 1)),
        ("It looks fresh and tasty.", (0, 0)),
    ],
)
def test_statements_are_judged_one_by_one(text: str, expected: tuple[int, int]) -> None:
    assert statements(SCENE, text) == expected


def test_true_descriptions_hold_nothing_false_and_nothing_broken() -> None:
    import random

    for seed in range(demo.CURATED, demo.CURATED + 300):
        picture = world.sample(seed)
        truth = truth_of(picture, description(picture, random.Random(seed)))
        assert truth.true > 1
        assert not truth.bad


def test_seeds_are_of_their_ranges_and_apart() -> None:
    ranges = {name: range(first, first + count) for name, (first, count) in world.SEEDS.items()}
    assert demo.CURATED in ranges["stage2"]
    assert demo.DEVELOPMENT in ranges["development"]
    assert demo.MEASURED in ranges["evaluation"]


@pytest.mark.parametrize(
    ("raw", "mended"),
    [
        ("A red ball is on the left.", "A red ball is on the left."),
        ("A red ball is on the left. A red ball is on the left. and And so", "A red ball is on the left."),
        ("The dish has corn. , corn and egg\nSteps:\n1. Bake it.", "The dish has corn."),
        ("<b>There is a cup.</b>\nThere is a", "There is a cup."),
        ("nothing to be saved here", "nothing to be saved here"),
    ],
)
def test_the_mender_sees_words_and_mends_them(raw: str, mended: str) -> None:
    assert mender.mend(raw) == mended


def test_the_mender_is_a_server_in_a_process_of_its_own() -> None:
    with demo.mender() as endpoint:
        assert isinstance(endpoint, Endpoint)
        talk = [{"role": "system", "content": "Mend."}, {"role": "user", "content": "There is a cup. There is a cup."}]
        assert endpoint.ask(talk, max_tokens=10, temperature=0).text == "There is a cup."


def test_the_report_is_tables_that_can_be_pasted() -> None:
    half, better = Rate(20, 40), Rate(39, 40)
    training = {name: {"failures": half} for name in ("raw", "filtered")} | {"selected": {"failures": better}}
    report = {
        "settings": {"questions": 40},
        "steps": {"raw": {"texts": 40, "broken": half}, "refined": {"texts": 40, "broken": better}},
        "filters": {
            "raw": {
                "too_short": {"caught": 2, "precision": half, "recall": half},
                "too_long": {"caught": 0, "precision": Rate(0, 0), "recall": half},
            }
        },
        "grounding": {"sentences": 9, "precision": Rate(0, 0)},
        "thresholds": {"ungrounded_text": 0.25},
        "trainings": [training, {**training, "raw": {"failures": Rate(22, 40)}}],
        "seconds": {"in all": 61.4},
    }
    text = report_text(report)
    assert "|  | raw | refined |\n| --- | --- | --- |\n| texts | 40 | 40 |\n" in text
    assert "| broken | 50.0 (35.2–64.8) | 97.5 (87.1–99.6) |" in text
    assert "| too_short | 2 |" in text
    assert "too_long" not in text
    assert "| failures | 52.5 (41.7–63.1) | 50.0 (39.3–60.7) | 97.5 (91.3–99.3) |" in text, "both trainings together"
    assert "| failures | 50.0 / 55.0 | 50.0 / 50.0 | 97.5 / 97.5 |" in text
    assert "- filtered against raw, failures: -2.5 (-17.5 to +12.7), cannot be told apart" in text
    assert "- selected against filtered, failures: +47.5 (+35.1 to +58.4), they differ" in text
    assert "61 s in all" in text


def test_a_small_demo_from_end_to_end(tmp_path: Path) -> None:
    """The shipped model on a few pictures; run again, it finds everything done and reports the same."""
    small = {"pictures": 12, "questions": 3, "trainings": 2, "overrides": ["steps=2", "batch_size=2", "warmup_steps=1"]}
    console = Console(quiet=True)
    report = demo.run_curation(tmp_path / "demo", **small, console=console)  # type: ignore[arg-type]
    assert (tmp_path / "demo" / "report.md").read_text() == report
    measured = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert list(measured["steps"]) == ["raw", "refined", "filtered", "selected"]
    assert [list(training) for training in measured["trainings"]] == [
        ["stage 1", "raw", "refined", "filtered", "selected"]
    ] * 2
    each = [training["raw"]["failures"] for training in measured["trainings"]]
    assert [rate["total"] for rate in each] == [3, 3]
    assert measured["steps"]["raw"]["texts"] == 12
    assert measured["steps"]["refined"]["broken"]["value"] <= measured["steps"]["raw"]["broken"]["value"]
    with Ledger(tmp_path / "demo" / "set") as ledger:
        before = ledger.events()
        assert [event.step for event in before].count("describe") == 12
    again = demo.run_curation(tmp_path / "demo", **small, console=console)  # type: ignore[arg-type]
    assert again.rpartition("\n- ")[0] == report.rpartition("\n- ")[0]
    with pytest.raises(UserError, match="12 pictures of another run"):
        demo.draw_folder(tmp_path / "demo" / "pictures", demo.CURATED, 13)


def test_a_difference_counts_where_every_training_shows_it() -> None:
    def training(raw: int, filtered: int) -> dict[str, dict[str, Rate]]:
        return {name: {"failures": Rate(n, 150)} for name, n in (("raw", raw), ("filtered", filtered), ("selected", 0))}

    def told(*trainings: dict[str, dict[str, Rate]]) -> str:
        return next(line for line in compare_models(trainings) if line.startswith("filtered against raw"))

    assert told(training(21, 0), training(0, 0), training(7, 0)).endswith("-4.2), but not in every training")
    assert told(training(21, 1), training(9, 0), training(7, 0)).endswith("they differ")
