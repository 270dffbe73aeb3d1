"""The second step (paper, 3.2): an LLM mends each text without its image; a refusal or drift leaves the raw text."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from minigpt4.curation.language import APOLOGIES, ASSISTANT_TALK, PHRASES, similarity
from minigpt4.curation.ledger import Description, Ledger
from minigpt4.endpoint import Endpoint, Reply, Unanswered, estimate_tokens
from minigpt4.progress import progress_bar

INSTRUCTION: str = PHRASES["refine"]
TEMPERATURE = 0.0


def rejection(raw: str, reply: Reply, min_similarity: float) -> str | None:
    """Why an answer is not taken for the text that was asked for, or None. Faults of the raw text do not count."""
    if not reply.ended:
        return "cut off"
    for pattern, reason in ((APOLOGIES, "refusal or apology"), (ASSISTANT_TALK, "assistant talk")):
        if len(pattern.findall(reply.text)) > len(pattern.findall(raw)):
            return reason
    return "drift" if similarity(raw, reply.text) < min_similarity else None


def estimate(items: Sequence[Description]) -> dict[str, int]:
    """What refining these costs at most: requests and tokens. An answer is taken to be as long as its text."""
    texts = sum(estimate_tokens(item.raw.data["text"]) for item in items)
    prompts = texts + len(items) * estimate_tokens(INSTRUCTION)
    return {"requests": len(items), "prompt tokens": prompts, "answer tokens": texts}


def _judge_again(ledger: Ledger, settings: str, items: Sequence[Description], min_similarity: float) -> int:
    """Judge recorded answers by another `min_similarity`, without asking again; returns how many verdicts changed."""
    rows, answered = [], {event.source: event for event in ledger.events("refine") if event.settings == settings}
    for item in items:
        if (event := answered.get(item.raw.seq)) is None or item.refined is None:
            continue
        reply = Reply(event.data["text"], event.data["ended"], 0, 0)
        reason = rejection(item.raw.data["text"], reply, min_similarity)
        if reason != event.data["reason"] or event.seq != item.refined.seq:  # another model answered since
            data = {**event.data, "accepted": reason is None, "reason": reason, "tokens": 0}
            rows.append((item.key, item.raw.seq, data))
    return ledger.add("refine", settings, rows, ledger.next_turn("refine"))


def refine(
    ledger: Ledger,
    endpoint: Endpoint,
    *,
    min_similarity: float = 0.6,
    only: Iterable[str] = (),
    concurrency: int = 4,
    budget: int | None = None,
    dry_run: bool = False,
) -> dict[str, int]:
    """Refine every text that has not been, for up to `budget` tokens in all; returns counts. Raises as `ask_each`."""
    with ledger.lock("refine"):
        # What an answer depends on: not on where the endpoint stands, nor on how its answers are judged.
        value = {"model": endpoint.model, "instruction": INSTRUCTION, "temperature": TEMPERATURE}
        settings, items = ledger.settings("refine", value), ledger.items(only)
        done = {event.source for event in ledger.events("refine") if event.settings == settings}
        todo = [item for item in items if item.raw.seq not in done and item.raw.data["text"].strip()]
        if dry_run:
            return estimate(todo)
        judged_again = _judge_again(ledger, settings, items, min_similarity)
        turn = ledger.next_turn("refine-failed")
        spent = sum(event.data["tokens"] for event in ledger.events("refine", "refine-failed"))
        left = math.inf if budget is None else budget - spent
        costs = (estimate([item]) for item in todo)
        sums = itertools.accumulate(cost["prompt tokens"] + cost["answer tokens"] for cost in costs)
        afforded = [item for item, cost in zip(todo, sums, strict=True) if cost <= left]
        counts: Counter[str] = Counter()
        total = 0

        def work(item: Description) -> Reply:
            raw = item.raw.data["text"]
            talk = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": raw}]
            name, limit = f"{settings}-{item.raw.seq}", 2 * estimate_tokens(raw) + 64
            return endpoint.ask(talk, max_tokens=limit, temperature=TEMPERATURE, name=name)

        def record(item: Description, found: Reply | Unanswered) -> bool:
            nonlocal total
            if isinstance(found, Unanswered):
                counts["unanswered"] += 1
                row = (item.key, item.raw.seq, {"reason": str(found), "tokens": found.tokens})
                ledger.add("refine-failed", settings, [row], turn)
            else:
                raw = item.raw.data["text"]
                reason = rejection(raw, found, min_similarity)
                counts[reason or ("unchanged" if found.text == raw else "mended")] += 1
                data = {
                    "text": found.text, "ended": found.ended, "accepted": reason is None, "reason": reason,
                    "tokens": found.tokens, "endpoint": endpoint.url,
                }  # fmt: skip
                ledger.add("refine", settings, [(item.key, item.raw.seq, data)])
            total += found.tokens
            bar.update(task, advance=1, note=f"{total} tokens")
            return total < left

        with progress_bar() as bar:
            task = bar.add_task("refine", total=len(afforded), note="")
            endpoint.ask_each(afforded, work, record, concurrency)
        more = {"judged anew": judged_again, "left for lack of budget": len(todo) - counts.total()}
        return {**counts, **{name: count for name, count in more.items() if count}}
