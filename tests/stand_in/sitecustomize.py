"""Quick stand-ins for what needs a model or MLflow, in every process that has this folder on PYTHONPATH.

Python imports a module of this name at start. Steps, wiring, Kubeflow's runner and storage stay the real ones.
STAND_IN is JSON: `letters` gives each model's answers (o right, - not JSON at all), `blame` a step that fails, and
`registry` a folder where calls to MLflow are written down.
"""

import json
import os
from pathlib import Path
from typing import Any

WANTED = json.loads(os.environ.get("STAND_IN", "null"))


def install() -> None:
    from vqa_grpo import registry, steps
    from vqa_grpo.contract.failure import FailureReason, JobError
    from vqa_grpo.contract.layout import step_uri
    from vqa_grpo.evaluation import ask, questions
    from vqa_grpo.report.progress import emit
    from vqa_grpo.steps import evaluate, train
    from vqa_grpo.storage import publish

    def prepare_model(config: str, dataset_uri: str, root: str) -> Any:
        return steps.Prepared("base")

    def launch_training(run: Any, run_id: str, root: str, dataset_uri: str, base: str, image: str) -> None:
        if WANTED.get("blame") == "train":
            raise JobError("the job's process was killed: give it more memory", FailureReason.OUT_OF_MEMORY)

        def build(folder: Path) -> dict[str, Any]:
            (folder / "training.json").write_text('{"steps": 3}')
            (folder / "history.json").write_text('[{"step": 1, "reward": NaN}, {"step": 2, "reward": 0.5}]')
            return {}

        publish.publish(step_uri(root, run_id, "model"), build, publish.work_folder())

    def launch_evaluation(
        run: Any, run_id: str, root: str, dataset_uri: str, models: dict[str, str], image: str
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from vqa_grpo.contract.verdict import prediction_schema

        dataset = publish.fetch(dataset_uri, publish.cache_folder())
        asked = ask.held_out(run, dataset)
        files = []
        for name in models:
            emit(f"evaluate {name}", 1, 2, "it's going")
            rows = [_prediction(row, WANTED["letters"][name]) for row in asked]
            table = pa.Table.from_pylist(rows, schema=prediction_schema())

            def build(folder: Path, table: Any = table) -> dict[str, Any]:
                pq.write_table(table, folder / ask.FILE)
                return {}

            published = publish.publish(step_uri(root, run_id, f"predictions/{name}"), build, publish.work_folder())
            files.append(publish.fetch(published.uri, publish.cache_folder()) / ask.FILE)
            emit(f"evaluate {name}", 2, 2)

        def build_questions(folder: Path) -> dict[str, Any]:
            questions.write_questions(folder, dataset, asked, *files)
            return {}

        publish.publish(step_uri(root, run_id, "predictions/questions"), build_questions, publish.work_folder())

    def record_run(tracking_uri: str, experiment: str, run_id: str, metrics: Any, params: Any, tags: Any) -> str:
        _note("record", {"run_id": run_id, "metrics": metrics, "params": params, "tags": tags})
        return "an MLflow run"

    def register(tracking_uri: str, name: str, alias: str, source: str, digest: str, **more: Any) -> Any:
        _note("register", {"name": name, "source": source, "digest": digest, **more})
        return registry.Registered(name, "1", alias, digest, source)

    steps.prepare_model, train.launch_training = prepare_model, launch_training
    evaluate.launch_evaluation = launch_evaluation
    registry.record_run, registry.register = record_run, register


def _note(what: str, facts: dict[str, Any]) -> None:
    (Path(WANTED["registry"]) / f"{what}.json").write_text(json.dumps(facts))


def _prediction(row: dict[str, Any], letter: str) -> dict[str, Any]:
    right = letter == "o"
    return {
        "id": row["id"],
        "type": "it's a color",
        "question": row["question"],
        "gold": row["answer"],
        "completion": f"the answer's {row['answer']}",
        "completion_tokens": 7,
        "outcome": "valid" if right else "no_json",
        "format_reward": float(right),
        "answer": row["answer"] if right else None,
        "steps": [],
        "correct": right,
        "reward": float(right),
        "gold_type": "text",
        "rule": "text_exact" if right else "no_answer",
        "explanation": "",
        "reasoning_f1": float("nan") if WANTED.get("nan") else None,
    }


if WANTED:
    install()
