"""What a judge is worth: labelled cases put to it twice, and how often it is right and says the same again.

The labelled cases are few and made for the purpose; each prompt ships with its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.items import Item, field_of
from minigpt4.evaluation.journal import Journal
from minigpt4.evaluation.judges import Case, LLMJudge, Response, shipped
from minigpt4.evaluation.run import decide
from minigpt4.files import only_process, write_atomically
from minigpt4.statistics import Rate, cohen_kappa


def read_labelled(path: Path) -> list[tuple[Case, bool]]:
    """Cases with their right verdicts from a YAML file: a list of mappings `fields` and `success`.

    A case may name its image: a file beside the YAML.

    Raises UserError for a record that is wrong: a measure of the judge must not lose cases.
    """
    document = read_document(path)
    if not isinstance(document, list) or not document:
        raise UserError(f"{path}: holds no labelled cases; a list of mappings with 'fields' and 'success' was expected")
    found = []
    for number, record in enumerate(document, start=1):
        try:
            fields = field_of(record, "fields", dict)
            success = field_of(record, "success", bool)
            image = path.parent / field_of(record, "image", str, "")
        except ValueError as error:
            raise UserError(f"{path}: case {number}: {error}") from None
        item = Item(f"case-{number}", image, str(fields.get("question", "")))
        answer = Response(item, "labelled", 0, str(fields.get("answer", "")), True)
        found.append((Case(answer, {str(key): str(value) for key, value in fields.items()}), success))
    return found


def measure_judge(judge: LLMJudge, directory: Path, labelled: Path | None = None) -> list[str]:
    """Put the labelled cases to `judge` twice, write `directory/judge.json`, and say in lines what came of it.

    What was asked before, with this judge and this version of the prompt, is not asked again.
    """
    path = labelled or shipped(f"{judge.prompt.name.removesuffix('-seen')}.labelled")
    cases = read_labelled(path)
    directory.mkdir(parents=True, exist_ok=True)
    with only_process(directory, "eval"), Journal(directory / "verdicts.jsonl") as journal:
        first, second = (decide(judge, [case for case, _ in cases], journal, round) for round in (0, 1))
    truth = [success for _, success in cases]
    said = [verdict.success for verdict in first]
    decided = [(a, b) for a, b in zip(said, truth, strict=True) if a is not None]
    wrong = [i for i, (a, b) in enumerate(zip(said, truth, strict=True), start=1) if a is not None and a != b]
    right = Rate.from_outcomes([a == b for a, b in zip(said, truth, strict=True)])
    lenient = Rate.from_outcomes([a is True for a, b in zip(said, truth, strict=True) if not b])
    strict = Rate.from_outcomes([a is not True for a, b in zip(said, truth, strict=True) if b])
    again = Rate.from_outcomes([a.success == b.success for a, b in zip(first, second, strict=True)])
    kappa = cohen_kappa(decided)
    results = {
        "judge": judge.identity, "cases": len(cases), "right": right.share, "interval": right.interval, "kappa": kappa,
        "undecided": said.count(None), "accepts what fails": lenient.share, "refuses what succeeds": strict.share,
        "agrees with itself": again.share, "wrong cases": wrong,
        "verdicts": [{"truth": t, **verdict.to_json()} for t, verdict in zip(truth, first, strict=True)],
    }  # fmt: skip
    write_atomically(directory / "judge.json", json.dumps(results, indent=1).encode())
    return [
        f"right: {right} of {len(cases)} labelled cases" + ("" if kappa is None else f", kappa {kappa:.2f}"),
        f"accepts what fails: {lenient}",
        f"refuses what succeeds: {strict}",
        f"undecided: {said.count(None)}",
        f"says the same when asked again: {again}",
        *([f"wrong on cases {', '.join(map(str, wrong))} of {path}"] if wrong else []),
        f"every verdict: {directory / 'judge.json'}",
    ]
