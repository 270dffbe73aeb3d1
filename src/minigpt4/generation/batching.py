"""Continuous batching: a step is one pass over the newest token of every row, and rows join and leave between."""

import inspect
import threading
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from minigpt4.errors import UserError
from minigpt4.generation.decoding import Decoding, fitting
from minigpt4.generation.stopping import Answer, AnswerReader, StopString, end_tokens, read_answer
from minigpt4.model.aligned import AlignedModel


def decode(
    model: AlignedModel,
    ids: Sequence[Sequence[int]],
    features: Sequence[Tensor],
    decoding: Decoding,
    stop: str,
    *,
    cache: DynamicCache | None = None,
    cancelled: threading.Event | None = None,
) -> list[Answer]:
    """Continue every row of token ids; `features` holds each row's images, (images, q, d_qformer).

    A `cache` (one row, no beams) holds keys and values of the first of its ids, and grows by the new ones.
    Setting `cancelled` ends decoding after the current token. Raises UserError if a row is too long for the LLM.
    """
    cancelled = cancelled or threading.Event()
    ends = end_tokens(model.blip2.language_model, model.tokenizer)
    if decoding.num_beams > 1:
        input_ids, mask = left_padded(ids)
        decoding = fitting(model, input_ids.shape[1], decoding)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            if decoding.seed is not None:
                torch.manual_seed(decoding.seed)
            found = model.blip2.language_model.generate(
                inputs_embeds=model.embed(input_ids.to(model.device), torch.cat(list(features)).to(model.device)),
                attention_mask=mask.to(model.device), logits_processor=decoding.processors(),
                generation_config=decoding.beam_search_config(ends, model.image_token_id),
                stopping_criteria=[StopString(model.tokenizer, stop, cancelled)],
            )  # fmt: skip
        return [read_answer(model.tokenizer, row, stop, ends) for row in found.tolist()]
    each = zip(ids, features, strict=True)
    rows = [Row(row, seen, fitting(model, len(row), decoding), past=cache) for row, seen in each]
    readers = {row: AnswerReader(model.tokenizer, [stop], ends) for row in rows}
    for _ in _pieces(model, readers, cache, cancelled):
        pass
    return [reader.finish()[0] for reader in readers.values()]


def decode_stream(
    model: AlignedModel,
    ids: Sequence[int],
    features: Tensor,
    decoding: Decoding,
    stop: str,
    *,
    cache: DynamicCache | None = None,
    cancelled: threading.Event | None = None,
) -> Generator[str, None, Answer]:
    """`decode` for one row: it yields pieces of text and returns the `Answer`; closed early, it undoes `cache`."""
    if decoding.num_beams > 1:
        raise UserError("beams cannot be streamed, because the best answer is known at the end only; use num_beams=1")
    reader = AnswerReader(model.tokenizer, [stop], end_tokens(model.blip2.language_model, model.tokenizer))
    row = Row(ids, features, fitting(model, len(ids), decoding), past=cache)
    yield from filter(None, _pieces(model, {row: reader}, cache, cancelled or threading.Event()))
    answer, rest = reader.finish()
    if rest:
        yield rest
    return answer


def _pieces(
    model: AlignedModel, readers: "dict[Row, AnswerReader]", cache: DynamicCache | None, cancelled: threading.Event
) -> Iterator[str]:
    """Decode the rows to their ends; yields what each token adds to its row's text, which may be nothing."""
    batch = ContinuousBatch(model)
    batch.join(list(readers))
    while True:
        for row in batch.rows:
            yield readers[row].read(row.chosen().token)
        done = [row for row in batch.rows if readers[row].ended or row.is_full or cancelled.is_set()]
        if cache is not None and done:
            cache.layers[:] = batch.read_by(done[0]).layers
        batch.leave(done)
        if not batch.rows:
            return
        batch.step()


def left_padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids (rows, longest) and their mask, padded on the left, so that all answers start in the same column."""
    rows = [torch.tensor(row) for row in ids]
    masks = [torch.ones_like(row) for row in rows]
    input_ids, mask = (pad_sequence(each, batch_first=True, padding_side="left") for each in (rows, masks))
    return input_ids, mask


@dataclass(frozen=True)
class Chosen:
    """A token, and the likeliest in its place, with the model's own log-probabilities in nats, if asked for."""

    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Row:
    """An answer that is being decoded."""

    ids: Sequence[int]  # the prompt
    features: Tensor  # (images, q, d_qformer) of its images
    decoding: Decoding
    logprobs: int | None = None  # how many of the likeliest tokens to report beside each that is chosen
    past: DynamicCache | None = None  # keys and values of the first of `ids`; not changed
    tokens: list[int] = field(default_factory=list)
    newest: Chosen | None = None  # of the last step
    failed: Exception | None = None  # in choosing

    def __post_init__(self) -> None:
        self._generator: torch.Generator | None = None
        self._processors = LogitsProcessorList(self.decoding.processors())
        if self.decoding.sampling:  # in the order of transformers' `generate`
            if self.decoding.temperature != 1:
                self._processors.append(TemperatureLogitsWarper(self.decoding.temperature))
            if self.decoding.top_p < 1:
                self._processors.append(TopPLogitsWarper(self.decoding.top_p))

    @property
    def is_full(self) -> bool:
        """True if the answer has the maximum number of tokens."""
        return len(self.tokens) >= self.decoding.max_new_tokens

    def chosen(self) -> Chosen:
        """The newest token. Raises what went wrong in choosing it."""
        if self.failed is not None:
            raise self.failed
        assert self.newest is not None
        return self.newest

    def choose(self, logits: Tensor, likeliest: int) -> None:
        """Take the next token from its logits (vocabulary,), of which `likeliest` is the greatest."""
        token = likeliest
        if len(self._processors) or self.decoding.sampling:
            former = torch.tensor([self.tokens], dtype=torch.long, device=logits.device)
            scores = self._processors(former, logits[None].clone())
            token = self._sample(scores) if self.decoding.sampling else int(scores.argmax())
        self.tokens.append(token)
        self.newest = Chosen(token)
        if self.logprobs is not None:
            sure = logits.log_softmax(-1)
            top = sure.topk(self.logprobs)
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            self.newest = Chosen(token, float(sure[token]), tuple(pairs))

    def _sample(self, scores: Tensor) -> int:
        if self._generator is None and self.decoding.seed is not None:
            self._generator = torch.Generator(scores.device).manual_seed(self.decoding.seed)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


