import json
import random
import shutil
from dataclasses import fields
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.prompt import load
from vqa_grpo.contract.verdict import Prediction, prediction_schema
from vqa_grpo.evaluation import predict as module
from vqa_grpo.evaluation.predict import predict, question_type, sample_rows, write_predictions
from vqa_grpo.models.load import load_model, load_processor

SHORT = load("short")
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "reference_steps": datasets.List(datasets.Value("string")),
        "choices": datasets.List(datasets.Value("string")),
        "options": datasets.List(datasets.Value("string")),
        "source": datasets.Value("string"),
        "id": datasets.Value("string"),
    }
)


def row(image: bytes, number: int, **changes):
    values = {
        "image": {"bytes": image, "path": None},
        "question": f"what is the color {'of it ' * (number % 3)}?",
        "answer": "red",
        "reference_steps": ["It is red."],
        "choices": [],
        "options": [],
        "source": "made/color",
        "id": f"row-{number}",
    }
    return {**values, **changes}


def data(rows) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="module")
def questions(picture) -> datasets.Dataset:
    """Pictures of two sizes, questions of three lengths, one row with options, one without source or steps."""
    red, wide = picture((200, 30, 30)), picture((20, 30, 220), (64, 32))
    rows = [row([red, wide][number % 2], number) for number in range(7)]
    rows.append(row(red, 7, choices=["red", "blue"], answer="A", source="made"))
    rows.append(row(wide, 8, reference_steps=[], source=None, answer="12"))
    return data(rows)


def run(model: Path, questions: datasets.Dataset, **changes) -> dict[str, Prediction]:
    options = {"batch_size": 4, "max_new_tokens": 12, **changes}
    return {prediction.id: prediction for prediction in predict(model, questions, SHORT, **options)}


@pytest.fixture(scope="module")
def predictions(tiny_vlm, questions) -> dict[str, Prediction]:
    return run(tiny_vlm, questions)


def by_hand(model_path: Path, row, tokens: int) -> list[int]:
    """Greedy decoding of one row by the definition: the whole sequence again for every token, no cache, no padding."""
    model, processor = load_model(str(model_path)).eval(), load_processor(str(model_path))
    text = SHORT.render(row["question"], row["choices"], row["options"])
    content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    new: list[int] = []
    for _ in range(tokens):
        with torch.no_grad():
            best = model(**inputs).logits[0, -1].argmax().view(1, 1)
        new.append(best.item())
        inputs["input_ids"] = torch.cat([inputs["input_ids"], best], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
    return new


def test_batched_completions_equal_greedy_decoding_one_row_at_a_time(tiny_vlm, questions, predictions):
    tokenizer = load_processor(str(tiny_vlm)).tokenizer
    assert sorted(predictions) == sorted(questions["id"])
    for row in questions:
        expected = tokenizer.decode(by_hand(tiny_vlm, row, 12), skip_special_tokens=True)
        assert predictions[row["id"]].completion == expected
    assert len({prediction.completion for prediction in predictions.values()}) > 2  # or nothing was compared


def test_the_batch_size_and_the_order_of_the_rows_do_not_change_a_prediction(tiny_vlm, questions, predictions):
    assert run(tiny_vlm, questions.select(range(8, -1, -1)), batch_size=3) == predictions


def test_every_row_is_graded_by_its_own_gold_answer_and_type(predictions):
    assert predictions["row-0"].type == "color"
    assert (predictions["row-7"].type, predictions["row-7"].gold_type) == ("choice", "choice")
    assert (predictions["row-8"].type, predictions["row-8"].reasoning_f1) == ("number", None)
    assert predictions["row-0"].reasoning_f1 == 0.0
    assert {prediction.rule for prediction in predictions.values()} == {"no_answer"}


def test_a_completion_that_never_ends_says_so(predictions):
    for prediction in predictions.values():
        assert prediction.completion_tokens == 12
        assert prediction.explanation.endswith("cut off at the limit of 12 tokens")


def with_generation_settings(model: Path, folder: Path, **settings) -> Path:
    shutil.copytree(model, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def test_a_model_folders_own_sampling_settings_do_not_apply(tiny_vlm, questions, predictions, tmp_path):
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "max_new_tokens": 3}
    assert run(with_generation_settings(tiny_vlm, tmp_path / "own", **settings), questions) == predictions


@pytest.mark.parametrize("several", [True, False])
def test_a_completion_ends_at_any_end_token_of_the_model_folder(tiny_vlm, questions, tmp_path, several):
    tokens = by_hand(tiny_vlm, questions[0], 12)
    end = next(token for token in tokens[2:] if token not in tokens[:2])
    folder = with_generation_settings(tiny_vlm, tmp_path / "ends", eos_token_id=[2, end] if several else end)
    prediction = run(folder, questions)["row-0"]
    assert prediction.completion_tokens == tokens.index(end) + 1
    assert "cut off" not in prediction.explanation


def test_half_precision_weights_as_on_a_gpu_answer_every_row(tiny_vlm, questions, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda path, _: load_model(path, "bfloat16"))
    assert sorted(run(tiny_vlm, questions)) == sorted(questions["id"])


def test_progress_reaches_the_number_of_rows(tiny_vlm, questions):
    seen = []
    run(tiny_vlm, questions, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 9), (4, 9), (8, 9), (9, 9)]  # the first once the model is loaded: clocks start there


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny_vlm, questions, predictions, monkeypatch):
    real, sizes = module._generate, []

    def small(model, processor, rows, prompt):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("too large")
        return real(model, processor, rows, prompt)

    monkeypatch.setattr(module, "_generate", small)
    assert run(tiny_vlm, questions, batch_size=9) == predictions
    assert sizes == [9, 4, 2, 2, 5, 2, 3, 1, 2]


