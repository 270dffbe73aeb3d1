"""CIDEr, BLEU, METEOR and ROUGE by pycocoevalcap, with and without Java."""

import shutil

import pytest

from minigpt4 import statistics
from minigpt4.evaluation.benchmarks.coverage import PLAIN, STANFORD, Coverage, caption_scores
from minigpt4.evaluation.items import Response, Verdict

ANSWERS = {"1": "A red ball\non a beach.", "2": "a cat riding a bicycle", "3": ""}
REFERENCES = {"1": ["a red ball on a beach"], "2": ["a dog playing guitar", "a cat in a street"], "3": ["a lamp"]}


def test_without_java_the_rest_is_scored_and_the_result_says_so(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (pip install 'minigpt4-vlm[eval]')")
    monkeypatch.setenv("PATH", str(tmp_path))
    each, corpus, notes = caption_scores(ANSWERS, REFERENCES)
    assert PLAIN in notes[0]
    assert "METEOR" in notes[1]
    assert "java" in notes[1]
    assert each.keys() == {"ROUGE-L", "CIDEr"}
    assert each["ROUGE-L"] == pytest.approx([1, each["ROUGE-L"][1], 0])
    assert 0 < each["ROUGE-L"][1] < 1
    assert each["CIDEr"][0] == pytest.approx(10)  # equal to its only reference, whose words nothing else has
    assert each["CIDEr"][2] == 0
    assert 0 < corpus["BLEU-4"] < corpus["BLEU-1"] < 1


def test_with_java_words_are_cut_as_published_scores_have_it_and_meteor_is_there():
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (pip install 'minigpt4-vlm[eval]')")
    if shutil.which("java") is None:
        pytest.skip("there is no java")
    each, _, notes = caption_scores({"1": "The dog isn't\u2028here, it's there.", "2": "a lamp"},
                           {"1": ["the dog isn't here it's there"], "2": ["a dog playing guitar"]})  # fmt: skip
    assert [STANFORD in note for note in notes] == [True]
    assert each["METEOR"][0] == pytest.approx(1, abs=0.01)  # the same words, once cut alike
    assert 0 <= each["METEOR"][1] < 0.2
    assert each["ROUGE-L"][0] == 1


def test_the_coverage_suite_scores_short_captions_apart_and_says_what_is_left_out(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (pip install 'minigpt4-vlm[eval]')")
    monkeypatch.setenv("PATH", str(tmp_path))
    suite = Coverage(count=3)
    responses = []
    for item in suite.load(tmp_path / "suite").items:
        text = item.truth["captions"][0] if item.task == "caption" else "Nothing to see."
        responses.append(Response(item, "m", 0, text, True))
        responses[-1].verdicts = [Verdict(False)] * len(suite.cases(responses[-1]))
    figures = {row.name: figure for row, figure in suite.table(responses)}
    assert figures["covered"].value == 0
    assert figures["BLEU-4"].value == pytest.approx(1)  # each says what one of the captions says
    assert statistics.text(figures["BLEU-4"].to_json(), "") == "1.00"  # of all answers together: no interval
    assert statistics.text(figures["ROUGE-L"].to_json(), "") == "1.00 (1.00–1.00)"
    assert figures["METEOR"].total == 0
    assert any("METEOR" in note and "java" in note for note in suite.notes)
