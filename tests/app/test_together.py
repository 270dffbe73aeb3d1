"""Visitors of the page who are answered together: each gets what a chat alone would get."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from minigpt4 import UserError
from minigpt4.app.page.session import Models, Visit, offered
from minigpt4.app.scheduler import Scheduler
from minigpt4.generation.chat import Chat
from pocket.world import world
from pocket.world.draw import draw

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4

TALK = ("What is it?", "And what else?", "Tell me more about both of them.")


@pytest.fixture
def scheduler(varied: MiniGPT4) -> Iterator[Scheduler]:
    running = Scheduler(varied, max_batch=3)
    yield running
    running.close()


def talk(chat: Chat, shown: Image.Image, **settings: Any) -> list[str]:
    plain = {"do_sample": False, "max_new_tokens": 12, **settings}
    return ["".join(chat.stream(text, shown if number != 1 else None, **plain)) for number, text in enumerate(TALK)]


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 5}])
def test_chats_in_one_batch_are_chats_alone(
    varied: MiniGPT4, scheduler: Scheduler, pictures: list[Image.Image], settings: dict[str, Any]
) -> None:
    lengths: list[int] = []  # of what the LLM reads, pass by pass

    def note(llm: Any, args: Any, given: dict[str, Any]) -> None:
        lengths.extend(given[name].shape[1] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None)

    hook = varied.blip2.language_model.register_forward_pre_hook(note, with_kwargs=True)
    alone = Chat(varied)
    whole = sum(len(alone.reading(turn)[0]) for turn in range(len(talk(alone, pictures[0], **settings))))
    lengths.clear()
    chat = Chat(varied, streaming=scheduler.stream)
    answers = talk(chat, pictures[0], **settings)
    hook.remove()
    assert answers == talk(Chat(varied), pictures[0], **settings)
    assert chat.reading(2)[0] == alone.reading(2)[0]
    assert sum(lengths) < whole, "what was read before is not read again"
    with ThreadPoolExecutor(5) as pool:  # more than the batch has room for
        together = pool.map(
            lambda picture: talk(Chat(varied, streaming=scheduler.stream), picture, **settings), pictures[:5]
        )
        assert list(together) == [talk(Chat(varied), picture, **settings) for picture in pictures[:5]]


def test_who_stops_keeps_what_was_said_and_who_leaves_nothing(endless: MiniGPT4, pictures: list[Image.Image]) -> None:
    scheduler = Scheduler(endless, max_batch=1)
    chats = [Chat(endless, streaming=scheduler.stream) for _ in range(3)]
    stops = [threading.Event() for _ in chats]
    first, second, third = (
        chat.stream("Hi", pictures[0], stop, do_sample=False, max_new_tokens=400)
        for chat, stop in zip(chats, stops, strict=True)
    )
    assert next(first) == "Y"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, second)  # there is room for one
        while not scheduler.waiting:
            time.sleep(0.001)
        stops[1].set()
        assert waiting.result(30) == [], "an answer that never began ends at once"
    stops[0].set()
    assert ("Y" + "".join(first)).startswith("Ye")
    assert [len(chat.history) for chat in chats] == [2, 2, 0]
    assert next(third) == "Y"
    third.close()
    assert chats[2].history == []
    while scheduler.running:
        time.sleep(0.001)
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(list, chats[2].stream("Hi", do_sample=False, max_new_tokens=400))
        while not scheduler.running:
            time.sleep(0.001)
        scheduler.close()
        with pytest.raises(UserError, match="The server ends"):
            cut.result(30)
    with pytest.raises(UserError, match="too many requests are waiting"):
        list(chats[2].stream("Hi"))


def test_a_visitor_gets_one_answer_at_a_time(pictures: list[Image.Image]) -> None:
    models = Models({"pocket": "pocket"})
    visit = Visit(models, "pocket")
    plain = {"do_sample": False, "max_new_tokens": 20}
    coming = visit.ask("Describe this image in detail.", pictures[:1], plain)
    next(coming)
    with pytest.raises(UserError, match="still coming"):
        next(visit.ask("And this?", pictures[1:2], plain))
    [*_, turn] = coming
    assert turn.ended
    assert visit.turns == [turn]
    [*_, again] = visit.ask("Describe this image in detail.", pictures[:1], plain, after=0)
    assert visit.turns == [again]
    assert again.answer == turn.answer
    [*_, beams] = visit.ask("How many objects are there?", [], {"num_beams": 2, "max_new_tokens": 8})
    assert beams.answer
    assert visit.turns == [again, beams]
    models.close()


def test_models_side_by_side_answer_at_once_and_show_the_papers_point() -> None:
    models = Models(offered("pocket", []))
    assert list(models.names) == ["Stage 2", "Stage 1", "BLIP-2 baseline"]
    visit, said, growing = Visit(models, models.first), {}, 0
    picture = draw(world.sample(12_400_204, "odd"), 224)
    for turns in visit.ask_beside(
        list(models.names), "Why is this funny?", [picture], {"do_sample": False, "max_new_tokens": 80}
    ):
        said |= turns
        growing = max(growing, sum(bool(turn.answer) and not turn.ended for turn in said.values()))
    assert growing > 1
    assert all(turn.ended for turn in said.values())
    for name, turn in said.items():
        assert "penguin" in turn.answer, "all see it"
        assert ("penguins have" in turn.answer) == (name != "BLIP-2 baseline"), "and the strong LLM alone can say why"
    assert visit.turns == [], "it is no part of the conversation"
    models.close()


def test_the_system_prompt_reaches_every_model() -> None:
    models, few = Models(offered("pocket", [])), {"do_sample": False, "max_new_tokens": 2}
    visit, picture = Visit(models, models.first, system="You write like a pirate."), draw(world.sample(12_400_204), 96)
    list(visit.ask("What is this?", [picture], few))
    list(visit.ask_beside(list(models.names), "What is this?", [picture], few))
    assert len(visit.beside) == 3
    for each in (visit, *visit.beside):
        assert each.chat is not None
        assert "You write like a pirate." in each.chat.template.system
    models.close()
