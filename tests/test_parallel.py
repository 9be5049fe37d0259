"""Work shared out: execute(map=), shards and merging, and a Ray cluster whose worker is killed in the middle of a sweep."""

import concurrent.futures
import json
import os
import signal
import socket
import sys
import time

import pytest
import torch

import samplers
from samplers.bench import Request, Store, plan, run
from samplers.bench.merge import VOLATILE, merge_lines, merge_stores
from samplers.errors import OptionError, SamplersError
from samplers.parallel import RayMap, execute, parse_shard, shard_path, sharded

SWEEP = [Request(("sudoku4",), ("radd", "random_order"), nfe=(2, 4), seeds=2, rows=24, batch=24)]


def fixed(store_or_records):
    """Records by key, without what depends on when and where they were made."""
    records = getattr(store_or_records, "records", store_or_records)
    return {k: {n: v for n, v in r.items() if n not in VOLATILE} for k, r in records.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep, run in this process."""
    folder = tmp_path_factory.mktemp("whole")
    run(SWEEP, folder)
    return folder


def test_execute_gives_each_task_once_in_whatever_order_the_map_has():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for some in (None, map, pool.map, lambda work, tasks: reversed([work(t) for t in tasks])):
            got = list(execute("abc", str.upper, map=some))
            assert sorted(got) == [(0, "A"), (1, "B"), (2, "C")]
    taken = []
    for _ in execute(iter((taken.append(i) or i) for i in range(3)), abs):
        break
    assert taken == [0]  # the next task is not even looked at before the last result was taken
    with pytest.raises(SamplersError, match="task 0 twice"):
        list(execute("ab", str.upper, map=lambda work, tasks: [work(t) for t in tasks] * 2))
    with pytest.raises(SamplersError, match="no result for 2 of 3 tasks: 1, 2"):
        list(execute("abc", str.upper, map=lambda work, tasks: [work(t) for t in tasks][:1]))


def test_a_row_is_the_same_in_any_part_of_a_run():
    """Rows by their numbers: what a shard, or a batch in any order, draws is what the whole run draws."""
    denoiser = samplers.problems.create("sudoku4").denoiser("masked")
    every = samplers.sample(denoiser, "random_order", batch=8, steps=4, temperature=1.0, seed=5)
    some = samplers.sample(denoiser, "random_order", batch=3, steps=4, temperature=1.0, seed=5, first_row=[6, 1, 3])
    assert torch.equal(some.x, every.x[[6, 1, 3]])
    assert some.settings["first_row"] == [6, 1, 3]
    bound = samplers.nll(denoiser, every.x, mc=16, seed=2)
    part = samplers.nll(denoiser, every.x[[4, 2]], mc=16, seed=2, first_row=torch.tensor([4, 2]))
    assert torch.equal(part.nll, bound.nll[[4, 2]])
    for wrong, says in (([0, 1], "2 numbers were given for 3 rows"), ([0, 1, -1], "0 or more"), ("a", "0 or more")):
        with pytest.raises(OptionError, match=says):
            samplers.sample(denoiser, "random_order", batch=3, first_row=wrong)


def test_shards(monkeypatch):
    for rank, size in samplers.parallel.LAUNCHERS:
        monkeypatch.delenv(rank, raising=False)
        monkeypatch.delenv(size, raising=False)
    with pytest.raises(OptionError, match="start the command with torchrun or srun"):
        parse_shard("auto")
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert parse_shard("auto") == parse_shard("2/4") == (2, 4)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parse_shard("auto") == (0, 2)  # torchrun under srun counts by itself
    for wrong in ("4/4", "-1/4", "1", "1/0", "a/b"):
        with pytest.raises(OptionError, match=r"write i/n with i from 0 to n - 1"):
            parse_shard(wrong)
    assert str(shard_path("a/out.jsonl", (1, 4))) == "a/out.shard-1-of-4.jsonl"
    assert str(shard_path("a/run.1", (1, 4))) == "a/run.1/shard-1-of-4"
    assert sharded("a/out.shard-1-of-4.jsonl") == sharded("a/shard-1-of-4") == (1, 4)
    assert sharded("a/out.jsonl") is None


def test_shards_of_a_sweep_merge_to_what_one_process_makes(whole, tmp_path, cli):
    command = ["bench", "--problem", "sudoku4", "--samplers", "radd", "random_order", "--nfe", "2,4", "--seeds", "2"]
    command += ["--rows", "24", "--batch", "24", "--out", tmp_path, "--quiet"]
    for shard in ("1/3", "0/3"):
        assert cli(*command, "--shard", shard)[0] == 0
    code, _, err = cli("merge", tmp_path, "--out", tmp_path / "all")
    assert code == 2
    assert "shard 2/3 is missing" in err
    assert cli(*command, "--shard", "2/3")[0] == 0
    code, out, _ = cli("merge", tmp_path, "--out", tmp_path / "all")
    assert code == 0
    assert "8 cells of 3 parts" in out
    merged = Store(tmp_path / "all", write=False)
    assert fixed(merged) == fixed(Store(whole, write=False))
    assert list(merged.records) == [c.key for c in plan(SWEEP)]  # the order of one process
    assert run(SWEEP, tmp_path / "all").reused == 8
    # Merged again, with the whole beside it: each cell once.
    assert merge_stores([tmp_path, whole], tmp_path / "all").count == 8
    # A cell that says something else somewhere is not passed over.
    lines = (tmp_path / "shard-1-of-3" / "cells.jsonl").read_text().splitlines(keepends=True)
    changed = json.loads(lines[0])
    changed["nfe"]["forwards"] += 1
    (tmp_path / "shard-1-of-3" / "cells.jsonl").write_text("".join([json.dumps(changed) + "\n", *lines[1:]]))
    with pytest.raises(SamplersError, match=f"{changed['key']}.*differ in nfe.*all/cells.jsonl.*shard-1-of-3"):
        merge_stores([tmp_path], tmp_path / "all")
    # A shard that was stopped: what is not there is said, and the merged folder goes on.
    (tmp_path / "shard-1-of-3" / "cells.jsonl").write_text("".join(lines[1:]))
    part = merge_stores([tmp_path], tmp_path / "some")
    assert "1 of the 8 cells" in part.notes[0]
    outcome = run(SWEEP, tmp_path / "some")
    assert (outcome.planned, outcome.reused) == (8, 7)
    assert cli("bench", "--problem", "sudoku4", "--shard", "0/2")[0] == 2  # no --out: the shards would not meet
    assert cli("bench", "--problem", "sudoku4", "--workers", "2")[0] == 2


def test_lines_of_shards_merge_in_the_order_of_the_prompts(tmp_path, cli):
    def write(shard, records):
        text = "".join(json.dumps(r) + "\n" for r in records)
        shard_path(tmp_path / "out.jsonl", shard).write_text(text)

    line = [{"index": i, "text": f"word {i}", "seconds": i / 7} for i in range(5)]
    write((0, 2), [line[4], line[0], line[2]])
    with pytest.raises(OptionError, match=r"shard 1/2 is missing"):
        merge_lines([tmp_path / "out.jsonl"], tmp_path / "all.jsonl")
    write((1, 2), [line[1] | {"seconds": 9.0}, line[3], line[2] | {"seconds": 9.0}])
    assert cli("merge", tmp_path / "out.jsonl", "--out", tmp_path / "all.jsonl")[0] == 0
    assert [json.loads(s) for s in (tmp_path / "all.jsonl").read_text().splitlines()][2:] == line[2:]
    write((1, 2), [line[1], line[3] | {"text": "another"}, line[3] | {"index": 0}])
    with pytest.raises(SamplersError, match=r"index 0 has two results that differ in text: in .*0-of-2.*1-of-2"):
        merge_lines([tmp_path / "out.jsonl"], tmp_path / "all.jsonl")
    write((1, 2), [line[3]])
    assert merge_lines([tmp_path / "out.jsonl"], tmp_path / "all.jsonl").notes == ["no part has the lines of index 1"]
    # Characters that end a line for str.splitlines() and not for JSON.
    text = json.dumps({"index": 0, "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n"
    (tmp_path / "odd.jsonl").write_text(text, encoding="utf-8")
    assert merge_lines([tmp_path / "odd.jsonl"], tmp_path / "all.jsonl").count == 1
    assert (tmp_path / "all.jsonl").read_text(encoding="utf-8") == text


# ---------------------------------------------------------------------------------------------- Ray


class Mortal:
    """Runs cells as `samplers bench` does, in a process that kills itself, as the system does if memory is short.

    Args:
        mark: a file that says who has died; beside it one of all calls.
        lives: the first worker that has done so many tasks dies in the next one; no other does.
        deadly: every worker dies in the cell of this key.
    """

    def __init__(self, mark, lives=10**9, deadly=None):
        from samplers.bench.sweep import CellWork

        self.mark, self.lives, self.deadly, self.work = str(mark), lives, deadly, CellWork()

    def __call__(self, cell):
        self.lives -= 1
        if cell.key == self.deadly or (self.lives < 0 and not os.path.exists(self.mark)):
            with open(self.mark, "w") as file:
                file.write(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.mark + ".calls", "a") as file:
            file.write(f"{os.getpid()} {cell.key} {id(self.work)}\n")
        return self.work(cell)


@pytest.fixture(scope="module")
def ray_map():
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with RayMap("local", workers=2, num_cpus=2) as made:
        yield made


def test_a_worker_that_is_killed_costs_nothing(ray_map, whole, tmp_path):
    """A sweep on Ray, one of whose two workers is killed: the records are those of one process, each once."""
    from samplers.bench import sweep
    from samplers.bench.store import session

    mark, before = tmp_path / "killed", ray_map.lost
    with session(tmp_path / "run", {"command": ""}) as store:
        sweep.execute(plan(SWEEP), store, Mortal(mark, lives=2), map=ray_map)
    killed = int(mark.read_text())
    calls = [line.split() for line in (tmp_path / "killed.calls").read_text().splitlines()]
    assert ray_map.lost == before + 1
    lines = (tmp_path / "run" / "cells.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == 8  # nothing lost, nothing twice
    assert fixed(Store(tmp_path / "run", write=False)) == fixed(Store(whole, write=False))
    assert [pid for pid, *_ in calls].count(str(killed)) == 2  # two done before it died
    workers = {pid for pid, *_ in calls}
    assert len(workers) in (
        2,
        3,
    )  # two, and the one that took over; one that is slow to begin may find nothing left to do
    assert len({(pid, work) for pid, _, work in calls}) == len(workers)  # each kept its own problems and denoisers
    assert str(os.getpid()) not in workers


def test_a_task_that_kills_its_workers_is_given_up_and_the_sweep_goes_on_later(ray_map, whole, tmp_path, monkeypatch):
    from samplers.bench import sweep
    from samplers.bench.store import session

    cells = plan(SWEEP)
    monkeypatch.setattr(ray_map, "tries", 2)
    monkeypatch.setattr(ray_map, "workers", 1)  # no more processes than are needed: each takes its time to begin
    with (
        session(tmp_path, {"command": ""}) as store,
        pytest.raises(SamplersError, match=r"random_order.* died 2 times"),
    ):
        sweep.execute(cells, store, Mortal(tmp_path / "k", deadly=cells[2].key), map=ray_map)
    kept = len(Store(tmp_path, write=False).records)
    assert 2 <= kept < 8
    outcome = run(SWEEP, tmp_path)
    assert (outcome.planned, outcome.reused) == (8, kept)
    assert fixed(Store(tmp_path, write=False)) == fixed(Store(whole, write=False))


def fails(task):
    raise OptionError(f"task {task} is wrong")


def test_what_the_work_raises_arrives_as_it_is(ray_map):
    with pytest.raises(OptionError, match=r"^task 7 is wrong$"):
        list(execute([7], fails, map=ray_map))


def test_an_address_that_does_not_answer_is_one_sentence(cli, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **kw: pytest.fail("it waits for 40 seconds"))
    said = b"HTTP/1.0 400 Bad request"
    begun = time.monotonic()
    with socket.socket() as listening:  # something that is not Ray
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: listening.accept()[0].sendall(said))
            with pytest.raises(OptionError, match="what answers there is not Ray"):
                RayMap(f"127.0.0.1:{port}").__enter__()
    command = ["bench", "--problem", "sudoku4", "--samplers", "radd", "--out", "/nowhere", "--ray"]
    code, _, err = cli(*command, f"127.0.0.1:{port}")
    assert code == 2
    assert err.count("\n") == 1
    assert f"127.0.0.1:{port}: nothing answers there" in err
    assert f"ray start --head --port={port}" in err
    assert time.monotonic() - begun < 10
    for wrong in ("somewhere", "host:", ":6379", "ray://x"):
        assert "HOST:PORT" in cli(*command, wrong)[2]


def test_without_ray_it_says_what_to_install(monkeypatch, cli):
    find = samplers.parallel.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "ray" else find(name, *a))
    code, _, err = cli("bench", "--problem", "sudoku4", "--ray", "auto", "--out", "/nowhere")
    assert code == 2
    assert 'pip install "sampler-zoo[ray]"' in err


def test_generate_and_eval_on_ray_give_the_records_of_one_process(ray_map, tmp_path, monkeypatch):
    """Batches of prompts, and cells of tasks: the model is loaded by each worker, and the records are the same."""
    from samplers.generate import generate

    prompts = ["The module is", "Return the", "If a", "A list of", "The file"]
    settings = {"gen_length": 8, "steps": 4, "temperature": 0.8, "seed": 3, "batch": 2}
    alone = list(generate("text-mdm", prompts, "low_confidence", **settings))
    spread = generate("text-mdm", prompts, "low_confidence", map=ray_map, **settings)
    assert sorted(spread, key=lambda r: r["index"]) == alone
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(ray_map, "workers", 1)
    from samplers.evaluation import EvalRequest
    from samplers.evaluation import run as evaluate

    request = EvalRequest("text-mdm", ("zoo_finish",), samplers=("low_confidence",), nfe=(2, 4), limit=2)
    evaluate(request, tmp_path / "alone")
    outcome = evaluate(request, tmp_path / "ray", map=ray_map)
    assert not outcome.failed
    assert fixed(Store(tmp_path / "ray", write=False)) == fixed(Store(tmp_path / "alone", write=False))
    for file in (tmp_path / "alone" / "answers").iterdir():
        assert (tmp_path / "ray" / "answers" / file.name).read_bytes() == file.read_bytes()
