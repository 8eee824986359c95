"""Why several processes failed together: the one cause among what each of them left behind."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import FailureReason, reason_of
from vqa_grpo.contract.vitals import Beat, Failure

MESSAGE_BYTES = 4096  # Kubernetes keeps no more of a termination message
_ERROR = re.compile(r"(?:\[[\w: ]+\]:?\s*)?error: (.+)")  # a launcher may put the rank in front
_REPORT = re.compile(r"\s*(rank|exitcode)\s*:\s*(-?\d+)")
_RENDEZVOUS = re.compile(r"rendezvous|DistNetworkError|DistStoreError|timed out|timeout|connection", re.IGNORECASE)
_BARE = re.compile(r"exit code \d+")


@dataclass(frozen=True)
class Evidence:
    """What is known once everything has ended.

    `codes`       rank → exit code as `subprocess` gives it, of those that did not end well
    `ended`       ranks that the supervisor itself killed: their codes say nothing
    `out_of_memory`  whether the kernel killed a process for want of memory meanwhile; None where it does not say
    `lines`       rank → its last lines
    """

    launcher_code: int
    launcher_lines: Sequence[str]
    failures: Sequence[Failure]
    beats: Sequence[Beat]
    codes: Mapping[int, int]
    ended: frozenset[int]
    out_of_memory: bool | None
    lines: Mapping[int, Sequence[str]]


def cause(evidence: Evidence) -> Failure:
    """The failure that the others only follow from: a rank that says its own reason, the first in time; else one
    that died without a word; else one that a peer waited for in vain; else the launcher itself."""
    own = [failure for failure in evidence.failures if not failure.peer]
    specific = [failure for failure in own if failure.reason is not FailureReason.CANCELLED]
    if specific:
        return _in_words(specific[0], evidence)
    if died := _died(evidence):
        return died
    if evidence.failures:
        first = next((failure for failure in evidence.failures if failure.peer), evidence.failures[0])
        return _lost_peer(first, evidence) if first.peer else _in_words(first, evidence)
    return _launcher(evidence)


def hang(beats: Sequence[Beat], now: float, margin: float) -> str:
    """One line when no rank has shown life for longer than its patience; empty while all is well."""
    if not beats or any(beat.patience is None for beat in beats):
        return ""
    silent = now - max(beat.time for beat in beats)
    patience = max(beat.patience or 0.0 for beat in beats)
    if silent <= patience + margin:
        return ""
    return (
        f"hung: no sign of life for {silent:.0f} s: {describe(beats, now)}; "
        f"raise --ddp_timeout (now {patience:.0f} s) if it was at work"
    )


def describe(beats: Sequence[Beat], now: float) -> str:
    """Which ranks did not arrive, and where each was last."""
    furthest = max(beat.count for beat in beats)
    late = [beat for beat in beats if beat.count < furthest]
    shown = [f"{_place(beat)} {now - beat.time:.0f} s ago" for beat in (late or beats)[:8]]
    if late:
        ahead = next(beat for beat in beats if beat.count == furthest)
        return f"{_ranks(late)} did not arrive ({'; '.join(shown)}), while {_place(ahead)}"
    return "; ".join(shown)


def exit_codes(report: Iterable[str]) -> dict[int, int]:
    """rank → exit code from torchrun's report; its own exit code is 1 whatever its workers did."""
    codes: dict[int, int] = {}
    rank = 0
    for line in report:
        if match := _REPORT.match(line):
            if match[1] == "rank":
                rank = int(match[2])
            else:
                codes[rank] = int(match[2])
    return codes


def sentence(exit_code: int, lines: Sequence[str]) -> str:
    """One line for a person: the last error the process printed, else how it ended."""
    for line in reversed(lines):
        if match := _ERROR.match(line.rstrip()):
            return match[1]
    return f"killed by {_signal_name(-exit_code)}" if exit_code < 0 else f"exit code {exit_code}"


