import copy
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from minigpt4.errors import UserError
from minigpt4.statistics import Rate
from pocket.demo import page as report
from pocket.demo.run import run_demo, targets
from pocket.measure.survey import ABILITIES

STAGE1 = """
stage: 1
vision_qformer: {vision}
llm: {llm}
template: pocket
data: is given by the demo
output: is given by the demo
steps: 2
batch_size: 4
learning_rate: 1.0e-3
"""


@pytest.fixture(scope="module")
def demo(tiny_vision, tiny_llm, tmp_path_factory):
    """(directory, results, printed text, arguments) of a whole demo at toy size."""
    from minigpt4.minigpt4 import MiniGPT4

    directory = tmp_path_factory.mktemp("demo with a space")
    baseline, recipe, out = directory / "baseline", directory / "stage1.yaml", directory / "out"
    MiniGPT4.assemble(tiny_vision, tiny_llm, template="blip2", seed=1).save_pretrained(baseline)
    recipe.write_text(STAGE1.format(vision=json.dumps(str(tiny_vision)), llm=json.dumps(str(tiny_llm))))
    arguments = {
        "pairs": 8,
        "descriptions": 4,
        "questions": 2,
        "recipes": (str(recipe), "pocket-stage2"),
        "overrides": ["steps=2", "batch_size=4", "warmup_steps=1"],
        "baseline": baseline,
    }
    console = Console(width=80, record=True)
    results = run_demo(out, **arguments, console=console)
    return out, results, console.export_text(), arguments


def test_demo_measures_four_models_and_saves_everything(demo):
    out, results, printed, _ = demo
    assert json.loads((out / "results.json").read_text()) == results
    assert [model["key"] for model in results["models"]] == ["untrained", "stage1", "stage2", "blip2"]
    for row in results["rates"].values():
        assert row["abilities"]["total"] == 2 * len(ABILITIES)
        assert all(rate["low"] <= rate["value"] <= rate["high"] for rate in row.values())
    for question in results["questions"]:
        assert set(question["answers"]) == {"untrained", "stage1", "stage2", "blip2"}
    assert all((out / picture["file"]).is_file() for picture in results["pictures"])
    assert "wall time" in [target["name"] for target in results["targets"]]
    for text in ("stage 2", "kind and colour", "all eight", "at least 90%", "in all", "demo.html"):
        assert text in printed
    assert not [line for line in printed.splitlines() if "…" in line]


def test_demo_with_another_number_of_pictures_in_the_same_place_is_refused(demo):
    out, _, _, arguments = demo
    with pytest.raises(UserError, match=r"stage1: holds 8 pictures, and 6 are asked for; give another --out"):
        run_demo(out, **arguments | {"pairs": 6}, console=Console(quiet=True))


def test_demo_again_uses_what_is_there_and_finds_the_same(demo):
    out, results, _, arguments = demo
    before = (out / "stage2" / "alignment" / "projection.safetensors").stat().st_mtime_ns
    again = run_demo(out, **arguments, console=Console(quiet=True))
    assert again["rates"] == results["rates"]
    assert (out / "stage2" / "alignment" / "projection.safetensors").stat().st_mtime_ns == before
    assert "wall time" not in [target["name"] for target in again["targets"]]


class Nesting(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.faults, self.scripts, self.attributes = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]
        self.scripts += tag == "script"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def test_page_is_well_formed_and_needs_nothing_else(demo):
    out = demo[0]
    text = (out / "demo.html").read_text()
    page = Nesting()
    page.feed(text)
    assert (page.open, page.faults, page.scripts) == ([], [], 1)
    sources = [value for tag, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) > 2
    assert all(source.startswith("data:image/") for source in sources)
    assert text.count('class="card"') == len(demo[1]["questions"])
    assert all(alt for tag, name, alt in page.attributes if name == "alt")


def test_page_shows_what_a_model_wrote_without_running_it(demo):
    out, results, _, _ = demo
    results = copy.deepcopy(results)
    evil = '<html><script>alert("x")</script><img src=x onerror=alert(1)>"\''
    for question in results["questions"]:
        question["answers"]["stage2"]["text"] = evil
    text = report.page(results, out, {})
    page = Nesting()
    page.feed(text)
    assert (page.open, page.faults, page.scripts) == ([], [], 1)
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on")]
    frames = [attribute for attribute in page.attributes if attribute[0] == "iframe"]
    assert ("iframe", "srcdoc", evil) in frames
    assert frames.count(("iframe", "sandbox", None)) == frames.count(("iframe", "srcdoc", evil))
    assert re.search(r"Content-Security-Policy.*default-src 'none'", text, re.DOTALL)


def test_targets_are_judged():
    good = dict.fromkeys(("kind_colour", "abilities", *ABILITIES), Rate(95, 100))
    good |= {"fails_describe": Rate(2, 100), "fails_poem": Rate(0, 50)}
    weak = dict.fromkeys(ABILITIES, Rate(10, 100))
    assert all(target["met"] for target in targets(good, weak, 300, 2000))
    chance = good | {"kind_colour": Rate(89, 100), "fails_poem": Rate(2, 50), "abilities": Rate(64, 100)}
    assert all(target["met"] for target in targets(chance, weak, 300, 2000)), "within the interval"
    bad = good | {"kind_colour": Rate(80, 100), "fails_poem": Rate(8, 50), "abilities": Rate(50, 100)}
    bad |= {"poem": Rate(10, 100)}
    assert not any(target["met"] for target in targets(bad, weak, 361, 5000) if "descriptions" not in target["name"])
    assert "poem" in next(t["reached"] for t in targets(bad, weak, 1, 1) if "above the baseline" in t["name"])
