"""The API as OpenAI's client meets it: the same answers as from the model itself, whole and in pieces."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pydantic
import pytest
import torch
from api_server import Running, png, serving, shown, user, wait_until
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from PIL import Image
from transformers import LlamaTokenizer

from minigpt4.generation.engine import answers
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4

QUESTIONS = ["What is it?" + " Tell me more." * i for i in range(8)]
PLAIN = {"do_sample": False, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def server(varied: MiniGPT4) -> Iterator[Running]:
    with serving(varied, batch=5) as running:
        yield running


def said(chunks: Any, index: int = 0) -> str:
    found = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    assert found[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in found][:-1] == [None] * (len(found) - 1)
    assert found[-1].finish_reason in ("stop", "length")
    return "".join(choice.delta.content or "" for choice in found)


def test_requests_that_come_together_get_the_answers_that_they_get_alone(
    varied: MiniGPT4, server: Running, pictures: list[Image.Image]
) -> None:
    expected = [answers(varied, p, q, **PLAIN)[0] for p, q in zip(pictures, QUESTIONS, strict=True)]
    assert len({len(answer.tokens) for answer in expected}) > 2, "answers of one length would prove little"
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(server.ask, shown(p), q) for p, q in zip(pictures * 3, QUESTIONS * 3, strict=True)]
        streamed = [
            pool.submit(lambda p=p, q=q: said(list(server.ask(shown(p), q, stream=True))))
            for p, q in zip(pictures, QUESTIONS, strict=True)
        ]
    for future, answer in zip(asked, expected * 3, strict=True):
        response = future.result()
        [choice] = response.choices
        assert choice.message.content == answer.text
        assert choice.finish_reason == ("stop" if answer.ended else "length")
        assert response.usage.completion_tokens == len(answer.tokens) + answer.ended
    assert [future.result() for future in streamed] == [answer.text for answer in expected]


def test_pictures_stand_where_they_were_put_among_words_and_turns(
    varied: MiniGPT4, server: Running, pictures: list[Image.Image]
) -> None:
    three = [pictures[0], Image.linear_gradient("L"), Image.new("RGB", (40, 30), "white")]
    talk = [
        Message("system", "Be brief."),
        Message("user", "What is it?", images=1),
        Message("assistant", "A box."),
        Message("user", "Is <ImageHere> like it?", images=1),
        Message("assistant", "No."),
        Message("user", "Compare <ImageHere> with all three images.", images=1),
    ]
    messages = [
        {"role": "developer", "content": "Be brief."},
        user(shown(three[0]), "What ", "is it?"),
        {"role": "assistant", "content": [{"type": "text", "text": "A box."}]},
        user("Is ", shown(three[1]), " like it?"),
        {"role": "assistant", "content": "No."},
        user("Compare ", shown(three[2]), " with all three images."),
    ]
    [expected] = answers(varied, [three], [talk], **PLAIN)
    response = server.ask(messages=messages, logprobs=True)
    assert response.choices[0].message.content == expected.text
    ids = encode_chat(varied.tokenizer, varied.template, talk, varied.num_query_tokens, varied.image_token_id)
    assert response.usage.prompt_tokens == len(ids)
    found = [entry.logprob for entry in response.choices[0].logprobs.content]
    for order, equal in (([0, 1, 2], True), ([1, 0, 2], False), ([0, 2, 1], False)):
        sure = logprobs(varied, talk, [three[i] for i in order], expected.tokens)
        chosen = [float(row[token]) for row, token in zip(sure, expected.tokens, strict=False)]
        assert (found == pytest.approx(chosen, abs=2e-4)) is equal, order


def test_a_conversation_is_read_as_a_chat_reads_it(
    varied: MiniGPT4, server: Running, pictures: list[Image.Image]
) -> None:
    chat, messages = varied.start_chat(), []
    for text, image in (("What?", 0), ("And this?", 1), ("Where?", None), ("Is it like the first image?", None)):
        seen = [] if image is None else [pictures[image]]
        messages.append(user(*map(shown, seen), text))
        response = server.ask(messages=messages)
        assert response.choices[0].message.content == chat.ask(text, seen, **PLAIN), text
        assert response.usage.prompt_tokens == chat.reading(-1)[1], text
        chat.rewind(len(messages) // 2)
        chat.recall(text, seen, "A box.")
        messages.append({"role": "assistant", "content": "A box."})


def test_a_question_without_a_picture_is_answered(varied: MiniGPT4, server: Running) -> None:
    response = server.ask(messages=[{"role": "user", "content": "Write a poem."}])
    assert response.choices[0].message.content == varied.generate(None, ["Write a poem."], **PLAIN)[0]


def test_files_can_be_sent_as_they_are(varied: MiniGPT4, server: Running, pictures: list[Image.Image]) -> None:
    asked = {"model": "toy", "temperature": 0, "max_tokens": 40}
    asked["messages"] = [user("Is ", shown("cid:a"), " like ", shown("cid:b"), "?")]

    def send(*parts: tuple[str, str, bytes]) -> tuple[int, Any, dict[str, str]]:
        body = b"".join(
            f'--xyz\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"
            for name, extra, data in parts
        )
        return server.post(body + b"--xyz--\r\n", Content_Type="multipart/form-data; boundary=xyz")

    request = ("request", "", json.dumps(asked).encode())
    a, b = (("ab"[i], '; filename="../../x.png"', png(pictures[i])) for i in range(2))
    status, found, _ = send(request, b, a)
    [expected] = varied.generate([pictures[:2]], ["Is <ImageHere> like <ImageHere>?"], **PLAIN)
    assert (status, found["choices"][0]["message"]["content"]) == (200, expected)
    for parts in ((a, b), (request, a), (request, *[a] * 12), (request, request, a, b)):
        status, found, _ = send(*parts)
        assert (status, found["error"]["type"]) == (400, "invalid_request_error")
    status, found, _ = server.post(b"--xyz", Content_Type="multipart/form-data")
    assert status == 400


def test_sampling_is_that_of_the_model_and_repeatable(
    varied: MiniGPT4, server: Running, pictures: list[Image.Image]
) -> None:
    settings = {"temperature": 0.8, "top_p": 0.7, "seed": 5}
    response = server.ask(shown(pictures[0]), "What is it?", n=3, **settings)
    expected = [
        varied.generate(pictures[0], "What is it?", max_new_tokens=40, do_sample=True, **{**settings, "seed": 5 + i})[0]
        for i in range(3)
    ]
    assert [choice.message.content for choice in response.choices] == expected
    assert len(set(expected)) == 3
    chunks = list(server.ask(shown(pictures[0]), "What is it?", n=3, stream=True, **settings))
    assert [said(chunks, i) for i in range(3)] == expected


def logprobs(
    model: MiniGPT4, talk: list[Message], pictures: list[Image.Image], answer: tuple[int, ...]
) -> torch.Tensor:
    """Of the whole vocabulary at each place of the answer, and at its end: (answer + 1, vocabulary)."""
    ids = encode_chat(model.tokenizer, model.template, talk, model.num_query_tokens, model.image_token_id)
    with torch.no_grad():
        hidden = model.hidden_states(torch.tensor([[*ids, *answer]]), model.encode_images(pictures))
        return model.logits(hidden[0, len(ids) - 1 :]).log_softmax(-1)


def test_logprobs_are_the_models_own(varied: MiniGPT4, server: Running, pictures: list[Image.Image]) -> None:
    response = server.ask(shown(pictures[0]), "What is it?", logprobs=True, top_logprobs=3, max_tokens=12)
    [answer] = answers(varied, pictures[0], "What is it?", do_sample=False, max_new_tokens=12)
    sure = logprobs(varied, [Message("user", "What is it?", 1)], [pictures[0]], answer.tokens)
    content = response.choices[0].logprobs.content
    assert len(content) == len(answer.tokens)
    for i, (token, entry) in enumerate(zip(answer.tokens, content, strict=True)):
        assert entry.logprob == pytest.approx(float(sure[i, token]), abs=1e-3)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(sure[i].topk(3).values.tolist(), abs=1e-3)
        assert entry.top_logprobs[0].token == entry.token
    chunks = list(
        server.ask(shown(pictures[0]), "What is it?", logprobs=True, top_logprobs=3, max_tokens=12, stream=True)
    )
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [e.token for e in streamed] == [e.token for e in content]
    assert [e.logprob for e in streamed] == pytest.approx([e.logprob for e in content])
    assert server.ask("Hi").choices[0].logprobs is None


def test_tokens_of_sentencepiece_keep_their_spaces(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    from minigpt4 import MiniGPT4

    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    words = [f"▁{a}{b}" for a in "abcdefghijklmnop" for b in "aeioustrwy"]
    pieces = ["<unk>", "<s>", "</s>", "<image>", *dict.fromkeys("▁###Human:Assistant.pqvwbcdefg"), *words]
    LlamaTokenizer({piece: i for i, piece in enumerate(pieces)}, []).save_pretrained(llm)
    model = MiniGPT4.assemble(tiny_vision, llm, template="pocket", dtype="float32", device="cpu")
    with serving(model) as server:
        [choice] = server.ask("What is it?", logprobs=True, max_tokens=30).choices
    said = "".join(entry.token for entry in choice.logprobs.content)
    assert " " in choice.message.content
    assert said.replace("<unk>", "").strip() == choice.message.content, "but for special tokens"


def test_a_stop_string_ends_an_answer_before_it(varied: MiniGPT4, server: Running, pictures: list[Image.Image]) -> None:
    whole = server.ask(shown(pictures[0]), "What is it?").choices[0].message.content
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    expected = whole[: whole.index(stop)].strip()
    response = server.ask(shown(pictures[0]), "What is it?", stop=["never", stop])
    assert (response.choices[0].message.content, response.choices[0].finish_reason) == (expected, "stop")
    chunks = list(server.ask(shown(pictures[0]), "What is it?", stop=stop, stream=True))
    assert said(chunks) == expected


def test_a_stream_can_count_its_tokens(server: Running) -> None:
    chunks = list(server.ask("Hi", stream=True, n=2, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    single = server.ask("Hi").usage
    assert chunks[-1].usage.completion_tokens == 2 * single.completion_tokens
    assert chunks[-1].usage.prompt_tokens == single.prompt_tokens


def test_a_picture_is_encoded_once(server: Running) -> None:
    picture = Image.new("RGB", (33, 44), "orchid")
    before = server.metric('minigpt4_pictures{features="encoded"}')
    for _ in range(2):
        server.ask(shown(picture), "Is ", shown(picture), "?", n=2)
    assert server.metric('minigpt4_pictures{features="encoded"}') == before + 1


def test_models_health_metrics_and_description(server: Running) -> None:
    assert [model.id for model in server.openai.models.list()] == ["toy"]
    assert server.openai.models.retrieve("toy").owned_by == "minigpt4"
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("../../etc/passwd")
    assert server.request("GET", "/health")[:2] == (200, {"status": "ok"})
    server.ask("Hi")  # a count is there from the first request on
    before = server.metric('minigpt4_requests_total{path="/v1/chat/completions",status="200"}')
    server.ask("Hi")
    assert server.metric('minigpt4_requests_total{path="/v1/chat/completions",status="200"}') == before + 1
    assert server.metric("minigpt4_running") == server.metric("minigpt4_waiting") == 0
    assert math.isfinite(server.metric("minigpt4_first_token_seconds_sum"))
    described = server.request("GET", "/openapi.json")[1]["paths"]["/v1/chat/completions"]["post"]
    assert set(described["requestBody"]["content"]) == {"application/json", "multipart/form-data"}


def test_responses_are_of_openais_types(server: Running, pictures: list[Image.Image]) -> None:
    """As their library declares them; its client alone would take anything."""

    def fits(kind: Any, found: Any) -> None:
        kind.model_validate_json(json.dumps(found), strict=True)
        known = kind.model_validate(found).model_dump(exclude_unset=True)
        assert known == found
        assert unknown(kind.model_validate(found)) == []

    def unknown(value: Any) -> list[str]:
        """Fields, at any depth, of which the library's types know nothing."""
        if isinstance(value, list):
            return [name for each in value for name in unknown(each)]
        if not isinstance(value, pydantic.BaseModel):
            return []
        return [*(value.model_extra or {}), *(name for field in value.model_fields_set
                                              for name in unknown(getattr(value, field, None)))]  # fmt: skip

    asked = {"model": "toy", "max_tokens": 4, "messages": [user("What?", shown(pictures[0]))]}
    for more in ({}, {"n": 2, "logprobs": True, "top_logprobs": 2}):
        fits(ChatCompletion, server.post({**asked, **more})[1])
        _, text, _ = server.post({**asked, **more, "stream": True, "stream_options": {"include_usage": True}})
        *events, end, _ = [line.removeprefix("data: ") for line in text.split("\n\n")]
        assert end == "[DONE]"
        assert len(events) > 2
        for event in events:
            fits(ChatCompletionChunk, json.loads(event))
    listed = server.request("GET", "/v1/models")[1]
    assert set(listed) == {"object", "data"}
    fits(Model, listed["data"][0])
    fits(Model, server.request("GET", "/v1/models/toy")[1])


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "Hi"}] * 2}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "Hi" * 5000}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, 400, None),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 100}, 400, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, None),
        ({"stop": ""}, 400, None),
        ({"top_logprobs": 3}, 400, None),
        ({"tools": []}, 400, "tools"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
    ],
)
def test_mistakes_are_told_in_openais_shape(server: Running, change: dict, status: int, param: str | None) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}], **change}
    code, found, _ = server.post(body)
    assert code == status, found
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param", "code"}
    if param is not None:
        assert found["error"]["param"] == param
    assert found["error"]["message"]
    with pytest.raises(openai.APIStatusError) as refusal:
        server.openai.chat.completions.create(**{**body, **({} if "tools" not in change else {"tools": ["x"]})})
    assert refusal.value.status_code == status


