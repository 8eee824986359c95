from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vqa_grpo import config
from vqa_grpo.contract import prompt
from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.models.load import load_model, load_processor
from vqa_grpo.quickstart import pictures
from vqa_grpo.quickstart.base import build_base
from vqa_grpo.quickstart.batches import IGNORED, Batches
from vqa_grpo.quickstart.facts import ANSWERS
from vqa_grpo.quickstart.recipes import RECIPES, recipe_key
from vqa_grpo.quickstart.targets import json_answer, prose_answer
from vqa_grpo.quickstart.warm_start import _token_weights

SHORT = prompt.load("short")
MICRO = RECIPES["micro"]


class Built:
    """A micro base, and what its build told."""

    def __init__(self, rows: list[Record], out: Path, seed: int = 0) -> None:
        self.path = out
        self.progress: list[tuple[str, int, int]] = []
        self.figures = build_base(rows, out, MICRO, SHORT, seed, lambda *step: self.progress.append(step))
        self.weights = (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def rows(train: list[Record]) -> list[Record]:
    return train[:1500]


@pytest.fixture(scope="module")
def micro(rows: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(rows, tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="module")
def processor(micro: Built) -> Any:
    return load_processor(str(micro.path))


def image(row: Record) -> Image.Image:
    return Image.open(io.BytesIO(row.image)).convert("RGB")


def chat(row: Record) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image(row)}, {"type": "text", "text": SHORT.render(row.question)}]
    return [{"role": "user", "content": parts}]


