"""Where an answer ends: at EOS, or at the stop string, which is looked for in text, since tokens may overlap it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from minigpt4.prompts.encode import encode
from minigpt4.prompts.jinja import eos_tokens


@dataclass(frozen=True)
class Answer:
    """One answer."""

    text: str
    ended: bool  # False if it was cut off at the token limit
    tokens: tuple[int, ...]  # without its end; they spell `text`, but for white space around it
    respelled: int = 0  # of the last, not as generated: there a token held the first of the stop string too


class StopString(StoppingCriteria):
    """True for each row whose newest tokens hold the stop string, and for all rows once `cancelled` is set."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str, cancelled: threading.Event | None = None) -> None:
        self.tokenizer, self.stop, self.cancelled = tokenizer, stop, cancelled or threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        newest = input_ids[:, -len(self.stop) - 2 :]
        found = [bool(self.stop) and self.stop in decode_text(self.tokenizer, row) for row in newest]
        return torch.tensor(found, device=input_ids.device) | self.cancelled.is_set()


def read_answer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop: str, ends: Sequence[int]) -> Answer:
    """The answer in newly generated tokens: all up to the first end token or stop string, which are cut off."""
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    kept, ended = list(tokens[:end]), end < len(tokens)
    text = decode_text(tokenizer, kept)
    cut = text.find(stop) if stop else -1
    if cut < 0:
        return Answer(text.strip(), ended, tuple(kept))
    text = text[:cut]
    while kept and len(decode_text(tokenizer, kept)) > len(text):
        kept.pop()
    spelled = decode_text(tokenizer, kept)
    rest = encode(tokenizer, text[len(spelled) :], 0, -1, bos=False) if spelled != text else []
    return Answer(text.strip(), True, (*kept, *rest), respelled=len(rest))


def end_tokens(llm: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: the tokenizer's EOS and those of the LLM's generation config."""
    return list(dict.fromkeys(token for token in (tokenizer.eos_token_id, *eos_tokens(llm)) if token is not None))


def decode_text(tokenizer: PreTrainedTokenizerBase, tokens: Any) -> str:
    """The text of token ids, without special tokens and exactly as written (no tidied spaces)."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def showable(text: str, stop: str) -> str:
    """The part of an unfinished answer that will stay: no stop string or start of one, no half character."""
    if stop:
        text = text.partition(stop)[0]
        beginnings = (stop[:length] for length in range(len(stop) - 1, 0, -1))
        text = text.removesuffix(next(filter(text.endswith, beginnings), ""))
    return text.rstrip("\ufffd").strip()


class AnswerReader:
    """Follows one answer by its newest tokens alone: which text can be shown by now, and whether it has ended."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], ends: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.stops = [stop for stop in stops if stop]
        self.ends = ends
        self.tokens: list[int] = []
        self.ended = False
        self._text = ""  # of the tokens before `_read`
        self._start = self._read = 0
        self._shown = 0

    def read(self, token: int) -> str:
        """Takes the next token; returns what can be shown now and could not before."""
        self.tokens.append(token)
        if token in self.ends:
            self.ended = True
            return ""
        # What a token adds is seen beside the one before it, for tokenizers write spaces between, not before.
        known = decode_text(self.tokenizer, self.tokens[self._start : self._read])
        text = decode_text(self.tokenizer, self.tokens[self._start :])
        if text.endswith("\ufffd") and len(self.tokens) - self._read < _LONGEST_CHARACTER:
            return ""  # half a character
        self._text += text[len(known) :]
        self._start, self._read = self._read, len(self.tokens)
        self.ended = any(stop in self._text for stop in self.stops)
        piece = min((showable(self._text, stop) for stop in self.stops or [""]), key=len)[self._shown :]
        self._shown += len(piece)
        return piece

    def finish(self) -> tuple[Answer, str]:
        """The whole answer, and what of it has not been shown yet."""
        text = decode_text(self.tokenizer, self.tokens)
        found = {text.find(stop): stop for stop in self.stops if stop in text}
        answer = read_answer(self.tokenizer, self.tokens, found[min(found)] if found else "", self.ends)
        return answer, answer.text[self._shown :]


#: In tokens. A character has 4 bytes at most, but bytes that are none may stand before it in any number.
_LONGEST_CHARACTER = 64
