"""Three small data sets and nothing else: mnist() for images, text() for symbols, audio() for waveforms.

Files are looked for in $DATA_DIR, else in datasets/ beside this file, and used as they are. A missing file is
downloaded, checked and kept there. Where that fails, a loud line says so and an embedded stand-in serves: digits drawn
with a jittered pen, Python's own language reference, plucked strings. Every loader returns the name of its source
last. What goes wrong with a file is an OSError whose text is one sentence for the user.

    python data.py      fetches everything, says what is there, draws a page of each into out/data/
"""
import gzip
import hashlib
import http.client
import io
import os
import sys
import tarfile
import urllib.request
import wave
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(os.environ.get("DATA_DIR") or Path(__file__).resolve().parent / "datasets")
SECONDS = 15  # a mirror silent for so long is given up
MNIST = {"train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
         "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
         "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
         "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c"}
TEXT, AUDIO = "tinyshakespeare.txt", "free-spoken-digit-dataset-1.0.10.tar.gz"
CHECKS = MNIST | {TEXT: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", AUDIO: 3000}  # WAV files
MIRRORS = {name: [f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
                  f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}"] for name in MNIST} | {
    TEXT: ["https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"],
    AUDIO: ["https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"]}


# %% Files: from the folder, else from a mirror, else the stand-in
def say(message):
    print(f"data.py: {message}", file=sys.stderr, flush=True)


def fetch(name, stand_in):
    """The bytes of a data file, or None where the stand-in has to serve."""
    path = FOLDER / name
    if stand_in == "always" or path.exists():
        return None if stand_in == "always" else path.read_bytes()
    for url in MIRRORS[name]:
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as reply:
                total, blob = int(reply.headers.get("Content-Length") or 0) / 1e6, b""
                while piece := reply.read(1 << 20):
                    blob += piece
                    say(f"{url}: {len(blob) / 1e6:.0f} of {total:.0f} MB")
        except (OSError, http.client.HTTPException) as error:
            say(f"cannot download {url} ({error})")
            continue
        if CHECKS[name] in (hashlib.md5(blob).hexdigest(), hashlib.sha256(blob).hexdigest(), len(unpack(blob))):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f"{name}.{os.getpid()}.part")
            beside.write_bytes(blob)
            os.replace(beside, path)
            return blob
        say(f"{url} sent a file with a wrong checksum, which is not kept: try later, or put {name} into {FOLDER}")
    if stand_in == "never":
        raise OSError(f"{name} is not in {FOLDER} and cannot be downloaded, and --stand-in never rules out a stand-in")
    return say(f"NO REAL DATA: {name} is not in {FOLDER} and cannot be downloaded. THE STAND-IN SERVES INSTEAD, and no "
               "figure of this run can be compared with a published one.")


# %% Digits
def mnist(stand_in="auto"):
    """MNIST: uint8 images (60000, 1, 28, 28), int64 labels, test images (10000, 1, 28, 28), labels, source."""
    arrays = []
    for name in MNIST:
        if (blob := fetch(name, stand_in)) is None:
            return *stand_in_digits(60000, 0), *stand_in_digits(10000, 1), "stand-in digits"
        n, images = 60000 if name.startswith("train") else 10000, "images" in name
        try:  # an IDX file: 4 bytes and 4 for each dimension, then one byte a value
            body = np.frombuffer(gzip.decompress(blob), np.uint8, offset=16 if images else 8)
            arrays.append(torch.from_numpy(body.reshape((n, 1, 28, 28) if images else n).copy()))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise OSError(f"{FOLDER / name} is damaged: delete it, and the next run downloads it") from error
    return arrays[0], arrays[1].long(), arrays[2], arrays[3].long(), "MNIST"


# A pen's way through each digit: points "xy" on a 10 x 10 grid, y down. "/" lifts the pen, a doubled point is a corner.
PEN = ["50 22 16 39 79 95 81 50", "50 55 49", "12 40 82 65 19 19 59 99", "11 50 82 44 44 86 69 18",
       "30 15 15 55 95/71 65 59", "90 31 31 24 24 64 86 59 18", "70 33 16 49 87 65 36 27", "11 51 91 91 65 49",
       "82 40 22 54 87 59 27 54 82", "82 50 23 45 74 82 76 59"]


