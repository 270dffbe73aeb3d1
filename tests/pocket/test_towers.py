"""Pretraining of the towers: batches follow from their number, a stopped run goes on as if it had not stopped."""

import json
from dataclasses import replace

import pytest
import torch

from minigpt4.errors import UserError
from pocket.text.phrases import NUMBERS
from pocket.towers import language as language_tower
from pocket.towers import vision as vision_tower
from pocket.towers.pretrain import Pretraining, pretrain
from pocket.towers.tokenizer import train_tokenizer
from pocket.world import world


@pytest.fixture(scope="module")
def tokenizer():
    seeds = range(world.SEEDS["text"][0], world.SEEDS["text"][0] + 2000)
    return train_tokenizer(text for seed in seeds for text, _ in language_tower.LANGUAGE.pieces(seed))


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])

    def forward(self, x):
        return self.layers[1](torch.relu(self.layers[0](x)))


def _batch(number):
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(number))


def _train(out, steps, stop_at=None):
    torch.manual_seed(0)
    model = Tiny()

    def loss(batch):
        if stop_at is not None and loss.calls == stop_at:
            raise KeyboardInterrupt
        loss.calls += 1
        return (model(batch) - batch.flip(1)).square().mean(), {}

    loss.calls = 0
    plan = Pretraining(steps, warmup=5, checkpoint_every=7, log_every=1)
    pretrain(model, _batch, loss, plan, out)
    return model


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole = _train(tmp_path / "whole", 30)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "stopped", 30, stop_at=17)
    resumed = _train(tmp_path / "stopped", 30)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_the_learning_rate_warms_up_stays_and_decays():
    plan = Pretraining(1000, warmup=100)
    assert plan.factor(49) == 0.5
    assert plan.factor(400) == 1
    assert 0.3 < plan.factor(880) < 0.5
    assert plan.factor(999) == 0.02
    timed = Pretraining(1000, warmup=100, seconds=60)
    assert timed.factor(400, elapsed=30) == 1
    assert timed.factor(400, elapsed=51) == pytest.approx(0.5)
    assert timed.factor(400, elapsed=60) == 0.02


def test_a_run_of_seconds_ends_when_they_are_over(tmp_path):
    plan = Pretraining(10**6, warmup=5, checkpoint_every=10**6, seconds=0.5)
    model = Tiny()
    pretrain(model, _batch, lambda batch: ((model(batch) - batch).square().mean(), {}), plan, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < 10**6
    assert 0.5 <= state["elapsed"] < 30
    pretrain(model, _batch, lambda batch: pytest.fail("its time is over"), plan, tmp_path)


def test_words_of_the_world_are_single_tokens(tokenizer):
    for word in (*world.KINDS, *world.COLOURS, *world.PLACES, *world.INGREDIENTS):
        assert len(tokenizer.tokenize(f" {word}")) == 1, word
    text = "<h1>Zoo</h1> a zebra-like quokka?"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_text_batches_follow_from_their_number(tokenizer, monkeypatch):
    monkeypatch.setattr(language_tower, "POOL", 64)
    kind = replace(language_tower.LANGUAGE, first_seed=language_tower.LANGUAGE.first_seed + 5000)
    straight = language_tower.TextBatches(kind, tokenizer)
    batches = [straight(number) for number in range(5)]
    jumped = language_tower.TextBatches(kind, tokenizer)(3)
    assert torch.equal(batches[3].ids, jumped.ids)
    learnt = batches[3].weights > 0
    assert learnt.any()
    assert not (learnt & batches[3].context).any()


def test_text_of_lookups_weighs_the_word_that_counts(tokenizer, monkeypatch):
    monkeypatch.setattr(language_tower, "POOL", 64)
    batches = language_tower.TextBatches(language_tower.LOOKUPS, tokenizer)
    weighed = [batch for batch in (batches(number) for number in range(12)) if (batch.weights > 1).any()]
    heavy = {tokenizer.decode([token]).strip() for batch in weighed for token in batch.ids[batch.weights > 1].tolist()}
    assert heavy & set(world.COLOURS)
    assert heavy & set(world.PLACES)
    assert heavy <= {*world.WORDS, *NUMBERS, "Yes", "No", ""}  # "": the space before a word not seen yet


def test_lookups_start_from_an_llm_without_them(tmp_path):
    with pytest.raises(UserError, match="already"):
        language_tower.build_text_model(language_tower.LOOKUPS, tmp_path, 10, "pocket/language")


def test_patches_and_queries_know_the_truth():
    picture = world.sample(world.SEEDS["development"][0], "scene")
    concept, colour = vision_tower.patch_truth(picture)
    shown = {vision_tower.CONCEPTS[number] for number in concept} - {"none"}
    assert shown <= {item.kind for item in picture.items}
    assert shown
    assert (colour > 0).sum() == (concept > 0).sum()
    words = [vision_tower.CONCEPTS[number] for number in vision_tower.query_truth(picture)]
    assert words[: len(world.facts(picture))] == world.facts(picture)
    assert set(words[len(world.facts(picture)) :]) == {"none"}


def test_a_crowd_shows_nine_kinds_and_asks_nothing_of_the_queries():
    crowd = world.crowd(3)
    concept, _ = vision_tower.patch_truth(crowd)
    assert len(crowd.items) == 9
    assert len(set(concept) - {0}) >= 8
    assert set(vision_tower.query_truth(crowd)) == {-100}
