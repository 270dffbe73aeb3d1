import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reproductions import TOY, toy
from rich.console import Console

from minigpt4.errors import UserError
from minigpt4.evaluation.reproduction.plan import FULL, QUICK, arms, find_scale, jobs
from minigpt4.evaluation.reproduction.run import collect, plan, reproduce, write_page
from minigpt4.evaluation.reproduction.workshop import Workshop

SCRIPT = Path(__file__).with_name("reproductions.py")


def finished(out):
    """When each finished file of models and answers was written."""
    files = [
        *out.glob("arms/*/run/alignment/*.safetensors"),
        *out.glob("arms/*/answers-*.json"),
        *out.glob("llms/*/llm/*"),
    ]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def run(tiny_vision, tiny_llm, tmp_path_factory):
    """(workshop, page, what was finished when a first process was killed, the claims of a second run)."""
    from minigpt4.model.alignment import MiniGPT4

    directory = tmp_path_factory.mktemp("reproduction")
    baseline, out = directory / "baseline", directory / "out"
    MiniGPT4.assemble(tiny_vision, tiny_llm, template="blip2", seed=1).save_pretrained(baseline)
    process = subprocess.Popen([sys.executable, str(SCRIPT), *map(str, (out, tiny_vision, tiny_llm, baseline))])
    while len(finished(out)) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    before = finished(out)
    workshop, page = toy(out, tiny_vision, tiny_llm, baseline), out / "docs" / "results.md"
    claims = reproduce(workshop, page, "minigpt4 reproduce", Console(quiet=True))
    return workshop, page, before, claims


def test_killed_run_goes_on_and_does_nothing_again(run):
    workshop, _, before, _ = run
    assert 3 <= len(before) < len(finished(workshop.out))
    assert before.items() <= finished(workshop.out).items()
    assert plan(workshop).left == 0
    after = finished(workshop.out)
    made = []
    workshop.make = lambda *job: made.append(job)
    reproduce(workshop, run[1], "minigpt4 reproduce", Console(quiet=True))
    assert (made, finished(workshop.out)) == ([], after)


def test_page_tells_every_claim_ablation_and_picture(run):
    _, page, _, claims = run
    text = page.read_text()
    assert len(claims) == 7
    for claim in claims:
        assert f'<a id="{claim.key}"></a>' in text
        assert f"**{claim.verdict.value}**" in text
    for name in ("no Q-Former", "three layers", "Q-Former finetuned", "stage 2 only", "stage 2 on 6", "stage 1 on 50%"):
        assert f"| {name} |" in text
    assert "one seed" in text
    assert "| poem | " in text.split("which LLM skill")[1]
    pictures = re.findall(r"\]\((assets/[^)]+)\)", text)
    assert len(pictures) == 6
    assert all(0 < (page.parent / picture).stat().st_size < 100_000 for picture in pictures)
    assert not [line for line in text.splitlines() if "nan" in line]


def test_each_arm_answered_the_same_questions(run):
    workshop = run[0]
    evidence = collect(workshop)
    asked = {arm.name for arm in workshop.arms.values() if arm.asked != "none"}
    assert evidence.of.keys() == asked
    assert {evidence.rate(arm, "abilities").total for arm in asked} == {8 * TOY.questions}
    assert evidence.rate("stage 2", "scene's where").total == TOY.scenes
    assert evidence.rate("no Q-Former", "scene's where").total == 0


def test_arm_is_named_after_all_that_decides_it(run, tmp_path):
    workshop = run[0]
    stage1, stage2 = workshop.arms["stage 1"], workshop.arms["stage 2"]
    other_llm = Workshop(workshop.out, TOY, workshop.parts, {**workshop.changes, "learning_rate": 0.5})
    assert workshop.key(stage2, 0) == Workshop(workshop.out, TOY, workshop.parts, workshop.changes).key(stage2, 0)
    keys = {
        workshop.key(stage1, 0), workshop.key(stage1, 1), workshop.key(stage2, 0), other_llm.key(stage2, 0),
        workshop.key(workshop.arms["stage 2 on 6"], 0),
    }  # fmt: skip
    assert len(keys) == 5
    assert not other_llm.is_done(stage2, 0)
    assert not Workshop(tmp_path, TOY, workshop.parts).is_done(stage2, 0)  # whose data are not even drawn


def test_answers_that_were_changed_are_refused_by_name(run):
    workshop = run[0]
    arm = workshop.arms["stage 2"]
    path = next(workshop.directory(arm, 0).glob("answers-*.json"))
    whole = path.read_text()
    rows = json.loads(whole)
    try:
        for wrong, message in (
            (rows[1:], "other questions"),
            ([{"ability": "poem"}], "cannot be read"),
            (None, "read"),
        ):
            path.write_text(json.dumps(wrong) if wrong is not None else "[{")
            with pytest.raises(UserError, match=message) as error:
                workshop.records(arm, 0)
            assert str(path) in str(error.value)
    finally:
        path.write_text(whole)


def test_every_arm_begins_with_one_before_it_and_fits_the_budget():
    for scale, hours in ((FULL, 4), (QUICK, 0.25)):
        known = {"BLIP-2"}
        for arm in arms(scale):
            assert arm.start is None or arm.start in known or arm.recipe is None
            known.add(arm.name)
        names = [arm.name for arm in arms(scale)]
        assert len(set(names)) == len(names)
        assert len(jobs(scale)) == sum(len(arm.seeds or scale.seeds) for arm in arms(scale))
        assert plan(Workshop(Path("nowhere"), scale)).seconds < 3600 * hours
    assert len(FULL.seeds) == 3
    with pytest.raises(UserError, match="expected 1 to 10"):
        find_scale(quick=False, seeds=0)


def test_page_that_cannot_be_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "file").touch()
    workshop = Workshop(tmp_path / "out", TOY, run[0].parts)
    for page, message in ((tmp_path, "is a directory"), (tmp_path / "file" / "page.md", "cannot be written")):
        with pytest.raises(UserError, match=message):
            reproduce(workshop, page, "minigpt4 reproduce", Console(quiet=True))
    with pytest.raises(UserError, match="nothing of"):
        write_page(workshop, tmp_path / "page.md", "minigpt4 reproduce")
    assert not (tmp_path / "out").exists()
