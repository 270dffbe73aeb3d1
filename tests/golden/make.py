"""Make the fixtures of `test_released.py`: a toy MiniGPT-4 with random weights in the files of the released one, and
what `reference.py` computes from them. Run it as `python tests/golden/make.py`; the files it writes are committed.

Sizes are unlike each other wherever they may be, so that no two can be mixed up unseen.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

from reference import Model, Weights, tokens

HERE = Path(__file__).parent / "released"
SIZES = {
    "image_size": 24, "patch": 6, "vision": 20, "vision_inner": 36, "blocks": 2, "vision_heads": 2,
    "queries": 3, "qformer": 16, "qformer_inner": 28, "qformer_layers": 3, "qformer_heads": 4,
    "llm": 24, "llm_inner": 40, "llm_layers": 2, "llm_heads": 3, "vocabulary": 330,
}  # fmt: skip
WORDS = (
    "###Human: <Img></Img> Describe this image in detail. ###Assistant: There is a red ball on the left.\n"
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions.###\n[INST] What is in the left? [/INST] a red ball and a small box\n"
)
SYSTEM = WORDS.splitlines()[1].removesuffix("###")
QUESTION, REPLY, FOLLOW_UP = "Describe this image in detail.", "a red ball and a small box", "What is in the left?"
PROMPTS = {
    "vicuna_v0": [
        f"{SYSTEM}###Human: <Img><ImageHere></Img> {QUESTION}###Assistant: ",
        f"{SYSTEM}###Human: <Img><ImageHere></Img> {QUESTION}###Assistant: {REPLY}###Human: {FOLLOW_UP}###Assistant: ",
    ],
    "llama2": [
        f"{SYSTEM}<s>[INST] <Img><ImageHere></Img> {QUESTION} [/INST] ",
        f"{SYSTEM}<s>[INST] <Img><ImageHere></Img> {QUESTION} [/INST] {REPLY}<s>[INST] {FOLLOW_UP} [/INST] ",
    ],
}
CAPTIONS = ["a red ball", "a small box on the left"]
DESCRIPTIONS = ["There is a red ball on the left.", "a small image"]
STAGE2 = f"###Human: <Img><ImageHere></Img> {QUESTION} ###Assistant: "
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
NEW_TOKENS, BEAMS, SEED = 6, 3, 14


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=generator)


def linear(generator: torch.Generator, name: str, out: int, width: int) -> Weights:
    return {f"{name}.weight": random(generator, out, width), f"{name}.bias": random(generator, out)}


def norm(generator: torch.Generator, name: str, width: int) -> Weights:
    return {f"{name}.weight": 1 + random(generator, width), f"{name}.bias": random(generator, width)}


def vision_file(g: torch.Generator) -> Weights:
    """One block more than is used, and the norm and head after it."""
    width, inner, patch = SIZES["vision"], SIZES["vision_inner"], SIZES["patch"]
    weights = {
        "cls_token": random(g, 1, 1, width),
        "pos_embed": random(g, 1, (SIZES["image_size"] // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": random(g, width, 3, patch, patch),
        "patch_embed.proj.bias": random(g, width),
    }
    for i in range(SIZES["blocks"] + 1):
        name = f"blocks.{i}"
        weights |= norm(g, f"{name}.norm1", width) | norm(g, f"{name}.norm2", width)
        weights |= {f"{name}.attn.{bias}_bias": random(g, width) for bias in "qv"}
        weights[f"{name}.attn.qkv.weight"] = random(g, 3 * width, width)
        weights |= linear(g, f"{name}.attn.proj", width, width)
        weights |= linear(g, f"{name}.mlp.fc1", inner, width) | linear(g, f"{name}.mlp.fc2", width, inner)
    return weights | norm(g, "norm", width) | linear(g, "head", 5, width)


def qformer_file(g: torch.Generator) -> Weights:
    """With the branch that reads text, its head, and the projection to another LLM, of which nothing is used."""
    width, inner, vision = SIZES["qformer"], SIZES["qformer_inner"], SIZES["vision"]
    bert = "Qformer.bert.embeddings"
    weights = {"query_tokens": random(g, 1, SIZES["queries"], width)}
    weights |= norm(g, "ln_vision", vision) | norm(g, f"{bert}.LayerNorm", width) | linear(g, "t5_proj", 7, width)
    weights |= {f"{bert}.word_embeddings.weight": random(g, 11, width), "Qformer.cls.predictions.bias": random(g, 11)}
    weights[f"{bert}.position_ids"] = torch.arange(9)[None]
    for i in range(SIZES["qformer_layers"]):
        layer = f"Qformer.bert.encoder.layer.{i}"
        for kind in ("attention", "crossattention") if i % 2 == 0 else ("attention",):
            read = width if kind == "attention" else vision
            weights |= linear(g, f"{layer}.{kind}.self.query", width, width)
            weights |= linear(g, f"{layer}.{kind}.self.key", width, read)
            weights |= linear(g, f"{layer}.{kind}.self.value", width, read)
            weights |= linear(g, f"{layer}.{kind}.output.dense", width, width)
            weights |= norm(g, f"{layer}.{kind}.output.LayerNorm", width)
        for branch in ("", "_query"):
            weights |= linear(g, f"{layer}.intermediate{branch}.dense", inner, width)
            weights |= linear(g, f"{layer}.output{branch}.dense", width, inner)
            weights |= norm(g, f"{layer}.output{branch}.LayerNorm", width)
    return weights


def llm_directory(g: torch.Generator) -> tuple[Weights, sentencepiece.SentencePieceProcessor]:
    """A Llama in Hugging Face's layout with a sentencepiece tokenizer like Llama's."""
    width, inner, vocabulary = SIZES["llm"], SIZES["llm_inner"], SIZES["vocabulary"]
    weights = {
        "model.embed_tokens.weight": random(g, vocabulary, width),
        "model.norm.weight": 1 + random(g, width),
        "lm_head.weight": random(g, vocabulary, width),
    }
    for i in range(SIZES["llm_layers"]):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = 1 + random(g, width)
        for name in "qkvo":
            weights[f"{layer}.self_attn.{name}_proj.weight"] = random(g, width, width)
        weights[f"{layer}.mlp.gate_proj.weight"] = random(g, inner, width)
        weights[f"{layer}.mlp.up_proj.weight"] = random(g, inner, width)
        weights[f"{layer}.mlp.down_proj.weight"] = random(g, width, inner)
    directory = HERE / "llm"
    directory.mkdir(exist_ok=True)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": SIZES["llm_layers"],
        "num_attention_heads": SIZES["llm_heads"], "vocab_size": vocabulary, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": False, "dtype": "float32",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.splitlines()), model_writer=model, model_type="bpe", vocab_size=vocabulary,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return weights, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def picture(number: int) -> torch.Tensor:
    """Write a small picture of the tower's size, so that nothing is resized, and return its pixels, normalised."""
    generator = torch.Generator().manual_seed(number)
    values = torch.randint(256, (SIZES["image_size"], SIZES["image_size"], 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(values.numpy()).save(HERE / f"{number}.png")
    return ((values.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def expected(model: Model, words: sentencepiece.SentencePieceProcessor, images: list[torch.Tensor]) -> dict:
    """Losses of both stages, and two turns of chat in both formats for the first image."""
    bos = [words.bos_id()]

    def pieces(prompt: str) -> list[list[int]]:
        before, after = prompt.split("<ImageHere>")
        return [bos + tokens(words, before), tokens(words, after)]

    def loss(prompt: str, answers: list[str], end: str) -> float:
        of_all = [
            model.losses(model.context(pieces(prompt), image), tokens(words, answer + end))
            for image, answer in zip(images, answers, strict=True)
        ]
        return float(torch.cat(of_all).mean())

    chats = {}
    for name, prompts in PROMPTS.items():
        chats[name] = []
        for prompt in prompts:
            context = model.context(pieces(prompt), images[0])
            ends = {words.eos_id()} | {i for i in range(words.vocab_size()) if "#" in words.id_to_piece(i)}
            greedy, beams = model.greedy(context, NEW_TOKENS), model.beams(context, NEW_TOKENS, BEAMS, ends)
            chats[name].append({"pieces": pieces(prompt), "greedy": greedy, "beams": beams})
    assert any(turn["greedy"] != turn["beams"] for turns in chats.values() for turn in turns), "take another seed"
    return {
        "stage1": {"captions": CAPTIONS, "loss": loss("<ImageHere>", CAPTIONS, "\n")},
        "stage2": {"descriptions": DESCRIPTIONS, "loss": loss(STAGE2, DESCRIPTIONS, "###")},
        "chat": chats,
    }


def main(seed: int) -> None:
    HERE.mkdir(exist_ok=True)
    g = torch.Generator().manual_seed(seed)
    vision, others = vision_file(g), qformer_file(g)
    llm, words = llm_directory(g)
    projection = linear(g, "llama_proj", SIZES["llm"], SIZES["qformer"])
    patches_projection = linear(g, "llama_proj", SIZES["llm"], 4 * SIZES["vision"])
    torch.save(vision, HERE / "eva_vit.pth")
    torch.save({"model": others}, HERE / "blip2_pretrained.pth")
    torch.save({"model": projection, "config": {"model": {"arch": "minigpt4"}}, "epoch": 3}, HERE / "pretrained.pth")
    torch.save({"model": patches_projection, "epoch": 3}, HERE / "pretrained_without_qformer.pth")

    pixels = [picture(i) for i in range(2)]
    fresh = {"ln_vision.weight": torch.ones(SIZES["vision"]), "ln_vision.bias": torch.zeros(SIZES["vision"])}
    models = {
        "with_qformer": Model(vision, others, projection, llm, SIZES),
        "without_qformer": Model(vision, fresh, patches_projection, llm, SIZES),
    }
    figures: dict = {"sizes": SIZES, "question": QUESTION, "reply": REPLY, "follow_up": FOLLOW_UP}
    tensors = {"pixel_values": torch.stack(pixels)}
    for name, model in models.items():
        projected = [model.project(image) for image in pixels]
        tensors[name] = torch.stack(projected)
        figures[name] = expected(model, words, projected)
    save_file(tensors, HERE / "expected.safetensors")
    (HERE / "expected.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(SEED)