def test_settings_at_their_bounds_are_no_trouble(server: Running) -> None:
    extremes = (
        {"temperature": 1e-300},
        {"temperature": 2, "top_p": 1e-300},
        {"extra_body": {"repetition_penalty": 10}},
    )
    for settings in extremes:
        assert server.ask("Hi", **settings).choices[0].finish_reason in ("stop", "length")


def test_who_hangs_up_frees_the_slot(endless: MiniGPT4) -> None:
    with serving(endless, batch=1) as server:
        stream = server.ask("Hi", stream=True, max_tokens=90_000)
        assert next(iter(stream)).choices[0].delta.content == "Y"
        assert server.metric("minigpt4_running") == 1
        stream.close()
        assert server.ask("Hi", max_tokens=3).choices[0].message.content == "Yes"
        with pytest.raises(openai.APITimeoutError):  # who does not stream hangs up too
            server.ask("Hi", max_tokens=90_000, timeout=0.3)
        assert server.ask("Hi", max_tokens=3).choices[0].message.content == "Yes"
        wait_until(lambda: server.metric("minigpt4_running") == 0)


def test_a_full_queue_says_when_to_come_again(endless: MiniGPT4) -> None:
    with serving(endless, batch=1, queue=2) as server:
        streams = [server.ask("Hi", stream=True, max_tokens=90_000)]
        pool = concurrent.futures.ThreadPoolExecutor(2)
        waiting = [pool.submit(server.ask, "Hi", max_tokens=3) for _ in range(2)]
        wait_until(lambda: server.metric("minigpt4_waiting") == 2)
        with pytest.raises(openai.RateLimitError) as refusal:
            server.ask("Hi", max_tokens=3)
        assert 1 <= int(refusal.value.response.headers["retry-after"]) <= 60
        streams[0].close()
        assert [future.result().choices[0].message.content for future in waiting] == ["Yes", "Yes"]
        with pytest.raises(openai.RateLimitError):
            server.ask("Hi", n=4)  # more than there will ever be room for
        with OpenAIThatRetries(server) as patient:
            assert patient.ask("Hi", max_tokens=3).choices[0].message.content == "Yes"


