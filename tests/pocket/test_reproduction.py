import json
import multiprocessing
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from reproductions import TOY, toy
from rich.console import Console

from minigpt4.errors import UserError
from minigpt4.files import only_process
from pocket.measure.survey import ABILITIES
from pocket.reproduce.artifacts import Workshop
from pocket.reproduce.claims import read_claims
from pocket.reproduce.experiments import FULL, QUICK, SKILLS, ablated, arms, find_scale, jobs
from pocket.reproduce.run import ablations, collect, make_all, plan, reproduce, write
from pocket.text.conversations import conversation

SCRIPT = Path(__file__).with_name("reproductions.py")


def finished(out):
    """When each finished file of models and answers was written."""
    files = [
        *out.glob("arms/*/run/alignment/*.safetensors"),
        *out.glob("arms/*/answers-*.json"),
        *out.glob("llms/*/llm/*"),
    ]
    return {path: path.stat().st_mtime_ns for path in files}


def start(*places, processes):
    """A command of its own that makes the toy reproduction."""
    command = [sys.executable, str(SCRIPT), *map(str, places), str(processes)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def run(tiny_vision, tiny_llm, tmp_path_factory):
    """(workshop, page, what was finished when a first command was killed, the outcomes of a second run).

    The first command had one process for arms, the second has two.
    """
    from minigpt4.minigpt4 import MiniGPT4

    directory = tmp_path_factory.mktemp("reproduction")
    baseline, out = directory / "baseline", directory / "out"
    MiniGPT4.assemble(tiny_vision, tiny_llm, template="blip2", seed=1).save_pretrained(baseline)
    process = start(out, tiny_vision, tiny_llm, baseline, processes=1)
    while len(finished(out)) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    before = finished(out)
    workshop, page = toy(out, tiny_vision, tiny_llm, baseline), out / "docs" / "results.md"
    outcomes = reproduce(workshop, page, "minigpt4 pocket reproduce", Console(quiet=True), processes=2)
    return workshop, page, before, outcomes


def test_killed_run_goes_on_and_does_nothing_again(run):
    workshop, _, before, _ = run
    assert 3 <= len(before) < len(finished(workshop.out))
    assert before.items() <= finished(workshop.out).items()
    assert all(workshop.is_done(*job) for job in jobs(TOY))
    after = finished(workshop.out)
    reproduce(workshop, run[1], "minigpt4 pocket reproduce", Console(quiet=True))
    assert finished(workshop.out) == after


def test_page_tells_how_it_was_made_from_what_was_noted_meanwhile(run):
    workshop, page, _, _ = run
    notes = workshop.notes()
    # A kill right after an arm's answers may come before its note.
    assert len(jobs(TOY)) - 1 <= len(notes) <= len(jobs(TOY))
    assert all(note["seconds"] > 0 for note in notes)
    minutes = sum(note["seconds"] for note in notes) / 60
    assert (
        f"took {minutes:.0f} minutes of processor time, one thread each, on {notes[0]['machine']}" in page.read_text()
    )


def test_what_is_written_by_hand_stays_in_the_page(run, tmp_path):
    workshop, page = run[0], tmp_path / "page.md"
    write(workshop, page, "minigpt4 pocket reproduce")
    mark = "<!-- by hand: coverage -->\n"
    page.write_text(page.read_text().replace(mark, f"{mark}Ours | theirs.\n"))
    before = page.read_text()
    assert before.count("Ours | theirs.") == 1
    write(workshop, page, "minigpt4 pocket reproduce")
    assert page.read_text() == before


def test_page_tells_every_claim_ablation_and_picture(run):
    _, page, _, outcomes = run
    text = page.read_text()
    assert len(outcomes) == 7
    for claim in read_claims(TOY.world):
        assert f'<a id="{claim.key}"></a>\n## {claim.title}: {outcomes[claim.key].value}\n' in text
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


def test_every_arm_begins_with_one_before_it():
    for scale in (FULL, QUICK):
        known = {"BLIP-2"}
        for arm in arms(scale):
            assert arm.start is None or arm.start in known or arm.recipe is None
            known.add(arm.name)
        names = [arm.name for arm in arms(scale)]
        assert len(set(names)) == len(names)
        assert len(jobs(scale)) == sum(len(arm.seeds or scale.seeds) for arm in arms(scale))
        assert len(plan(Workshop(Path("nowhere"), scale)).splitlines()) == 1 + len(names)
    assert len(FULL.seeds) == 3
    with pytest.raises(UserError, match="expected 1 to 10"):
        find_scale(quick=False, seeds=0)


def test_page_that_cannot_be_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "file").touch()
    workshop = Workshop(tmp_path / "out", TOY, run[0].parts)
    for page, message in ((tmp_path, "is a directory"), (tmp_path / "file" / "page.md", "cannot be written")):
        with pytest.raises(UserError, match=message):
            reproduce(workshop, page, "minigpt4 pocket reproduce", Console(quiet=True))
    with pytest.raises(UserError, match="nothing of"):
        write(workshop, tmp_path / "page.md", "minigpt4 pocket reproduce")
    assert not (tmp_path / "out").exists()


