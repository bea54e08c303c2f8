"""Three small data sets and nothing else: mnist() for images, text() for symbols, audio() for waveforms.

A file in $DATA_DIR, else in datasets/ beside this file, is used as it is. A missing one is downloaded, checked, kept.
Where that fails, a loud line says so and an embedded stand-in serves: digits drawn with a jittered pen, Python's own
language reference, plucked strings. Every loader returns its source's name last; its OSErrors are one plain sentence.

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
    if stand_in == "always" or (path := FOLDER / name).exists():
        return None if stand_in == "always" else path.read_bytes()
    for url in MIRRORS[name]:
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as reply:
                total, blob = int(reply.headers.get("Content-Length") or 0) / 1e6, b""
                while piece := reply.read(1 << 20):
                    blob += piece
                    say(f"{url}: {len(blob) / 1e6:.0f} of {total:.0f} MB")
        except (OSError, ValueError, http.client.HTTPException) as error:
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
    return say(f"NO REAL DATA: {name} is not in {FOLDER} and cannot be downloaded. THE STAND-IN SERVES INSTEAD.")

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
            raise OSError(f"{FOLDER / name} is damaged: delete it, and it is downloaded anew") from error
    return arrays[0], arrays[1].long(), arrays[2], arrays[3].long(), "MNIST"

# A pen's way through each digit: points "xy" on a 10 x 10 grid, y down. "/" lifts the pen, a doubled point is a corner.
PEN = ("50 22 16 39 79 95 81 50, 50 55 49, 12 40 82 65 19 19 59 99, 11 50 82 44 44 86 69 18, 30 15 15 55 95/71 65 59, "
       "90 31 31 24 24 64 86 59 18, 70 33 16 49 87 65 36 27, 11 51 91 91 65 49, 82 40 22 54 87 59 27 54 82, "
       "82 50 23 45 74 82 76 59").split(", ")

def stand_in_digits(n, seed):
    """n drawn digits, uint8 (n, 1, 28, 28), and labels (n,): wobble, slant, turn, size and pen vary; by seed alone."""
    rng = np.random.default_rng(seed)
    y, images = rng.integers(10, size=n), np.zeros((n, 1, 28, 28), np.uint8)
    for digit, strokes in enumerate(PEN):
        m, path, weight = (y == digit).sum(), [], []
        for stroke in strokes.split("/"):
            p = rng.normal([(int(x) / 9, int(y) / 9) for x, y in stroke.split()], .045, (m, len(stroke.split()), 2))
            p = np.concatenate([2 * p[:, :1] - p[:, 1:2], p, 2 * p[:, -1:] - p[:, -2:-1]], 1)  # Catmull-Rom splines
            at = np.linspace(0, p.shape[1] - 3.001, 48)[:, None]
            u, (a, b, c, d) = at % 1, (p[:, at[:, 0].astype(int) + j] for j in range(4))
            path.append(b + u / 2 * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * b - a - 3 * c + d))))
            weight.append(np.linalg.norm(np.gradient(path[-1], axis=1), axis=2))
        size, slant, turn, pen = rng.normal([18, -.2, 0, .95], [1, .22, .1, .13], (m, 1, 4)).transpose(2, 0, 1)
        px, py = (np.concatenate(path, 1).transpose(2, 0, 1) - .5) * size
        px, py = .62 * px + (slant + turn) * py, py - .62 * turn * px
        gx, gy = (np.exp(-(((p - p.mean(1, keepdims=True) + 13.5)[..., None] - np.arange(28, dtype=np.float32)) / pen[
            ..., None]).astype(np.float32) ** 2 / 2) for p in (px, py))  # (m, points, 28): dabs of ink along the path
        ink = (gy * (np.concatenate(weight, 1) * size / pen)[..., None].astype(np.float32)).swapaxes(1, 2) @ gx
        images[y == digit, 0] = 255 * np.clip(.75 * ink - .35, 0, 1)
    return torch.from_numpy(images), torch.from_numpy(y)

# %% Text
def text(path=None, stand_in="auto", ids=False):
    """A UTF-8 file, tiny Shakespeare by default: (string, source), or (int64 ids (T,), list of characters, source)."""
    name, source = (path, Path(path).name) if path else (FOLDER / TEXT, "tiny Shakespeare")
    if (blob := Path(path).read_bytes() if path else fetch(TEXT, stand_in)) is None:
        from pydoc_data.topics import topics
        blob, source = "\n".join(topics[k] for k in sorted(topics)).encode(), "stand-in text"
    corpus = blob.decode("utf-8-sig", errors="replace")
    if not corpus.strip() or "\ufffd" in corpus:  # what a decoder leaves where bytes are not UTF-8
        raise OSError(f"{name} is not UTF-8 text" if corpus.strip() else f"{name} holds no text")
    index = {c: i for i, c in enumerate(sorted(set(corpus)))}
    return (torch.tensor([index[c] for c in corpus]), list(index), source) if ids else (corpus, source)

# %% Audio
def audio(path=None, stand_in="auto"):
    """(train, test, source), two lists of (waveform float32 (T,) in [-1, 1] at 8 kHz, digit, speaker).

    Free Spoken Digit Dataset 1.0.10, or a folder of WAV files of any rate. A name like 7_anna_12.wav tells digit,
    speaker and recording, and recordings 0-4 are the test set. Where some name does not (digit -1), every tenth is.
    """
    if path:
        files, source = {p.name: p.read_bytes() for p in sorted(Path(path).glob("*.wav"))}, Path(path).name
    elif (blob := fetch(AUDIO, stand_in)) is not None:
        files, source = unpack(blob), "Free Spoken Digit Dataset"
    else:
        files, source = stand_in_strings(), "stand-in audio (plucked strings)"
    if len(files) < (2 if path else 3000):
        raise OSError(f"{path or FOLDER / AUDIO} holds {len(files)} whole .wav files, too few: replace or delete it")
    names = [name[:-4].split("_") for name in files]
    if not all(len(n) == 3 and n[0] in list("0123456789") and n[2].isdecimal() for n in names):
        names = [(-1, "", 0 if i % 10 == 9 or i + 1 == len(files) < 10 else 5) for i in range(len(files))]
    split = [], []
    for (name, clip), (digit, speaker, take) in zip(files.items(), names):
        split[int(take) < 5].append((read_wav(clip, name) if isinstance(clip, bytes) else clip, int(digit), speaker))
    return *split, source

def unpack(blob):
    """{name: bytes} of the WAV files in a .tar.gz, without touching the disk; {} where the archive is broken."""
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob))) as tar:  # whole, so that its checksum is seen
            return {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.name.endswith(".wav")}
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return {}

def read_wav(blob, name):
    """The waveform of a PCM WAV file at 8 kHz, channels averaged: float32 (T,) in [-1, 1]."""
    try:
        with wave.open(io.BytesIO(blob)) as f:
            size, rate, length = f.getsampwidth(), f.getframerate(), f.getnframes()
            raw = np.frombuffer(f.readframes(length), np.uint8).reshape(length, f.getnchannels(), size)
        n = round(length * 8000 / rate)
        raw = np.pad(raw ^ (128 if size == 1 else 0), ((0, 0), (0, 0), (4 - size, 0))).copy()  # 8-bit WAV is unsigned
    except (wave.Error, EOFError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise OSError(f"{name} is not a whole PCM WAV file ({error})") from error
    pcm = (raw.view("<i4")[..., 0] / 2.0**31).mean(1)
    if 0 < n != length:  # resampled in the Fourier domain, without what 8 kHz cannot carry
        pcm = (np.fft.irfft(np.fft.rfft(pcm)[: n // 2 + 1], n) * n / length).clip(-1, 1)
    return pcm.astype(np.float32)

def stand_in_strings():
    """{name: waveform} of 3,000 Karplus-Strong strings: ten pitches, six players who damp differently, 50 takes."""
    rng, clips, damp = np.random.default_rng(0), {}, np.linspace(.93, .998, 6)[:, None, None]
    for digit, period in enumerate([73, 64, 55, 48, 42, 36, 32, 28, 24, 21]):
        sound = [rng.uniform(-.9, .9, (6, 50, period))]
        while len(sound) * period < 3200:  # a period is the one before, each sample averaged with its neighbour
            sound.append(damp * (sound[-1] + np.roll(sound[-1], 1, 2)) / 2)
        pcm = np.concatenate(sound, 2).astype(np.float32)
        clips |= {f"{digit}_player{p}_{take}.wav": pcm[p, take] for p in range(6) for take in range(50)}
    return clips

def main():
    import matplotlib.pyplot as plt
    os.makedirs("out/data", exist_ok=True)
    (x, y, _, _, digits), (corpus, book), (train, _, voices) = mnist(), text(), audio()
    print(f"{digits}: {len(x):,} images\n{book}: {len(corpus):,} characters\n{voices}: {len(train):,} clips")
    rows = torch.stack([x[y == d][:16, 0] for d in range(10)])  # (10, 16, 28, 28)
    plt.imsave("out/data/mnist.png", rows.transpose(1, 2).reshape(280, 448), cmap="gray_r")
    plt.figure().text(.02, .98, corpus[:800], va="top", family="monospace", size=7, parse_math=False)
    plt.savefig("out/data/text.png")
    plt.figure(figsize=(8, 8), layout="constrained").suptitle(f"{voices}: one clip of each digit")
    for digit in range(10):
        pcm = next(c[0] for c in train if c[1] == digit)
        plt.plot(np.arange(len(pcm)) / 8000, digit + pcm / 2, lw=.5)
    plt.gca().set(xlabel="seconds", ylabel="digit spoken", yticks=range(10))
    plt.savefig("out/data/audio.png")

if __name__ == "__main__":
    try:
        main()
    except OSError as trouble:
        sys.exit(say(trouble) or 2)
