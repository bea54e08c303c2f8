"""What the tests of the "things to break" share: a copy of a chapter with an edit in it, run for a few seconds."""
import functools
import importlib.util
import json
import re
import shlex
import tempfile
from pathlib import Path

import torch

import data

ROOT = Path(__file__).resolve().parent.parent


def thing(name, n):
    """The n-th thing to break of a chapter's opening, in one line."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].split("Things to break")[1]
    return " ".join(re.split(r"\n  \d\. ", text)[n].split())


def chapter(name, *edits):
    """A chapter as a module, from a copy in which each edit (old, new) is made; `old` stands there exactly once."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}.py"
        text = text.replace(old, new)
    path = Path(tempfile.mkdtemp(), f"{name}.py")
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"broken_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def trained(name, *edits, flags="", seed=0):
    """(module, model, results, run) of a short run of that copy on stand-in data, 200 test digits, no pictures.

    `model` is what `load` gives, `results` those of metrics.json, `run` all that was saved (`curve` is a list of
    (step, training loss, validation loss), `state` the weights of every part). Cached: the whole chapter, which each
    broken one is compared with, is trained once.
    """
    module, out = chapter(name, *edits), Path(tempfile.mkdtemp())
    for draw in [v for v in vars(module) if v.startswith("draw_")]:
        setattr(module, draw, lambda *_: None)
    if hasattr(module, "mnist"):
        module.mnist = lambda *_: digits()
    module.main([*shlex.split(flags), "--device", "cpu", "--out", str(out), "--seed", str(seed),
                 "--stand-in", "always"])
    results = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["results"]
    return module, module.load(out / "model.pt"), results, torch.load(out / "model.pt", weights_only=True)


@functools.cache
def digits():
    """What data.mnist gives, drawn once, with 200 test digits."""
    x, y, x_test, y_test, source = data.mnist("always")
    return x, y, x_test[:200], y_test[:200], source
