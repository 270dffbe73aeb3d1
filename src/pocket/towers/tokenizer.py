"""The tokenizer of the pocket language models: whole words for the pocket world, pieces of bytes for all else.

Byte-level BPE, trained on the pocket world's own text. Words are split off with the space before them, hyphenated
words, HTML tags and runs of `#` stay whole, so that a fact of the world ("top-left", " umbrella") is one token.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 2048
BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"

_WORDS = r"</?[A-Za-z0-9]+>?| ?[A-Za-z]+(?:-[A-Za-z]+)*| ?[0-9]|#+| ?[^\sA-Za-z0-9<#]+|\s|<"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> "PreTrainedTokenizerFast":
    """A tokenizer of `vocabulary_size` tokens at most, trained on `texts`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, additional_special_tokens=[IMAGE],
        clean_up_tokenization_spaces=False, padding_side="left",
    )  # fmt: skip
