"""Trains every run that is missing, one after the other, and measures what was trained.

    python benchmarks/train.py              all that are missing, which takes hours
    python benchmarks/train.py vae vae-1    these, where they are missing

A run is missing if it has no file in benchmarks/results, or if its chapter has changed since,
comments and docstrings aside. Delete its file to train one again all the same. Each trains
in a process of its own, into out/NAME. Its results go to benchmarks/results/NAME.json, with the
commit, the processor, the seconds and the most memory of the process; its log to NAME.log beside
them. Then measure.py, importance.py, sampling.py and ear.py measure what is new, and tables.py,
which is a command of its own, can write the pages.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import runs


def missing(run):
    return not runs.read(run) or bool(runs.changed(run))


# The chapter runs in a process of its own, so the most memory is its own as well. This process
# imports no torch: Linux counts what a parent held as the child's memory.


def train(run):
    """Train a run to its end and keep its results: True, or False if it failed."""
    out = runs.ROOT / "out" / run
    out.mkdir(parents=True, exist_ok=True)
    command = shlex.split(runs.command(run))
    facts = {"command": f"python {runs.command(run)}", "source": runs.sources(run)}
    facts |= runs.origin()
    started = time.perf_counter()
    with open(out / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", *command], cwd=runs.ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        memory = wait(process)
    if process.returncode:
        print(f"{run}: `{facts['command']}` failed, see out/{run}/log.txt", flush=True)
        return False
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    facts["threads"] = threads(metrics["where"])
    facts["seconds"] = time.perf_counter() - started
    facts["peak memory, MB"] = memory
    runs.write(run, metrics | {"run": facts})
    shutil.copy(out / "log.txt", runs.RESULTS / f"{run}.log")
    return True


def wait(process):
    """Wait for a process to end: the most memory that it held, in MB; None where it is unknown."""
    if not hasattr(os, "wait4"):  # Windows
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return usage.ru_maxrss * unit / 1e6


def threads(where):
    """How many threads a chapter says it had, as in `cpu, 2 threads, bfloat16: True`."""
    return int(re.search(r"(\d+) threads", where)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs, such as vae or vae-1")
    names = parser.parse_args().names
    for name in names:
        if name not in runs.FLAGS:
            parser.error(f"there is no run {name}: there are {', '.join(runs.FLAGS)}")
    failed = False
    for run in names or runs.FLAGS:
        if not missing(run):
            continue
        print(f"{run}: python {runs.command(run)}", flush=True)
        failed |= not train(run)
    for script in ("measure.py", "importance.py", "sampling.py", "ear.py"):
        ended = subprocess.run([sys.executable, f"benchmarks/{script}"], cwd=runs.ROOT)
        failed |= ended.returncode != 0
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
