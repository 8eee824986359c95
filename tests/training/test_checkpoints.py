"""Which checkpoints count, how they travel, how many stay and which one is chosen: all without torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vqa_grpo.contract.failure import ConfigurationError, DataError, RetryError
from vqa_grpo.storage import bulk, publish, store, transfer
from vqa_grpo.storage.store import S3Store
from vqa_grpo.training import checkpoints
from vqa_grpo.training.checkpoints import Keeper, Layout, choose, seal, verify

ALONE = Layout(node=0, nodes=1, processes=1, ranks=(0,), leads=True)
PAIR = [Layout(node=node, nodes=2, processes=2, ranks=(node,), leads=True) for node in (0, 1)]


def write(output_dir: Path, step: int, layout: Layout = ALONE, content: str = "") -> Path:
    """A checkpoint as the trainer leaves it, not yet sealed."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    rng = ["rng_state.pth"] if layout.processes == 1 else [f"rng_state_{rank}.pth" for rank in layout.ranks]
    for name in ["trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors", "config.json", *rng]:
        (folder / name).write_bytes(f"{name} {step} {layout.node} {content} ".encode() * 20)
    return folder


def sealed(output_dir: Path, step: int, layout: Layout = ALONE, save_id: str = "") -> Path:
    folder = write(output_dir, step, layout, save_id)
    seal(folder, save_id or f"save-{step}", step, layout)
    return folder


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << position % 8
    path.write_bytes(data)


# --- whole or not -------------------------------------------------------------------------------------------------