def stand_in_digits(n, seed):
    """n drawn digits, uint8 (n, 1, 28, 28), and labels (n,): wobble, slant, turn, size and pen vary; by seed alone."""
    rng = np.random.default_rng(seed)
    y, images = rng.integers(10, size=n), np.zeros((n, 28, 28), np.uint8)
    for digit, strokes in enumerate(PEN):
        index = np.flatnonzero(y == digit)
        size, slant, turn, pen = (rng.normal(*at, (len(index), 1, 1)) for at in ((18, 1), (-.2, .22), (0, .1), (.95, .13)))
        path, weight = [], []
        for stroke in strokes.split("/"):
            p = np.array([(int(x), int(y)) for x, y in stroke.split()]) / 9
            p = p + rng.normal(0, .045, (len(index), *p.shape))
            p = np.concatenate([2 * p[:, :1] - p[:, 1:2], p, 2 * p[:, -1:] - p[:, -2:-1]], 1)
            at = np.linspace(0, p.shape[1] - 3.001, 48)[:, None]
            u, (a, b, c, d) = at % 1, (p[:, at[:, 0].astype(int) + j] for j in range(4))
            curve = b + u / 2 * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * b - a - 3 * c + d)))  # Catmull-Rom
            path.append((curve - .5) * size * [.62, 1])
            weight.append(np.linalg.norm(np.gradient(path[-1], axis=1), axis=2, keepdims=True))
        px, py, weight = *np.concatenate(path, 1).transpose(2, 0, 1)[..., None], np.concatenate(weight, 1)
        px, py = px + (slant + turn) * py, py - turn * px
        px, py = (p - p.mean(1, keepdims=True) + 13.5 - np.arange(28) for p in (px, py))  # (digits, points, 28)
        dabs = (weight * np.exp(-(py / pen) ** 2 / 2)).swapaxes(1, 2) @ np.exp(-(px / pen) ** 2 / 2)
        images[index] = 255 * np.clip(.8 * dabs / pen - .35, 0, 1)
    return torch.from_numpy(images)[:, None], torch.from_numpy(y)


# %% Text
def text(path=None, stand_in="auto", ids=False):
    """A UTF-8 file, tiny Shakespeare by default: (string, source), or (int64 ids (T,), list of characters, source)."""
    name, source = (path, Path(path).name) if path else (FOLDER / TEXT, "tiny Shakespeare")
    if (blob := Path(path).read_bytes() if path else fetch(TEXT, stand_in)) is None:
        from pydoc_data.topics import topics
        blob, source = "\n".join(topics[k] for k in sorted(topics)).encode(), "stand-in text"
    try:
        corpus = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(f"{name} is not UTF-8 text, see byte {error.start}") from error
    if not corpus.strip():
        raise OSError(f"{name} holds no text")
    index = {c: i for i, c in enumerate(sorted(set(corpus)))}
    return (torch.tensor([index[c] for c in corpus]), list(index), source) if ids else (corpus, source)


# %% Audio
def audio(path=None, stand_in="auto"):
    """Recordings as (train, test, source): lists of (waveform float32 (T,) in [-1, 1] at 8 kHz, digit, speaker).

    The Free Spoken Digit Dataset 1.0.10, or a folder of WAV files of any rate. A name like 7_anna_12.wav says digit,
    speaker and recording, and recordings 0-4 are the test set. Where some name does not (digit -1), every tenth is.
    """
    if path:
        files, source = {p.name: p.read_bytes() for p in sorted(Path(path).glob("*.wav"))}, Path(path).name
    elif blob := fetch(AUDIO, stand_in):
        files, source = unpack(blob), "Free Spoken Digit Dataset"
    else:
        files, source = stand_in_strings(), "stand-in audio (plucked strings)"
    if len(files) < (2 if path else 3000):
        raise OSError(f"{path or FOLDER / AUDIO} holds {len(files)} whole .wav files: too few, or damaged")
    names = [name[:-4].split("_") for name in files]
    if not all(len(n) == 3 and n[0] in list("0123456789") and n[2].isdigit() for n in names):
        names = [(-1, "", 0 if i % 10 == 9 or i + 1 == len(files) else 5) for i in range(len(files))]
    split = [], []
    for (name, blob), (digit, speaker, take) in zip(files.items(), names):
        split[int(take) < 5].append((read_wav(blob, name) if isinstance(blob, bytes) else blob, int(digit), speaker))
    return *split, source


