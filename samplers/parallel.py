"""Work shared out: over the processes of a launcher (shards), over any map-like function, over the machines of a Ray cluster.

A task is a cell of a sweep, or a shard of rows. What it gives depends on the task alone and never on who runs it or after what,
since every draw is a function of (seed, row, position, step). So a result is the same wherever it is made, and whatever was
not finished may run again.

    for number, record in execute(cells, work):                       # one after the other
    for number, record in execute(cells, work, map=pool.imap):        # the processes of a multiprocessing pool
    with RayMap("auto") as ray_map:
        for number, record in execute(cells, work, map=ray_map):      # the machines of a cluster
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import os
import re
import socket
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from .errors import OptionError, SamplersError
from .guard import one_line

__all__ = ["MapLike", "RayMap", "Shard", "execute", "parse_shard", "shard_path", "sharded"]

MapLike: TypeAlias = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Shard: TypeAlias = tuple[int, int]  # (i, n): part i of n, counted from 0

# The environment in which launchers say who a process is: torchrun and accelerate, then srun, then mpirun.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)")


class _Numbered:
    """`work` on (number, task), giving (number, result): a map may give results in any order."""

    def __init__(self, work: Callable[[Any], Any]):
        self.work = work

    def __call__(self, numbered: tuple[int, Any]) -> tuple[int, Any]:
        number, task = numbered
        return number, self.work(task)


def execute(
    tasks: Iterable[Any], work: Callable[[Any], Any], *, map: MapLike | None = None
) -> Iterator[tuple[int, Any]]:
    """Do some work for each task; yield (the task's number from 0, its result) as results come, each task exactly once.

    Args:
        tasks: what there is to do. It is read as the map asks for more.
        work: a callable of a task. For maps over processes it and the tasks must be picklable; what it loads it should load
            when it is first called, and keep, so that each process loads it once.
        map: a function like the built-in map, called as map(work, tasks): `Pool.imap_unordered`, the `map` of a
            concurrent.futures executor, a RayMap. It may give results in any order. None: the built-in one, which takes the
            next task after the last one's result was taken.

    Raises:
        SamplersError: the map gave a result twice, or left a task out; it names the tasks' numbers. And what `work` raises.
    """
    taken = 0

    def numbered() -> Iterator[tuple[int, Any]]:
        nonlocal taken
        for number, task in enumerate(tasks):
            taken = number + 1
            yield number, task

    done: set[int] = set()
    for number, result in (builtins.map if map is None else map)(_Numbered(work), numbered()):
        if number in done:
            raise SamplersError(f"the map gave the result of task {number} twice; each must come once")
        done.add(number)
        yield number, result
    if missing := sorted(set(range(taken)) - done):
        shown = ", ".join(builtins.map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
        raise SamplersError(f"the map gave no result for {len(missing)} of {taken} tasks: {shown}")


# ---------------------------------------------------------------------------------------------- shards


def parse_shard(text: str) -> Shard:
    """(i, n) of 'i/n', counted from 0; or of 'auto', what torchrun, srun or mpirun says in the environment.

    Raises:
        OptionError: another text, i not below n, or 'auto' without a launcher.
    """
    if text == "auto":
        for rank, size in LAUNCHERS:
            if rank in os.environ and size in os.environ:
                return _checked(f"{os.environ[rank]}/{os.environ[size]}", f"{rank} and {size} in the environment say ")
        names = ", ".join(f"{rank} and {size}" for rank, size in LAUNCHERS)
        raise OptionError(
            f"--shard auto: none of {names} are set; start the command with torchrun or srun, or write --shard 0/4"
        )
    return _checked(text, "--shard ")


def _checked(text: str, said: str) -> Shard:
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    shard = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 <= shard[0] < shard[1]:
        raise OptionError(f"{said}{text!r}: write i/n with i from 0 to n - 1, such as 0/4, 1/4, 2/4 and 3/4")
    return shard


def shard_path(path: str | Path, shard: Shard) -> Path:
    """Where a shard's results go: 'out.jsonl' is 'out.shard-0-of-4.jsonl', and the folder 'runs/a' 'runs/a/shard-0-of-4'."""
    path, name = Path(path), f"shard-{shard[0]}-of-{shard[1]}"
    return path.with_name(f"{path.stem}.{name}{path.suffix}") if path.suffix == ".jsonl" else path / name


def sharded(path: str | Path) -> Shard | None:
    """The shard that a file or folder of `shard_path` is, told by its name; None: it is no shard."""
    found = _SHARD.search(Path(path).name)
    return (int(found[1]), int(found[2])) if found else None


# ---------------------------------------------------------------------------------------------- Ray


class _Worker:
    """A process of the cluster. It keeps `work`, and so what `work` has loaded, for all tasks that it is given."""

    def __init__(self, work: Callable[[Any], Any], folder: str):
        with contextlib.suppress(OSError):  # another machine may not have it; then names relative to it are not found
            os.chdir(folder)
        self.work = work

    def run(self, task: Any) -> Any:
        return self.work(task)


class RayMap:
    """A map over the workers of a Ray cluster, for `execute(map=)`; a context manager.

    A worker is a process that is given one task after the other, so a model is loaded once per worker. A worker that is killed,
    or whose machine is lost, is replaced, and its task is run again; results that have come are never asked for again.

    Args:
        address: "auto": the cluster that this machine belongs to (RAY_ADDRESS, or `ray start`); if there is none, as "local".
            "local": Ray is started here, until the context ends. HOST:PORT or ray://HOST:PORT: that cluster; its machines need
            this package, in the same version.
        workers: how many processes. None: one per GPU of the cluster, or per CPU core if it has no GPU. GPUs are shared
            out evenly among them.
        tries: how often a task may lose its worker before it is given up.
        start: arguments of ray.init, if Ray is started here: num_cpus, num_gpus and others.

    Raises:
        OptionError: Ray is not installed, or nothing answers at the address; within about 10 seconds.
        SamplersError: (of the map) a task lost its worker `tries` times.
    """

    def __init__(self, address: str = "auto", *, workers: int | None = None, tries: int = 3, **start: Any):
        if importlib.util.find_spec("ray") is None:
            raise OptionError('--ray needs the package ray: pip install "sampler-zoo[ray]"')
        self.address, self.workers, self.tries, self.start = address, workers, tries, start
        self.lost = 0  # workers that died
        self._ours = False

    def __enter__(self) -> RayMap:
        import ray

        if not ray.is_initialized():
            self._join()
            self._ours = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            import ray

            ray.shutdown()

    def _join(self) -> None:
        import ray

        given = os.environ.get("RAY_ADDRESS", "auto") if self.address == "auto" else self.address
        asked: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if "PYTHONPATH" in os.environ:
            asked["runtime_env"] = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
        if given not in ("auto", "local"):
            _answers(given)
        if given != "local":
            try:
                ray.init(address=given, **asked)
                return
            except ConnectionError as error:
                if given != "auto":
                    raise OptionError(
                        f"--ray {given} answers, but cannot be joined ({one_line(error)}). If that cluster asks for a token, as "
                        "Ray 2.60 does unless told otherwise, set RAY_AUTH_MODE=token"
                    ) from error
        ray.init(address="local", **asked, **{"include_dashboard": False} | self.start)

    def _shares(self) -> tuple[int, dict[str, float]]:
        """How many workers, and what each asks the cluster for."""
        import ray

        has = ray.cluster_resources()
        gpus, cores = int(has.get("GPU", 0)), max(1, int(has.get("CPU", 1)))
        workers = self.workers or gpus or cores
        per = gpus / workers
        # Ray takes whole GPUs, or a share of one, to four decimals.
        return workers, {
            "num_cpus": min(1.0, cores / workers),
            "num_gpus": int(per) if per >= 1 else int(per * 1e4) / 1e4,
        }

    def __call__(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError

        workers, share = self._shares()
        kept, actor = ray.put(work), ray.remote(_Worker).options(**share)
        busy: dict[Any, tuple[Any, Any, int]] = {}  # what will be the result: (worker, task, workers that it has lost)
        idle: list[Any] = []
        again: deque[tuple[Any, int]] = deque()
        rest = iter(tasks)

        def next_task() -> tuple[Any, int] | None:
            if again:
                return again.popleft()
            for task in rest:
                return task, 0
            return None

        try:
            while True:
                while len(busy) < workers and (found := next_task()) is not None:
                    task, lost = found
                    worker: Any = idle.pop() if idle else actor.remote(kept, os.getcwd())
                    busy[worker.run.remote(task)] = worker, task, lost
                if not busy:
                    return
                for ref in ray.wait(list(busy), num_returns=1)[0]:
                    worker, task, lost = busy.pop(ref)
                    try:
                        result = ray.get(ref)
                    except RayTaskError as error:  # what `work` raised, with the worker's own traceback as its text
                        raise error.cause from error
                    except (RayActorError, NodeDiedError, OutOfMemoryError) as error:
                        if getattr(error, "actor_init_failed", False):  # such as a module that the other machine lacks
                            raise SamplersError(
                                f"a worker cannot begin: {str(error).strip().splitlines()[-1]}"
                            ) from error
                        self.lost += 1
                        if lost + 1 >= self.tries:
                            # `execute` numbers its tasks.
                            what = task[1] if isinstance(task, tuple) and len(task) == 2 else task
                            raise SamplersError(
                                f"the worker of {textwrap.shorten(str(what), 200)} died {self.tries} times "
                                f"({str(error).splitlines()[0]}). What is finished is kept; if memory was short, use fewer "
                                "workers (--workers) or smaller batches"
                            ) from error
                        again.append((task, lost + 1))
                        continue
                    idle.append(worker)
                    yield result
        finally:
            for worker in [*idle, *(w for w, _, _ in busy.values())]:
                ray.kill(worker)


def _answers(address: str) -> None:
    """OptionError if nothing that may be Ray answers at an address.

    ray.init itself waits for 20 to 40 seconds, and then may end the process. Ray speaks gRPC, which is HTTP/2: both sides
    begin with a frame of settings (RFC 9113, section 3.4).
    """
    host, sign, port = address.removeprefix("ray://").rpartition(":")
    if not sign or not host or not port.isdigit():
        raise OptionError(f"--ray {address!r}: write auto, local, or the address as HOST:PORT, such as 10.0.0.1:6379")
    remedy = (
        f"start it there with `ray start --head --port={port}`, or write --ray auto for the cluster of this machine, or "
        "--ray local to start one here"
    )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=4) as opened:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):  # else this is said after the keys are exchanged
                opened.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
                said = opened.recv(4)
                if len(said) < 4 or said[3] != 4:  # the type of a frame: settings
                    raise OptionError(f"--ray {address}: what answers there is not Ray; {remedy}")
    except TimeoutError as error:
        raise OptionError(f"--ray {address}: nothing answers there within 4 seconds; {remedy}") from error
    except (OSError, OverflowError) as error:
        raise OptionError(f"--ray {address}: nothing answers there ({error}); {remedy}") from error