class ContinuousBatch:
    """The rows that `model` is answering. In float32 each gets the tokens that it would get alone."""

    def __init__(self, model: AlignedModel) -> None:
        self.model = model
        self.rows: list[Row] = []
        self._cache = DynamicCache()  # of all rows, each standing at the right end
        self._mask = torch.zeros((0, 0), dtype=torch.long)  # (rows, positions): 0 where a shorter row has nothing
        accepted = inspect.signature(model.blip2.language_model.forward).parameters
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._takes_positions = "position_ids" in accepted

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows and choose the first token of each; with a `past`, in a pass of its own."""
        new = [row for row in rows if not _length(row.past)]
        for group in [*([new] if new else []), *([row] for row in rows if row not in new)]:
            input_ids, mask = left_padded([row.ids for row in group])
            features = torch.cat([row.features for row in group])
            cache = DynamicCache() if group is new else _copied(group[0].past, 0, 0)
            embeddings = self.model.embed(input_ids, features.to(self.model.device))[:, _length(cache) :]
            logits = self._forward(cache, mask, inputs_embeds=embeddings)
            self._merge(cache, mask)
            self.rows += group
            _choose(group, logits)

    @torch.no_grad()
    def step(self) -> None:
        """Choose one more token for every row."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        newest = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.model.device)
        _choose(self.rows, self._forward(self._cache, self._mask, input_ids=newest))

    def read_by(self, row: Row) -> DynamicCache:
        """Keys and values of all that the LLM has read for this row: its prompt, and its tokens but the newest."""
        i = self.rows.index(row)
        return _copied(self._cache, i, int(self._mask[i].argmax()))

    def leave(self, rows: Collection[Row]) -> None:
        """Remove rows, and the positions that only they used."""
        kept = [i for i, row in enumerate(self.rows) if row not in rows]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        self._mask = self._mask[kept]
        if not kept:
            self._cache = DynamicCache()
            return
        unused = int(self._mask.any(0).long().argmax())
        self._mask = self._mask[:, unused:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[kept, :, unused:], layer.values[kept, :, unused:]

    def _forward(self, cache: DynamicCache, mask: Tensor, **inputs: Tensor) -> Tensor:
        """Logits (rows, vocabulary) of the tokens to come, in float32."""
        mask = mask.to(self.model.device)
        if self._takes_positions:
            length = next(iter(inputs.values())).shape[1]
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        output = self.model.blip2.language_model(
            **inputs, **self._only_last, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        return output.logits[:, -1].float()

    def _merge(self, cache: DynamicCache, mask: Tensor) -> None:
        if not self.rows:
            self._cache, self._mask = cache, mask
            return
        length = max(mask.shape[1], self._mask.shape[1])
        pairs = list(zip(self._cache.layers, cache.layers, strict=True))
        # All made before any is put in its place: should memory run out here, the rows that were there can go on.
        keys = [torch.cat([_widened(old.keys, length), _widened(new.keys, length)]) for old, new in pairs]
        values = [torch.cat([_widened(old.values, length), _widened(new.values, length)]) for old, new in pairs]
        self._mask = torch.cat([torch.nn.functional.pad(m, (length - m.shape[1], 0)) for m in (self._mask, mask)])
        for layer, merged_keys, merged_values in zip(self._cache.layers, keys, values, strict=True):
            layer.keys, layer.values = merged_keys, merged_values


def _length(cache: DynamicCache | None) -> int:
    return 0 if cache is None else cache.get_seq_length()


def _copied(cache: DynamicCache | None, row: int, start: int) -> DynamicCache:
    """One row of a cache from position `start` on, as a cache of its own."""
    copy = DynamicCache()
    for number, layer in enumerate(cache.layers if cache is not None else ()):
        copy.update(layer.keys[row : row + 1, :, start:], layer.values[row : row + 1, :, start:], number)
    return copy


def _widened(states: Tensor, length: int) -> Tensor:
    """Keys or values (rows, heads, positions, d) with room on the left, up to `length` positions."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def _choose(rows: Sequence[Row], logits: Tensor) -> None:
    for row, scores, likeliest in zip(rows, logits, logits.argmax(-1).tolist(), strict=True):
        try:
            row.choose(scores, likeliest)
        except Exception as error:  # one row's settings must not take the others down
            row.failed = error
            row.tokens.append(likeliest)
