"""What the tests of chapters share: drawn digits, tiny runs, copies of a chapter with an edit."""

import functools
import gzip
import importlib
import importlib.util
import shlex
import struct
import tempfile
from pathlib import Path
from unittest import mock

import torch

import data

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ["made", "vae", "gan", "ddpm"]
TINY = {
    "made": "--steps 4 --batch-size 8 --hidden 16 --save-every 2",
    "vae": "--steps 4 --batch-size 8 --hidden 16 --latent 2 --save-every 2",
    "gan": "--steps 4 --batch-size 8 --channels 4 --latent 4 --save-every 2",
    "ddpm": "--steps 4 --batch-size 8 --channels 8 --timesteps 12 --save-every 2",
}


def data_folder(path, train=240, test=60, labels=None):
    """Write drawn digits in MNIST's format; `labels`, numbers used in turn, replaces their own."""
    path.mkdir(parents=True, exist_ok=True)
    for part, n, seed in (("train", train, 0), ("t10k", test, 1)):
        x, y = data.stand_in_digits(n, seed)
        if labels is not None:
            y = torch.tensor(labels)[torch.arange(n) % len(labels)]
        write_idx(path / f"{part}-images-idx3-ubyte.gz", x[:, 0])
        write_idx(path / f"{part}-labels-idx1-ubyte.gz", y)
    return path


def write_idx(path, values):
    """MNIST's format: 0, 0, 8, the number of dimensions; their sizes; the values, a byte each."""
    header = struct.pack(f">4B{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    path.write_bytes(gzip.compress(header + values.to(torch.uint8).numpy().tobytes(), 1))


@functools.cache
def digits(train=12_000, test=1_000):
    """Drawn digits, fewer than data.mnist draws, and once: images, labels, the same of the test."""
    return *data.stand_in_digits(train, 0), *data.stand_in_digits(test, 1)


def mnist(stand_in="auto", device="cpu", classes=None):
    """data.mnist, quick where made-up data are asked for."""
    if stand_in != "always":
        return data.mnist(stand_in, device, classes)
    x, y, x_test, y_test = digits()
    if classes == 1:
        y, y_test = torch.zeros_like(y), torch.zeros_like(y_test)
    return x, y, x_test, y_test, "stand-in digits"


def flags(name, out, more=""):
    """Flags of a tiny run on the files in $DATA_DIR; those in `more` win."""
    fixed = ["--device", "cpu", "--out", str(out), "--stand-in", "never"]
    return [*shlex.split(TINY[name]), *fixed, *shlex.split(more)]


def main(name, out, more=""):
    """Run a chapter's main with tiny flags in this process."""
    module = importlib.import_module(name)
    with mock.patch.object(module, "mnist", mnist):
        module.main(flags(name, out, more))


def edited(name, *edits):
    """A chapter as a module, from a copy in which each edit (old, new) is made."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}.py"
        text = text.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.py")
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"edited_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)  # `from data import` finds the one in ROOT: see conftest.py
    return module


def short_run(module, flags):
    """Train on drawn digits, without pictures and evaluation: the model that `load` gives, and
    the checkpoint."""
    with (
        tempfile.TemporaryDirectory() as out,
        mock.patch.object(module, "mnist", mnist),
        mock.patch.object(module, "evaluate", lambda *_: None),
        mock.patch.object(module.Run, "picture", lambda *_: None),
    ):
        fixed = ["--device", "cpu", "--no-bfloat16", "--stand-in", "always", "--out", out]
        module.main([*fixed, *shlex.split(flags)])
        path = Path(out, "model.pt")
        return module.load(path), torch.load(path, weights_only=True)


def check_samples(model):
    """A model draws images of the classes asked for, under inference mode, and none for none."""
    with torch.inference_mode():
        images = model.sample(torch.arange(3) % model.classes)
        nothing = model.sample(torch.tensor([], dtype=torch.long))
    assert images.shape == (3, 1, 28, 28)
    assert images.min() >= 0 and images.max() <= 1
    assert nothing.shape == (0, 1, 28, 28)


def class_accuracy(images, y):
    """The share of images (N, 1, 28, 28) whose nearest drawn digit has the class asked for."""
    x, labels, _, _ = digits()
    nearest = torch.cdist(images.flatten(1), x[:5000].flatten(1) / 255).argmin(1)
    return (labels[nearest] == y).float().mean().item()
