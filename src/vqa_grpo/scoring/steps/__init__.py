"""How far reasoning steps agree with reference steps: `match_f1`, and `match_many` for a whole round."""

from vqa_grpo.scoring.steps.match import Mode, StepScore, check, match_f1, match_many

__all__ = ["Mode", "StepScore", "check", "match_f1", "match_many"]
