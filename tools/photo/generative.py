"""Step 2 of the photo model: the Q-Former learns through the frozen LLM, BLIP-2's second phase of pretraining.

python tools/photo/generative.py --flickr8k DIR --imagenet DIR --qformer runs/photo/qformer/vision \
    --out runs/photo/generative

The Q-Former and a linear projection are trained through the LLM, which stays frozen (Li et al. 2023, section 3.3). The
projection is the BLIP-2 baseline's afterwards, and stage 1 starts with it. A row is an image with its captions, each of
which sees the image's tokens and itself; or an image with a request and its answer. An image with captions is shown
bare, in BLIP-2's form of a question, or in the LLM's own form of a chat, so that its tokens mean the same in each.

On a CPU that multiplies bfloat16 the LLM computes in 8 bits, compiled.

A killed run goes on where its last checkpoint stood.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from images import (  # beside this file
    AS_IT_IS,
    DRAFTS,
    HELD_DRAFTS,
    Eye,
    Parts,
    draft,
    draft_view,
    photo_view,
    written,
)  # fmt: skip
from qformer import add_arguments, begin, captions, scores, statistics, verdicts  # beside this file
from safetensors.torch import save_file
from torch import Tensor, nn

from minigpt4 import MiniGPT4
from minigpt4.files import new_directory
from minigpt4.model.quantization import quantize_linears
from minigpt4.prompts.encode import encode, encode_chat
from minigpt4.prompts.templates import IMAGE_MARK, TEMPLATES, Message
from minigpt4.shipped import models
from minigpt4.training.speed import ROUNDING
from pocket.measure.webpage import check_page
from pocket.text.answers import website
from pocket.towers.pretrain import Pretraining, pretrain

#: What a row is, of a hundred: captions of a photograph, of one of ImageNet's classes, of a drawn draft; a request
#: about a photograph, about one of ImageNet's, for the page of a draft.
ROWS = {"train": 47, "imagenet": 12, "drafts": 3, "requests": 20, "class requests": 10, "pages": 8}
CAPTIONS = 5  # of an image, in one row, at most
LONGEST = 100  # tokens of a row's texts; further captions are left out
PAGE_WEIGHT = 0.4  # of a page's tokens in the loss, for most of them are the same in all pages
#: How an image with captions is shown, of ten rows.
FORMS = ("bare",) * 6 + ("chat",) * 3 + ("blip2",)
QUESTIONS = (
    "Describe this image in one sentence.", "What is in this image?", "Write a short caption.", "What do you see?",
    "What does this photo show?", "Give this picture a caption.", "In one sentence: what is this?",
    "Look at this image. What is happening?",
)  # fmt: skip
DESCRIBE = (  # what a text without a question answers
    "Describe this image in detail.", "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.", "Could you describe the contents of this image for me?",
)  # fmt: skip
PAGES = (
    "Write the HTML of this website.", "Write the HTML for this website.", "Turn this draft into a website.",
    "Write a web page from this draft.", "Make a website from this sketch.",
)  # fmt: skip


@dataclass
class Row:
    """What is shown and said: the image's number and view; the prompt's ids; the texts' ids; their tokens' weight."""

    image: int
    view: tuple[float, ...]
    prompt: list[int]
    texts: list[list[int]]
    weight: float = 1.0


@dataclass
class Batch:
    """Numbers of images (n,) and how each is seen (n, 7). Of the rows' tokens (n, t), all int64: their ids; which text
    each belongs to, counted from 1, 0 for the prompt, -1 for padding; their positions; the place of the token before.
    Each row's weight (n,)."""

    images: Tensor
    views: Tensor
    ids: Tensor
    which: Tensor
    positions: Tensor
    before: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Batch:
        """Rows side by side, padded on the right to a multiple of 16 tokens."""
        longest = max(len(row.prompt) + sum(map(len, row.texts)) for row in rows)
        ids, positions, before = (torch.zeros(len(rows), -(-longest // 16) * 16, dtype=torch.long) for _ in range(3))
        which = torch.full_like(ids, -1)
        for n, row in enumerate(rows):
            start = end = len(row.prompt)
            ids[n, :end], which[n, :end], positions[n, :end] = torch.tensor(row.prompt), 0, torch.arange(end)
            for k, text in enumerate(row.texts, 1):
                part, end = slice(end, end + len(text)), end + len(text)
                ids[n, part], which[n, part] = torch.tensor(text), k
                positions[n, part] = torch.arange(start, start + len(text))
                before[n, part] = torch.arange(part.start - 1, end - 1)
                before[n, part.start] = start - 1  # a text's first word follows the prompt
        return cls(
            torch.tensor([row.image for row in rows]), torch.tensor([row.view for row in rows]), ids, which, positions,
            before, torch.tensor([row.weight for row in rows]),
        )  # fmt: skip


class Sources:
    """Everything that is said of the images, in tokens; batch `n` follows from `n` alone."""

    def __init__(self, parts: Parts, model: MiniGPT4, size: int) -> None:
        self.first, self.size, self.tokenizer = parts.first, size, model.tokenizer
        self.count, self.image_token_id = model.num_query_tokens, model.image_token_id
        self.templates = {"chat": model.template, "blip2": TEMPLATES["blip2"]}
        self.prompt = cache(self._prompt)
        self.captions = {part: [self.tokens(row) for row in rows] for part, rows in captions(parts).items()}
        places = {name: n for part in ("train", "imagenet") for n, name in enumerate(parts.names[part])}
        #: Place of an image among its part's, question (None: for a description), answer.
        self.asked: dict[str, list[tuple[int, str | None, list[int]]]] = {}
        ours = {
            "requests": [(row["file_name"], row.get("question"), row.get("answer") or row["text"])
                         for row in written("descriptions", "answers")],
            "class requests": [
                (row["file_name"], question, answer) for row in written("classes")
                for question, answer in ((None, row["description"]), (row["question"], row["answer"]))
            ],
        }  # fmt: skip
        for kind, told in ours.items():
            texts = self.tokens([text + model.template.stop for _, _, text in told])
            self.asked[kind] = [(places[name], q, ids) for (name, q, _), ids in zip(told, texts, strict=True)]
        pages = [website(draft(n), random.Random(f"page {n}")) + model.template.stop for n in range(DRAFTS)]
        self.pages = self.tokens(pages)
        self.stops = {form: self.tokens([self.prompt(form, "")[1]])[0] for form in set(FORMS)}

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def _prompt(self, form: str, question: str) -> tuple[list[int], str]:
        """A prompt's ids, and what ends its answer."""
        if form == "bare":
            return encode(self.tokenizer, IMAGE_MARK, self.count, self.image_token_id), "\n"
        template = self.templates[form]
        asked = [Message("user", question, images=1)]
        return encode_chat(self.tokenizer, template, asked, self.count, self.image_token_id), template.stop

    def row(self, kind: str, rng: random.Random) -> Row:
        if kind in self.asked:
            place, question, text = rng.choice(self.asked[kind])
            part = "train" if kind == "requests" else "imagenet"
            prompt, _ = self.prompt("chat", question or rng.choice(DESCRIBE))
            return Row(self.first[part] + place, photo_view(rng), prompt, [text])
        if kind == "pages":
            place = rng.randrange(len(self.pages))
            prompt, _ = self.prompt("chat", rng.choice(PAGES))
            return Row(self.first["drafts"] + place, draft_view(rng), prompt, [self.pages[place]], PAGE_WEIGHT)
        place, form = rng.randrange(len(self.captions[kind])), rng.choice(FORMS)
        prompt, _ = self.prompt(form, "" if form == "bare" else rng.choice(QUESTIONS))
        said, view = self.captions[kind][place], draft_view if kind == "drafts" else photo_view
        chosen: list[list[int]] = []
        for text in rng.sample(said, min(CAPTIONS, len(said))):
            if not chosen or sum(map(len, chosen)) + len(text) < LONGEST:
                chosen.append(text + self.stops[form])
        return Row(self.first[kind] + place, view(rng), prompt, chosen)

    def __call__(self, number: int) -> Batch:
        rng = random.Random(f"batch {number}")
        return Batch.of([self.row(kind, rng) for kind in rng.choices([*ROWS], [*ROWS.values()], k=self.size)])


class Generative(nn.Module):
    """The Q-Former, its queries and a projection, which are trained; the LLM is not among the module's parts."""

    def __init__(self, model: MiniGPT4, eye: Eye, mean: Tensor, deviation: Tensor, dropout: float) -> None:
        super().__init__()
        self._frozen = (model, eye)  # in a tuple: not parts
        self.qformer = model.blip2.qformer.float().requires_grad_(True)
        self.query_tokens = model.blip2.query_tokens
        self.query_tokens.requires_grad_(True).data = self.query_tokens.data.float()
        self.projection = model.blip2.language_projection.float().requires_grad_(True)
        self.class_head = nn.Linear(self.query_tokens.shape[-1], 1000)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)
        for name, part in self.qformer.named_modules():
            if re.search(r"crossattention\.attention\.(key|value)$", name):  # trained on standardised features
                part.bias.data += part.weight.data @ mean
                part.weight.data *= deviation
            if isinstance(part, nn.Dropout):
                part.p = dropout if "attention.dropout" not in name else 0.0

    def look(self, features: Tensor) -> Tensor:
        """Features (n, 83, d) -> the queries' output (n, q, width)."""
        seen = (features.float() - self.mean) / self.deviation
        queries = self.query_tokens.expand(len(seen), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state

    def embed(self, ids: Tensor, queries: Tensor) -> Tensor:
        """Ids (n, t) -> what the LLM reads (n, t, d), with the image's tokens in their places."""
        model = self._frozen[0]
        words = model.blip2.language_model.get_input_embeddings()(ids)
        image = (ids == model.image_token_id)[..., None]
        return words.masked_scatter(image, self.projection(queries).to(words.dtype))

    def text_loss(self, queries: Tensor, batch: Batch) -> Tensor:
        """Weighted mean cross-entropy (nats per token) of all texts, through the frozen LLM."""
        model, device = self._frozen[0], queries.device
        ids, which, before = batch.ids.to(device), batch.which.to(device), batch.before.to(device)
        words = self.embed(ids, queries)
        # A text sees the prompt and itself.
        sees = ((which[:, None] == 0) | (which[:, None] == which[..., None])).tril()
        mask = torch.zeros(sees.shape, dtype=words.dtype, device=device).masked_fill_(~sees, float("-inf"))[:, None]
        hidden = model.blip2.language_model.base_model(
            inputs_embeds=words, attention_mask=mask, position_ids=batch.positions.to(device), use_cache=False
        ).last_hidden_state
        row, place = (which > 0).nonzero(as_tuple=True)
        logits = model.blip2.language_model.get_output_embeddings()(hidden[row, before[row, place]]).float()
        weights = batch.weights.to(device)[row]
        return (F.cross_entropy(logits, ids[row, place], reduction="none") * weights).sum() / weights.sum()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The texts' loss, and that of the classifier's own verdict, told from the queries' mean."""
        eye = self._frozen[1]
        with eye.autocast():
            features = eye(batch.images, batch.views)
            queries = self.look(features)
            classes = F.cross_entropy(self.class_head(queries.mean(1)).float(), verdicts(eye, features))
            texts = self.text_loss(queries, batch)
        return texts + 0.1 * classes, {"texts": texts.item(), "classes": classes.item()}

    def qformer_tensors(self) -> dict[str, Tensor]:
        """The trained Q-Former's tensors by their names in a BLIP-2; what standardises features is part of them."""
        tensors = {"query_tokens": self.query_tokens.data}
        for name, tensor in self.qformer.state_dict().items():
            tensors[f"qformer.{name}"] = tensor.double()
        for name in [name for name in tensors if re.search(r"crossattention\.attention\.(key|value)\.weight", name)]:
            bias = name.replace(".weight", ".bias")
            tensors[name] = tensors[name] / self.deviation
            tensors[bias] = tensors[bias] - tensors[name] @ self.mean.double()
        return {name: tensor.half().cpu().contiguous() for name, tensor in tensors.items()}

    @torch.inference_mode()
    def say(self, features: Tensor, prompt: list[int], stop: int, longest: int) -> list[str]:
        """Greedy answers to one prompt about each image, up to the token `stop`."""
        model = self._frozen[0]
        llm, cache, rows = model.blip2.language_model, None, []
        with self._frozen[1].autocast():
            ids = torch.tensor(prompt, device=features.device).expand(len(features), -1)
            words = self.embed(ids, self.look(features))
            done = torch.zeros(len(features), dtype=torch.bool, device=features.device)
            while len(rows) < longest and not done.all():
                out = llm(inputs_embeds=words, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, new = out.past_key_values, out.logits[:, -1].argmax(-1).where(~done, stop)
                done |= new == stop
                rows.append(new)
                words = llm.get_input_embeddings()(new)[:, None]
        return [text.strip() for text in model.tokenizer.batch_decode(torch.stack(rows, 1), skip_special_tokens=True)]


class Validation:
    """BLEU-4 and CIDEr of greedy captions of validation photographs, and the share of held-out drafts made right."""

    def __init__(self, parts: Parts, eye: Eye, sources: Sources, count: int) -> None:
        self.texts, self.sources = parts.texts["validation"][:count], sources

        def features(part: str, count: int) -> list[Tensor]:
            numbers = torch.arange(count) + parts.first[part]
            return [eye(some, torch.tensor([AS_IT_IS] * len(some))) for some in numbers.split(100)]

        self.photos, self.drafts = features("validation", len(self.texts)), features("held_drafts", HELD_DRAFTS)
        self.pictures = [draft(n) for n in range(DRAFTS, DRAFTS + HELD_DRAFTS)]

    def __call__(self, module: Generative) -> dict[str, float]:
        module.eval()
        torch.compiler.set_stance("force_eager")  # each length would be compiled

        def said(images: list[Tensor], form: str, question: str, longest: int) -> list[str]:
            prompt, stop = self.sources.prompt(form, question)
            end = self.sources.tokens([stop])[0][0]
            return [text for some in images for text in module.say(some, prompt, end, longest)]

        captions = said(self.photos, "bare", "", 28)
        pages = said(self.drafts, "chat", PAGES[0], 130)
        right = [
            check_page(page, picture.setting, [item.kind for item in picture.items]) is None
            for page, picture in zip(pages, self.pictures, strict=True)
        ]
        some = [photos[:4] for photos in self.photos[:1]]
        for question in (DESCRIBE[0], "Write a poem about this image.", "What could happen next?"):
            logging.getLogger().info("%s %s", question, " | ".join(said(some, "chat", question, 80)))
        logging.getLogger().info("%s || %s", " | ".join(captions[:6]), pages[0])
        module.train()
        torch.compiler.set_stance("default")
        return {**scores(captions, self.texts), "pages": sum(right) / len(right)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--qformer", default="photo/vision", help="the Q-Former to start from; default: the shipped")
    parser.add_argument("--start", help="an alignment of that Q-Former, for its projection; default: a fresh one")
    parser.add_argument("--out", type=Path, default=Path("runs/photo/generative"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=8, help="rows in a batch")
    parser.add_argument("--rate", type=float, default=0.004, help="Muon's learning rate; AdamW's is a tenth")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--decay-share", type=float, default=0.6, help="share of the steps in which the rate falls")
    parser.add_argument("--evaluate-every", type=int, default=400)
    arguments = parser.parse_args()
    parts, eye = begin(arguments)
    dtype = {"dtype": eye.dtype}
    if arguments.start:
        model = MiniGPT4.from_pretrained(arguments.start, **dtype)
    else:
        model = MiniGPT4.assemble(arguments.qformer, "photo/language", **dtype)
    llm = model.blip2.language_model
    if arguments.device.type == "cpu":
        llm.set_attn_implementation("eager")  # faster than sdpa here, most of all backwards
        if eye.dtype == torch.bfloat16:
            quantize_linears("int8", llm)
        for layer in llm.base_model.layers:
            layer.compile(dynamic=True, options=ROUNDING)
    else:
        llm.to(arguments.device)
    sources = Sources(parts, model, arguments.batch)
    some = (tensor.cpu() for tensor in statistics(eye, len(parts.names["train"])))
    module = Generative(model, eye, *some, arguments.dropout).to(arguments.device).train()
    validation = Validation(parts, eye, sources, 300)
    pretrain(
        module, sources, module,
        Pretraining(
            arguments.steps, muon_lr=arguments.rate, adam_lr=arguments.rate / 10, warmup=40,
            decay_share=arguments.decay_share, seconds=arguments.seconds, checkpoint_every=arguments.evaluate_every,
        ), arguments.out, evaluate=lambda: validation(module), evaluate_every=arguments.evaluate_every,
    )  # fmt: skip
    logging.getLogger().info("%s", json.dumps(validation(module)))
    module.eval()
    tensors = module.qformer_tensors()
    shown = Path(str(models().get(arguments.qformer, arguments.qformer)))
    with new_directory(arguments.out / "vision", overwrite=True, marker="config.json") as directory:
        for name in ("config.json", "preprocessor_config.json"):
            (directory / name).write_bytes((shown / name).read_bytes())
        save_file(tensors, directory / "model.safetensors")
    projection = {name: tensor.float().cpu().contiguous() for name, tensor in module.projection.state_dict().items()}
    save_file(projection, arguments.out / "projection.safetensors")


if __name__ == "__main__":
    main()
