"""Grade one answer. What kind of answer a question wants is read off the gold answer, the options and the source.

The prediction never has a say in it: a grader that looks for a number because the prediction holds one can be led.
The reward is 0 or 1. Nothing is paid for being near, for containing the right words, or for an empty answer.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.verdict import Verdict
from vqa_grpo.scoring.answer import abstention, choice, listing, moment, number, yes_no
from vqa_grpo.scoring.answer.normal import MAX_CHARACTERS, Match, plain, shown, tidy, without_lead_in

TYPES = ("choice", "abstention", "yes_no", "datetime", "number", "list", "text")


def grade(
    prediction: str | None,
    golds: Sequence[str],
    options: Sequence[str] = (),
    source: str = "",
    metric: str = "",
    ordered: bool = False,
) -> Verdict:
    """Compare a prediction with one or several gold answers; any match is right, and the reward is 0 or 1.

    `prediction` is None when the completion held no usable answer: always wrong, under its own rule. The verdict's
    type is the first gold answer's; each gold answer is compared by its own. `metric` names one of the field's
    standard metrics instead (`vqa_grpo.scoring.metrics.METRICS`). `ordered` makes the order of a list count, as does
    a source that ends in "/ordered_list". No text makes this raise; no gold answer at all is a DataError.

    >>> grade("1,000", ["1000"]).correct, grade("2003", ["2010"]).correct, grade("", ["nokia"]).correct
    (True, False, False)
    """
    if not golds:
        raise DataError("no gold answer to grade against: every row needs one")
    gold_type = type_of(golds[0], options, source)
    by_metric = _metric(metric) if metric else None
    if prediction is None:
        return Verdict(False, 0.0, gold_type, "no_answer", "the completion holds no answer that can be read")
    if by_metric is not None:
        return by_metric(prediction, golds, options)
    if len(prediction) > MAX_CHARACTERS or len(tidy(prediction)) > MAX_CHARACTERS:
        return Verdict(False, 0.0, gold_type, "too_long", f"the answer is longer than {MAX_CHARACTERS} characters")
    ordered = ordered or source.endswith("/ordered_list")
    matches = []
    for gold in golds:
        kind = gold_type if gold is golds[0] else type_of(gold, options, source)
        matches.append(_match(prediction, gold[:MAX_CHARACTERS], kind, options, ordered))
        if matches[-1].correct:
            break
    best = matches[-1] if matches[-1].correct else matches[0]
    expected = tuple(dict.fromkeys(found.expected for found in matches))
    relation = "equals" if best.correct else "differs from"
    wanted = best.expected if best.correct else " or ".join(expected[:10])
    explanation = f"{shown(best.seen)} {relation} {shown(wanted)}, compared as {gold_type.replace('_', '/')}"
    return Verdict(best.correct, float(best.correct), gold_type, best.rule, explanation, best.seen, expected)


@functools.lru_cache(maxsize=16384)
def _type_of_gold(gold: str) -> str:
    if not plain(gold):
        return "text"
    if abstention.is_abstention(gold):
        return "abstention"
    if plain(gold) in yes_no.GOLDS:
        return "yes_no"
    if choice.is_alone(gold):
        return "choice"
    if moment.is_gold(gold):
        return "datetime"
    if number.is_gold(gold):
        return "number"
    return "list" if listing.is_gold(gold) else "text"


def type_of(gold: str, options: Sequence[str] = (), source: str = "") -> str:
    """One of `TYPES`, decided by the gold answer, the options and the source alone.

    A source whose part after the last "/" is the name of a type asks for it ("receipts/text", "menus/list"); a gold
    answer that cannot be of the type keeps its own.

    >>> type_of("B", ["2003", "2010"]), type_of("no"), type_of("5 cm"), type_of("red, blue"), type_of("nokia")
    ('choice', 'yes_no', 'number', 'list', 'text')
    >>> type_of("2010", source="codes/text")
    'text'
    """
    if options:
        return "choice"
    gold = gold[:MAX_CHARACTERS]
    asked = source.rpartition("/")[2].replace("-", "_").removeprefix("ordered_") if "/" in source else ""
    if asked == "text" or (asked == "list" and listing.items(gold)):
        return asked
    if asked == "number" and number.read(tidy(gold)):
        return asked
    if asked == "datetime" and moment.read(gold):
        return asked
    return _type_of_gold(gold)


def _match(prediction: str, gold: str, kind: str, options: Sequence[str], ordered: bool) -> Match:
    said = without_lead_in(tidy(prediction))
    form = plain(said)
    if not form:
        return Match(False, "empty", "", plain(gold))
    if kind == "list" and (ordered or listing.is_in_order(gold)):
        return listing.match(said if "\n" not in prediction else prediction, gold, True, _same)
    # The same text is the same answer. Where a sign, a prime or a capital changes the value (-$5, 5", MW), it must be
    # the same to the letter; elsewhere the plain forms decide.
    exact = kind in ("number", "datetime", "choice")
    if tidy(gold) in (said, tidy(prediction)) or (not exact and form == plain(gold)):
        return Match(True, f"{kind}_exact", form, plain(gold))
    if kind == "choice":
        found = _choice(said, gold, options)
    elif kind == "abstention":
        found = abstention.match(said, gold)
    elif kind == "yes_no":
        found = yes_no.match(said, gold)
    elif kind == "datetime":
        found = moment.match(said, gold)
    elif kind == "number":
        found = number.match(said, gold)
    elif kind == "list":
        found = listing.match(said if "\n" not in prediction else prediction, gold, False, _same)
    else:
        found = Match(False, "text_exact", form, plain(gold))
    if not found.correct and kind != "abstention" and abstention.is_abstention(said):
        return found._replace(rule="abstained")
    return found


def _choice(said: str, gold: str, options: Sequence[str]) -> Match:
    if not options:
        return choice.match_alone(said, gold, _same)
    found = choice.match(said, gold, options, _same)
    if found.correct:
        return found
    # "insufficient information" names the option that declines, however that one is worded.
    declining = [option for option in options if abstention.is_abstention(choice.unlabelled(option))]
    if len(declining) != 1:
        return found
    seen, wanted = (declining[0] if abstention.is_abstention(text) else text for text in (said, gold))
    return choice.match(seen, wanted, options, _same)


def _same(prediction: str, gold: str) -> bool:
    """Two items of a list or two options by the gold's own type, without options and never as lists in lists."""
    form = plain(gold)
    if plain(prediction) == form:
        return True
    if listing.is_point(gold):
        return listing.match(prediction, gold, True, _same).correct
    kind = _type_of_gold(gold)
    if kind == "number":
        return number.match(prediction, gold).correct
    if kind == "datetime":
        return moment.match(prediction, gold).correct
    if kind == "yes_no":
        return yes_no.match(prediction, gold).correct
    return False


def _metric(name: str) -> Callable[[str, Sequence[str], Sequence[str]], Verdict]:
    metrics: dict[str, Callable[..., Verdict]] = importlib.import_module("vqa_grpo.scoring.metrics").METRICS
    if name not in metrics:
        raise ConfigurationError(f"metric {name!r} is not known: choose one of {', '.join(sorted(metrics))}")
    return metrics[name]
