"""python bench/trim.py IN.json OUT.json: a pytest-benchmark result without its per-round data, small enough to keep."""

import json
import sys

# What is worth keeping of the machine: enough to read the numbers by, nothing that names it.
CPU = ("arch", "count", "brand_raw", "hz_advertised_friendly", "l2_cache_size", "l3_cache_size")


def trim(result):
    machine = result["machine_info"]
    kept = {k: machine[k] for k in ("machine", "system", "python_version", "python_compiler") if k in machine}
    kept["cpu"] = {k: v for k, v in machine.get("cpu", {}).items() if k in CPU}
    for one in result["benchmarks"]:
        one["stats"].pop("data", None)
    return {"machine_info": kept, "datetime": result["datetime"], "benchmarks": result["benchmarks"]}


if __name__ == "__main__":
    source, target = sys.argv[1:]
    with open(source) as f:
        result = json.load(f)
    with open(target, "w") as f:
        json.dump(trim(result), f, indent=1)
        f.write("\n")