def test_one_row_that_does_not_fit_raises(tiny_vlm, questions, monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(module, "_generate", never)
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny_vlm, questions)


def test_a_broken_picture_is_named_by_its_row(tiny_vlm, picture):
    with pytest.raises(DataError, match="row-1"):
        run(tiny_vlm, data([row(picture((1, 2, 3)), 0), row(b"no picture", 1)]))


def judged(text: str, ended: bool = True, **changes) -> Prediction:
    class Tokenizer:
        def decode(self, tokens, skip_special_tokens):
            return "".join(map(chr, tokens if tokens[-1] else tokens[:-1]))

    asked = row(b"", 0, **changes)
    tokens = [*map(ord, text), *([0, 0, 0] if ended else [])]
    prediction = module._judge(asked, tokens, frozenset([0]), Tokenizer())
    (scored,) = module._with_reasoning([asked], [prediction])
    return scored


def test_a_completion_is_judged_by_the_contract_the_grader_and_the_step_matcher():
    text = '{"reasoning_steps": ["It is red."], "answer": "Red"}'
    prediction = judged(text)
    assert (prediction.outcome, prediction.format_reward) == ("valid", 1.0)
    assert (prediction.answer, prediction.steps) == ("Red", ["It is red."])
    assert prediction.correct
    assert prediction.reasoning_f1 == 1.0
    assert prediction.completion_tokens == len(text) + 1  # with the end token, without the padding


def test_a_completion_cut_off_after_its_object_is_graded_by_its_text_as_the_rewards_do():
    text = '{"reasoning_steps": ["It is red."], "answer": "Red"} and so on and'
    ended, cut_off = judged(text), judged(text, ended=False)
    assert (cut_off.outcome, cut_off.format_reward, cut_off.correct) == ("wrapped", 0.5, True)
    assert cut_off.explanation == f"{ended.explanation}; cut off at the limit of {len(text)} tokens"


def test_a_row_of_a_known_benchmark_is_also_scored_in_its_own_metric():
    text = '{"reasoning_steps": ["It is read off."], "answer": "98"}'
    prediction = judged(text, answer="100", source="ChartQA/human")
    assert not prediction.correct  # a number is exact for us
    assert (prediction.metric, prediction.metric_score) == ("chartqa", 1.0)  # 5 % are allowed there
    assert (judged(text, answer="100").metric, judged(text, answer="100").metric_score) == ("", None)


def test_the_steps_of_a_window_go_to_the_matcher_in_one_call(tiny_vlm, questions, predictions, monkeypatch):
    calls = []
    match = module.match_many
    monkeypatch.setattr(module, "match_many", lambda items, **how: calls.append(len(items)) or match(items, **how))
    monkeypatch.setattr(module, "WINDOW_BATCHES", 2)
    assert run(tiny_vlm, questions, batch_size=3) == predictions
    assert calls == [6, 3]


def test_a_step_that_repeats_the_question_earns_nothing():
    text = '{"reasoning_steps": ["It is red.", "What is the color?"], "answer": "Red"}'
    assert judged(text, question="What is the color?").reasoning_f1 == pytest.approx(2 / 3)
    assert judged(text, reference_steps=["What is the color?"]).reasoning_f1 == 0.0


def test_predictions_of_hostile_completions_can_be_written_and_read(tmp_path):
    hostile = [judged('{"\\ud800": 1}'), judged('{"answer": "\\ud800", "reasoning_steps": ["a"]}'), judged("\x00<b>")]
    path = tmp_path / "predictions.parquet"
    assert write_predictions(path, hostile) == 3
    table = pq.read_table(path)
    assert table.schema.equals(prediction_schema())
    assert table.schema.names == [field.name for field in fields(Prediction)]
    assert [bool(correct) for correct in table["correct"]] == [False] * 3


def test_a_file_that_was_not_finished_does_not_exist(tmp_path):
    path = tmp_path / "predictions.parquet"
    write_predictions(path, [judged("first")])

    def breaks():
        yield judged("second")
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError):
        write_predictions(path, breaks())
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.parquet"]
    assert pq.read_table(path)["completion"].to_pylist() == ["first"]


def test_a_sample_depends_on_ids_and_seed_alone():
    ids = [f"id-{number}" for number in range(200)]
    whole = datasets.Dataset.from_dict({"id": ids})
    sample = sample_rows(whole, 50, 3)["id"][:]
    random.Random(1).shuffle(ids)
    assert sample_rows(datasets.Dataset.from_dict({"id": ids}), 50, 3)["id"][:] == sample
    assert sample_rows(whole, 20, 3)["id"][:] == sample[:20]
    assert sample_rows(whole, 50, 4)["id"][:] != sample
    assert len(set(sample)) == 50


def test_a_sample_of_nothing_or_too_much_is_everything():
    whole = datasets.Dataset.from_dict({"id": ["a", "b", "c"]})
    assert sample_rows(whole, 0, 0)["id"][:] == ["a", "b", "c"]
    assert sorted(sample_rows(whole, 9, 0)["id"]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="-1 rows"):
        sample_rows(whole, -1, 0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("set/color", "color"), ("set/a/b", "a/b"), ("set/", "text"), ("set", "text"), ("", "text"), (None, "text")],
)
def test_the_question_type_is_the_second_part_of_the_source_or_the_gold_type(source, expected):
    assert question_type(source, "text") == expected