def processed(processor: Any, rows: list[Record]) -> Any:
    return processor.apply_chat_template(
        [chat(row) for row in rows],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def test_a_base_loads_like_any_model_and_generates_text(micro: Built, processor: Any, rows: list[Record]) -> None:
    model = load_model(str(micro.path))
    inputs = processed(processor, rows[:3])
    replies = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert replies.shape[0] == 3
    assert all(isinstance(text, str) for text in processor.batch_decode(replies, skip_special_tokens=True))


def test_generation_stops_at_the_end_of_the_turn(micro: Built, processor: Any) -> None:
    config = load_model(str(micro.path)).generation_config
    assert processor.tokenizer.convert_ids_to_tokens([config.eos_token_id]) == ["<|im_end|>"]
    assert config.pad_token_id == processor.tokenizer.pad_token_id


def test_the_saved_weights_are_the_trained_ones(micro: Built) -> None:
    from vqa_grpo.quickstart.tiny_model import build_model

    trained = load_model(str(micro.path))
    fresh = build_model(load_processor(str(micro.path)).tokenizer, MICRO, seed=0)
    same = [name for name, value in fresh.state_dict().items() if value.equal(trained.state_dict()[name])]
    assert not same


def test_the_same_seed_gives_the_same_weights(micro: Built, rows: list[Record], tmp_path: Path) -> None:
    torch.rand(3)  # whatever ran before must not matter
    random.random()
    assert Built(rows, tmp_path).weights == micro.weights


def test_another_seed_gives_other_weights(micro: Built, rows: list[Record], tmp_path: Path) -> None:
    assert Built(rows, tmp_path, seed=1).weights != micro.weights


def test_a_build_leaves_the_callers_random_state_and_threads_alone(rows: list[Record], tmp_path: Path) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        Built(rows[:200], tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.random.get_rng_state().equal(state)


def test_a_build_reports_every_stage_to_its_end(micro: Built) -> None:
    ends = [step for step in micro.progress if step[1] == step[2]]
    assert ends == [("vision", 2, 2), ("captions", 2, 2), ("answers", 4, 4)]
    assert len(micro.progress) == 8


def test_a_build_returns_its_figures(micro: Built) -> None:
    assert 1e6 <= micro.figures["parameters"] <= 5e6
    assert micro.figures["rows"] == 1500
    assert all(micro.figures[name] > 0 for name in ("vision_loss", "caption_loss", "answer_loss", "cpu_seconds"))


def test_training_lowers_the_loss(rows: list[Record], tmp_path: Path) -> None:
    longer = replace(MICRO, vision_steps=0, caption_steps=40, caption_batch=16, answer_steps=0)
    first: list[float] = []
    figures = build_base(rows, tmp_path, longer, SHORT, 0, lambda *_: first.append(0.0))
    assert len(first) == 40
    assert figures["caption_loss"] < 3.0  # a fresh model starts near 10


def test_rows_that_tell_nothing_about_their_pictures_are_refused(rows: list[Record], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="colour and shape"):
        build_base(
            [replace(rows[0], question="is there a red shape?", answer="no")] * 3, tmp_path, MICRO, SHORT, 0, print
        )


def test_the_tokenizer_gives_back_every_text(processor: Any, rows: list[Record]) -> None:
    rng = random.Random(0)
    texts = [
        text for row in rows[:200] for text in (SHORT.render(row.question), json_answer(row), prose_answer(row, rng))
    ]
    for text in [*texts, 'naïve  "Größe"\n\t{"a": [1, 2]} 日本 🙂']:
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_answer_is_one_token_with_and_without_a_space_before_it(processor: Any) -> None:
    for word in ANSWERS:
        assert len(processor.tokenizer(word)["input_ids"]) == 1
        assert len(processor.tokenizer(f" {word}")["input_ids"]) == 1


def test_asking_for_json_costs_few_tokens(processor: Any) -> None:
    question = "is there not a circle?"
    asked, bare = (len(processor.tokenizer(text)["input_ids"]) for text in (SHORT.render(question), question))
    assert asked - bare <= 12


def test_targets_fit_into_the_completion_length_of_the_quickstart(processor: Any, train: list[Record]) -> None:
    longest = max({json_answer(row) for row in train}, key=len)
    assert len(processor.tokenizer(longest)["input_ids"]) + 1 <= 56


def test_patches_are_those_of_the_processor(processor: Any, rows: list[Record]) -> None:
    some = rows[:400:20]
    expected = processor.image_processor(images=[image(row) for row in some], return_tensors="pt")["pixel_values"]
    got = pictures.patchify(pictures.decode(row.image for row in some), processor.image_processor)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_training_inputs_are_those_of_the_processor(processor: Any, rows: list[Record]) -> None:
    some = rows[:60:6]
    expected = processed(processor, some)
    got = Batches(processor, SHORT).inputs([row.question for row in some], pictures.decode(row.image for row in some))
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6, check_dtype=name != "mm_token_type_ids")


def test_the_loss_falls_on_the_reply_and_its_end_only(processor: Any, rows: list[Record]) -> None:
    some = rows[:4]
    targets = ["It is red.", json_answer(some[1]), "yes", json_answer(some[3])]
    inputs, labels = Batches(processor, SHORT).training(
        [row.question for row in some], targets, pictures.decode(row.image for row in some)
    )
    assert labels[labels != IGNORED].equal(inputs["input_ids"][labels != IGNORED])
    for row, target in zip(labels, targets, strict=True):
        assert processor.tokenizer.decode(row[row != IGNORED]) == f"{target}<|im_end|>"


def test_augmented_pictures_keep_their_pixels_and_come_out_different(rows: list[Record]) -> None:
    before = pictures.decode(dict.fromkeys(row.image for row in rows[:200]))
    after = pictures.augment(before, torch.Generator().manual_seed(0))
    assert after.flatten(2).sort(-1).values.equal(before.flatten(2).sort(-1).values)
    assert not after.equal(before)


def test_augmenting_shifts_pictures_besides_turning_them(rows: list[Record]) -> None:
    picture = pictures.decode([rows[0].image])
    turned = [
        view.flatten().tolist()
        for side in (picture, picture.transpose(-1, -2))
        for view in (side, side.flip(-1), side.flip(-2), side.flip(-1, -2))
    ]
    after = pictures.augment(picture.expand(16, -1, -1, -1), torch.Generator().manual_seed(0))
    assert any(one.flatten().tolist() not in turned for one in after)


def test_tokens_that_carry_what_was_seen_weigh_more(processor: Any) -> None:
    weights = _token_weights(processor.tokenizer, len(processor.tokenizer), 4.0)
    heavy = {processor.tokenizer.decode([number]).strip() for number in (weights == 4.0).nonzero().flatten().tolist()}
    assert heavy == set(ANSWERS)
    assert set(weights.tolist()) == {1.0, 4.0}


def test_a_picture_of_another_size_is_refused() -> None:
    data = io.BytesIO()
    Image.new("RGB", (32, 64)).save(data, "PNG")
    with pytest.raises(DataError, match="64 x 64"):
        pictures.decode([data.getvalue()])


def test_every_recipe_can_be_asked_for_in_a_configuration() -> None:
    for name in RECIPES:
        assert config.load("quickstart", [f"model.recipe={name}"]).model.recipe == name


def test_a_base_that_mistakes_look_alikes_is_another_base(rows: list[Record], micro: Built, tmp_path: Path) -> None:
    build_base(rows, tmp_path, replace(MICRO, mistaken_share=1.0), SHORT, 0, lambda *_: None)
    assert (tmp_path / "model.safetensors").read_bytes() != micro.weights


def test_a_key_names_everything_that_a_build_depends_on() -> None:
    keys = {
        recipe_key(MICRO, SHORT, 0),
        recipe_key(MICRO, SHORT, 1),
        recipe_key(RECIPES["quick"], SHORT, 0),
        recipe_key(MICRO, prompt.load("vqa"), 0),
        recipe_key(replace(MICRO, init_std=0.02), SHORT, 0),
    }
    assert len(keys) == 5
    assert recipe_key(MICRO, SHORT, 0) in keys
