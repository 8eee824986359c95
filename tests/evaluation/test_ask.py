"""The job that asks models a run's questions, as a step starts it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from vqa_grpo import config
from vqa_grpo.contract.failure import FailureReason, JobError
from vqa_grpo.contract.verdict import prediction_schema
from vqa_grpo.evaluation.__main__ import main
from vqa_grpo.evaluation.ask import FILE
from vqa_grpo.evaluation.questions import read_questions
from vqa_grpo.jobs import local
from vqa_grpo.jobs.spec import JobSpec
from vqa_grpo.report import progress
from vqa_grpo.storage import publish

RUN = config.load("quickstart", ["evaluate.sample=0", "evaluate.batch_size=4", "evaluate.max_new_tokens=6"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, picture: Any) -> str:
    """Seven questions of a converted data set, published; training has asked some of them."""
    rows = [
        {
            "image": {"bytes": picture((200, 30, 30 * number)), "path": None},
            "question": f"what is the color {'of it ' * (number % 3)}?",
            "answer": "red",
            "reference_steps": [],
            "choices": [],
            "options": [],
            "source": "made/color",
            "id": f"row-{number}",
        }
        for number in range(7)
    ]
    strings = datasets.List(datasets.Value("string"))
    features = {name: datasets.Value("string") for name in ("question", "answer", "source", "id")}
    features |= {"image": datasets.Image(), "reference_steps": strings, "choices": strings, "options": strings}
    folder = tmp_path_factory.mktemp("data")
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    train = made.select(range(3)).cast_column("image", datasets.Image(decode=False))
    train = train.map(lambda row, number: {"answer": "blue" if number else "red"}, with_indices=True)
    train = train.cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": train, "test": made}).save_to_disk(str(folder / "set"))
    return publish.publish_folder(str(folder / "published"), folder / "set").uri


def job(dataset: str, out: Path, *models: str, processes: int = 1, run: Any = RUN) -> JobSpec:
    words = ["--config", run.canonical(), "--dataset_uri", dataset, "--publish_uri", str(out), "--models", *models]
    return JobSpec("x", "r", "vqa_grpo.evaluation", tuple(words), processes_per_node=processes)


def predictions(out: Path, name: str) -> list[dict[str, Any]]:
    table = pq.read_table(Path(publish.get(f"{out}/{name}").root) / FILE)
    assert table.schema.equals(prediction_schema())
    return sorted(table.to_pylist(), key=lambda row: row["id"])


def test_processes_share_the_questions_and_say_what_one_would(
    dataset: str, tiny_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQA_GRPO_WORK", str(tmp_path / "work"))
    local.run(job(dataset, tmp_path / "one", f"base={tiny_vlm}"))
    local.run(job(dataset, tmp_path / "two", f"base={tiny_vlm}", processes=2))
    alone = predictions(tmp_path / "one", "base")
    assert [row["id"] for row in alone] == [f"row-{number}" for number in range(7)]
    assert predictions(tmp_path / "two", "base") == alone
    assert list((tmp_path / "work").iterdir()) == []


def test_a_job_that_is_run_again_asks_only_the_model_that_is_missing(
    dataset: str, tiny_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_grpo.evaluation import ask

    asked: list[str] = []

    def predict_to(run: Any, model: str, folder: Path, out: Path, task: str, share: tuple[int, int]) -> None:
        asked.append(Path(model).name)
        if asked[-1] == "bad":
            raise RuntimeError("lost")
        pq.write_table(prediction_schema().empty_table(), out)

    monkeypatch.setattr(ask, "predict_to", predict_to)
    for name in ("good", "bad", "other"):
        (tmp_path / name).mkdir()
    words = job(dataset, tmp_path / "out", f"base={tmp_path}/good", f"tuned={tmp_path}/bad").arguments
    with pytest.raises(RuntimeError):
        main(words)
    again = [word.replace("/bad", "/other") for word in words]
    assert main(again) == 0
    assert asked == ["good", "bad", "other"]
    shutil.rmtree(tmp_path / "out" / "questions")
    assert main(again) == 0
    assert asked == ["good", "bad", "other"]
    assert publish.is_published(f"{tmp_path}/out/questions")


def test_what_is_to_be_known_of_the_questions_is_published_with_their_predictions(
    dataset: str, tiny_vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VQA_GRPO_PROGRESS", raising=False)
    assert main(job(dataset, tmp_path / "out", f"base={tiny_vlm}", f"tuned={tiny_vlm}").arguments) == 0
    found = read_questions(Path(publish.get(f"{tmp_path}/out/questions").root))
    # Of the three texts training says red to one and blue to two; all seven answers are red.
    assert found["blind"] == {"n": 7, "accuracy": 3 / 7, "by_type": {"color": 3 / 7}}
    assert [example["kind"] for example in found["examples"]] == ["both wrong"] * 3
    assert all(example["image"] for example in found["examples"])
    # A pod's log has a line now and then, lest the job count as stalled.
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate ")]
    assert [line.split(",")[0] for line in said] == ["evaluate base 7/7", "evaluate tuned 7/7"]


def test_a_long_evaluation_says_how_far_it_is_and_how_long_it_still_takes(
    dataset: str, tiny_vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VQA_GRPO_PROGRESS", raising=False)
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    assert main(job(dataset, tmp_path / "out", f"base={tiny_vlm}").arguments) == 0
    assert re.search(r"^evaluate base 4/7, [\d.]+/s, \d+ s left$", capsys.readouterr().err, re.MULTILINE)


def test_the_model_of_a_run_does_not_stay_in_the_cache_that_runs_share(
    dataset: str, s3: str, tiny_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_grpo.evaluation import ask

    there: list[Path] = []

    def predict_to(run: Any, model: str, folder: Path, out: Path, task: str, share: tuple[int, int]) -> None:
        there.append(Path(model))
        assert (Path(model) / "config.json").is_file()
        pq.write_table(prediction_schema().empty_table(), out)

    monkeypatch.setattr(ask, "predict_to", predict_to)
    cache, work = tmp_path / "cache", tmp_path / "work"
    monkeypatch.setenv("VQA_GRPO_CACHE", str(cache))
    monkeypatch.setenv("VQA_GRPO_WORK", str(work))
    base = publish.publish_folder(f"{s3}/ask/base-1/model", tiny_vlm)
    publish.publish_folder(f"{s3}/ask/run/model", tiny_vlm)
    words = ["--config", RUN.canonical(), "--dataset_uri", dataset, "--publish_uri", f"{s3}/ask/run/predictions"]
    assert main([*words, "--models", f"tuned={s3}/ask/run/model"]) == 0
    assert not cache.exists() or list(cache.iterdir()) == []
    assert main([*words, "--models", f"base={base.uri}"]) == 0
    assert [path.name for path in cache.iterdir()] == [base.digest]
    assert there[0].is_relative_to(work)
    assert there[1] == cache / base.digest
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("models", "words", "reason"),
    [
        (["base"], "give each as NAME=MODEL", FailureReason.CONFIGURATION),
        (["base=a", "base=b"], "no name twice", FailureReason.CONFIGURATION),
        (["base=s3://", "tuned=b"], "names no bucket", FailureReason.CONFIGURATION),
    ],
)
def test_what_a_person_can_mend_is_the_job_s_reason(
    dataset: str, tmp_path: Path, models: list[str], words: str, reason: FailureReason
) -> None:
    with pytest.raises(JobError, match=words) as caught:
        local.run(job(dataset, tmp_path / "out", *models))
    assert caught.value.reason is reason
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_the_split_is_refused_before_a_model_is_loaded(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config.from_tree(json.loads(RUN.canonical()) | {"evaluate": {"split": "validation"}}, "x")
    assert main(job(dataset, tmp_path / "out", "base=no/such-model", run=run).arguments) == 78
    assert "is not a converted data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "there is no such folder"),
        ({}, "is no model folder"),
        ({"config.json": "[]"}, "is no model folder"),
        ({"config.json": '{"model_type": "internvl_chat"}'}, "does not support natively"),
    ],
)
def test_what_is_no_model_is_refused_in_words(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str] | None, says: str
) -> None:
    folder = tmp_path / "base"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    assert main(job(dataset, tmp_path / "out", f"base={folder}").arguments) == 78
    said = capsys.readouterr().err
    assert f"error: model {folder}" in said
    assert says in said
    assert not (tmp_path / "out").exists()