def corruptions(folder: Path) -> list[tuple[str, Callable[[Path], object]]]:
    """More than 500 ways to spoil a checkpoint, each a name and what to do to a copy of it."""
    chance, cases = random.Random(0), []
    for path in sorted(folder.iterdir()):
        name, size = path.name, path.stat().st_size
        cuts = {0, 1, size // 2, size - 1, *(chance.randrange(size) for _ in range(16))}
        cases += [(f"cut {name} at {cut}", lambda f, n=name, c=cut: os.truncate(f / n, c)) for cut in sorted(cuts)]
        spots = {*range(size)} if name == checkpoints.MARKER else {0, size - 1, *chance.sample(range(size), 40)}
        cases += [(f"flip {name} at {spot}", lambda f, n=name, s=spot: flip(f / n, s)) for spot in sorted(spots)]
        cases += [
            (f"delete {name}", lambda f, n=name: (f / n).unlink()),
            (f"rename {name}", lambda f, n=name: (f / n).rename(f / f"{n}.1")),
            (f"append to {name}", lambda f, n=name: (f / n).open("ab").write(b"\n")),
            (f"a folder for {name}", lambda f, n=name: ((f / n).unlink(), (f / n).mkdir())),
            (f"a link for {name}", lambda f, n=name: ((f / n).unlink(), (f / n).symlink_to(folder / n))),
            (f"a link to nothing for {name}", lambda f, n=name: ((f / n).unlink(), (f / n).symlink_to(f / "no"))),
        ]
    for extra in ("extra", "pytorch_model.bin", "sub/extra", "checkpoint-is-incomplete.txt", ".hidden", "latest"):
        cases.append((f"extra {extra}", lambda f, e=extra: ((f / e).parent.mkdir(exist_ok=True), (f / e).touch())))
    cases.append(
        (
            "swap",
            lambda f: (
                (f / "optimizer.pt").rename(f / "x"),
                (f / "scheduler.pt").rename(f / "optimizer.pt"),
                (f / "x").rename(f / "scheduler.pt"),
            ),
        )
    )
    for key, value in [
        ("step", 11),
        ("node", 1),
        ("processes", 2),
        ("save_id", "x"),
        ("ranks", [1]),
        ("files", {}),
        ("digest", "0" * 64),
        ("new", 1),
    ]:
        cases.append((f"marker {key}", lambda f, k=key, v=value: edit(f / checkpoints.MARKER, k, v)))
    cases.append(
        (
            "other layout of the marker",
            lambda f: (f / checkpoints.MARKER).write_text(json.dumps(json.loads((f / checkpoints.MARKER).read_text()))),
        )
    )
    return cases


def edit(marker: Path, key: str, value: object) -> None:
    marker.write_text(json.dumps({**json.loads(marker.read_text()), key: value}, sort_keys=True, indent=1))


def test_every_corruption_is_found_and_nothing_else(tmp_path: Path) -> None:
    whole = sealed(tmp_path / "whole", 10)
    copy = tmp_path / "copy" / "checkpoint-10"
    cases, missed = corruptions(whole), []
    assert verify(whole).step == 10
    for name, spoil in cases:
        shutil.copytree(whole, copy)
        spoil(copy)
        try:
            verify(copy)
            missed.append(name)
        except DataError:
            pass
        shutil.rmtree(copy)
    assert len(cases) >= 500
    assert missed == []
    with pytest.raises(DataError, match="renamed"):
        verify(whole.rename(whole.with_name("checkpoint-20")))


def test_a_folder_that_lacks_what_resuming_reads_is_never_sealed(tmp_path: Path) -> None:
    for number, name in enumerate(
        ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"]
    ):
        folder = write(tmp_path / str(number), 10)
        (folder / name).unlink()
        with pytest.raises(DataError, match=name):
            seal(folder, "save", 10, ALONE)
        with pytest.raises(DataError, match="its save was cut short"):
            verify(folder)


def test_deepspeed_needs_the_part_of_every_rank(tmp_path: Path) -> None:
    both = Layout(node=0, nodes=1, processes=2, ranks=(0, 1), leads=True)
    folder = write(tmp_path, 10, both)
    for name in ("optimizer.pt", "model.safetensors"):
        (folder / name).unlink()
    (folder / "latest").write_text("global_step10")
    with pytest.raises(DataError, match="model states"):
        seal(folder, "save", 10, both)
    (folder / "global_step10").mkdir()
    (folder / "global_step10" / "mp_rank_00_model_states.pt").write_text("x")
    (folder / "global_step10" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").write_text("x")
    with pytest.raises(DataError, match="zero_pp_rank_0"):
        seal(folder, "save", 10, both)
    (folder / "global_step10" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text("x")
    seal(folder, "save", 10, both)
    assert verify(folder).ranks == (0, 1)


# --- choosing -----------------------------------------------------------------------------------------------------


def test_a_damaged_newest_gives_way_to_the_one_before_and_both_reasons_are_said(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        sealed(tmp_path, step)
    write(tmp_path, 20)  # a save that was cut short
    flip(tmp_path / "checkpoint-15" / "optimizer.pt", 7)
    said: list[str] = []
    assert choose([str(tmp_path)], tmp_path, ALONE, say=said.append) == tmp_path / "checkpoint-10"
    assert [text.split(" is passed over")[0].rsplit("/")[-1] for text in said] == ["checkpoint-20", "checkpoint-15"]
    assert "cut short" in said[0]
    assert "optimizer.pt is damaged" in said[1]


def test_a_newest_that_the_disk_does_not_give_back_gives_way_too(tmp_path: Path, monkeypatch: Any) -> None:
    for step in (5, 10):
        sealed(tmp_path, step)
    digest = hashlib.file_digest

    def failing(file: Any, name: str) -> Any:
        if "checkpoint-10" in file.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", failing)
    said: list[str] = []
    assert choose([str(tmp_path)], tmp_path, ALONE, say=said.append) == tmp_path / "checkpoint-5"
    assert "checkpoint-10 is passed over: " in said[0]
    assert os.strerror(errno.EIO) in said[0]


def test_there_is_nothing_to_choose_in_an_empty_place(tmp_path: Path) -> None:
    assert choose([str(tmp_path / "nothing"), str(tmp_path)], tmp_path, ALONE) is None


def test_a_checkpoint_of_other_processes_is_refused_with_the_reason(tmp_path: Path) -> None:
    sealed(tmp_path, 5, Layout(node=0, nodes=1, processes=4, ranks=(0, 1, 2, 3), leads=True))
    with pytest.raises(ConfigurationError, match="4 processes on 1 nodes, and this run has 1 on 1"):
        choose([str(tmp_path)], tmp_path, ALONE)


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def keep(output_dir: Path, uri: str | None, limit: int | None, layout: Layout, *steps: int, **more: Any) -> Keeper:
    keeper = Keeper(output_dir, uri, limit, layout, **more)
    for step in steps:
        keeper.take(write(output_dir, step, layout), f"save-{step}", step)
    keeper.finish()
    return keeper


def test_an_empty_machine_goes_on_from_storage(tmp_path: Path, uri: str) -> None:
    keep(tmp_path / "old", uri, 2, ALONE, 5, 10, 15)
    found = choose([str(tmp_path / "new"), uri], tmp_path / "new", ALONE)
    assert found is not None
    assert verify(found).step == 15
    assert (found / "model.safetensors").read_bytes() == (tmp_path / "old/checkpoint-15/model.safetensors").read_bytes()
    for place, step in [(uri, 15), (f"{uri}/step-000010", 10), (str(tmp_path / "old"), 15), (str(found), 15)]:
        again = choose([place], tmp_path / "third", ALONE)
        assert again is not None
        assert verify(again).step == step


def test_a_damaged_local_copy_is_fetched_again_from_storage(tmp_path: Path, uri: str) -> None:
    keep(tmp_path, uri, None, ALONE, 5, 10)
    flip(tmp_path / "checkpoint-10" / "optimizer.pt", 7)
    said: list[str] = []
    found = choose([str(tmp_path), uri], tmp_path, ALONE, say=said.append)
    assert found is not None
    assert verify(found).step == 10
    assert "optimizer.pt is damaged" in said[0]


def test_what_was_damaged_in_storage_is_passed_over(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    keep(tmp_path / "old", uri, None, ALONE, 5, 10, 15)
    flip(next((tmp_path / "store/step-000015").glob("attempt-*/optimizer.pt")), 3)
    flip(next((tmp_path / "store/step-000010").glob("attempt-*/manifest.json")), 3)
    said: list[str] = []
    found = choose([uri], tmp_path / "new", ALONE, say=said.append)
    assert found is not None
    assert verify(found).step == 5
    assert len(said) == 2


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One after the other: which were fetched, and one that S3 does not give."""
    monkeypatch.setattr(transfer, "AT_ONCE", 1)
    read_range, seen = S3Store.read_range, SimpleNamespace(fetched=[], broken=None)

    def read(self: S3Store, name: str, start: int, end: int) -> Any:
        if (name, start) == seen.broken:
            raise RetryError("S3 does not answer")
        seen.fetched.append((name, start))
        return read_range(self, name, start, end)

    monkeypatch.setattr(S3Store, "read_range", read)
    return seen


def test_a_download_that_breaks_off_costs_no_steps_and_goes_on(
    tmp_path: Path, s3: str, pieces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, here = f"{s3}/{tmp_path.name}", tmp_path / "new"
    keep(tmp_path / "old", uri, None, ALONE, 5, 10)
    monkeypatch.setattr(bulk, "PART", 100)
    pieces.broken = ("optimizer.pt", 200)
    with pytest.raises(RetryError, match="S3 does not answer"):
        choose([str(here), uri], here, ALONE)
    assert ("optimizer.pt", 100) in pieces.fetched
    assert choose([str(here)], here, ALONE) is None  # half of it is none
    pieces.broken = None
    assert choose([str(here), uri], here, ALONE) == here / "checkpoint-10"
    assert verify(here / "checkpoint-10").step == 10
    assert len(pieces.fetched) == len(set(pieces.fetched))  # none twice
    assert [path.name for path in here.iterdir()] == ["checkpoint-10"]


def test_what_a_killed_process_left_as_whole_is_not_trusted(tmp_path: Path, s3: str) -> None:
    uri, here = f"{s3}/{tmp_path.name}", tmp_path / "new"
    keep(tmp_path / "old", uri, None, ALONE, 5, 10)
    folder = publish.fetch(f"{uri}/step-000010", here / checkpoints.FETCHED)
    flip(folder / "optimizer.pt", 7)  # as after a power cut
    assert choose([str(here), uri], here, ALONE) == here / "checkpoint-10"


# --- several nodes ------------------------------------------------------------------------------------------------


def together(work: Callable[[int, Callable[[Any], list[Any]]], Any]) -> list[Any]:
    """Run `work` as two nodes at once, with a gather between them."""
    barrier, values = threading.Barrier(2, timeout=20), [None, None]
    results: list[Any] = [None, None]

    def node(number: int) -> None:
        def gather(own: Any) -> list[Any]:
            barrier.wait()
            values[number] = own
            barrier.wait()
            return list(values)

        results[number] = work(number, gather)

    threads = [threading.Thread(target=node, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def chosen_by_both(folders: list[Path], uri: str) -> list[int | None]:
    def work(number: int, gather: Any) -> int | None:
        own = folders[number]
        found = choose([str(own), uri], own, PAIR[number], gather, say=lambda text: None)
        if found is None:
            return None
        marker = verify(found)
        assert marker.node == number
        return marker.step

    return together(work)


def test_nodes_agree_on_the_newest_step_that_all_of_them_have(tmp_path: Path, uri: str) -> None:
    machines = [tmp_path / "a", tmp_path / "b"]
    keep(machines[0], uri, None, PAIR[0], 5, 10, 15)
    keep(machines[1], uri, None, PAIR[1], 5, 10)
    assert chosen_by_both(machines, uri) == [10, 10]
    assert chosen_by_both(machines[::-1], uri) == [10, 10]  # each finds the other's part on its disk
    assert chosen_by_both([tmp_path / "c", machines[1]], uri) == [10, 10]


def test_parts_of_two_saves_of_one_step_are_never_mixed(tmp_path: Path, uri: str) -> None:
    machines = [tmp_path / "a", tmp_path / "b"]
    for number in (0, 1):
        keep(machines[number], uri, None, PAIR[number], 5)
    for number, save_id in [(0, "first attempt"), (1, "second attempt")]:
        checkpoints.publish_checkpoint(
            uri, folder := write(machines[number], 10, PAIR[number]), seal(folder, save_id, 10, PAIR[number])
        )
    assert chosen_by_both(machines, uri) == [5, 5]
    folder = machines[0] / "checkpoint-10"
    checkpoints.publish_checkpoint(uri, folder, seal(folder, "second attempt", 10, PAIR[0]))
    assert chosen_by_both([tmp_path / "c", tmp_path / "d"], uri) == [10, 10]


def test_a_part_damaged_on_one_node_sends_all_nodes_back(tmp_path: Path) -> None:
    machines = [tmp_path / "a", tmp_path / "b"]
    for number in (0, 1):
        keep(machines[number], None, None, PAIR[number], 5, 10)
    (machines[1] / "checkpoint-10" / "optimizer.pt").unlink()
    assert chosen_by_both(machines, str(tmp_path / "nothing")) == [5, 5]


# --- retention ----------------------------------------------------------------------------------------------------


def test_the_newest_stay_on_disk_and_in_storage(tmp_path: Path, uri: str) -> None:
    keep(tmp_path / "run", uri, 2, ALONE, 5, 10, 15, 20)
    assert sorted(checkpoints.local_folders(tmp_path / "run")) == [15, 20]
    assert sorted(checkpoints.published_parts(uri)) == [15, 20]
    assert not [
        entry for entry in store.open_store(uri).entries() if entry.name.startswith(("step-000005", "step-000010"))
    ]


def test_the_newest_step_that_all_nodes_have_is_never_withdrawn(tmp_path: Path, uri: str) -> None:
    keep(tmp_path / "a", uri, 1, PAIR[0], 5, 10, 15)
    assert sorted(checkpoints.published_parts(uri)) == [5, 10, 15]  # the other node has published none yet
    keep(tmp_path / "b", uri, 1, PAIR[1], 5)
    assert sorted(checkpoints.published_parts(uri)) == [5, 10, 15]
    keep(tmp_path / "c", uri, 1, PAIR[1], 10)
    assert checkpoints.published_parts(uri)[10] == {"step-000010/node-0", "step-000010/node-1"}


def test_an_unfinished_or_protected_checkpoint_stays(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        sealed(tmp_path, step)
    write(tmp_path, 7)
    write(tmp_path, 20)
    checkpoints.thin_out(tmp_path, 1, protected=[5])
    assert sorted(checkpoints.local_folders(tmp_path)) == [5, 15, 20]


# --- behind training ----------------------------------------------------------------------------------------------


def test_an_upload_that_fails_is_said_and_the_next_save_tries_again(tmp_path: Path, monkeypatch: Any) -> None:
    said: list[str] = []
    broken = [True]

    def upload(*arguments: Any) -> None:
        if broken[0]:
            raise RetryError("S3 does not answer")
        publish.publish_folder(f"{arguments[0]}/{arguments[2].step}", arguments[1])

    monkeypatch.setattr(checkpoints, "publish_checkpoint", upload)
    keeper = Keeper(tmp_path / "run", str(tmp_path / "store"), None, ALONE, said.append)
    keeper.take(write(tmp_path / "run", 5), "a", 5)
    keeper.wait()
    assert checkpoints.newest_sealed(tmp_path / "run") == 5
    assert "S3 does not answer" in said[0]
    keeper.take(write(tmp_path / "run", 10), "b", 10)
    keeper.wait()
    broken[0] = False
    keeper.finish()  # the last one gets another chance, since no save follows
    assert publish.is_published(str(tmp_path / "store/10"))
    assert len(said) == 2


def test_a_save_waits_only_for_the_upload_before_it(tmp_path: Path, monkeypatch: Any) -> None:
    release, uploaded = threading.Event(), []

    def upload(uri: str, folder: Path, marker: Any) -> None:
        assert release.wait(20)
        uploaded.append(marker.step)

    monkeypatch.setattr(checkpoints, "publish_checkpoint", upload)
    keeper = Keeper(tmp_path / "run", str(tmp_path / "store"), None, ALONE)
    keeper.take(write(tmp_path / "run", 5), "a", 5)  # comes back while the upload hangs
    assert uploaded == []
    second = threading.Thread(target=keeper.take, args=(write(tmp_path / "run", 10), "b", 10))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    release.set()
    second.join(20)
    keeper.finish()
    assert uploaded == [5, 10]


# --- what is asked for ----------------------------------------------------------------------------------------------


def read(*more: str) -> Any:
    from vqa_grpo.training import arguments

    return arguments.read(["--model_name_or_path", "a/b", "--dataset_name", "d", "--use_cpu", *more])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--enable_jit_checkpoint"], "SIGTERM already"),
        (["--save_only_model"], "cannot be resumed from"),
        (["--checkpoint_uri", "s3://b/c", "--save_strategy", "no"], "has nothing to copy"),
    ],
)
def test_options_that_would_leave_no_usable_checkpoint_are_refused(options: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read(*options)


def test_saves_between_two_generations_are_noted_with_the_nearest_that_are_not() -> None:
    round_of_four = ["--per_device_train_batch_size", "4", "--steps_per_generation", "4"]
    assert "4 or 8 keeps them small" in " ".join(read(*round_of_four, "--save_steps", "6").notes)
    assert "keeps them small" not in " ".join(read(*round_of_four, "--save_steps", "8").notes)
    assert "keeps them small" not in " ".join(read("--save_steps", "7", "--gradient_accumulation_steps", "4").notes)


def test_on_several_nodes_each_saves_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert read().values["save_on_each_node"] is True
    assert read("--save_on_each_node", "false").values["save_on_each_node"] is False  # they share a disk
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert read().values["save_on_each_node"] is False
