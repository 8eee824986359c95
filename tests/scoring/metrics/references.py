"""The published implementations that the metrics are held against. They are installed aside, and never copied here.

    python tests/scoring/metrics/references.py FOLDER     installs them and writes golden/*.json anew

Single files are loaded by path: lmms-eval as a whole needs much that has nothing to do with grading.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

PACKAGES = (
    "anls==0.0.2",
    "anls-star==1.0.1",
    "antlr4-python3-runtime==4.13.2",
    "crystal-metrics==0.2.0",
    "latex2sympy2_extended==1.11.0",
    "lmms-eval==0.7.3",
    "math-verify==0.9.0",
    "munkres==3.0.0",
)
GOLDEN = Path(__file__).with_name("golden")
NO_CHOICE = "?"

# What the loaded files import and their grading does not use.
_STUBS = (
    "loguru sacrebleu lmms_eval lmms_eval.api lmms_eval.api.registry lmms_eval.tasks lmms_eval.tasks._task_utils "
    "lmms_eval.tasks._task_utils.file_utils lmms_eval.verifiers lmms_eval.verifiers.openai"
)


def install(target: Path) -> str:
    """Put the references into a folder; what went wrong, or ""."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), *PACKAGES],
        capture_output=True,
        text=True,
    )
    return done.stderr.strip() if done.returncode else ""


@contextmanager
def _modules(replaced: dict[str, Any]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in replaced}
    sys.modules.update(replaced)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _load(path: Path, **more: Any) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"reference_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stubs: dict[str, Any] = {name: MagicMock() for name in _STUBS.split()}
    # The registry's decorators must hand back what they decorate.
    for decorator in ("register_metric", "register_aggregation"):
        setattr(stubs["lmms_eval.api.registry"], decorator, lambda *a, **k: lambda function: function)
    with _modules(stubs | more):
        spec.loader.exec_module(module)
    return module


class References:
    """Each method is one published implementation: prediction, golds and options in, a number out."""

    def __init__(self, folder: Path) -> None:
        tasks = folder / "lmms_eval" / "tasks"
        processor = _load(tasks / "_task_utils" / "vqa_eval_metric.py")
        self._choice = _load(tasks / "_task_utils" / "mmmu_mcq_utils.py")
        shared = {
            "lmms_eval.tasks._task_utils.vqa_eval_metric": processor,
            "lmms_eval.tasks._task_utils.mmmu_mcq_utils": self._choice,
        }
        self.processor = processor.EvalAIAnswerProcessor
        self._vqav2 = _load(tasks / "vqav2" / "utils.py", **shared)
        self._textvqa = _load(tasks / "textvqa" / "utils.py", **shared)
        self._chartqa = _load(tasks / "chartqa" / "utils.py")
        self._mmmu = _load(tasks / "mmmu" / "utils.py", **shared)
        self._metrics = _load(folder / "lmms_eval" / "api" / "metrics.py")
        self._crystal = _load(folder / "crystal_metrics" / "accuracy.py").AccuracyCalculator(use_llm_grader=False)
        # These come whole, after everything else on the path.
        sys.path.append(str(folder))
        self._anls = importlib.import_module("anls").anls_score
        self._anls_star = importlib.import_module("anls_star").anls_score
        self._math = importlib.import_module("math_verify")
        # lmms-eval draws a letter at random when nothing matches; drawing nothing shows where it would have.
        self._choice.random.choice = lambda letters: NO_CHOICE

    def vqa_soft(self, prediction: str, golds: list[str], options: list[str]) -> float:
        answers = [{"answer": gold, "answer_id": at} for at, gold in enumerate(golds)]
        doc = {"answers": answers, "question_id": 0}
        return float(self._vqav2.vqav2_process_results(doc, [prediction])["exact_match"])

    def textvqa(self, prediction: str, golds: list[str], options: list[str]) -> float:
        doc = {"answers": list(golds), "question_id": 0}
        return float(self._textvqa.textvqa_process_results(doc, [prediction])["exact_match"])

    def anls(self, prediction: str, golds: list[str], options: list[str]) -> float:
        return float(self._metrics.anls(golds, [prediction])["anls"])

    def anls_package(self, prediction: str, golds: list[str], options: list[str]) -> float:
        return float(self._anls(prediction, golds))

    def anls_star(self, prediction: str, golds: list[str], options: list[str]) -> float:
        return float(self._anls_star(tuple(golds), prediction))

    def anls_star_structures(self, prediction: str, golds: list[str], options: list[str]) -> float:
        gold, told = (json.loads(text, parse_int=str, parse_float=str) for text in (golds[0], prediction))
        return float(self._anls_star((gold,), told))

    def chartqa(self, prediction: str, golds: list[str], options: list[str]) -> float:
        return float(any(self._chartqa.relaxed_correctness(prediction, gold) for gold in golds))

    def mmmu(self, prediction: str, golds: list[str], options: list[str]) -> float:
        by_letter, letters = self._choice.get_multi_choice_info(options)
        picked = self._choice.parse_mmmu_multi_choice_response(prediction, letters, by_letter)
        return float(self._mmmu.eval_multi_choice(golds, picked))

    def mmmu_open(self, prediction: str, golds: list[str], options: list[str]) -> float:
        return float(self._mmmu.eval_open(golds, self._mmmu.parse_open_response(prediction)))

    def crystal(self, prediction: str, golds: list[str], options: list[str]) -> float:
        question = "\n".join(f"{chr(65 + at)}) {option}" for at, option in enumerate(options))
        said = self._crystal.evaluate_single(question, prediction, golds[0])
        return float(said.confidence) if said.is_correct else 0.0

    def math(self, prediction: str, golds: list[str], options: list[str]) -> float:
        parsed = self._math.parse(prediction)
        return float(bool(parsed) and any(self._math.verify(self._math.parse(gold), parsed) for gold in golds))


# metric, reference, generator: the fast tests hold the metrics against a few hundred values of each.
TABLES: dict[str, tuple[str, str, str]] = {
    "vqa_soft": ("vqa_soft", "vqa_soft", "annotated"),
    "textvqa": ("textvqa", "textvqa", "annotated"),
    "anls": ("anls", "anls_star", "texts"),
    "chartqa": ("chartqa", "chartqa", "texts"),
    "mmmu": ("mmmu", "mmmu", "choices"),
    "mmmu_open": ("mmmu", "mmmu_open", "open_questions"),
    "crystal": ("crystal", "crystal", "mixed"),
}


def write_golden(references: References, generate: Callable[[str], list[Any]]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for table, (_, reference, generator) in TABLES.items():
        judge = getattr(references, reference)
        rows = [
            {"prediction": c.prediction, "golds": c.golds, "options": c.options}
            | {"expected": round(judge(c.prediction, list(c.golds), c.options), 9)}
            for c in generate(generator)
        ]
        lines = ",\n".join(json.dumps(row) for row in rows)
        (GOLDEN / f"{table}.json").write_text(f"[\n{lines}\n]\n")
        print(table, len(rows), "of which not zero:", sum(row["expected"] > 0 for row in rows))


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    problem = "" if (where / "lmms_eval").is_dir() else install(where)
    if problem:
        sys.exit(problem)
    sys.path.insert(0, str(Path(__file__).parent))
    cases = importlib.import_module("cases")
    write_golden(References(where), lambda generator: getattr(cases, generator)(seed=1, count=300))