def test_ablations_are_the_same_models_and_write_what_a_suite_writes(run, tmp_path):
    workshop = Workshop(run[0].out, replace(TOY, skills=()), run[0].parts, run[0].changes)
    before = finished(workshop.out)
    directory = ablations(workshop, tmp_path, "minigpt4 pocket ablations", Console(quiet=True))
    assert directory == tmp_path / "ablations"
    assert finished(workshop.out) == before
    results, table = json.loads((directory / "results.json").read_text()), (directory / "results.md").read_text()
    names = ablated(TOY)
    assert [model["label"] for model in results["models"]] == names
    row = next(row for row in results["rows"] if row["name"] == "abilities")
    rights = dict.fromkeys(names, 0)
    for answer in results["answers"]:
        rights[answer["model"]] += answer["task"] in ABILITIES and answer["success"]
    assert {name: figure["successes"] for name, figure in row["figures"].items()} == rights
    assert {name: figure["total"] for name, figure in row["figures"].items()} == dict.fromkeys(names, 8)
    assert all(f"| {name} |" in table for name in names)
    assert "Some of them were made by `minigpt4 pocket reproduce`" in table
    assert (directory / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("command", [["reproduce"], ["eval", "ablations"]])
def test_plan_is_told_at_the_command_line(command, tmp_path):
    place = "--arms" if "ablations" in command else "--out"
    told = subprocess.run(
        [sys.executable, "-m", "minigpt4", *command, "--plan", place, str(tmp_path), "--processes", "2"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.search(r"(?m)^stage 1 on 10%, then stage 2 +3 +150 +400 +0$", told)
    assert ("stage 1 on 30%" in told, "the beginner without poem" in told) == (len(command) == 1,) * 2


@pytest.fixture
def few(run, tmp_path):
    """A workshop like the toy's with three arms only, in a directory of its own."""
    scale = replace(TOY, skills=(), stage1_shares=(), stage2_sets=())
    workshop = Workshop(tmp_path / "out", scale, run[0].parts, run[0].changes)
    workshop.arms = {name: workshop.arms[name] for name in ("BLIP-2", "stage 1", "stage 2")}
    return workshop


def test_one_process_and_two_make_the_same(run, few):
    """The module's run made these arms in two processes, this makes them in one."""
    wanted = [(arm, 0) for arm in few.arms.values()]
    few.out.mkdir()
    make_all(few, wanted, 1, "a test", Console(quiet=True))
    for arm, seed in wanted:
        one, two = few.directory(arm, seed), run[0].directory(arm, seed)
        assert one.name == two.name
        made = [path for pattern in ("answers-*.json", "run/alignment/*.safetensors") for path in two.glob(pattern)]
        assert made
        for path in made:
            assert (one / path.relative_to(two)).read_bytes() == path.read_bytes()


def test_process_that_is_killed_ends_the_command_in_one_line_and_the_rest_is_kept(few):
    few.out.mkdir()
    wanted = [(arm, 0) for arm in few.arms.values()]

    class Killing(Console):
        def print(self, *texts, **_):
            if "stage 1" in texts[0]:
                for child in multiprocessing.active_children():
                    child.kill()

    with pytest.raises(UserError, match=r"stage 2, seed 0: a process was killed .*the same command goes on"):
        make_all(few, wanted, 1, "a test", Killing())
    assert [few.is_done(*job) for job in wanted] == [True, True, False]
    assert not multiprocessing.active_children()


def test_first_lessons_have_none_of_the_skills_and_are_shared(run):
    workshop = run[0]
    assert {path.name.rsplit("-", 1)[0] for path in workshop.out.glob("llms/*")} == {"no-skills", "all-skills", "poem"}
    asked = {text for seed in range(2000) for text, _ in conversation(seed, "", frozenset(SKILLS))}
    assert any("Describe" in text for text in asked)
    assert not [text for text in asked if re.search(r"(?i)poem|advert|how many|<html", text)]


def test_second_command_in_a_directory_is_refused(run, tmp_path):
    workshop = Workshop(tmp_path, TOY, run[0].parts, run[0].changes)
    with only_process(tmp_path, "arms"), pytest.raises(UserError, match="is at work on arms here"):
        reproduce(workshop, tmp_path / "page.md", "minigpt4 pocket reproduce", Console(quiet=True))
    assert not (tmp_path / "arms").exists()
