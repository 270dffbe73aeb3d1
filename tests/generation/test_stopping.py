from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from minigpt4.generation.stopping import StopString, read_answer, showable

PIECES = ["</s>", "#", "##", "###", ".##", "#H", ".", "red", "Ġ", "H", ".###", "Ċ", "Ã", "¨"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Its tokens cut `###` in every way, also across its borders; it spells new text by its shortest tokens."""
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, []))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


WAYS_TO_STOP = [
    ("#", "#", "#"), ("##", "#"), ("#", "##"), ("###",), ("##", "#H"), ("#", "#", "#H"), ("#", "##", "H"), ("##", "##"),
]  # fmt: skip


@pytest.mark.parametrize("end", WAYS_TO_STOP, ids=" ".join)
def test_stop_string_is_found_however_it_is_cut(tokenizer: PreTrainedTokenizerFast, end: tuple[str, ...]) -> None:
    answer = read_answer(tokenizer, ids("red", ".", *end), "###", ids("</s>"))
    assert (answer.text, answer.ended, answer.tokens) == ("red.", True, tuple(ids("red", ".")))

    criterion = StopString(tokenizer, "###")
    written = ids("red", ".", *end)
    complete = next(n for n in range(1, len(written) + 1) if "###" in tokenizer.decode(written[:n]))
    found = [bool(criterion(torch.tensor([written[:n]]), None)) for n in range(1, len(written) + 1)]
    assert found.index(True) + 1 == complete


@pytest.mark.parametrize("end", [(".##", "#"), (".###",), (".##", "##")], ids=" ".join)
def test_a_token_that_the_stop_string_shares_with_the_answer_is_spelled_anew(
    tokenizer: PreTrainedTokenizerFast, end: tuple[str, ...]
) -> None:
    answer = read_answer(tokenizer, ids("red", *end), "###", ids("</s>"))
    assert (answer.text, answer.tokens, answer.respelled) == ("red.", tuple(ids("red", ".")), 1)
    assert bool(StopString(tokenizer, "###")(torch.tensor([ids("red", *end)]), None))


def test_answers_end_at_the_first_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = read_answer(tokenizer, ids("red", "</s>", "H", "</s>"), "###", ids("</s>"))
    assert (answer.text, answer.ended, answer.tokens) == ("red", True, tuple(ids("red")))


def test_an_answer_that_was_cut_off_has_not_ended(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = read_answer(tokenizer, ids("red", ".", "#"), "###", ids("</s>"))
    assert (answer.text, answer.ended) == ("red.#", False)
    assert read_answer(tokenizer, ids("red", "##", "#"), "", ids("</s>")).text == "red###", "no stop string, no cut"


def test_white_space_around_an_answer_is_not_part_of_its_text(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = read_answer(tokenizer, ids("Ġ", "red", "Ċ", "###"), "###", ids("</s>"))
    assert (answer.text, answer.tokens) == ("red", tuple(ids("Ġ", "red", "Ċ")))


def test_a_line_break_can_be_the_stop_string(tokenizer: PreTrainedTokenizerFast) -> None:
    assert read_answer(tokenizer, ids("red", "Ċ", "H"), "\n", ids("</s>")).text == "red"
    rows = torch.tensor([ids("red", "Ċ"), ids("red", "Ġ")])
    assert StopString(tokenizer, "\n")(rows, None).tolist() == [True, False]


def test_a_stop_string_can_end_within_a_character_of_several_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = torch.tensor([ids("red", "Ã", "¨"), ids("red", "¨", "Ã")])
    assert StopString(tokenizer, "dè")(rows, None).tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red", "a red"),
        ("a red#", "a red"),
        ("a red##", "a red"),
        ("a red###Human", "a red"),
        ("a #tag", "a #tag"),
        ("one \ufffd", "one"),
        (" one ", "one"),
        ("#", ""),
    ],
)
def test_only_what_is_surely_answer_is_shown(text: str, shown: str) -> None:
    assert showable(text, "###") == shown


def test_with_sentencepiece_no_space_is_doubled_before_the_stop_string() -> None:
    pieces = ["<unk>", "<s>", "</s>", *dict.fromkeys("▁A#"), "▁A", "##", "###", "▁###"]
    merges = [("▁", "A"), ("#", "#"), ("##", "#"), ("▁", "###")]
    llama = LlamaTokenizer({piece: i for i, piece in enumerate(pieces)}, merges)
    written = llama("A ###", add_special_tokens=False)["input_ids"]
    assert llama.convert_ids_to_tokens(written) == ["▁A", "▁###"]
    answer = read_answer(llama, written, "###", [2])
    assert llama.convert_ids_to_tokens(list(answer.tokens)) == ["▁A", "▁"]
