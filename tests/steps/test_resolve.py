"""The first step: what a run is called, what it is made of, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import vqa_grpo
from vqa_grpo import steps
from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.steps.shared import config_of

PACKAGE = Path(vqa_grpo.__file__).parent


def test_the_same_run_has_the_same_name_and_the_name_is_short(resolve):
    assert resolve() == resolve()
    assert resolve().run_id.startswith("run-")
    assert len(resolve().run_id) == 16


def test_each_of_configuration_code_and_seed_makes_another_run(resolve):
    runs = [resolve(), resolve("train.max_steps=3"), resolve("seed=1"), resolve("job.num_nodes=2"), resolve(code="c")]
    assert len({run.run_id for run in runs}) == len(runs)


def test_another_data_set_makes_another_run_even_under_the_same_name(source, tmp_path, resolve):
    copy = shutil.copytree(source, tmp_path / "copy")
    setting = f"data.source={json.dumps(str(copy))}"
    before = resolve(setting)
    (copy / "train" / "state.json").touch()  # as after a new save_to_disk of the same size
    after = resolve(setting)
    assert before.config == after.config
    assert before.fingerprint != after.fingerprint
    assert before.run_id != after.run_id


def test_settings_that_leave_the_data_alone_leave_the_data_steps_inputs_alone(resolve):
    """Or else every change of a learning rate would convert the data anew."""
    run, same = resolve(), resolve("train.learning_rate=1e-5", "gate.min_format_rate=0.5", "seed=7")
    assert (run.data_config, run.checks) == (same.data_config, same.checks)
    assert run.data_config != resolve("data.split_seed=7").data_config


@pytest.mark.parametrize(
    "setting", ["rewards.functions=[format, accuracy, reasoning]", "data.max_invalid_fraction=0.5"]
)
def test_what_only_decides_whether_data_is_good_enough_does_not_decide_what_it_is(resolve, setting):
    assert resolve(setting).data_config == resolve().data_config
    assert resolve(setting).checks != resolve().checks


def test_a_run_s_own_name_is_kept(resolve):
    assert resolve(run_id="o'brien's run 2").run_id == "o'brien's run 2"


@pytest.mark.parametrize("run_id", ["../elsewhere", "a/b", ".hidden", "..", 'say "hi"', "a\nb", "x" * 101, "a\\b"])
def test_a_name_that_is_no_folder_s_is_refused_before_anything_is_done(resolve, run_id, tmp_path):
    with pytest.raises(ConfigurationError, match="cannot name a folder"):
        resolve(run_id=run_id)
    with pytest.raises(ConfigurationError, match="cannot name a folder"):
        steps.finish_run(run_id, str(tmp_path / "out"), "FAILED")
    assert not (tmp_path / "out").exists()


def test_storage_comes_out_in_one_form(source):
    settings = [f"data.source={json.dumps(str(source))}"]
    assert steps.resolve("quick", settings, "minio://bucket/v2/").root == "s3://bucket/v2"
    assert steps.resolve("quick", settings, "here").root == str(Path.cwd() / "here")
    with pytest.raises(ConfigurationError, match="only s3://"):
        steps.resolve("quick", settings, "gs://bucket")
    with pytest.raises(ConfigurationError, match="no place to write to"):
        steps.resolve("quick", settings, "")


def test_the_code_s_digest_knows_every_file_but_how_steps_are_called(tmp_path, monkeypatch):
    package = shutil.copytree(PACKAGE, tmp_path / "package")
    monkeypatch.setattr(vqa_grpo, "__file__", str(package / "__init__.py"))

    def changed(name: str) -> bool:
        before = steps.code_digest()
        (package / name).parent.mkdir(exist_ok=True)
        with (package / name).open("a") as file:
            file.write("\n")
        return steps.code_digest() != before

    relevant = ("steps/train.py", "rewards/vqa.py", "contract/prompts/vqa.txt", "configs/quick.yaml", "a/new.py")
    assert all(changed(name) for name in relevant)
    assert changed("training/deepspeed/zero2.json")
    assert not any(changed(name) for name in ("cli/app.py", "pipelines/train.py", "components/x.py", "x.pyc"))


def test_a_prompt_file_s_text_travels_with_the_run_and_is_part_of_its_name(resolve, tmp_path):
    """A pod has no such file, and the same file may say something else tomorrow."""
    file = tmp_path / "prompt.txt"
    shipped = (PACKAGE / "contract" / "prompts" / "short.txt").read_text()
    file.write_text("Look closely. " + shipped)
    first = resolve(f"model.prompt={file}")
    assert str(file) not in first.config
    assert "Look closely." in config_of(first.config).model.prompt
    words = steps.training_arguments(config_of(first.config), "d", "b", "o", "p")
    assert "Look closely." in words[words.index("--prompt_template") + 1]
    file.write_text("Look twice. " + shipped)
    assert resolve(f"model.prompt={file}").run_id != first.run_id
    file.unlink()
    assert config_of(first.config).model.prompt.startswith("Look closely.")
    assert config_of(resolve("model.prompt=vqa").config).model.prompt == "vqa"  # a shipped one keeps its name


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("s3://b/v2/artifacts/vqa-grpo-train/0-1/resolve-source/uuid/place", "s3://b/v2/artifacts/vqa-grpo-train/0-1"),
        ("minio://b/root/run/resolve-source/place", "minio://b/root/run"),
        ("/root/o'brien's run/resolve-source/place", "/root/o'brien's run"),
    ],
)
def test_a_kubeflow_run_s_folder_is_read_from_an_artifact_s_address(uri, folder):
    assert steps.run_folder(uri, "resolve-source") == folder
    with pytest.raises(ConfigurationError, match="give output_root"):
        steps.run_folder(uri, "finish-run")


# --- secrets --------------------------------------------------------------------------------------------------------

SECRET = "hunter2-and-more"  # noqa: S105 - not one


@pytest.mark.parametrize(
    "setting",
    [
        f"registry.tracking_uri=https://me:{SECRET}@mlflow.example",
        f"registry.tracking_uri=https://{SECRET}@mlflow.example",  # a token in the place of a user name
        f"train.extra.hub_token={SECRET}",
        f"train.extra.vllm_server_base_url=http://me:{SECRET}@vllm.example",
        f"registry.password={SECRET}",
        f"job={SECRET}:x@",
    ],
)
def test_a_secret_in_a_setting_is_refused(resolve, setting):
    """Logs, storage, MLflow and Kubeflow's UI show configurations to everybody."""
    with pytest.raises(ConfigurationError) as caught:
        resolve(setting)
    if not setting.startswith("job"):
        assert SECRET not in str(caught.value)


