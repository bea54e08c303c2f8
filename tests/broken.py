"""What the tests of the "things to break" share: a copy of a chapter with an edit in it, run for a few seconds."""
import functools
import importlib.util
import json
import re
import shlex
import tempfile
from pathlib import Path
from unittest import mock

import torch

import data

ROOT = Path(__file__).resolve().parent.parent


def thing(name, n):
    """The n-th thing to break of a chapter, in one line, from its notes."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    text = text.split("# Things to break:")[1].split("\n#\n")[0].replace("\n#", "\n")
    return " ".join(re.split(r"\n \d\. ", text)[n].split())


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
def trained(name, *edits, flags="", seed=0, evaluate=False):
    """(module, model, results, run) of a short run of that copy on stand-in data, 200 test digits, no pictures.

    `model` is what `load` gives, `results` those of metrics.json (only if asked to `evaluate`: a test measures for
    itself), `run` all that was saved (`curve`, a list of dicts; `state`, the weights of every part). Cached: the whole
    chapter, with which each broken one is compared, is trained once.
    """
    module, out = chapter(name, *edits), Path(tempfile.mkdtemp())
    module.Run.picture = lambda *_: None
    module.evaluate = module.evaluate if evaluate else lambda run, *_: run.report({})
    if hasattr(module, "mnist"):
        module.mnist = lambda *_: digits()
    module.main([*shlex.split(flags), "--device", "cpu", "--out", str(out), "--seed", str(seed),
                 "--stand-in", "always"])
    results = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["results"]
    return module, module.load(out / "model.pt"), results, torch.load(out / "model.pt", weights_only=True)


def class_accuracy(images, asked):
    """The share of images whose nearest neighbour, among 5,000 drawn digits, has the class asked for."""
    x, y, *_ = digits()
    nearest = torch.cdist(images.flatten(1), x[:5000].flatten(1) / 255).argmin(1)
    return (y[nearest] == asked).float().mean().item()


@functools.cache
def digits():
    """What data.mnist gives, drawn once, with 200 test digits."""
    x, y, x_test, y_test, source = data.mnist("always")
    return x, y, x_test[:200], y_test[:200], source


def continued(model, y, given, draw="rand"):
    """Samples that begin with the symbols `given` (n, g): the first g draws of the sampler are bent to give them."""
    columns, usual = iter(given.T), getattr(torch, draw)

    def bent(*args, **more):
        column = next(columns, None)
        if column is None:
            return usual(*args, **more)
        return 1 - column if draw == "rand" else column[:, None]  # rand < p: 0 makes it a 1, 1 makes it a 0
    with mock.patch.object(torch, draw, bent):
        return model.sample(len(given), y)
