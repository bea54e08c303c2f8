"""Three small data sets: mnist() gives images, text() gives symbols, audio() gives waveforms.

Files in the folder $DATA_DIR, else in datasets/ beside this file, are used as they are; missing
ones are downloaded. If that fails, a loud line says so and made-up data stand in: drawn digits,
Python's own reference, fading tones. `stand_in` is "auto" for this, "always" for made-up data,
"never" for an error. The source comes last: "MNIST" and the like for official bytes only, else a
name and a checksum. Any fault is an OSError. `python data.py` draws a page of each: out/data/.
"""

import gzip
import hashlib
import io
import os
import re
import struct
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

OFFICIAL = {  # by the MD5 of what is in a file, unpacked: mirrors may pack it anew
    "6bbc9ace898e44ae57da46a324031adb": "train-images-idx3-ubyte.gz",
    "a25bea736e30d166cdddb491f175f624": "train-labels-idx1-ubyte.gz",
    "2646ac647ad5339dbf082846283269ea": "t10k-images-idx3-ubyte.gz",
    "27ae3e4e09519cfbb04c329615203637": "t10k-labels-idx1-ubyte.gz",
    "3a8942afaa4d4472e73e631e8d5025b7": "MNIST",  # the pixels and labels in these four
    "6fb458f1232090904fb40fe944165e91": "tiny Shakespeare",
    "6a6d1ec584542fd2c3e0f5b8fdade606": "Free Spoken Digit Dataset",  # WAV files and their names
}
MNIST = list(OFFICIAL.values())[:4]
TEXT = "tinyshakespeare.txt"
AUDIO = "free-spoken-digit-dataset-1.0.10.tar.gz"
MIRRORS = """https://ossci-datasets.s3.amazonaws.com/mnist/{}
https://storage.googleapis.com/cvdf-datasets/mnist/{}
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz""".split()
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
LEVELS = ("[!.]*", "[!.]*/[!.]*", "[!.]*/[!.]*/[!.]*")  # of sub-folders; hidden files are left out


def say(message):
    print(f"data.py: {message}", file=sys.stderr, flush=True)


def folder():
    return Path(os.environ.get("DATA_DIR") or Path(__file__).with_name("datasets")).expanduser()


def readable(name):  # under LC_ALL=C, Python reads é as two codes that nothing can draw
    return os.fsencode(name).decode("utf-8", "replace")


def source_of(kind, path, contents):
    md5 = hashlib.md5(contents, usedforsecurity=False).hexdigest()
    own = f"{kind} in {readable(path.resolve().name)} (md5 {md5[:6]})"
    return OFFICIAL.get(md5, own)


def read(path, parse=bytes):
    """What `parse` makes of the bytes in a file, unpacked if they are gzipped."""
    try:
        blob = path.read_bytes()
        return parse(gzip.decompress(blob) if blob.startswith(b"\x1f\x8b") else blob)
    except Exception as error:  # or not allowed: each fails in its own way
        raise OSError(f"{path} is missing, damaged or of another format: {error}") from error


def find(name):  # a path in the data folder, of a gzipped file or not; None if it is missing
    paths = [folder() / name, folder() / name.removesuffix(".gz")]
    return next((path for path in paths if path.is_file()), None)


def obtain(name, mirrors, stand_in):
    """The path of an official file, downloaded if it is missing; None if the stand-in serves."""
    if stand_in == "always":
        return None
    if find(name):
        return find(name)
    for url in mirrors:
        say(f"downloading {url.format(name)}")
        try:
            folder().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder()) as beside:  # it appears whole or not
                part = Path(beside, name)
                with urllib.request.urlopen(url.format(name), timeout=15) as answer:
                    part.write_bytes(answer.read())
                contents = joined(read(part, unpack)) if name == AUDIO else read(part)
                if source_of("download", part, contents) in OFFICIAL.values():
                    return part.replace(folder() / name)
                say("these are not the official bytes")
        except Exception as error:  # whatever is wrong with a mirror, the next one is tried
            say(f"that fails: {error}")
    missing = f"{folder() / name} is missing and cannot be downloaded; DATA_DIR names the folder"
    if stand_in == "never":
        raise OSError(missing)
    say(f"NO REAL DATA: {missing}. THE STAND-IN SERVES INSTEAD.")


