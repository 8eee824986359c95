"""The guide's three rewards: format, accuracy and reasoning.

>>> good = '{"reasoning_steps": ["A red circle is shown."], "answer": "red"}'
>>> format(prompts=["?"], completions=[good])
[1.0]
>>> accuracy(prompts=["?"], completions=[good], answer=["blue"])
[0.0]
>>> reasoning(prompts=["?"], completions=[good], reference_steps=[[]])
[None]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vqa_grpo.contract.completion import parse
from vqa_grpo.contract.record import offered
from vqa_grpo.rewards import debug_log
from vqa_grpo.rewards.guard import by_row
from vqa_grpo.scoring.answer import grade
from vqa_grpo.scoring.steps import match_f1


def _format(text: str, row: dict[str, Any]) -> float:
    completion = parse(text)
    reasons = ", ".join(completion.reasons) or "none"
    debug_log.write("format", text, {"Has valid format": completion.format_reward == 1.0, "Problems": reasons})
    return completion.format_reward


def _accuracy(text: str, row: dict[str, Any]) -> float:
    # The parser gives an answer only for a valid object, alone or with text around it: nothing else can score.
    answer: str | Sequence[str] = row["answer"]
    golds = [answer] if isinstance(answer, str) else list(answer)
    verdict = grade(parse(text).answer, golds, offered(row.get("choices"), row.get("options")))
    debug_log.write(
        "accuracy",
        text,
        {
            "Problem": row.get("question", ""),
            "Solution": answer,
            "Accuracy": verdict.reward,
            "Why": verdict.explanation,
        },
    )
    return verdict.reward


def _reasoning(text: str, row: dict[str, Any]) -> float | None:
    references = row.get("reference_steps") or ()
    score = match_f1(parse(text).steps, references, str(row.get("question") or ""))
    # None says "does not apply", which TRL leaves out; 0.0 would punish a model for a gap in the data.
    reward = None if score is None else score.f1
    debug_log.write("reasoning", text, {"Reference steps": list(references), "Match F1": reward})
    return reward


format = by_row("format", _format)
accuracy = by_row("accuracy", _accuracy)
reasoning = by_row("reasoning", _reasoning)