class OpenAIThatRetries:
    """The client as it comes, which tries again when it is told to."""

    def __init__(self, server: Running) -> None:
        self.server = Running(server.service, server.port, server.openai.with_options(max_retries=3))
        self.busy = server.ask("Hi", stream=True, max_tokens=90_000)
        self.waiting = [threading.Thread(target=server.ask, args=["Hi"], kwargs={"max_tokens": 3}) for _ in range(2)]

    def __enter__(self) -> Running:
        for thread in self.waiting:
            thread.start()
        wait_until(lambda: self.server.metric("minigpt4_waiting") == 2)
        threading.Timer(0.2, self.busy.close).start()
        return self.server

    def __exit__(self, *error: object) -> None:
        for thread in self.waiting:
            thread.join()


def test_a_request_has_its_time(endless: MiniGPT4) -> None:
    with serving(endless, batch=1, seconds=2.0) as server:
        with pytest.raises(openai.APIStatusError) as late:
            server.ask("Hi", max_tokens=90_000)
        assert (late.value.status_code, late.value.code) == (408, "timeout")
        with pytest.raises(openai.APIError, match=r"\b2 s") as late_stream:
            for _ in server.ask("Hi", stream=True, max_tokens=90_000):
                pass
        assert late_stream.value.code == "timeout"
        assert server.ask("Hi", max_tokens=3).choices[0].message.content == "Yes"