def mnist(stand_in="auto", device="cpu", classes=None):
    """uint8 images (N, 1, 28, 28), int64 labels (N,), the same of the test, on `device`; source.

    The data folder may hold your own: four files of MNIST's format, or images (read_images). Labels
    must be below `classes`: 1 makes all of them 0, None checks nothing."""
    arrays = None if stand_in == "always" else real_images(stand_in)
    source = source_of("images", folder(), b"".join(arrays)) if arrays else "stand-in digits"
    if not arrays:
        arrays = [*stand_in_digits(60000, 0), *stand_in_digits(10000, 1)]
    x, y, x_test, y_test = [np.asarray(array) for array in arrays]
    if x.shape != (max(y.size, 12), 1, 28, 28) or x_test.shape != (max(y_test.size, 1), 1, 28, 28):
        raise OSError(f"{source}: at least 12 images and 1 for tests are needed, 28 x 28, labelled")
    largest = max(y.max(), y_test.max())
    if classes == 1:
        y[:] = 0
        y_test[:] = 0
    elif classes is not None and largest >= classes:
        raise OSError(f"{source} has labels up to {largest}: give --classes {largest + 1}")
    return *[torch.tensor(part, device=device) for part in (x, y, x_test, y_test)], source


def real_images(stand_in):  # the arrays of mnist() from files; None if the stand-in serves
    found = [find(name) for name in MNIST if find(name)]
    missing = [name for name in MNIST if not find(name)]
    files = [file for level in LEVELS for file in folder().glob(level)]
    images = sorted(file for file in files if file.suffix.lower() in IMAGES)
    if images and not found:
        return read_images(images)
    for path in found:
        if missing and source_of("file", path, read(path)) not in MNIST:
            raise OSError(f"{folder()} lacks {', '.join(missing)}: no download completes your own")
    if all(obtain(name, MIRRORS[:2], stand_in) for name in MNIST):
        return [read(find(name), parse_idx) for name in MNIST]


def parse_idx(blob):
    """The array in MNIST's format: 0, 0, 8, the number of dimensions; their sizes; the values."""
    sizes = struct.unpack_from(f">{blob[3]}I", blob, 4)
    values = np.frombuffer(blob, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)
    return values.astype(np.int64) if values.ndim == 1 else values[:, None]


def read_images(paths):
    """The arrays of mnist() from image files; the sorted names of their folders are the classes. A
    sixth, drawn once and for all, is the test. Images are scaled to fit 28 x 28, the rest is filled
    with the grey of their top left corner, and transparent is white."""
    say(f"reading {len(paths):,} images")
    np.random.default_rng(0).shuffle(paths)
    x = np.stack([read(path, parse_image) for path in paths])
    _, y = np.unique([path.parent.name for path in paths], return_inverse=True)
    test = np.arange(len(paths)) % 6 == 0
    return x[~test], y[~test], x[test], y[test]


def parse_image(blob):  # grey levels (1, 28, 28)
    image = Image.open(io.BytesIO(blob))
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = image.convert("I").point(lambda level: level * (1 / 257))
    page = Image.new("RGBA", image.size, "white")
    grey = Image.alpha_composite(page, image.convert("RGBA")).convert("L")
    square = ImageOps.pad(grey, (28, 28), color=grey.getpixel((0, 0)))
    return np.asarray(square)[None]


# A pen's way through each digit: points "xy" on a 10 x 10 grid, y down.
STROKES = """603012040829598794826030 5052544749 12408274562809396999 11409083444486793908
    201305356595756370737669 90612121144485784908 70402206195987652507 01319191745649
    91501113447678491726548291 8260211335648291837669"""


