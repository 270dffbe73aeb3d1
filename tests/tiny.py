"""What the toy parts and data of `conftest.py` are made with: for tests that make more of them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

IMAGE_SIZE, QUERY_TOKENS, D_QFORMER, D_LLM = 32, 4, 24, 32
COLOURS = ("red", "green", "blue", "orange", "purple")

_TEXT = (
    "###Human: <Img></Img> Describe this image in detail. ###Assistant: A large red ball lies at the top-left.",
    "Question: What colour is the cup? Answer: The small cup in the centre is blue.\n",
    "a meadow with a green tree and a yellow house, a purple star at the bottom-right",
)


def tiny_tokenizer(directory: Path, special: tuple[str, ...] = ("<pad>", "<s>", "</s>", "<image>")) -> int:
    """Write a byte-level BPE tokenizer in transformers' format to `directory`; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(directory)
    return len(fast)


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    """A tar file with these members, in order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def picture_file(number: int) -> bytes:
    """A PNG of its own for every number, in the colour `COLOURS[number % 5]`."""
    from PIL import Image

    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), COLOURS[number % 5])
    image.putpixel((number % IMAGE_SIZE, number // IMAGE_SIZE), (255, 255, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
