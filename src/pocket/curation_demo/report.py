"""The report of `minigpt4 pocket curate` as Markdown, from the figures of report.json. Its prose is in report.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from minigpt4.statistics import Rate, text
from minigpt4.telling import table
from pocket.measure.survey import difference
from pocket.shipped import render


def report_text(report: Mapping[str, Any]) -> str:
    """The report as Markdown tables; per cent with 95 % Wilson intervals."""
    trainings = report["trainings"]
    models = together(trainings)
    rules = {
        kind: [
            [name, str(row["caught"]), _show(row["precision"]), _show(row["recall"])]
            for name, row in found.items()
            if row["caught"]
        ]
        for kind, found in report["filters"].items()
    }
    return render(
        "curation_demo/report.md",
        report=report,
        steps=_compare(report["steps"]),
        rules=[table([f"{kind} texts", "caught", "precision", "recall"], rows) for kind, rows in rules.items()],
        grounding=table(["", ""], [[name, _show(value)] for name, value in report["grounding"].items()]),
        limits=", ".join(f"{name} {value:g}" for name, value in report["thresholds"].items()),
        models=_compare(models),
        each=_compare(_side_by_side(trainings)),
        verdicts=compare_models(trainings),
    )


def _compare(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each measure and a column for each of `parts`."""
    measures = list(next(iter(parts.values())))
    return table(["", *parts], [[measure, *(_show(part[measure]) for part in parts.values())] for measure in measures])


def _show(value: Any) -> str:
    return text(value.to_json(), digits=1) if isinstance(value, Rate) else str(value)


def together(trainings: Sequence[Mapping[str, Mapping[str, Rate]]]) -> dict[str, dict[str, Rate]]:
    """The rates of models trained from several seeds as one: {dataset: {measure: rate}} of each, summed."""
    first, *others = trainings
    return {
        name: {measure: sum((other[name][measure] for other in others), rate) for measure, rate in rates.items()}
        for name, rates in first.items()
    }


def _side_by_side(trainings: Sequence[Mapping[str, Mapping[str, Rate]]]) -> dict[str, dict[str, str]]:
    """The shares alone, in per cent, one behind the other."""

    def shares(name: str, measure: str) -> str:
        rates = [training[name][measure] for training in trainings]
        return " / ".join(f"{100 * rate.share:.1f}" if rate.total else "–" for rate in rates)

    return {name: {measure: shares(name, measure) for measure in rates} for name, rates in trainings[0].items()}


def compare_models(trainings: Sequence[Mapping[str, Mapping[str, Rate]]]) -> list[str]:
    """Whether curation kept its promises, with the differences in points, whatever they are.

    An interval takes answers as independent, those of one training too, so every training has to agree with it.
    """
    models = together(trainings)

    def points(one: str, other: str, measure: str) -> str:
        found, low, high = (100 * share for share in difference(models[one][measure], models[other][measure]))
        sides = {(each[one][measure].share > each[other][measure].share) for each in trainings}
        equal = any(each[one][measure].share == each[other][measure].share for each in trainings)
        sure = "they differ" if len(sides) == 1 and not equal else "but not in every training"
        return f"{found:+.1f} ({low:+.1f} to {high:+.1f}), {sure if low > 0 or high < 0 else 'cannot be told apart'}"

    return [
        f"{one} against {other}, {measure}: {points(one, other, measure)}"
        for one, other in (("filtered", "raw"), ("selected", "raw"), ("selected", "filtered"))
        for measure in models[one]
        if models[one][measure].total and models[other][measure].total
    ]
