"""Step 3 of the photo model: the Q-Former learns through the frozen LLM, BLIP-2's second phase of pretraining.

python tools/photo/generative.py --features runs/photo/features --start photo-stage1 --out runs/photo/generative \
    --answers datasets/photo-answers/answers.jsonl datasets/photo-descriptions/descriptions.jsonl

The Q-Former and a linear projection are trained on the captions' loss, through the LLM, which stays frozen (Li et al.
2023, section 3.3). The projection is the BLIP-2 baseline's afterwards, and stage 1 starts with it. All captions of an
image are computed in one row: they see the image's tokens and themselves. An image is shown bare, in BLIP-2's form of a
question, or in the LLM's own form of a chat, so that its tokens mean the same in each. With --answers, every second
batch are requests about photographs with their answers.

The LLM computes in 8 bits, compiled, and most batches of captions know only the tokens of captions: 1.9 times as fast.

A killed run goes on where its last checkpoint stood.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from features import draft, network  # beside this file
from qformer import class_caption, prepare, scores, tidy  # beside this file
from safetensors.torch import save_file
from torch import Tensor, nn

from minigpt4 import MiniGPT4
from minigpt4.files import new_directory
from minigpt4.model.quantization import quantize_linears
from minigpt4.prompts.encode import encode, encode_chat
from minigpt4.prompts.templates import IMAGE_MARK, TEMPLATES, Message
from minigpt4.shipped import models
from minigpt4.training.loss import head_loss
from minigpt4.training.speed import ROUNDING
from pocket.text.phrases import caption
from pocket.towers.pretrain import Pretraining, pretrain

#: Of a batch's images: photographs of Flickr8k, of ImageNet's classes, drawn drafts.
PARTS = {"train": 6, "imagenet": 1, "drafts": 1}
CAPTIONS = 5  # of an image, in one row
LONGEST = 84  # tokens of an image's captions; further captions are left out
#: How an image is shown: of eight batches, so many in each form.
FORMS = ("bare", "bare", "chat", "bare", "bare", "chat", "bare", "blip2")
QUESTIONS = (
    "Describe this image in one sentence.", "What is in this image?", "Write a short caption.", "What do you see?",
    "What does this photo show?", "Give this picture a caption.", "In one sentence: what is this?",
    "Look at this image. What is happening?",
)  # fmt: skip
DESCRIBE = "Describe this image in detail."  # what a row without a question answers


@dataclass
class Batch:
    """Images and their texts: features (n, 83, d) float16; the prompt's ids (p,), the image's place among them; the
    texts' ids (n, t), which text of its image each belongs to, counted from 1, 0 for padding (n, t); whether the
    loss knows all tokens, or those of captions only."""

    features: Tensor
    prompt: Tensor
    ids: Tensor
    which: Tensor
    all_tokens: bool


class Sources:
    """The cached features and texts of all parts; batch `n` follows from `n` alone."""

    def __init__(self, directory: Path, model: MiniGPT4, answers: Sequence[Path] = ()) -> None:
        self.tokenizer, self.image_token_id = model.tokenizer, model.image_token_id
        self.count, self.templates = model.num_query_tokens, {"chat": model.template, "blip2": TEMPLATES["blip2"]}
        self.features = {part: np.load(directory / f"{part}.npy", mmap_mode="r") for part in PARTS}
        self.told = {part: json.loads((directory / f"{part}.json").read_text()) for part in PARTS}
        places = {name: n for n, name in enumerate(self.told["train"]["names"])}
        #: By their question: places of train photographs, and what is answered about them.
        self.answers: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for row in (json.loads(line) for file in answers for line in file.read_text(encoding="utf-8").splitlines()):
            question = row.get("question", DESCRIBE)
            self.answers[question].append((places[row["file_name"]], row.get("answer") or row["text"]))
        texts = [tidy(text) for row in self.told["train"]["texts"] for text in row]
        texts += [
            class_caption(label, random.Random(n)) for (label,) in self.told["imagenet"]["texts"] for n in range(9)
        ]
        texts += [" ".join(row) for row in self.told["drafts"]["texts"]] + [self.prompt(form, "")[1] for form in FORMS]
        #: Tokens of captions (k,), and the place of each token among them.
        self.known = torch.tensor(sorted({i for ids in self.tokenizer(texts)["input_ids"] for i in ids}))
        self.place = torch.full((len(self.tokenizer),), -1).index_put((self.known,), torch.arange(len(self.known)))

    def texts(self, part: str, row: int, rng: random.Random) -> list[str]:
        if part == "imagenet":
            return [class_caption(self.told[part]["texts"][row][0], rng) for _ in range(CAPTIONS)]
        if part == "drafts":
            return [tidy(caption(draft(row), rng)) for _ in range(CAPTIONS)]
        return [tidy(text) for text in self.told[part]["texts"][row]]

    def prompt(self, form: str, question: str) -> tuple[list[int], str]:
        """A prompt's ids, and what ends its answer."""
        if form == "bare":
            return encode(self.tokenizer, IMAGE_MARK, self.count, self.image_token_id), "\n"
        template = self.templates[form]
        asked = [Message("user", question, images=1)]
        return encode_chat(self.tokenizer, template, asked, self.count, self.image_token_id), template.stop

    def __call__(self, number: int) -> Batch:
        rng = random.Random(f"batch {number}")
        if self.answers and number % 2:
            return self.asked(rng)
        prompt, stop = self.prompt(FORMS[number // 2 % len(FORMS)], rng.choice(QUESTIONS))
        features, rows = [], []
        for part, count in PARTS.items():
            photos = len(self.told[part]["texts"])
            for photo in rng.sample(range(photos), count):
                view = rng.randrange(len(self.features[part]) // photos)
                features.append(torch.from_numpy(self.features[part][photo + view * photos].copy()))
                texts = [text + stop for text in dict.fromkeys(self.texts(part, photo, rng))]
                ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
                rows.append([text for n, text in enumerate(ids) if sum(map(len, ids[: n + 1])) <= LONGEST])
        return self.batch(features, prompt, rows, number % 8 == 0)

    def asked(self, rng: random.Random) -> Batch:
        """One request about several photographs."""
        question = rng.choices([*self.answers], [*map(len, self.answers.values())])[0]
        prompt, stop = self.prompt("chat", question)
        chosen = rng.sample(self.answers[question], min(sum(PARTS.values()), len(self.answers[question])))
        photos, views = len(self.told["train"]["texts"]), len(self.features["train"])
        places = [place + photos * rng.randrange(views // photos) for place, _ in chosen]
        features = [torch.from_numpy(self.features["train"][place].copy()) for place in places]
        ids = self.tokenizer([text + stop for _, text in chosen], add_special_tokens=False)["input_ids"]
        return self.batch(features, prompt, [[text] for text in ids], True)

    @staticmethod
    def batch(features: list[Tensor], prompt: list[int], rows: list[list[list[int]]], all_tokens: bool) -> Batch:
        longest = max(sum(map(len, row)) for row in rows)
        flat_ids, which = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
        for n, row in enumerate(rows):
            flat = [(i, k) for k, text in enumerate(row, 1) for i in text]
            flat_ids[n, : len(flat)], which[n, : len(flat)] = torch.tensor(flat).T
        return Batch(torch.stack(features), torch.tensor(prompt), flat_ids, which, all_tokens)


class Generative(nn.Module):
    """The Q-Former, its queries and a projection, which are trained; the LLM is not among the module's parts."""

    def __init__(
        self, model: MiniGPT4, mean: Tensor, deviation: Tensor, classifier: tuple[Tensor, Tensor], known: Tensor,
        place: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        self._model = [model]  # in a list: not a part
        head = model.blip2.language_model.get_output_embeddings().weight
        self.known = {"head": head[known].detach(), "place": place}  # of the tokens of captions
        self.qformer = model.blip2.qformer.float().requires_grad_(True)
        self.query_tokens = model.blip2.query_tokens
        self.query_tokens.requires_grad_(True).data = self.query_tokens.data.float()
        self.projection = model.blip2.language_projection.float().requires_grad_(True)
        self.class_head = nn.Linear(self.query_tokens.shape[-1], len(classifier[0]))
        for name, value in {"mean": mean, "deviation": deviation, "class_weight": classifier[0],
                            "class_bias": classifier[1]}.items():  # fmt: skip
            self.register_buffer(name, value, persistent=False)
        for name, part in self.qformer.named_modules():
            if re.search(r"crossattention\.attention\.(key|value)$", name):  # trained on standardised features
                part.bias.data += part.weight.data @ mean
                part.weight.data *= deviation
            if isinstance(part, nn.Dropout):
                part.p = 0.1 if "attention.dropout" not in name else 0.0

    def look(self, features: Tensor) -> Tensor:
        """Cached features (n, 83, d) -> the queries' output (n, q, width)."""
        seen = (features.float() - self.mean) / self.deviation
        queries = self.query_tokens.expand(len(seen), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state

    def caption_loss(self, queries: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy (nats per token) of all texts, through the frozen LLM."""
        model = self._model[0]
        n, before = len(queries), len(batch.prompt)
        ids = torch.cat([batch.prompt.expand(n, -1), batch.ids], 1)
        which = torch.cat([torch.zeros(n, before, dtype=torch.long), batch.which.where(batch.which > 0, -1)], 1)
        words = model.blip2.language_model.get_input_embeddings()(ids)
        image = (batch.prompt == model.image_token_id).nonzero()[:, 0]
        words = words.index_copy(1, image, self.projection(queries).to(words.dtype))
        # A text sees the prompt and itself; its first word is the prompt's next.
        seen = (which[:, None] == 0) | (which[:, None] == which[..., None])
        seen &= torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape, dtype=words.dtype).masked_fill_(~seen, float("-inf"))[:, None]
        place = torch.arange(ids.shape[1]).expand(n, -1)
        first = (which[:, 1:] != which[:, :-1]) & (which[:, 1:] != 0)  # where a text begins
        begins = torch.cat([torch.zeros(n, 1, dtype=torch.long), place[:, 1:].where(first, 0)], 1).cummax(1).values
        positions = place.where(which == 0, place - begins + before)
        hidden = model.blip2.language_model.base_model(
            inputs_embeds=words, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        predicted_from = (place - 1).where(place != begins, before - 1)[:, before:]
        real = batch.which > 0
        rows = torch.arange(n)[:, None].expand_as(real)[real]
        hidden, targets = hidden[rows, predicted_from[real]], batch.ids[real]
        places = self.known["place"][targets]
        if batch.all_tokens or (places < 0).any():
            return head_loss(model, hidden, targets)
        return F.cross_entropy((hidden @ self.known["head"].T).float(), places)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The captions' loss, and that of the classifier's own verdict, told from the queries' mean."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            queries = self.look(batch.features)
            known = (batch.features[:, 0].float() @ self.class_weight.T + self.class_bias).softmax(-1)
            classes = F.cross_entropy(self.class_head(queries.mean(1)).float(), known)
            captioning = self.caption_loss(queries, batch)
        return captioning + 0.1 * classes, {"caption": captioning.item(), "classes": classes.item()}

    def qformer_tensors(self) -> dict[str, Tensor]:
        """The trained Q-Former's tensors by their names in a BLIP-2; what standardises features is part of them."""
        tensors = {"query_tokens": self.query_tokens.data}
        for name, tensor in self.qformer.state_dict().items():
            tensors[f"qformer.{name}"] = tensor.double()
        for name in [name for name in tensors if re.search(r"crossattention\.attention\.(key|value)\.weight", name)]:
            bias = name.replace(".weight", ".bias")
            tensors[name] = tensors[name] / self.deviation
            tensors[bias] = tensors[bias] - tensors[name] @ self.mean.double()
        return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


class Validation:
    """Photographs of the validation split: BLEU-4 and CIDEr of greedy captions of the bare image."""

    def __init__(self, features: Path, count: int, model: MiniGPT4) -> None:
        self.texts = json.loads((features / "validation.json").read_text())["texts"][:count]
        self.features = torch.from_numpy(np.load(features / "validation.npy", mmap_mode="r")[:count].copy())
        self.model, self.form = model, replace(TEMPLATES["blip2"], user="{images}{text}", assistant="{text}\n")

    def __call__(self, module: Generative) -> dict[str, float]:
        module.eval()
        torch.compiler.set_stance("force_eager")  # each length would be compiled
        llm, tokenizer, said = self.model.blip2.language_model, self.model.tokenizer, []
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            for part in self.features.split(100):
                image = module.projection(module.look(part))
                start = encode(tokenizer, IMAGE_MARK, image.shape[1], self.model.image_token_id)
                words = llm.get_input_embeddings()(torch.tensor(start).expand(len(part), -1)).clone()
                words[:, torch.tensor(start) == self.model.image_token_id] = image.to(words.dtype)
                cache, done, row = None, torch.zeros(len(part), dtype=torch.bool), []
                (end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
                for _ in range(28):
                    out = llm(inputs_embeds=words, past_key_values=cache, use_cache=True)
                    cache, new = out.past_key_values, out.logits[:, -1].argmax(-1).where(~done, end)
                    done |= new == end
                    row.append(new)
                    words = llm.get_input_embeddings()(new)[:, None]
                said += [text.strip() for text in tokenizer.batch_decode(torch.stack(row, 1))]
        module.train()
        torch.compiler.set_stance("default")
        logging.getLogger().info("%s", " | ".join(said[:6]))
        return scores(said, self.texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=Path("runs/photo/features"))
    parser.add_argument("--qformer", default="photo/vision", help="the Q-Former to start from; default: the shipped")
    parser.add_argument("--start", help="an alignment of that Q-Former, for its projection; default: a fresh one")
    parser.add_argument(
        "--answers",
        type=Path,
        nargs="*",
        default=[],
        help="requests with answers, a JSON line each; default: captions only",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/photo/generative"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--decay-share", type=float, default=0.3, help="share of the steps in which the rate falls")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(0)
    if arguments.start:
        model = MiniGPT4.from_pretrained(arguments.start, dtype="bfloat16")
    else:
        model = MiniGPT4.assemble(arguments.qformer, "photo/language", dtype="bfloat16")
    llm = model.blip2.language_model
    llm.set_attn_implementation("eager")  # faster than sdpa here, most of all backwards
    quantize_linears("int8", llm)
    for layer in llm.base_model.layers:
        layer.compile(dynamic=True, options=ROUNDING)
    model.compiled = True
    _, mean, deviation = prepare(arguments.features, arguments.out)
    net = network().float()
    sources = Sources(arguments.features, model, arguments.answers)
    classifier = net._fc.weight.data, net._fc.bias.data
    module = Generative(model, mean, deviation, classifier, sources.known, sources.place).train()
    validation = Validation(arguments.features, 300, model)
    pretrain(
        module, sources, module,
        Pretraining(arguments.steps, muon_lr=0.004, adam_lr=4e-4, warmup=40, decay_share=arguments.decay_share),
        arguments.out, evaluate=lambda: validation(module), evaluate_every=400,
    )  # fmt: skip
    module.eval()
    tensors = module.qformer_tensors()
    shown = Path(str(models().get(arguments.qformer, arguments.qformer)))
    with new_directory(arguments.out / "vision", overwrite=True, marker="config.json") as directory:
        for name in ("config.json", "preprocessor_config.json"):
            (directory / name).write_bytes((shown / name).read_bytes())
        save_file(tensors, directory / "model.safetensors")
    projection = {name: tensor.float() for name, tensor in module.projection.state_dict().items()}
    save_file(projection, arguments.out / "projection.safetensors")


if __name__ == "__main__":
    main()