def message(failure: Failure, lines: Sequence[str], **more: Any) -> str:
    """A failure as the one JSON line that Kubernetes keeps of a container; of `lines` the last that fit."""
    content = asdict(failure) | {"exit_code": failure.reason.exit_code, **more}
    kept = [line[:400] for line in lines]
    while True:
        text = json.dumps(content | {"lines": kept}, ensure_ascii=False)
        if len(text.encode()) <= MESSAGE_BYTES:
            return text
        if kept:
            kept = kept[1:]
        else:
            content["sentence"] = content["sentence"][: len(content["sentence"]) // 2]


def read_message(text: str) -> Failure | None:
    """The failure in a termination message, or None where somebody else wrote it."""
    try:
        content = json.loads(text.strip().splitlines()[-1])
        known = {name: content[name] for name in Failure.__dataclass_fields__ if name in content}
        return Failure(**(known | {"reason": FailureReason(content["reason"])}))
    except (ValueError, IndexError, TypeError, KeyError):
        return None


def oom_kills(root: Path = Path("/sys/fs/cgroup"), ours: Path = Path("/proc/self/cgroup")) -> int | None:
    """How many processes of this control group the kernel has killed for want of memory; None where it won't say."""
    try:
        groups = [line.split(":", 2) for line in ours.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    for _, controllers, path in groups:
        if controllers not in ("", "memory"):
            continue
        base, name = (root / "memory", "memory.oom_control") if controllers else (root, "memory.events")
        for folder in (base / path.lstrip("/"), base):  # a container often sees its own group as the root
            try:
                text = (folder / name).read_text(encoding="utf-8")
            except OSError:
                continue
            if found := re.search(r"^oom_kill (\d+)", text, re.MULTILINE):
                return int(found[1])
    return None


def _died(evidence: Evidence) -> Failure | None:
    """A rank that ended without a word: killed, or gone through os._exit."""
    spoken = {failure.rank for failure in evidence.failures} | evidence.ended
    codes = {rank: code for rank, code in evidence.codes.items() if rank not in spoken and code}
    # SIGTERM is how the launcher ends the peers of a failed worker.
    own = {rank: code for rank, code in codes.items() if code not in (-signal.SIGTERM, 143)}
    if not own:
        return None
    rank = min(own, key=lambda rank: (own[rank] > 0, rank))
    return _by_code(own[rank], rank, evidence)


def _by_code(code: int, rank: int, evidence: Evidence) -> Failure:
    step = next((beat.step for beat in evidence.beats if beat.rank == rank), None)
    found = Failure(reason_of(code), sentence(code, evidence.lines.get(rank, ())), rank, step=step)
    if code != -signal.SIGKILL:
        return found
    if evidence.out_of_memory is False:
        return replace(found, reason=FailureReason.RETRY, sentence="killed by SIGKILL, and not for want of memory")
    known = "the kernel" if evidence.out_of_memory else "probably the kernel"
    text = f"killed by SIGKILL: {known}, out of memory: raise job.memory, or make the batch smaller"
    return replace(found, reason=FailureReason.OUT_OF_MEMORY, sentence=text)


def _in_words(failure: Failure, evidence: Evidence) -> Failure:
    """An exit code alone says little: what the process printed may say more."""
    if not _BARE.fullmatch(failure.sentence):
        return failure
    code = int(failure.sentence.rpartition(" ")[2])
    return replace(failure, sentence=sentence(code, evidence.lines.get(failure.rank, ())))


def _lost_peer(failure: Failure, evidence: Evidence) -> Failure:
    """No rank of this node has a reason of its own. One that is behind the others kept them waiting."""
    spoken = {found.rank for found in evidence.failures}
    if len(evidence.beats) > 1:
        furthest = max(beat.count for beat in evidence.beats)
        late = [beat for beat in evidence.beats if beat.rank not in spoken or beat.count < furthest]
        if late:
            behind = min(late, key=lambda beat: (beat.count, beat.time))
            text = f"hung: {_ranks(late)} did not arrive ({_place(behind)}); rank {failure.rank}: {failure.sentence}"
            return replace(failure, sentence=text, rank=behind.rank, step=behind.step, peer=False)
    return replace(failure, sentence=f"lost another rank, or waited for it in vain: {failure.sentence}")


def _launcher(evidence: Evidence) -> Failure:
    """No worker left a reason, so it is the launcher that failed, most often before there were any."""
    lines, code = evidence.launcher_lines, evidence.launcher_code
    if code < 0:
        return _by_code(code, 0, evidence)
    last = next((line.strip() for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), "")
    if last and _RENDEZVOUS.search(last):
        text = f"the processes did not find each other: {last}: are all nodes up and is PET_MASTER_ADDR right?"
        return Failure(FailureReason.RETRY, text)
    if code == 2:  # argparse, on an option or a PET_ variable
        return Failure(FailureReason.CONFIGURATION, sentence(code, lines))
    return Failure(reason_of(code), last or sentence(code, lines))


def _place(beat: Beat) -> str:
    return f"rank {beat.rank} was at step {beat.step}: {beat.doing}"


def _ranks(beats: Sequence[Beat]) -> str:
    numbers = [str(beat.rank) for beat in beats]
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {', '.join(numbers)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
