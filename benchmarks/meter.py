"""Runs a script and keeps its log, its seconds and the most memory that it held.

    python benchmarks/meter.py out/vae vae.py        log.txt and run.json in out/vae

A small process of its own: Linux counts what the parent held at the start as the child's memory.
"""
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None



def processor():
    """The name of the processor, and whether it computes in bfloat16."""
    if not Path("/proc/cpuinfo").exists():
        return platform.processor()
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    kinds = [kind for kind in ("amx_bf16", "avx512_bf16", "avx2") if kind in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())} ({', '.join(kinds)})"


out, *command = sys.argv[1:]
Path(out).mkdir(parents=True, exist_ok=True)
begun = time.perf_counter()
with open(Path(out) / "log.txt", "w") as log:
    status = subprocess.call([sys.executable, "-u", *command], stdout=log, stderr=log)
known = {"command": f"python {' '.join(command)}", "seconds": time.perf_counter() - begun, "processor": processor(),
         "peak memory, MB": None}
if resource:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    known["peak memory, MB"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6
if status:
    sys.exit(f"python {' '.join(command)} failed: see {out}/log.txt")
(Path(out) / "run.json").write_text(json.dumps(known, indent=1) + "\n")
