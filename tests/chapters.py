"""What the tests of chapters share: drawn digits, tiny runs, copies of a chapter with an edit."""

import functools
import gzip
import importlib
import importlib.util
import io
import itertools
import shlex
import struct
import tarfile
import tempfile
import wave
from pathlib import Path
from unittest import mock

import torch

import data

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ["made", "pixelcnn", "gated_pixelcnn", "transformer_ar", "vae", "vqvae"]
IMAGES += ["gan", "realnvp", "ddpm", "ebm"]
CHAPTERS = ["char_rnn", "wavenet", *IMAGES]
TINY = {
    "made": "--steps 4 --batch-size 8 --hidden 16 --save-every 2",
    "vae": "--steps 4 --batch-size 8 --hidden 16 --latent 2 --save-every 2",
    "gan": "--steps 4 --batch-size 8 --channels 4 --latent 4 --save-every 2",
    "ddpm": "--steps 4 --batch-size 8 --channels 8 --timesteps 12 --save-every 2",
    "char_rnn": "--steps 4 --batch-size 4 --length 8 --hidden 8 --save-every 2",
    "wavenet": "--steps 4 --batch-size 2 --channels 4 --layers 3 --duration 0.02 --save-every 2",
    "pixelcnn": "--steps 4 --batch-size 8 --channels 4 --layers 1 --save-every 2",
    "gated_pixelcnn": "--steps 4 --batch-size 8 --channels 4 --layers 1 --save-every 2",
    "transformer_ar": "--steps 4 --batch-size 8 --width 8 --layers 1 --save-every 2",
    "vqvae": "--steps 4 --batch-size 8 --channels 4 --entries 8 --width 8 --save-every 2",
    "realnvp": "--steps 4 --batch-size 8 --channels 4 --couplings 2 --blocks 1 --save-every 2",
    "ebm": "--steps 4 --batch-size 8 --channels 4 --langevin-steps 2 --sample-steps 4 "
    "--save-every 2",
}
# Variations that train, and their tiny flags; each is a module of the folder variations.
VARIATIONS = {
    "variations.maf": "--steps 4 --batch-size 8 --hidden 16 --chains 2 --save-every 2",
    "variations.score_matching": "--steps 4 --batch-size 8 --save-every 2",
    "variations.semi_supervised": "--steps 4 --batch-size 8 --hidden 16 --latent 2 --save-every 2",
    "variations.r3gan": "--steps 4 --batch-size 8 --channels 4 --latent 4 --game-steps 3 "
    "--save-every 2",
    "variations.flow_matching": "--steps 4 --batch-size 8 --channels 4 --save-every 2",
    "variations.few_steps": "--steps 4 --pairs 16 --batch-size 8 --save-every 2 "
    "--teacher='--steps 2 --batch-size 8 --channels 4 --stand-in never --device cpu'",
    "variations.transformer_text": "--steps 4 --batch-size 4 --length 16 --width 8 --layers 1 "
    "--save-every 2",
    "variations.moons": "--steps 4 --batch-size 8 --couplings 2 --save-every 2",
    "variations.fsq": "--steps 4 --batch-size 8 --channels 4 --width 8 --save-every 2",
    "variations.masked_diffusion": "--steps 4 --batch-size 8 --width 8 --save-every 2",
    "variations.latent_diffusion": "--steps 4 --first-steps 2 --batch-size 8 --channels 4 "
    "--save-every 2",
    "variations.wavenet_pixels": "--steps 4 --batch-size 8 --channels 4 --dilations 1 2 28 "
    "--save-every 2",
    "variations.rnn_pixels": "--steps 4 --batch-size 8 --hidden 8 --save-every 2",
    "variations.discrete_latents": "--steps 4 --batch-size 8 --hidden 8 --latent 4 --save-every 2",
    "variations.hierarchical_vae": "--steps 4 --batch-size 8 --hidden 8 --lower 4 --upper 2 "
    "--save-every 2",
    "variations.pixelcnn_pp": "--steps 4 --batch-size 8 --channels 4 --layers 1 --save-every 2",
    "variations.representations": "--steps 4 --batch-size 8 --latent 2 --draws 1 --save-every 2 "
    "--vqvae none --ddpm none --ebm none",
    "variations.synthetic_data": "--steps 4 --batch-size 8 --models --digits 20 --samples 20 "
    "--repeats 2 --vae-steps 2 --save-every 2",
}
TINY |= VARIATIONS


def data_folder(path, train=240, test=60, labels=None):
    """Write drawn digits in MNIST's format, a text and some tones, under the names of real data.

    `labels`, numbers used in turn, replaces the digits' own."""
    path.mkdir(parents=True, exist_ok=True)
    (path / data.TEXT).write_text("To be, or not to be, that is the question:\n" * 100)
    with tarfile.open(path / data.AUDIO, "w:gz") as tar:
        for take, digit, speaker in itertools.product((0, 5, 6), range(10), ("anna", "bob")):
            add_wav(tar, f"{digit}_{speaker}_{take}.wav", digit)
    for part, n, seed in (("train", train, 0), ("t10k", test, 1)):
        x, y = data.stand_in_digits(n, seed)
        if labels is not None:
            y = torch.tensor(labels)[torch.arange(n) % len(labels)]
        write_idx(path / f"{part}-images-idx3-ubyte.gz", x[:, 0])
        write_idx(path / f"{part}-labels-idx1-ubyte.gz", y)
    return path


def add_wav(tar, name, digit):
    """A fading tone of 60 milliseconds, the higher the digit."""
    t = torch.arange(480) / 8000
    tone = torch.sin(2 * torch.pi * (200 + 50 * digit) * t) * torch.exp(-20 * t)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((32767 * tone).short().numpy().tobytes())
    entry = tarfile.TarInfo(name)
    entry.size = content.tell()
    content.seek(0)
    tar.addfile(entry, content)


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
    with mock.patch.object(module, "mnist", mnist, create=True):
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
        mock.patch.object(module, "mnist", mnist, create=True),
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


def checkpoint(out):
    """What a run saved last."""
    return torch.load(out / "model.pt", weights_only=True)


def equal(a, b):
    """Whether two saved states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def lines(text):
    """How many lines of a text are not blank."""
    return sum(bool(line.strip()) for line in text.split("\n"))


def stop_at(module, step, monkeypatch):
    """From now on the chapter's runs are interrupted after a step."""
    log = module.Run.log

    def interrupted(self, loss):
        log(self, loss)
        if self.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Run, "log", interrupted)


def touch(self, name, *figures):
    """In the place of Run.picture: a file without contents."""
    (self.args.out / name).touch()