PIXELS = png(Image.new("RGB", (9, 9), "red"))
BASE64 = base64.b64encode(PIXELS).decode()
URL = f"data:image/png;base64,{BASE64}"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL, "detail": "original"}},
        {"type": "image_url", "image_url": URL},
        {"type": "image_url", "image_url": {"url": BASE64}},
        {"type": "image_url", "image_url": {"url": URL.rstrip("=")}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.encodebytes(PIXELS).decode()}"}},
        {"type": "input_image", "image_url": URL, "detail": "auto", "file_id": None},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"type": "image", "source": {"type": "url", "url": URL}, "cache_control": {"type": "ephemeral"}},
        {"type": "image", "image": URL},
        {"type": "image", "base64": BASE64},
        {"type": "image", "data": BASE64, "mimeType": "image/png"},
    ],
)
def test_every_form_in_which_clients_send_an_image_shows_the_same(server: Running, part: dict[str, Any]) -> None:
    answers = []
    for image in (shown(Image.new("RGB", (9, 9), "red")), part):
        body = {"model": "toy", "messages": [user(image, "What is it?")], "temperature": 0, "max_tokens": 8}
        status, found, _ = server.post(body)
        assert status == 200, found
        answers.append((found["choices"][0]["message"]["content"], found["usage"]))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "more",
    [
        {"a_field_of_tomorrow": None, "tools": None, "max_tokens": None, "stop": None},
        {"response_format": {"type": "text"}, "tool_choice": "none", "modalities": ["text"], "logit_bias": {}},
        {"service_tier": "auto", "safety_identifier": "u", "prompt_cache_key": "k", "verbosity": "medium"},
        {
            "stream_options": {"include_usage": False, "include_obfuscation": False},
            "logprobs": False,
            "top_logprobs": 0,
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": []},
                {"role": "user", "content": "And you?", "name": None},
            ]
        },
    ],
)
def test_nulls_and_defaults_that_are_spelled_out_ask_for_nothing(server: Running, more: dict[str, Any]) -> None:
    status, found, _ = server.post({"model": "toy", "messages": [user("Hi")], "max_tokens": 2, **more})
    assert status == 200, found