def stand_in_digits(n, seed, device="cpu"):
    """n drawn digits, uint8 (n, 1, 28, 28), and labels, int64 (n,); always the same for a seed."""
    rng = np.random.default_rng(seed)
    images = np.zeros((n, 1, 28, 28), np.uint8)
    labels = rng.integers(10, size=n)
    for digit, stroke in enumerate(STROKES.split()):
        corners = np.array(list(stroke), float).reshape(-1, 2)
        points = rng.normal(corners, 0.35, (np.sum(labels == digit), *corners.shape))
        for _ in range(2):  # smooth: double every point, then average each with its neighbours
            twice = np.repeat(points, 2, axis=1)
            points = (twice[:, :-2] + 2 * twice[:, 1:-1] + twice[:, 2:]) / 4
        x, y = (points - points.mean(axis=1, keepdims=True)).transpose(2, 0, 1)  # (count, points)
        size, slant, pen = rng.normal([2.1, 0.25, 0.9], [0.1, 0.2, 0.1], (len(x), 3)).T[:, :, None]
        centre = size * np.stack([0.7 * x - slant * y, y]) + 14
        z = (np.arange(28) - centre[..., None]) / pen[..., None]  # (2, count, points, 28)
        columns, rows = np.exp(-np.minimum(z * z / 2, 20).astype(np.float32))  # smaller is slow
        images[labels == digit, 0] = 255 * np.clip(rows.swapaxes(1, 2) @ columns * 1.6 - 0.4, 0, 1)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def text(path=None, stand_in="auto", ids=False):
    """A UTF-8 file or tiny Shakespeare: str, source; with `ids`: int64 (T,), characters, source."""
    from pydoc_data.topics import topics  # Python's reference, the stand-in

    path = Path(os.path.expanduser(path)) if path else obtain(TEXT, MIRRORS[2:3], stand_in)
    corpus = "\n".join(topics[key] for key in sorted(topics))
    source = "stand-in text"
    if path:
        corpus = read(path, lambda blob: blob.decode("utf-8-sig"))
        source = source_of("text", path, corpus.encode())
    if not corpus.strip():
        raise OSError(f"{path} holds no text")
    if not ids:
        return corpus, source
    characters = sorted(set(corpus))
    index = {character: i for i, character in enumerate(characters)}
    return torch.tensor([index[character] for character in corpus]), characters, source


def audio(path=None, stand_in="auto"):
    """(train, test, source): lists of (waveform float32 (T,) in [-1, 1] at 8 kHz, digit, speaker).

    The Free Spoken Digit Dataset, or WAV files in a folder `path`, named like 7_anna_12.wav: takes
    0-4 are the test. With other names digits are -1; then, or if a set would be empty, every tenth
    file is a test."""
    path = Path(os.path.expanduser(path)) if path else obtain(AUDIO, MIRRORS[3:], stand_in)
    if not path:
        return *stand_in_tones(), "stand-in audio (fading tones)"
    wavs = {readable(file.name): read(file) for file in path.glob("[!.]*.[wW][aA][vV]")}
    if path.is_file():
        wavs = read(path, unpack)
    clips = {name: read_wav(wavs[name], name) for name in sorted(wavs)}
    for name in [name for name in clips if len(clips[name]) < 3]:
        say(f"{name} is left out: it has fewer than 3 samples")
        del clips[name]
    if len(clips) < 2:
        raise OSError(f"{path} holds {len(clips)} WAV files with sound; at least 2 are needed")
    names = [re.fullmatch(r"([0-9])_([^_]*)_([0-9]+)\.wav", name, re.I) for name in clips]
    if not all(names):
        names = [("", -1, "", 5)] * len(names)  # [1] digit, [2] speaker, [3] take
    tests = [int(name[3]) < 5 for name in names]
    if len(set(tests)) == 1:
        tests = [(i + 1) % min(10, len(names)) == 0 for i in range(len(names))]
    parts = [], []
    for is_test, clip, name in zip(tests, clips.values(), names, strict=True):
        parts[is_test].append((clip, int(name[1]), name[2]))
    return *parts, source_of("sounds", path, joined(wavs))


