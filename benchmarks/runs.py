"""The runs behind the tables: their commands, their results, and whether a script has changed."""

import ast
import hashlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # chapters and data.py are imported from there
RESULTS = ROOT / "benchmarks" / "results"

BINARY = ["made", "pixelcnn", "gated_pixelcnn", "transformer_ar", "vae", "vqvae"]
GREY = ["gan", "realnvp", "ddpm", "ebm"]
IMAGES = BINARY + GREY
SEQUENCES = ["char_rnn", "wavenet"]
UNCONDITIONAL = ["made", "pixelcnn", "gated_pixelcnn", "transformer_ar", "vae", "realnvp", "ddpm"]
SEEDED = ["made", "vae", "gan", "ddpm", "ebm"]

FLAGS = {}  # of every run, by its name
for name in IMAGES + SEQUENCES:
    FLAGS[name] = ""
for name in UNCONDITIONAL:
    FLAGS[f"{name}-unconditional"] = " --classes 1"
for name in SEEDED:
    FLAGS[f"{name}-1"] = " --seed 1"
    FLAGS[f"{name}-2"] = " --seed 2"


def command(run):
    """What python is given to make a run: on the CPU, of real data."""
    return f"{chapter(run)}.py --device cpu --stand-in never --out out/{run}{FLAGS[run]}"


def chapter(run):
    """The chapter of a run, such as vae of vae-1, or of a row, such as ddpm of `ddpm, guided`."""
    return re.split("[-,]", run)[0]


def read(name):
    """What stands in benchmarks/results/NAME.json; nothing if there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(name, results):
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def here(run):
    """Whether out/NAME holds the very model that the results are of.

    The training losses tell: they are the same to the last digit only if the weights are."""
    path = ROOT / "out" / run / "metrics.json"
    if not read(run) or not path.exists():
        return False
    metrics = json.loads(path.read_text(encoding="utf-8"))
    return training_losses(metrics) == training_losses(read(run))


def training_losses(results):
    return [point["training"] for point in results["curve"]]


# A model is trained again where its script has changed since. A script is known by a hash of its
# syntax tree without docstrings. So a new comment, a new figure in an opening or another layout
# makes no run stale.


def fingerprint(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    # Versions of Python differ in whether they write what is empty.
    tree = re.sub(r"\w+=\[\]|ctx=Load\(\)|, ", "", ast.dump(tree))
    return hashlib.sha256(tree.encode()).hexdigest()[:12]


def sources(run):
    """The fingerprint of the script that a run is made by."""
    file = f"{chapter(run)}.py"
    return {file: fingerprint((ROOT / file).read_text(encoding="utf-8"))}


def changed(run):
    """The files that have changed since a run was trained."""
    trained = read(run)["run"]["source"]
    return [file for file, now in sources(run).items() if trained.get(file) != now]


def origin():
    """The commit of the code, and the processor that it runs on."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        found = ""
    return {"commit": found or None, "processor": processor()}


def processor():
    """The name of the processor, and how well it computes in bfloat16."""
    path = Path("/proc/cpuinfo")
    facts = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    kinds = [kind for kind in ("amx_bf16", "avx512_bf16", "avx2") if kind in flags]
    return f"{facts['model name']} ({', '.join(kinds)})" if kinds else facts["model name"]
