"""The verbs: what they answer, and how they refuse."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

WHOLE_RUN = ["run", "plan", "storage"]
DATA = ["resolve", "validate", "convert", "inspect"]
MODELS = ["train", "evaluate", "compare", "register", "models", "promote", "rollback"]
GRADING = ["grade", "parse", "score-steps"]
CLUSTER = ["compile", "render-job", "sweep", "submit", "schedule"]
VERBS = [*WHOLE_RUN, *DATA, *MODELS, *GRADING, *CLUSTER, "doctor"]
LATER = ["submit", "schedule"]


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_loads_nothing_heavy():
    code = (
        "import sys; from vqa_grpo.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted({'torch', 'transformers', 'kfp', 'mlflow', 'datasets', 'boto3'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == ""
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout, verb


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])  # train's help is TRL's, and slow
def test_every_verb_explains_itself(cli, verb):
    code, out, err = cli(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: vqa-grpo {verb}")


def test_without_a_verb_there_is_help(cli):
    _, out, err = cli()
    assert "Commands:" in out + err


@pytest.mark.parametrize("command", LATER)
def test_a_verb_that_is_not_there_yet_says_so_and_what_to_do_instead(refused, command):
    assert "is not in this version yet; " in refused(2, *command.split())


# --- answers for programs -------------------------------------------------------------------------------------------


def answer(cli, *arguments: object) -> dict:
    code, out, err = cli(*arguments, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    return json.loads(out)


def test_grading_for_programs(cli):
    verdict = answer(cli, "grade", "--gold", "red", "--prediction", "Red.")
    assert set(verdict) == {"correct", "reward", "gold_type", "rule", "explanation"}
    assert verdict["correct"] is True
    options = ("--option", "red", "--option", "it's blue")
    assert answer(cli, "grade", "--gold", "B", "--prediction", "it's blue", *options)["correct"] is True


def test_parsing_for_programs(cli):
    completion = '{"reasoning_steps": ["It\'s red."], "answer": "red"}'
    parsed = answer(cli, "parse", "--completion", completion)
    assert parsed == {"outcome": "valid", "format_reward": 1.0, "answer": "red", "steps": ["It's red."]}
    assert answer(cli, "parse", "--completion", "red")["answer"] is None


def test_scoring_steps_for_programs(cli):
    score = answer(cli, "score-steps", "--step", "a red circle", "--reference", "a red circle", "--reference", "no")
    counts = {"steps", "references", "matched", "echoes", "duplicates", "conflicts"}
    assert set(score) == {"precision", "recall", "f1", "order", "length_controlled", *counts}
    assert (score["precision"], score["recall"]) == (1.0, 0.5)


def test_a_plan_is_the_whole_configuration_and_can_be_given_back(cli, tmp_path):
    tree = answer(cli, "plan", "--set", "train.learning_rate=1e-5", "--set", "seed=3")
    assert (tree["seed"], tree["train"]["learning_rate"], tree["model"]["base"]) == (3, 1e-5, "builtin:tiny")
    code, out, _ = cli("plan", "--set", "train.learning_rate=1e-5", "--set", "seed=3")
    assert code == 0
    assert yaml.safe_load(out) == tree
    (tmp_path / "own.yaml").write_text(out)
    assert answer(cli, "plan", "--config", tmp_path / "own.yaml") == tree


def test_resolving_for_programs(cli, source):
    found = answer(cli, "resolve", "--set", f"data.source={json.dumps(str(source))}")
    assert found["rows"] == {"train": 30, "test": 12}
    assert len(found["fingerprint"]) == 64


def test_validating_and_converting_for_programs(cli, source, tmp_path):
    figures = answer(cli, "validate", source, "--out", tmp_path / "report")
    assert (figures["rows"], figures["valid"], figures["invalid_by_code"]) == (42, 42, {})
    assert figures["splits"] == {"train": 30, "test": 12}
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"report.md", "report.html", "quarantine.jsonl"}
    made = answer(cli, "convert", source, tmp_path / "converted")
    assert (made["rows"], made["valid"], made["invalid_by_code"], made["left_out"]) == (42, 42, {}, {})
    assert made["splits"]["test"] == 12
    assert (tmp_path / "converted" / "report" / "report.html").is_file()
    assert (tmp_path / "converted" / "train" / "dataset_info.json").is_file()
    assert answer(cli, "convert", source, tmp_path / "again")["digest"] == made["digest"]


def test_the_rendered_job_is_yaml_for_as_many_nodes_as_asked(cli):
    code, out, err = cli("render-job", "--num-nodes", "3", "--gpus-per-node", "2", "--image", "trainer@sha256:0")
    assert code == 0, err
    job = yaml.safe_load(out)
    assert job["kind"] == "PyTorchJob"
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert sum(replica["replicas"] for replica in replicas.values()) == 3
    (container,) = replicas["Master"]["template"]["spec"]["containers"]
    assert container["image"] == "trainer@sha256:0"
    assert container["resources"]["limits"]["nvidia.com/gpu"] in (2, "2")


@pytest.mark.parametrize("words", [[], ["--orphans", "--run-id", "r"], ["--run-id", "r", "--dry-run"]])
def test_a_sweep_needs_to_know_what_of(cli, words):
    code, _, err = cli("sweep", *words)
    assert (code, err.count("\n")) == (78, 1)
    assert "--run-id" in err


def test_the_job_can_be_rendered_as_a_trainjob_and_what_it_cannot_do_is_said(cli):
    code, out, err = cli("render-job", "--num-nodes", "3", "--gpus-per-node", "2", "--kind", "trainjob")
    assert code == 0, err
    job = yaml.safe_load(out)
    trainer = job["spec"]["trainer"]
    assert (job["kind"], trainer["numNodes"], trainer["numProcPerNode"]) == ("TrainJob", 3, 2)
    code, out, err = cli("render-job", "--kind", "trainjob", "--set", "job.priority_class=high")
    assert (code, out) == (78, "")
    assert "priorityClassName" in err
    code, _, err = cli("render-job", "--kind", "mpijob")
    assert code == 78
    assert "pytorchjob" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run-id", ""], "--run-id is empty"),
        (["--kind", "local"], "--kind local is no job of a cluster: use pytorchjob or trainjob"),
        (["--kind", "auto", "--num-nodes", "1"], "--kind auto is no job of a cluster"),
        (["--image", "not an image"], "image 'not an image' has a space in it"),
    ],
)
def test_a_job_that_no_cluster_would_take_is_not_rendered(refused, words, said):
    assert said in refused(78, "render-job", *words)


@pytest.mark.parametrize("option", ["--steps-image", "--trainer-image"])
def test_an_image_with_a_space_is_not_compiled(refused, tmp_path, option):
    assert f"{option} 'not one' has a space" in refused(78, "compile", "-o", tmp_path / "out", option, "not one")
    assert not (tmp_path / "out").exists()


def test_compiling_prints_what_it_wrote(cli, tmp_path):
    code, out, err = cli("compile", "-o", tmp_path / "new" / "folder", "--steps-image", "steps@sha256:0")
    assert code == 0, err
    assert [Path(line).name for line in out.splitlines()] == ["train.yaml", "retrain.yaml", "data.yaml"]
    assert "steps@sha256:0" in (tmp_path / "new" / "folder" / "train.yaml").read_text()


def test_the_doctor_s_findings_are_one_list_and_its_exit_code_is_their_sum(cli):
    code, out, _ = cli("doctor", "--json")
    findings = json.loads(out)
    assert code == (0 if all(finding["ok"] for finding in findings) else 1)
    assert {"python", "torch", "kfp", "mlflow", "disk"} <= {finding["name"] for finding in findings}


def test_an_empty_registry_lists_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    code, out, _ = cli("models", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert "no alias champion: nothing to roll back" in cli("rollback")[2]


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_key_that_does_not_exist_is_refused_with_the_nearest_one(refused):
    assert refused(78, "plan", "--set", "train.lerning_rate=1").endswith("did you mean learning_rate?")
    assert "did you mean train?" in refused(78, "plan", "--set", "trian.max_steps=1")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.max_steps", "is not of the form section.key=value"),
        ("train.max_steps=many", "train.max_steps: Input should be a valid integer"),
        ("train.extra={", "the value is not YAML"),
        ("seed.more=1", "seed is a value, not a section"),
        ("job.memory=lots", "job.memory"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(refused, setting, words):
    named = refused(78, "plan", "--set", "seed=1", "--set", setting)
    assert words in named


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "- 1\n- 2", "\t: x", "!!python/object:os.system {}"])
def test_a_configuration_that_cannot_be_read_is_refused(refused, tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    refused(78, "plan", "--config", tmp_path / "bad.yaml")


def test_a_configuration_that_is_not_there_or_no_text_is_refused(refused, tmp_path):
    assert "shipped ones: quick, quickstart" in refused(78, "plan", "--config", tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    refused(78, "plan", "--config", tmp_path / "binary.yaml")
    refused(78, "plan", "--config", tmp_path)


def test_a_source_that_is_not_there_is_refused(refused, tmp_path):
    for verb in (["validate"], ["convert"]):
        more = [tmp_path / "out"] if verb == ["convert"] else []
        assert "is not a folder" in refused(78, *verb, tmp_path / "none", *more)
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_a_column_is_refused_and_its_columns_are_named(refused, make_rows, save_rows, tmp_path):
    rows = [{**row} for row in make_rows("train", 3)]
    for row in rows:
        del row["answer"]
    folder = save_rows(tmp_path / "set", {"train": rows})
    said = refused(65, "convert", folder, tmp_path / "out")
    assert "lacks the column answer; it has " in said
    assert "question" in said
    assert not (tmp_path / "out").exists()


def test_bad_rows_fail_validation_after_the_figures_were_given(cli, make_rows, save_rows, tmp_path):
    rows = make_rows("train", 4)
    rows[0]["image"] = {"bytes": b"no picture", "path": None}
    folder = save_rows(tmp_path / "set", {"train": rows})
    code, out, err = cli("validate", folder, "--json")
    assert (code, json.loads(out)["invalid_by_code"]) == (65, {"image_undecodable": 1})
    assert err.splitlines()[-1].startswith("error: 1 of 4 rows")
    assert cli("validate", folder, "--json", "--max-invalid-fraction", "0.5")[0] == 0


def test_converting_never_writes_over_anything(refused, source, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "own.txt").write_text("mine")
    assert "exists already: name a new folder" in refused(78, "convert", source, tmp_path / "there")
    assert [path.name for path in tmp_path.glob("there*/*")] == ["own.txt"]


@pytest.mark.parametrize("out", ["data", "data/out", "link", "link/out"])
def test_nothing_is_written_into_the_source(refused, source, tmp_path, out):
    (tmp_path / "data").symlink_to(source)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    before = sorted(source.rglob("*"))
    for words in (["validate", tmp_path / "data", "--out"], ["convert", tmp_path / "data"]):
        said = refused(78, *words, tmp_path / out)
        if words[0] == "validate" or "/" in out:
            assert "would be written into the source" in said
    assert sorted(source.rglob("*")) == before


@pytest.mark.parametrize("name", ["out.report", "out.report/below", "out.parts"])
def test_a_source_beside_the_output_is_not_swept_away(refused, source, tmp_path, name):
    shutil.copytree(source, tmp_path / name)
    assert "would be written into the source" in refused(78, "convert", tmp_path / name, tmp_path / "out")
    assert len(list((tmp_path / name).rglob("*"))) == len(list(source.rglob("*")))


def test_what_is_built_in_lies_apart_from_any_folder(cli, tmp_path):
    answer(cli, "validate", "builtin:easy-vqa", "--limit", "5", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_conversion_killed_between_its_last_files_ends_when_asked_again(cli, refused, source, tmp_path):
    whole = answer(cli, "convert", source, tmp_path / "out")
    assert answer(cli, "convert", source, tmp_path / "out") == whole
    assert "is a converted data set already" in refused(78, "convert", source, tmp_path / "out", "--seed", "5")
    (tmp_path / "out" / "report").rename(tmp_path / "out.report")
    (tmp_path / "out" / ".convert").mkdir()
    assert answer(cli, "convert", source, tmp_path / "out") == whole
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]
    assert (tmp_path / "out" / "report" / "report.html").exists()
    assert not (tmp_path / "out" / ".convert").exists()


def test_two_conversions_into_one_folder_do_not_meet(refused, source, tmp_path):
    (tmp_path / "out").mkdir()
    other = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        assert "another process writes into" in refused(78, "convert", source, tmp_path / "out")
        assert "another process writes into" in refused(78, "validate", source, "--out", tmp_path / "out")
        assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    finally:
        os.close(other)


def test_shares_of_more_than_the_whole_are_refused_before_the_long_work(refused, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": "none.png", "question": "q", "answer": "a"}))
    said = refused(78, "convert", rows, tmp_path / "out", "--validation", "0.6", "--test", "0.6")
    assert "not more than 1 together" in said
    assert list(tmp_path.iterdir()) == [rows]


def test_data_that_are_refused_leave_a_report_and_no_data_set(refused, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "none.png", "question": "q", "answer": "a"}))
    (tmp_path / "mine").mkdir()
    for name in ("out", "mine"):
        said = refused(65, "convert", tmp_path / "rows.jsonl", tmp_path / name)
        assert said.endswith(f"all of it stands in {tmp_path / name}.report/report.html")
        assert (tmp_path / f"{name}.report" / "report.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.report", "out.report", "rows.jsonl"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_empty_folder_is_converted_into_from_inside(cli, source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    answer(cli, "convert", source, ".")
    assert sorted(path.name for path in tmp_path.glob("here*")) == ["here"]
    assert (tmp_path / "here" / "report").is_dir()


@pytest.mark.parametrize("name", ["s3://bucket/out", "file:///tmp/out", "half \udcff"])
def test_a_folder_that_cannot_be_written_into_is_refused_before_anything_is_made(
    refused, source, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    assert "give a folder " in refused(78, "convert", source, name)
    assert "give a folder " in refused(78, "validate", source, "--out", name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_s_name_that_looks_like_an_address_is_a_folder_s_name(cli, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer(cli, "convert", source, "run:1")
    assert [path.name for path in tmp_path.iterdir()] == ["run:1"]


def test_a_source_that_breaks_in_the_middle_leaves_nothing(refused, tmp_path):
    file = tmp_path / "set.parquet"
    texts = [str(number) for number in range(1000)]
    pq.write_table(pa.table({"image": [b"no picture"] * 1000, "question": texts, "answer": texts}), file)
    data = bytearray(file.read_bytes())
    data[300:1300] = bytes(1000)
    file.write_bytes(data)
    assert "set.parquet cannot be read: " in refused(65, "convert", file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set.parquet"]


def test_a_row_s_id_cannot_steer_the_terminal(cli, tmp_path):
    row = {"image": "none.png", "question": "q", "answer": "a", "id": "\x1b[2J\nall is well " + "x" * 1000}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    code, out, err = cli("validate", tmp_path / "rows.jsonl")
    said = err.splitlines()[-1]
    assert code == 65
    assert "\x1b" not in out
    assert "\\x1b[2J\\nall is well xxx" in said
    assert len(said) < 500


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_conversion_that_breaks_leaves_no_data_set_and_goes_on_when_asked_again(
    cli, refused, source, tmp_path, monkeypatch
):
    whole = answer(cli, "convert", source, tmp_path / "other")
    with monkeypatch.context() as broken:
        broken.setattr("vqa_grpo.data.arrow_shards.ShardWriter._flush", full)
        said = refused(75, "convert", source, tmp_path / "out")
    assert "disk full while writing a file: free some space" in said
    assert not {"conversion.json", "dataset_dict.json"} & {path.name for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("vqa_grpo.data.validate.validate", full)  # done already, and so not done again
    assert answer(cli, "convert", source, tmp_path / "out")["digest"] == whole["digest"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


def test_a_full_disk_is_called_one(refused, source, tmp_path, monkeypatch):
    monkeypatch.setattr("vqa_grpo.data.index.IndexWriter._flush", full)
    said = refused(75, "validate", source, "--out", tmp_path / "out")
    assert "disk full while writing a file: free some space" in said
    assert "--storage" not in said  # which is an option of run alone
    assert not (tmp_path / "out").exists()


def test_parts_of_a_data_set_put_together_are_the_whole(cli, source, tmp_path):
    whole = answer(cli, "convert", source, tmp_path / "whole")
    report, out = tmp_path / "report", tmp_path / "out"
    for part in ("0/2", "1/2"):
        assert answer(cli, "validate", source, "--out", report, "--shard", part) == {"shard": part}
    assert answer(cli, "validate", source, "--out", report, "--merge", "2")["rows"] == 42
    for part in ("0/2", "1/2"):
        cli("convert", source, out, "--report", report, "--shard", part)
    merged = answer(cli, "convert", source, out, "--report", report, "--merge", "2")
    assert (merged["digest"], merged["splits"]) == (whole["digest"], whole["splits"])


def test_a_part_is_written_as_one_of_how_many(refused, source, tmp_path):
    for wrong in ("2", "2/2", "-1/2", "a/b"):
        assert "write it as i/n" in refused(78, "validate", source, "--out", tmp_path / "out", "--shard", wrong)
    assert "--shard and --merge need --out" in refused(78, "validate", source, "--shard", "0/2")
    assert "--shard and --merge need --report" in refused(78, "convert", source, tmp_path / "out", "--merge", "2")


def test_inspecting_writes_a_page(cli, source, tmp_path):
    code, out, err = cli("inspect", source, "--out", tmp_path / "page.html", "--rows", "5")
    assert (code, out.strip()) == (0, str(tmp_path / "page.html")), err
    assert "data:image/" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("place", ["a file/below", "/proc/nowhere/below"])
def test_a_place_that_cannot_be_written_is_named(refused, source, tmp_path, place):
    """Root may write nearly everywhere, but not below a plain file, nor into /proc."""
    (tmp_path / "a file").write_text("x")
    path = tmp_path / place
    assert str(path.parent) in refused(78, "convert", source, path)
    assert str(path.parent) in refused(78, "validate", source, "--out", path)
    assert str(path.parent) in refused(78, "compile", "-o", path)
    assert (tmp_path / "a file").read_text() == "x"


def test_a_prompt_template_without_its_placeholder_is_refused_before_a_run_begins(refused, source, tmp_path):
    (tmp_path / "prompt.txt").write_text('Answer as {"reasoning_steps": [], "answer": ""}.')
    settings = ["--set", f"data.source={json.dumps(str(source))}", "--set", f"model.prompt={tmp_path / 'prompt.txt'}"]
    said = refused(78, "run", "--runs", tmp_path / "runs", "--storage", tmp_path / "out", *settings)
    assert "lacks {USER_INSTRUCTION}" in said
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_no_data_set_and_no_prediction_file_is_refused(refused, source, tmp_path):
    assert "is not a converted data set" in refused(78, "evaluate", "a-model", tmp_path / "none")
    assert "not found" in refused(78, "compare", tmp_path / "none", tmp_path / "none")
    (tmp_path / "text").write_text("no parquet")
    assert "is not a prediction file" in refused(65, "compare", tmp_path / "text", tmp_path / "text")
    assert "nothing is published" in refused(65, "register", tmp_path / "none")


def test_an_mlflow_that_does_not_answer_is_named(refused, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "MLflow at http://127.0.0.1:9" in refused(75, "models", "--tracking-uri", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "arguments",
    ["validate x --limit -1", "convert x y --test 2", "run --s3-port 70000", "nonsense", "plan --nonsense"],
)
def test_options_that_make_no_sense_are_refused_as_in_any_shell(cli, arguments):
    code, out, err = cli(*arguments.split())
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err.startswith("Usage: vqa-grpo")


def test_clean_up_lists_first_and_knows_storage_from_a_cache(cli, refused, tmp_path):
    attempt, cached = tmp_path / "attempt-0123456789abcdef", tmp_path / ("a" * 64)
    for folder in (attempt, cached):
        folder.mkdir()
        (folder / "file").write_text("x")
        for path in (folder / "file", folder):
            os.utime(path, (0, 0))
    for option, left in (((), attempt), (("--cache",), cached)):
        code, out, _ = cli("cleanup", tmp_path, *option)
        assert (code, left.name in out, "1 found; --delete removes them" in out) == (0, True, True)
        assert "1 deleted" in cli("cleanup", tmp_path, *option, "--delete")[1]
        assert not left.exists()
        assert "nothing to do" in cli("cleanup", tmp_path, *option)[1]
    assert "24 is the least" in refused(78, "cleanup", tmp_path, "--cache", "--older-than-hours", 2)