def unpack(blob):  # the WAV files in an archive: {name: bytes}
    with tarfile.open(fileobj=io.BytesIO(blob), mode="r:") as tar:
        files = [file for file in tar if file.name.endswith(".wav")]
        return {Path(file.name).name: tar.extractfile(file).read() for file in files}


def joined(wavs):
    return b"".join(name.encode() + wavs[name] for name in sorted(wavs))


def read_wav(blob, name):
    """The sound in a WAV file, PCM or float: float32 (T,) in [-1, 1], 8 kHz, channels averaged."""
    try:
        chunks = {}
        start = 12
        while b"data" not in chunks:  # a chunk: four letters, a size, contents of an even size
            kind, size = struct.unpack_from("<4sI", blob, start)
            chunks[kind] = start + 8
            start += 8 + size + size % 2
        code, channels, rate, frame = struct.unpack_from("<HHI4xH", blob, chunks[b"fmt "])
        if code == 0xFFFE:  # "extensible": the code stands further on
            code = blob[chunks[b"fmt "] + 24]
        if size == 0 or size >= 0x7FFFF000:  # it was written to a pipe: up to the end of the file
            size = len(blob) - chunks[b"data"]
        raw = np.frombuffer(blob, np.uint8, size - size % frame, chunks[b"data"])
        width = frame // channels
        if code == 1:  # integers, lowest byte first, as fractions; from 1/2 on they are negative
            unsigned = raw.reshape(-1, width) @ 256.0 ** np.arange(-width, 0)
            samples = 2 * ((unsigned + 0.5 * (width > 1)) % 1) - 1  # but 8 bits have no sign
        else:
            samples = raw.view({(3, 4): "<f4", (3, 8): "<f8"}[code, width])
        samples = np.asarray_chkfinite(samples, float).reshape(-1, channels).mean(axis=1)
        length = round(len(samples) * 8000 / rate)
        if 0 < length != len(samples):  # resampled by Fourier: what is above 4 kHz goes
            samples = np.fft.irfft(np.fft.rfft(samples), length) * length / len(samples)
        return samples[:length].clip(-1, 1).astype(np.float32)
    except Exception as error:
        raise OSError(f"{name} is not a whole WAV file of PCM or float samples") from error


def stand_in_tones():
    """3,000 clips as audio() gives them: the digit sets the pitch, the speaker how it fades."""
    rng = np.random.default_rng(0)
    t = np.arange(3200) / 8000
    clips = []
    for _, digit, speaker in np.ndindex(50, 10, 6):
        cycles = 110 * 1.13**digit * t + rng.uniform()
        tone = np.sin(2 * np.pi * cycles) * np.exp(-(2 + 3 * speaker) * t)
        clips.append((tone.astype(np.float32), digit, f"player{speaker}"))
    return clips[300:], clips[:300]


if __name__ == "__main__":
    import matplotlib.pyplot as plt

    try:
        x, _, _, _, digits = mnist()
        corpus, book = text()
        clips, _, voices = audio()
    except OSError as error:
        sys.exit(f"data.py: {error}")
    print(f"{len(x):,} of {digits!a}, {len(corpus):,} of {book!a}, {len(clips):,} of {voices!a}")
    os.makedirs("out/data", exist_ok=True)
    plt.imsave("out/data/mnist.png", np.hstack(x[:12, 0]), cmap="gray_r")
    plt.figure().text(0.02, 0.98, corpus[:800], va="top", size=7, parse_math=False)
    plt.savefig("out/data/text.png")
    plt.figure().add_subplot().plot(np.concatenate([clip for clip, _, _ in clips[:10]]))
    plt.savefig("out/data/audio.png")
