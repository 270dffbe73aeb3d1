from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from minigpt4.errors import UserError
from minigpt4.training.recipe import Recipe, explain, find_recipe, packaged_recipes
from pocket.text.phrases import INSTRUCTIONS

ROOT = Path(__file__).parents[2]
VALUES = {
    "stage": 1, "vision_qformer": "v", "llm": "l", "template": "pocket", "data": "d", "output": "o",
    "steps": 10, "batch_size": 2, "learning_rate": 1e-3,
}  # fmt: skip


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_are_valid_and_found_by_name_and_from_a_clone(name: str) -> None:
    assert Recipe.load(name) == Recipe.load(packaged_recipes()[name])


def test_the_pocket_recipes_fit_each_other() -> None:
    stage1, stage2 = Recipe.load("pocket-stage1"), Recipe.load("pocket-stage2")
    assert Path(stage2.init or "") == stage1.output / "alignment"
    assert stage2.feature_cache == stage1.feature_cache
    assert stage2.instructions == INSTRUCTIONS


def test_overrides_are_read_as_yaml() -> None:
    recipe = Recipe.load("pocket-stage1", ["steps=7", "learning_rate=1e-4", "dtype=float32", "device=null", "data=a=b"])
    assert (recipe.steps, recipe.learning_rate, recipe.dtype, recipe.device) == (7, 1e-4, "float32", None)
    assert recipe.data == "a=b"


