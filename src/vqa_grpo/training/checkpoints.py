"""Checkpoints: what makes one whole, how it leaves for storage, how many stay, and which one a run goes on from.

A folder `checkpoint-<step>` is whole when its marker, written last, names every file in it with size and SHA-256.
Nodes share nothing but storage, so each has a folder of its own ranks' files; a step is whole when every node has
its part of the same save:

    OUTPUT_DIR/checkpoint-10/            on each node: its own part
    CHECKPOINT_URI/step-000010/          the same part, published once (`storage.publish`); with several nodes
    CHECKPOINT_URI/step-000010/node-0/   one for each
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vqa_grpo.contract.failure import ConfigurationError, DataError, RetryError, StepError
from vqa_grpo.storage.publish import MANIFEST, READY, describe, facts_of, fetch, publish_folder
from vqa_grpo.storage.publish import find as find_published
from vqa_grpo.storage.store import explain_os_error, is_remote, normalise, open_store
from vqa_grpo.training import world

MARKER = "checkpoint.json"
STATE = "trainer_state.json"
# A pickle of the arguments, tokens included, that Trainer writes and never reads.
PICKLED_ARGUMENTS = "training_args.bin"
FETCHED = ".fetched"

Gather = Callable[[Any], list[Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Layout:
    """Who writes what: this node's number, how many there are, and the ranks whose files its folder holds."""

    node: int
    nodes: int
    processes: int
    ranks: tuple[int, ...]
    leads: bool  # one process of each node seals, uploads and fetches

    def fits(self, other: Marker) -> bool:
        return (other.nodes, other.processes) == (self.nodes, self.processes)


@dataclass(frozen=True)
class Marker:
    """What a whole checkpoint says of itself. `save_id` is the same on all nodes that took part in one save."""

    save_id: str
    step: int
    node: int
    nodes: int
    processes: int
    ranks: tuple[int, ...]
    files: dict[str, dict[str, Any]]

    def to_bytes(self) -> bytes:
        content = asdict(self)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return json.dumps({**content, "digest": digest}, sort_keys=True, indent=1).encode()

    @property
    def metadata(self) -> dict[str, Any]:
        return {"kind": "checkpoint", **{key: value for key, value in asdict(self).items() if key != "files"}}


class Offer(NamedTuple):
    """A checkpoint that one node could go on from: which save, and where this node's part of it lies."""

    marker: Marker
    place: str  # a local folder or the URI of what was published
    published: bool

    @property
    def save(self) -> tuple[int, str]:
        return self.marker.step, self.marker.save_id


# --- whole or not -----------------------------------------------------------------------------------------------


def seal(folder: Path, save_id: str, step: int, layout: Layout) -> Marker:
    """Mark a finished folder as whole. Raises DataError when something that resuming needs is not in it."""
    (folder / MARKER).unlink(missing_ok=True)
    marker = Marker(save_id, step, layout.node, layout.nodes, layout.processes, layout.ranks, describe(folder))
    _check_complete(folder, marker)
    staged = folder / f"{MARKER}.part"
    with staged.open("wb") as file:
        file.write(marker.to_bytes())
        file.flush()
        os.fsync(file.fileno())
    staged.rename(folder / MARKER)
    return marker


def verify(folder: Path) -> Marker:
    """The one decision whether a checkpoint is whole: every file there, none changed, none added.

    Raises DataError with the reason. What transformers or DeepSpeed leave of a save that was cut short has no
    marker, since ours is written last.
    """
    marker = read_marker(folder)
    number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    if number and int(number.group(1)) != marker.step:
        raise DataError(f"{folder} holds step {marker.step}: it was renamed")
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    del there[MARKER]
    if missing := sorted(marker.files.keys() - there.keys()):
        raise DataError(f"{folder} lacks {_some(missing)}")
    if extra := sorted(there.keys() - marker.files.keys()):
        raise DataError(f"{folder} has {_some(extra)} beside what was saved")
    for name, facts in marker.files.items():
        path = there[name]
        if path.is_symlink():
            raise DataError(f"{path} is a link, and it was saved as a file")
        if path.stat().st_size != facts["size"]:
            raise DataError(f"{path} is not as it was saved: {path.stat().st_size} bytes instead of {facts['size']}")
    for name, facts in marker.files.items():
        with there[name].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise DataError(f"{there[name]} is damaged: its SHA-256 is not the one that was saved")
    _check_complete(folder, marker)
    return marker


