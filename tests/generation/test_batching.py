"""Rows that join and leave a running batch: each gets what it would get alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from minigpt4.generation.batching import ContinuousBatch, Row
from minigpt4.generation.decoding import Decoding
from minigpt4.generation.engine import answers, encode_images
from minigpt4.generation.stopping import AnswerReader, decode_text, read_answer
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4

QUESTIONS = ["What is it?" + " Tell me more." * i for i in range(8)]


def make_row(model: MiniGPT4, question: str, features: torch.Tensor, decoding: Decoding, **more: int) -> Row:
    talk = [Message("user", question, images=len(features))]
    ids = encode_chat(model.tokenizer, model.template, talk, model.num_query_tokens, model.image_token_id)
    return Row(ids, features, decoding, **more)


@pytest.mark.parametrize(
    "settings", [{"do_sample": False}, {"seed": 3}, {"do_sample": False, "repetition_penalty": 1.3}]
)
def test_rows_come_and_go_and_none_is_disturbed(
    model: MiniGPT4, pictures: list[Image.Image], settings: dict[str, float]
) -> None:
    settings = settings | {"max_new_tokens": 30}
    expected = [answers(model, p, q, **settings)[0].tokens for p, q in zip(pictures, QUESTIONS, strict=True)]
    decoding = Decoding(**settings)  # type: ignore[arg-type]
    features = encode_images(model, [[picture] for picture in pictures])
    rows = [make_row(model, q, f, decoding) for q, f in zip(QUESTIONS, features, strict=True)]
    batch, rng = ContinuousBatch(model), random.Random(0)
    waiting = rng.sample(rows, len(rows))
    while waiting or batch.rows:
        if waiting and rng.random() < 0.4:
            count = rng.randint(1, 3)
            batch.join(waiting[:count])
            waiting = waiting[count:]
        elif batch.rows:
            batch.step()
        batch.leave([r for r in batch.rows if len(r.tokens) >= len(expected[rows.index(r)])])
    assert [tuple(row.tokens) for row in rows] == expected
    assert (len(batch._mask), batch._cache.get_seq_length()) == (0, 0)


def test_room_that_only_a_long_row_needed_goes_with_it(model: MiniGPT4) -> None:
    none, decoding = torch.zeros((0, model.num_query_tokens, 24)), Decoding(do_sample=False)
    short, long = (make_row(model, question, none, decoding) for question in ("Hi", "Hi " * 40))
    batch = ContinuousBatch(model)
    batch.join([short, long])
    batch.step()
    batch.leave([long])
    assert batch._cache.get_seq_length() == len(short.ids) + 1
    batch.step()
    assert len(short.tokens) == 3


def test_a_row_that_cannot_choose_fails_alone(model: MiniGPT4) -> None:
    none = torch.zeros((0, model.num_query_tokens, 24))
    hopeless = make_row(model, "Hi", none, Decoding(do_sample=True, temperature=1e-300))
    fine = make_row(model, "Hi", none, Decoding(do_sample=False))
    batch = ContinuousBatch(model)
    batch.join([hopeless, fine])
    assert hopeless.failed is not None
    assert fine.failed is None


def test_what_a_reader_shows_piece_by_piece_is_the_answer(model: MiniGPT4) -> None:
    """Of tokens at random: halves of characters, stop strings in any tokens, special ones."""
    rng = random.Random(0)
    stops_seen = 0
    for _ in range(200):
        tokens = [rng.randrange(4, len(model.tokenizer)) for _ in range(30)] + [2]
        text = decode_text(model.tokenizer, tokens)
        at = rng.randrange(len(text))
        stops = ["never", text[at : at + 2]] if rng.random() < 0.5 else []
        reader = AnswerReader(model.tokenizer, stops, ends=[2])
        shown = ""
        for token in tokens:
            shown += reader.read(token)
            if reader.ended:
                break
        answer, rest = reader.finish()
        assert shown + rest == answer.text
        assert answer.ended
        stop = next((stop for stop in stops if stop in text), "")
        if "\ufffd" not in stop:  # half characters may have become whole before it was seen
            stops_seen += bool(stop)
            assert answer.text == read_answer(model.tokenizer, tokens, stop, [2]).text
    assert stops_seen > 20