def test_yaml_round_trip(tmp_path: Path) -> None:
    recipe = Recipe.load("pocket-stage2", ["seed=3"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_differing_keys_are_those_that_change_losses() -> None:
    recipe = Recipe.load("pocket-stage1")
    assert recipe.differing_keys(Recipe.load("pocket-stage1", ["output=x", "save_every=3", "feature_cache=y"])) == []
    assert recipe.differing_keys(Recipe.load("pocket-stage1", ["seed=9", "steps=3"])) == ["steps", "seed"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lerning_rate=1", "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ("batchsize=1", "did you mean 'batch_size'"),
        ("xyzzy=1", r"unknown key 'xyzzy'; docs/recipe\.md"),
        ("steps=many", "steps = 'many': must be a whole number"),
        ("steps=0", "steps = 0: must be at least 1"),
        ("stage=3", "stage = 3: must be 1 or 2"),
        ("steps", "write key=value"),
        ("data={", "not valid YAML"),
        ("init=some/alignment", "remove vision_qformer, llm, template"),
        ("llm=null", "give llm, or an alignment"),
        ("stage=2", "stage 2 needs at least one of instructions"),
        ("instructions=[Describe it.]", "stage 1 has no instructions"),
        ("data=[{path: a, wieght: 3}]", "unknown key 'data.0.wieght'; did you mean 'weight'"),
        ("data=[{weight: 1}]", "key 'data.0.path' is missing"),
        ("data=[]", "data names no source"),
        ("data=[{path: a, weight: 1}, {path: b, weight: 2}]", "weights of data need stream=true"),
        ("trackers=[tensorbord]", "must be 'tensorboard', 'wandb' or 'trackio'"),
        ("gradient_accumulation_steps=3", "batch_size 32 cannot be divided by gradient_accumulation_steps=3"),
        ("train_qformer=true", "train_qformer needs stream=true"),
        ("vision_load_in=fp8", "vision_load_in needs stream=true"),
        ("sample_every=5", "sample_every needs sample_images"),
    ],
)
def test_mistakes_are_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Recipe.load("pocket-stage1", [override])
    assert "\n" not in str(error.value)


def test_a_key_that_is_gone_is_told_but_where_a_run_saved_it_unused(tmp_path: Path) -> None:
    saved = tmp_path / "recipe.yaml"
    saved.write_text(Recipe.load("pocket-stage1").to_yaml() + "projection_from: null\n")
    assert Recipe.load(saved) == Recipe.load("pocket-stage1")
    with pytest.raises(UserError, match="unknown key 'projection_from'"):
        Recipe.load("pocket-stage1", ["projection_from=pocket-blip2"])


def test_a_missing_key_is_explained() -> None:
    with pytest.raises(UserError, match="key 'data' is missing: Pairs"):
        Recipe.parse({key: value for key, value in VALUES.items() if key != "data"})


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'pocket-stage1'"):
        find_recipe("pocket-stag1")
    with pytest.raises(UserError, match="no recipe"):
        Recipe.load(tmp_path / "nowhere.yaml")
    for content in ("a: [1", "- a list", ""):
        path = tmp_path / "bad.yaml"
        path.write_text(content)
        with pytest.raises(UserError, match=r"bad\.yaml"):
            Recipe.load(path)


def test_the_documentation_shows_the_recipes_that_ship() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    assert Recipe.parse(shown) == Recipe.load("pocket-stage1")


def test_the_papers_recipes() -> None:
    """Schedule, lengths and mixture of both stages (paper, section 3; PAPER.md)."""
    for llm in ("vicuna-7b", "vicuna-13b", "llama2-7b"):
        first, second = Recipe.load(f"{llm}-stage1"), Recipe.load(f"{llm}-stage2")
        assert (first.steps, first.batch_size, first.num_samples) == (20_000, 256, 5_120_000)
        assert (first.warmup_learning_rate, first.learning_rate, first.final_learning_rate) == (1e-6, 1e-4, 8e-5)
        assert (first.warmup_steps, first.weight_decay, first.max_text_tokens) == (5000, 0.05, 32)
        assert [source.weight for source in first.sources] == [115, 14]
        assert [Path(source.path).name for source in first.sources] == ["{00000..10488}.tar", "{00000..01255}.tar"]
        assert (second.steps, second.batch_size, second.max_text_tokens) == (400, 12, 160)
        assert Path(second.init or "") == first.output / "alignment"
    assert len({Recipe.load(f"{llm}-stage1").llm for llm in ("vicuna-7b", "vicuna-13b", "llama2-7b")}) == 3


def test_a_base_gives_what_is_not_said(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: pocket-stage1\nsteps: 5\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\nseed: 3\n")
    assert Recipe.load(tmp_path / "other.yaml") == Recipe.load("pocket-stage1", ["steps=5", "seed=3"])
    (tmp_path / "mine.yaml").write_text("base: other.yaml\n")
    with pytest.raises(UserError, match="is its own base"):
        Recipe.load(tmp_path / "other.yaml")


def test_every_key_is_explained() -> None:
    for key, entry in Recipe.model_fields.items():
        said = explain(key)
        assert entry.description is not None
        assert entry.description in said
        assert ("required" in said) == entry.is_required()
    with pytest.raises(UserError, match="unknown key 'batchsize'; did you mean 'batch_size'"):
        explain("batchsize")


def test_former_names_of_keys_are_read_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: pocket-stage1\naccumulate: 4\nkeep_checkpoints: 5\n")
    recipe = Recipe.load(file, ["sample_pictures=[a.png]"])
    assert (recipe.gradient_accumulation_steps, recipe.save_total_limit, recipe.sample_images) == (4, 5, ("a.png",))
    assert "accumulate is called gradient_accumulation_steps now" in caplog.text
    with pytest.raises(UserError, match="accumulate is the former name of gradient_accumulation_steps"):
        Recipe.load(file, ["accumulate=2", "gradient_accumulation_steps=2"])


def test_a_tilde_is_the_home_directory_wherever_a_path_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("base: pocket-stage1\ndata: ~/shards/{00000..00003}.tar\n")
    (tmp_path / "mine.yaml").write_text("base: ~/base.yaml\noutput: ~/runs/x\nfeature_cache: ~/features\n")
    recipe = Recipe.load("~/mine.yaml", ["sample_images=[~/a.png, b~.png]", "llm=~/llm"])
    home = str(tmp_path)
    assert recipe.data == f"{home}/shards/{{00000..00003}}.tar"
    assert (recipe.output, recipe.feature_cache) == (tmp_path / "runs/x", tmp_path / "features")
    assert recipe.llm == f"{home}/llm"
    assert recipe.sample_images == (f"{home}/a.png", "b~.png")
    several = Recipe.load("~/mine.yaml", ["data=[{path: ~/one}, {path: 'hub:owner/name'}]"])
    assert [source.path for source in several.sources] == [f"{home}/one", "hub:owner/name"]
