"""What tests of whole runs share: tiny flags of the chapters in the old frame, data, a chapter started as a user would."""
import functools
import gzip
import io
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import wave
from pathlib import Path

import pytest
import torch

import data

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")
TINY = {
    "char_rnn": "--steps 3 --batch-size 8 --hidden 16 --length 16",
    "ebm": "--steps 3 --batch-size 8 --channels 4 --langevin-steps 2 --sample-steps 3 --buffer 64",
    "gated_pixelcnn": "--steps 3 --batch-size 8 --channels 4 --layers 1",
    "pixelcnn": "--steps 3 --batch-size 8 --channels 4 --layers 1",
    "realnvp": "--steps 3 --batch-size 8 --channels 4 --couplings 2",
    "transformer_ar": "--steps 3 --batch-size 8 --width 16 --layers 1 --heads 2",
    "vqvae": "--steps 3 --batch-size 8 --hidden 16 --codes 4 --entries 8 --code-dim 4",
    "wavenet": "--steps 3 --batch-size 8 --channels 8 --layers 3 --duration 0.02",
}
CHAPTERS = sorted(TINY)
IMAGES = [name for name in CHAPTERS if name not in ("char_rnn", "wavenet")]


def flags(name, out, more=""):
    return [*shlex.split(TINY[name]), "--device", "cpu", "--out", str(out), *shlex.split(more)]


def write_mnist(folder, train, test, seed=0):
    """Drawn digits in MNIST's format."""
    for part, n, k in (("train", train, seed), ("t10k", test, seed + 1)):
        x, y = data.stand_in_digits(n, k)
        header = b"".join(size.to_bytes(4, "big") for size in (2051, n, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + x.numpy().tobytes(), 1))
        labels = b"".join(size.to_bytes(4, "big") for size in (2049, n)) + y.to(torch.uint8).numpy().tobytes()
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, 1))


@functools.cache
def small(seed=0):
    """An environment with DATA_DIR: 600 + 120 drawn digits, a short text, 3,000 sounds of a 25th of a second."""
    folder = Path(tempfile.mkdtemp())
    write_mnist(folder, 600, 120, seed)
    (folder / data.TEXT).write_text(data.text(stand_in="always")[0][seed:12000 + seed], encoding="utf-8")
    with tarfile.open(folder / data.AUDIO, "w:gz", compresslevel=1) as tar:
        for take in range(3000):
            with wave.open(blob := io.BytesIO(), "wb") as f:
                f.setparams((1, 2, 8000, 0, "NONE", ""))
                f.writeframes(bytes((take * i * i) % 251 for i in range(320)))
            member = tarfile.TarInfo(f"recordings/{take % 10}_{'anna' if take % 20 < 10 else 'ben'}_{take // 20}.wav")
            member.size = len(blob.getvalue())
            tar.addfile(member, io.BytesIO(blob.getvalue()))
    return os.environ | {"DATA_DIR": str(folder), "OMP_NUM_THREADS": "1"}


BARE = """
import {name} as m
m.evaluate = lambda run, *_: run.report({{}})
m.Run.pause, save = {save_every}, m.Run.save
def hasty(self, *args, **more):
    save(self, *args, **more)
    self.pause = {save_every}
m.Run.save = hasty
try:
    m.main({argv!r})
except (OSError, FloatingPointError) as error:
    raise SystemExit(print(error, file=__import__("sys").stderr) or 2)
"""


def run(name, out, more="", cwd=ROOT, bare=False, save_every=20, **how):
    """Start a chapter as a user would; `bare` leaves out the evaluation, and can hasten the saving."""
    command = [sys.executable, f"{name}.py", *flags(name, out, more)]
    if bare:
        command[1:] = ["-c", BARE.format(name=name, save_every=save_every, argv=command[2:])]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": small()} | how
    return subprocess.Popen(command, cwd=cwd, **how)


def finished(process, status=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, err
    return out, err


def refused(process):
    """Status 2, one line on stderr, no traceback."""
    _, err = finished(process, 2)
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1, err
    return err


def equal_checkpoints(a, b):
    """Whether two saved runs hold the same weights and moments, bit for bit."""
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    assert a["step"] == b["step"] and a["state"].keys() == b["state"].keys()
    for part, state in a["state"].items():
        other = b["state"][part]
        if "param_groups" in state:
            assert [g["lr"] for g in state["param_groups"]] == [g["lr"] for g in other["param_groups"]]
            for k, moments in state["state"].items():
                assert all(torch.equal(v, other["state"][k][n]) for n, v in moments.items())
        else:
            assert all(torch.equal(v, other[k]) if torch.is_tensor(v) else v == other[k]
                       for k, v in state.items() if not k.startswith("_"))
    return True