def read_marker(folder: Path) -> Marker:
    """The marker alone, whose own digest is checked; DataError where there is none or it was changed."""
    try:
        data = (folder / MARKER).read_bytes()
    except OSError:
        raise DataError(f"{folder} has no {MARKER}: its save was cut short, or another program wrote it") from None
    try:
        content = json.loads(data)
        del content["digest"]
        marker = Marker(**{**content, "ranks": tuple(content["ranks"])})
        same = marker.to_bytes() == data and not (folder / MARKER).is_symlink()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        same = False
    if not same:
        raise DataError(f"{folder / MARKER} is damaged: its digest is not its own")
    return marker


def _check_complete(folder: Path, marker: Marker) -> None:
    """Whether everything is in `marker.files` that resuming reads, so that no library can skip a part in silence."""
    names = marker.files.keys()
    alone = marker.processes == 1
    wanted = {STATE} | {"rng_state.pth" if alone else f"rng_state_{rank}.pth" for rank in marker.ranks}
    if "latest" in names:  # DeepSpeed's engine wrote it
        tag = (folder / "latest").read_text(encoding="utf-8").strip()
        owners = {int(found[1]) for name in names if (found := _optimizer_part(tag, name))}
        # Without ZeRO the optimizer's state lies among the model's, and there are no such parts.
        absent = set(marker.ranks) - owners if owners else set()
        wanted |= {f"{tag}/zero_pp_rank_{rank}_…_optim_states.pt" for rank in absent}
        if not any(name.startswith(f"{tag}/") and name.endswith("_model_states.pt") for name in names):
            wanted.add(f"{tag}/… model states")
    else:
        wanted |= {"optimizer.pt", "scheduler.pt"}
        weights = {"model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"}
        if not weights & names:
            wanted.add("model.safetensors")
    if missing := sorted(wanted - names):
        raise DataError(f"{folder} lacks {_some(missing)}: it cannot be resumed from")


