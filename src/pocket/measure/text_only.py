"""What the LLM can do before it sees anything: the same requests, about pictures that are described to it in words.

This is the ceiling of the aligned model: what fails here is lost in the LLM, what fails only with images is lost in
the vision side or the projection. The descriptions come from seeds that the LLM's training text never used.
"""

import itertools
import random
from pathlib import Path

import torch

from minigpt4.generation.stopping import end_tokens, read_answer
from minigpt4.model.sources import load
from minigpt4.prompts.templates import IMAGE_MARK, Message, get_template
from minigpt4.text_failures import failure
from pocket.measure.survey import MAX_NEW_TOKENS, Rates
from pocket.measure.truth import check
from pocket.text.phrases import context
from pocket.text.requests import ABILITIES, PICTURE_TYPES, request
from pocket.world import world


def read_in_words(llm: str | Path, count: int, *, batch_size: int = 50) -> Rates:
    """Rates of right answers by ability (and `failures`), greedy, over `count` described pictures for each ability.

    `llm` is the directory of a pocket LLM.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = load(AutoTokenizer, llm, padding_side="left")
    model = load(AutoModelForCausalLM, llm, dtype=torch.float32).eval()
    ends = end_tokens(model, tokenizer)
    template = get_template("pocket")
    first = world.SEEDS["evaluation"][0] + world.SEEDS["evaluation"][1] // 2
    rates = Rates()
    for number, ability in enumerate(ABILITIES):
        rng = random.Random(f"reading-{ability}")
        types = PICTURE_TYPES[ability]
        seeds = range(first + number * count, first + (number + 1) * count)
        pictures = [world.sample(seed, types[k % len(types)]) for k, seed in enumerate(seeds)]
        asked = [request(ability, picture, rng) for picture in pictures]
        prompts = []
        for picture, question in zip(pictures, asked, strict=True):
            before, after = template.prompt([Message("user", question.text, 1)]).split(IMAGE_MARK)
            ids = tokenizer([before, context(picture, rng), after], add_special_tokens=False).input_ids
            prompts.append([tokenizer.bos_token_id, *itertools.chain(*ids)])
        for start in range(0, count, batch_size):
            padded = tokenizer.pad({"input_ids": prompts[start : start + batch_size]}, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(
                    **padded, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stop_strings=["###"], tokenizer=tokenizer
                )
            for k, row in enumerate(out[:, padded["input_ids"].shape[1] :].tolist(), start):
                answer = read_answer(tokenizer, row, template.stop, ends)
                rates.count(ability, check(asked[k], pictures[k], answer.text).success)
                rates.count("failures", failure(answer.text, answer.ended) is not None)
    return rates