@pytest.mark.parametrize(
    ("part", "param", "told"),
    [
        ({"type": "input_audio", "input_audio": {}}, "messages.0.content.0.type", "'input_audio' is not supported"),
        ({"type": "file", "file": {"file_id": "x"}}, "messages.0.content.0.type", "'file' is not supported"),
        ({"type": "input_image", "file_id": "x"}, "messages.0.content.0.file_id", "does not do that"),
        ({"type": "image", "source": {"type": "file", "file_id": "x"}}, "messages.0.content.0.file_id", "not do that"),
        ({"type": "text", "text": ["Hi"]}, "messages.0.content.0.text", "must be a valid string"),
        ({"type": "text"}, "messages.0.content.0.text", "is missing"),
        ({"image_url": {"url": URL}}, "messages.0.content.0.type", "is missing"),
        ({"type": "image_url", "image_url": {}}, "messages.0.content.0.image_url.url", "is missing"),
        (
            {"type": "image_url", "image_url": {"url": 5}},
            "messages.0.content.0.image_url.url",
            "must be a valid string",
        ),
        ("Hi", "messages.0.content.0", "must be a JSON object"),
    ],
)
def test_a_wrong_part_is_told_by_its_place_and_field(server: Running, part: Any, param: str, told: str) -> None:
    status, found, _ = server.post({"model": "toy", "messages": [{"role": "user", "content": [part]}]})
    assert (status, found["error"]["param"]) == (400, param)
    assert told in found["error"]["message"]
    assert found["error"]["message"].startswith(f"{param}: ")
