"""Competitors measured round by round: what the machine does meanwhile hits them all alike.

pytest-benchmark runs a test to its end before the next begins, and a neighbour that wakes up in between makes a ratio of
nothing. Here one test is one group: its competitors take turns, and each is recorded under its own name.
"""

import os
import time

# A round during which others used more than this share of a core is run again, but in all no more rounds than were asked
# for: on a machine that is always busy there is no better. /proc counts in hundredths of a second, so a round is a tenth.
FOREIGN = 0.25
ROUND = 0.1


def others():
    """CPU seconds so far of everything but this process and its children; None where /proc does not say."""
    try:
        with open("/proc/stat") as f:
            fields = [int(x) for x in f.readline().split()[1:]]
    except (OSError, ValueError):
        return None
    busy = sum(fields[i] for i in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")  # user, nice, system, irqs, steal
    t = os.times()
    return busy - (t.user + t.system + t.children_user + t.children_system)


def measure(call, iterations):
    """Seconds a call, and whether the machine was ours meanwhile."""
    before, start = others(), time.perf_counter()
    for _ in range(iterations):
        call()
    seconds = time.perf_counter() - start
    after = others()
    foreign = 0.0 if before is None or after is None else (after - before) / max(seconds, 0.02)
    return seconds / iterations, foreign <= FOREIGN


def race(benchmark, group, calls, rounds=9, slow=3, **info):
    """Times `calls`, {name: function of nothing}, in turns, and records each in `benchmark` as its own row of `group`.

    The first is the floor of the group, those named "ours..." are ours. A call that takes longer than a second has `slow`
    rounds; short ones are repeated to fill a round. extra_info has `info`, and how many rounds were disturbed by others and
    kept all the same.
    """
    if benchmark.disabled:  # pytest without --benchmark-enable: does it run at all
        for call in calls.values():
            call()
        return
    iterations, left = {}, {}
    for name, call in calls.items():
        call()  # compiles what has to be compiled, touches what has to be touched
        seconds, _ = measure(call, 1)
        iterations[name] = max(1, min(1000, int(ROUND / seconds)))
        left[name] = slow if seconds > 1 else rounds
    again = {name: 0 if n == slow else rounds for name, n in left.items()}
    taken = {name: [] for name in calls}
    disturbed = dict.fromkeys(calls, 0)
    while any(left.values()):
        for name, call in calls.items():
            if not left[name]:
                continue
            seconds, quiet = measure(call, iterations[name])
            if not quiet and again[name]:
                again[name] -= 1  # its turn comes again
                continue
            left[name] -= 1
            disturbed[name] += not quiet
            taken[name].append(seconds)
    benchmark.group = group
    whole_name, whole_fullname = benchmark.name, benchmark.fullname
    floor = next(iter(calls))
    for name in calls:
        benchmark.name, benchmark.fullname = name, f"{whole_fullname}::{name}"
        benchmark.extra_info = {**info, "floor": name == floor, "disturbed": disturbed[name]}
        row = benchmark._make_stats(iterations[name])
        for seconds in taken[name]:
            row.update(seconds * iterations[name])
    benchmark.name, benchmark.fullname = whole_name, whole_fullname
    benchmark._mode = "race"