def _optimizer_part(tag: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(rf"{re.escape(tag)}/.*zero_pp_rank_(\d+)_mp_.*optim_states\.pt", name)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


# --- behind the training loop -----------------------------------------------------------------------------------


def say_aloud(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


class Keeper:
    """Seals, uploads and thins out checkpoints while training goes on: one thread, one checkpoint at a time.

    Nothing that goes wrong here stops training: it is said, and the next save tries again.
    """

    def __init__(
        self, output_dir: Path, uri: str | None, limit: int | None, layout: Layout, say: Say = say_aloud
    ) -> None:
        self.output_dir, self._uri, self._limit, self._layout, self._say = output_dir, uri, limit, layout, say
        self._thread: threading.Thread | None = None
        self._pending: tuple[Path, Marker] | None = None

    def take(self, folder: Path, save_id: str, step: int, protected: Iterable[int] = ()) -> None:
        """Take charge of a folder that nobody writes any more. Blocks only while the one before is unfinished."""
        self.wait()
        arguments = (folder, save_id, step, frozenset(protected))
        self._thread = threading.Thread(target=self._keep, args=arguments, name="checkpoints")
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Wait for the last upload; one that failed gets another chance."""
        self.wait()
        if self._pending is not None:
            self._attempt(self._upload, *self._pending)

    def _keep(self, folder: Path, save_id: str, step: int, protected: frozenset[int]) -> None:
        marker = self._attempt(seal, folder, save_id, step, self._layout)
        if marker is None:
            return
        self._attempt(thin_out, self.output_dir, self._limit, protected)
        if self._uri:
            self._pending = (folder, marker)
            self._attempt(self._upload, folder, marker)

    def _upload(self, folder: Path, marker: Marker) -> None:
        assert self._uri is not None
        publish_checkpoint(self._uri, folder, marker)
        self._pending = None
        thin_out_published(self._uri, self._limit, self._layout)

    def _attempt(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:  # a full disk, a store that does not answer, a bug: training is worth more
            what = "uploading" if work == self._upload else "keeping"
            self._say(f"{what} a checkpoint failed, training goes on and the next save tries again: {_line(error)}")
            return None


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, StepError) and text else f"{type(error).__name__}: {text}"


def thin_out(output_dir: Path, limit: int | None, protected: Iterable[int] = ()) -> None:
    """Leave the newest `limit` sealed checkpoints, the protected steps, and whatever is newer than the last sealed."""
    if not limit or limit < 1:
        return
    folders, sealed = local_folders(output_dir), sealed_steps(output_dir)
    kept = {*sealed[:limit], *protected}
    for step, folder in folders.items():
        if step not in kept and sealed and step < sealed[0]:
            clear(folder)


def sealed_steps(output_dir: Path) -> list[int]:
    """Steps whose folder has a marker, newest first."""
    return sorted((step for step, at in local_folders(output_dir).items() if (at / MARKER).is_file()), reverse=True)


def newest_sealed(output_dir: Path) -> int | None:
    return next(iter(sealed_steps(output_dir)), None)


def clear(folder: Path) -> None:
    """Delete a checkpoint, its marker first, so that half a folder never looks whole."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def local_folders(output_dir: Path) -> dict[int, Path]:
    found = {}
    for path in output_dir.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if number and path.is_dir():
            found[int(number.group(1))] = path
    return found


def step_place(step: int, node: int, nodes: int) -> str:
    """Where a node's part lies below the checkpoint URI."""
    return f"step-{step:06d}" + (f"/node-{node}" if nodes > 1 else "")


def publish_checkpoint(uri: str, folder: Path, marker: Marker) -> None:
    """Publish a sealed folder once. Another save of the same step, from before a restart, makes room for it."""
    root, name = open_store(uri), step_place(marker.step, marker.node, marker.nodes)
    there = f"{root.uri}/{name}"
    published = find_published(there)
    if published is not None and published.metadata.get("save_id") != marker.save_id:
        _withdraw(uri, name)
    # Sealing has read every byte; only the marker is not in its own list.
    publish_folder(there, folder, marker.metadata, {**marker.files, MARKER: facts_of(folder / MARKER)})


def thin_out_published(uri: str, limit: int | None, layout: Layout) -> None:
    """Withdraw this node's part of old steps; the newest `limit` steps that all nodes have published stay."""
    if not limit or limit < 1:
        return
    ready = published_parts(uri)
    whole = sorted((step for step, nodes in ready.items() if len(nodes) == layout.nodes), reverse=True)
    for step in _steps(uri):
        if whole and step not in whole[:limit] and step < whole[0]:
            _withdraw(uri, step_place(step, layout.node, layout.nodes))


def published_parts(uri: str) -> dict[int, set[str]]:
    """Step → the places below the checkpoint URI that are ready."""
    parts: dict[int, set[str]] = {}
    for entry in open_store(uri).entries():
        match = re.fullmatch(rf"(step-(\d+)(?:/node-\d+)?)/{READY}", entry.name)
        if match:
            parts.setdefault(int(match.group(2)), set()).add(match.group(1))
    return parts


def _steps(uri: str) -> set[int]:
    names = (re.match(r"step-(\d+)/", entry.name) for entry in open_store(uri).entries())
    return {int(match.group(1)) for match in names if match}


def _withdraw(uri: str, name: str) -> None:
    store = open_store(uri)
    store.delete(f"{name}/{READY}")  # first, so that a reader never trusts half of it
    store.delete(f"{name}/")


# --- choosing ---------------------------------------------------------------------------------------------------


def gather(own: Any) -> list[Any]:
    """Every rank's value, in rank order; alone, just this one's."""
    if not world.in_group():
        return [own]
    import torch

    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, own)
    return values


def choose(
    locations: list[str], output_dir: Path, layout: Layout, gather: Gather = gather, say: Say = say_aloud
) -> Path | None:
    """The newest checkpoint that is whole on all nodes, as a local folder, or None where there is none at all.

    Every rank calls this with the same `locations`: output directories, checkpoint folders, checkpoint URIs or one
    of their steps. `gather` gives all ranks' values, in rank order. What is passed over is said, with the reason.
    Raises ConfigurationError when only checkpoints of another number of processes or nodes are there.
    """
    offers, misfits = _offers(locations, layout, say) if layout.leads else ([], [])
    lost: set[tuple[int, str]] = set()
    while True:
        saves = [own for leads, own in gather((layout.leads, {offer.save for offer in offers})) if leads]
        common = set.intersection(*saves) - lost
        if not common:
            _refuse_misfits(gather(misfits), layout)
            return None
        # Two saves of one step can only meet after a restart in mid-upload; any order will do that all ranks share.
        chosen = max(common)
        mine = None
        if layout.leads:
            mine = _first_whole([offer for offer in offers if offer.save == chosen], output_dir, say)
        folders = [(node, folder) for leads, node, folder in gather((layout.leads, layout.node, mine)) if leads]
        if all(folder for _, folder in folders):
            return Path(dict(folders)[layout.node])
        lost.add(chosen)


def _offers(locations: list[str], layout: Layout, say: Say) -> tuple[list[Offer], list[str]]:
    """What this node could go on from, and what was written by other numbers of processes, in words."""
    found: list[Offer] = []
    for location in locations:
        if not is_remote(location):
            found += _local_offers(Path(normalise(location)), say)
        found += _published_offers(location, layout, say)
    misfits, offers = [], []
    for offer in found:
        marker = offer.marker
        if not layout.fits(marker):
            misfits.append(f"{offer.place} was written by {marker.processes} processes on {marker.nodes} nodes")
        elif marker.node != layout.node:
            say(f"{offer.place} is passed over: it is node {marker.node}'s part, and this is node {layout.node}")
        else:
            offers.append(offer)
    return offers, misfits


def _local_offers(folder: Path, say: Say) -> list[Offer]:
    # A folder that was named itself is meant even where its marker is gone: it is refused aloud, not overlooked.
    named = re.fullmatch(r"checkpoint-\d+", folder.name) or (folder / MARKER).is_file()
    places = [folder] if named and folder.is_dir() else list(local_folders(folder).values())
    offers = []
    for place in places:
        try:
            offers.append(Offer(read_marker(place), str(place), published=False))
        except DataError as error:
            say(f"{place} is passed over: {error}")
    return offers


def _published_offers(location: str, layout: Layout, say: Say) -> list[Offer]:
    root, only = normalise(location), None
    if match := re.fullmatch(r"(.+)/step-(\d+)", root):
        root, only = match.group(1), int(match.group(2))
    offers = []
    for step, places in published_parts(root).items():
        own = [place for place in places if place in (f"step-{step:06d}", step_place(step, layout.node, layout.nodes))]
        for place in own or sorted(places)[:1]:
            if only not in (None, step):
                continue
            try:
                published = find_published(f"{root}/{place}")
                if published is not None:
                    offers.append(Offer(_marker_of(published.metadata), published.uri, published=True))
            except DataError as error:
                say(f"{root}/{place} is passed over: {error}")
    return offers


def _marker_of(metadata: dict[str, Any]) -> Marker:
    try:
        known = {key: metadata[key] for key in ("save_id", "step", "node", "nodes", "processes")}
        return Marker(**known, ranks=tuple(metadata["ranks"]), files={})
    except (KeyError, TypeError):
        raise DataError("what is published there is no checkpoint of ours") from None


def _first_whole(offers: list[Offer], output_dir: Path, say: Say) -> str | None:
    """The first of several copies of one save that is whole, local ones first.

    Raises RetryError where S3 cannot hand one over now: to pass it over would cost the steps since the one before.
    """
    for offer in sorted(offers, key=lambda offer: offer.published):
        try:
            folder = _fetched(offer, output_dir) if offer.published else Path(offer.place)
            verify(folder)
            return str(folder)
        except (StepError, OSError) as error:  # a file that cannot be read is as good as damaged
            if isinstance(error, RetryError) and is_remote(offer.place):
                raise
            say(f"{offer.place} is passed over: {error}")
    return None


def _fetched(offer: Offer, output_dir: Path) -> Path:
    """A published checkpoint in the output directory, as if it had been saved there.

    What breaks off lies in FETCHED, for the next try to go on from.
    """
    work = output_dir / FETCHED
    final = output_dir / f"checkpoint-{offer.marker.step}"
    for left in work.glob("*"):
        if not left.suffix:  # whole, it seems, and its process was killed: nobody has checked what the disk kept of it
            shutil.rmtree(left, ignore_errors=True)
    try:
        folder = fetch(offer.place, work)
        if work not in folder.parents:  # it lies in a folder here, where another node may withdraw it while we read
            folder = shutil.copytree(folder, work / folder.name, ignore=shutil.ignore_patterns(MANIFEST))
        clear(final)
        folder.rename(final)
    except OSError as error:
        raise explain_os_error(error) from error
    shutil.rmtree(work, ignore_errors=True)
    return final


def _refuse_misfits(everybodys: list[list[str]], layout: Layout) -> None:
    misfits = [misfit for own in everybodys for misfit in own]
    if misfits:
        raise ConfigurationError(
            f"{misfits[0]}, and this run has {layout.processes} on {layout.nodes}: the state of each process cannot be "
            "given to another number of them; start as many, or leave the resume options out"
        )