def test_secrets_of_the_environment_stay_there(resolve, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{SECRET}@mlflow.example")
    run = resolve()
    assert SECRET not in repr(run)
    assert SECRET not in " ".join(steps.training_arguments(config_of(run.config), "d", "b", "o", "s3://b/m"))


def test_urls_and_addresses_without_a_password_pass(resolve):
    run = resolve(
        "registry.tracking_uri=https://mlflow.example:5000", "model.base=s3://bucket/a:b", "registry.experiment=a@b"
    )
    assert "mlflow.example:5000" in run.config


def test_more_time_or_another_place_for_a_job_is_the_same_run_and_more_nodes_are_another(resolve):
    """A run whose job was too slow goes on when it is given more time, as its error says."""
    first = resolve()
    assert resolve("job.timeout_seconds=9", "job.memory=99Gi", "job.queue=gpus").run_id == first.run_id
    assert resolve("job.num_nodes=2").run_id != first.run_id
    assert resolve("job.environment={NVIDIA_TF32_OVERRIDE: 0}").run_id != first.run_id


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.lerning_rate=1", "unknown key train.lerning_rate, did you mean learning_rate?"),
        ("data.source=builtin:vqa2", "'builtin:vqa2' is not built in"),
        ("data.source=/no/such/folder", "is not a folder"),
        ("model.prompt=/no/such/file", "cannot be read"),
        ("registry.model_name=a/b", "must not hold / or :"),
        ("registry.alias=v3", "neither latest nor v1"),
        ("registry.alias=latest", "neither latest nor v1"),
        ("gate.min_accuracy_gain=.nan", "finite"),
        ("train.learning_rate=.inf", "finite"),
        ("train.num_generations=3", "does not divide the 128 completions"),
        ("train.num_generations=1", "or is 1"),
        ("train.extra.publish_uri=s3://mine/model", "publish_uri has a place of its own"),
        ("train.extra.learning_rate=1", "learning_rate has a place of its own"),
        ("model.base=./no-such-folder", "is no folder here"),
        ("model.min_pixels=5000", "min_pixels 5000 is more than max_pixels 4096"),
        ("rewards.functions=[format, acuracy]", "(ours: format, accuracy, reasoning): did you mean 'accuracy'?"),
        (
            "rewards.functions=[zzz]",
            "unknown reward function 'zzz' (ours: format, accuracy, reasoning): give one of ours",
        ),
        ("rewards.functions=['format', 'a.b:format']", "two reward functions are called 'format'"),
        ("judge={enabled: true, url: nowhere}", "judge url 'nowhere' is no http(s) URL"),
        ("rewards.step_encoder=/no/such/folder", "no folder with a sentence-transformers model"),
        ("job.memory=lots", "job.memory: String should match pattern"),
        ("job.cpu='-1'", "job.cpu: String should match pattern"),
        ("job={launcher: trainjob, priority_class: high}", "a TrainJob cannot set priorityClassName"),
        ("job.environment={HF_TOKEN: abc}", "HF_TOKEN would stand in the job for all to read"),
        ("job.environment={RANK: 0}", "RANK is the operator's to set"),
        ("job={environment: {A: b}, secrets: {A: c}}", "A is both"),
        ("job.overrides={spec: {containers: none}}", "spec.containers must be a list"),
    ],
)
def test_what_cannot_work_is_refused_at_once_and_in_words(resolve, setting, words):
    with pytest.raises(ConfigurationError) as caught:
        resolve(setting)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reward_of_the_user_s_own_is_left_to_the_trainer_of_a_cluster(resolve):
    setting = "rewards.functions=[format, 'my.module:reward']"
    assert "my.module:reward" in resolve(setting, "job.launcher=pytorchjob").config


def test_a_reward_of_the_user_s_own_is_looked_for_here_and_not_imported(resolve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no module my_rewards is found here: check it and PYTHONPATH"):
        resolve("rewards.functions=['my_rewards:short']")
    (tmp_path / "my_rewards.py").write_text("raise SystemExit('imported')")
    assert "my_rewards:short" in resolve("rewards.functions=['my_rewards:short']").config


def test_a_folder_that_is_no_data_set_is_told_from_a_damaged_one(tmp_path, resolve, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"not made by datasets\.save_to_disk"):
        resolve(f"data.source={tmp_path / 'empty'}")
    copy = shutil.copytree(source, tmp_path / "copy")
    for file in (copy / "train").glob("*.arrow"):
        file.write_bytes(b"not arrow")
    with pytest.raises(DataError, match="cannot be read"):
        resolve(f"data.source={json.dumps(str(copy))}")


def test_shares_of_more_than_the_whole_are_refused_before_the_data_are_looked_at(tmp_path, resolve):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": "none.png", "question": "q", "answer": "a"}))
    with pytest.raises(ConfigurationError, match="not more than 1 together"):
        resolve(f"data.source={rows}", "data.validation_fraction=0.6", "data.test_fraction=0.6")