def unpack(blob):
    """{name: bytes} of the WAV files in a .tar.gz, without touching the disk; {} where the archive is broken."""
    try:
        with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
            return {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.name.endswith(".wav")}
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return {}


def read_wav(blob, name):
    """The waveform of a PCM WAV file at 8 kHz, channels averaged: float32 (T,) in [-1, 1]."""
    try:
        with wave.open(io.BytesIO(blob)) as f:
            size, rate = f.getsampwidth(), f.getframerate()
            raw = np.frombuffer(f.readframes(f.getnframes()), np.uint8).reshape(-1, f.getnchannels(), size)
    except (wave.Error, EOFError, ValueError) as error:
        raise OSError(f"{name} is not a whole PCM WAV file ({error})") from error
    words = np.pad(raw ^ (128 if size == 1 else 0), ((0, 0), (0, 0), (4 - size, 0)))  # 8-bit WAV alone is unsigned
    pcm = (words.copy().view("<i4")[..., 0] / 2.0**31).mean(1)
    n = round(len(pcm) * 8000 / rate)
    if 0 < n != len(pcm):  # resampled in the Fourier domain, without what 8 kHz cannot carry
        pcm = np.fft.irfft(np.fft.rfft(pcm)[: n // 2 + 1], n) * n / len(pcm)
    return pcm.astype(np.float32)


def stand_in_strings():
    """{name: waveform} of 3,000 Karplus-Strong strings: ten pitches, six players who damp differently, 50 takes."""
    rng, clips = np.random.default_rng(0), {}
    for digit in range(10):
        period = round(73 / 2 ** (digit / 5))
        sound = [rng.uniform(-1, 1, (6, 50, period)) * rng.uniform(.3, .9, (6, 50, 1))]
        for _ in range(3200 // period):  # a period is the one before, each sample averaged with its neighbour
            sound.append(np.linspace(.93, .998, 6)[:, None, None] * (sound[-1] + np.roll(sound[-1], 1, 2)) / 2)
        pcm = np.concatenate(sound, 2).astype(np.float32)
        clips |= {f"{digit}_player{p}_{take}.wav": pcm[p, take] for p in range(6) for take in range(50)}
    return clips


def main():
    """Fetch all three, describe them, draw a page of each."""
    import matplotlib.pyplot as plt
    os.makedirs("out/data", exist_ok=True)
    (x, y, x_test, _, digits), (corpus, book), (train, test, voices) = mnist(), text(), audio()
    print(f"{digits}: {len(x):,} + {len(x_test):,} images of 28 x 28, {(x > 127).float().mean():.0%} of the pixels bright")
    print(f"{book}: {len(corpus):,} characters, {len(set(corpus))} different ones")
    print(f"{voices}: {len(train):,} + {len(test):,} clips, {sum(len(c[0]) for c in train) / 480000:.0f} minutes to train on")
    rows = torch.stack([x[y == d][:16] for d in range(10)])  # (10, 16, 1, 28, 28)
    plt.imsave("out/data/mnist.png", rows.permute(0, 3, 1, 4, 2).reshape(280, 448), cmap="gray_r")
    plt.figure().text(.02, .98, corpus[:800], va="top", family="monospace", size=7, parse_math=False)
    plt.savefig("out/data/text.png")
    plt.figure(figsize=(8, 8), layout="constrained").suptitle(f"{voices}: one clip of each digit")
    for digit in range(10):
        pcm = next(c[0] for c in train if c[1] == digit)
        plt.plot(np.arange(len(pcm)) / 8000, digit + pcm / 2, lw=.5)
    plt.gca().set(xlabel="seconds", ylabel="digit spoken", yticks=range(10))
    plt.savefig("out/data/audio.png")
    print("drawn: mnist.png, text.png, audio.png in out/data")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(say(error) or 2)
