"""Three small data sets: mnist() gives images, text() gives symbols, audio() gives waveforms.

Files in $DATA_DIR, else in datasets/ beside this file, are used as they are; a missing one is downloaded. If
that fails, a loud line says so and a stand-in serves: drawn digits, Python's own reference, fading tones.
Each loader returns its source last. `python data.py` fetches everything and draws a page of each: out/data/.
"""
import sys
def excepthook(kind, error, trace):  # Ctrl-C ends in one line, also during the slow imports below
    if issubclass(kind, KeyboardInterrupt):
        error, trace = KeyboardInterrupt(), None
    sys.__excepthook__(kind, error, trace)
sys.excepthook = excepthook
import gzip, hashlib, io, math, os, re, struct, tarfile, urllib.request
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
CHECKS = MNIST | {TEXT: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", AUDIO: 3000}
MIRRORS = {name: [f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
                  f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}"] for name in MNIST} | {
    TEXT: ["https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"],
    AUDIO: ["https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"]}

def say(message):
    print(f"data.py: {message}", file=sys.stderr, flush=True)
def require(ok, file, expected, found):
    if not ok:
        raise OSError(f"{FOLDER / file}: expected {expected}, found {found}; please replace it")
def is_official(name, blob):
    if name == AUDIO:  # GitHub may compress it anew: its WAV files are counted
        return len(unpack(blob)) == CHECKS[name]
    return CHECKS[name] in (hashlib.md5(blob).hexdigest(), hashlib.sha256(blob).hexdigest())

def fetch(name, stand_in):
    """The bytes of a data file, or None where the stand-in serves; OSError where "never" forbids it."""
    path = FOLDER / name
    if stand_in == "always" or path.exists():
        return None if stand_in == "always" else path.read_bytes()
    for url in MIRRORS[name]:
        try:
            say(f"downloading {url}")
            blob = urllib.request.urlopen(url, timeout=SECONDS).read()
            if not is_official(name, blob):
                raise OSError("wrong checksum")
        except Exception as error:  # whatever is wrong with a mirror, the next one is tried
            say(f"cannot use {url} ({error})")
            continue
        FOLDER.mkdir(parents=True, exist_ok=True)
        (part := FOLDER / f"{name}.{os.getpid()}.part").write_bytes(blob)
        os.replace(part, path)
        return blob
    if stand_in == "never":
        raise OSError(f"{path} is missing and cannot be downloaded; '--stand-in never' forbids a stand-in")
    say(f"NO REAL DATA: {path} is missing and cannot be downloaded. THE STAND-IN SERVES INSTEAD.")

def mnist(stand_in="auto", device="cpu"):
    """uint8 images (N, 1, 28, 28), int64 labels (N,), the same of the test, on `device`; source. OSError.
    Only the four official files are called "MNIST"; others are named after their folder and their md5."""
    blobs = []
    for name in MNIST:
        if (blob := fetch(name, stand_in)) is None:
            return *stand_in_digits(60000, 0, device), *stand_in_digits(10000, 1, device), "stand-in digits"
        blobs.append(blob)
    x, y, x_test, y_test = map(read_idx, MNIST, blobs)
    for part, a, b in ("train", x, y), ("t10k", x_test, y_test):
        require(len(a) == len(b), f"{part}-labels-idx1-ubyte.gz", f"{len(a)} labels", len(b))
    own = f"images in {FOLDER.resolve().name} (md5 {hashlib.md5(b''.join(blobs)).hexdigest()[:6]})"
    digits = x[:, None], y.long(), x_test[:, None], y_test.long()
    return *(v.to(device) for v in digits), "MNIST" if all(map(is_official, MNIST, blobs)) else own

def read_idx(name, blob):
    """The uint8 tensor in a gzipped IDX file: a magic number, the size of each dimension, the values."""
    magic, shape, start = (2051, [28, 28], 16) if "images" in name else (2049, [], 8)
    try:
        body = gzip.decompress(blob)
    except Exception as error:
        require(False, name, "a whole gzip file", f"this fault: {error}")
    header = [int.from_bytes(body[i:i + 4], "big") for i in range(0, start, 4)]
    n, values = header[1], np.frombuffer(body, np.uint8)[start:]
    require(header == [magic, n, *shape], name, f"the IDX header {[magic, n, *shape]}", header)
    require(len(values) == n * math.prod(shape), name, f"{n} items after the header", f"{len(values)} bytes")
    require(n >= (12 if "train" in name else 1), name, "at least 12 training items and 1 test item", n)
    require(shape or values.max() <= 9, name, "labels from 0 to 9", values.max())
    return torch.from_numpy(values.reshape(n, *shape).copy())

# A pen's way through each digit: points "xy" on a 10 x 10 grid, y down.
STROKES = """60 30 12 04 08 29 59 87 94 82 60 30, 50 52 54 47 49, 12 40 82 74 56 28 09 39 69 99,
    11 40 90 83 44 44 86 79 39 08, 20 13 05 35 65 95 75 63 70 73 76 69, 90 61 21 21 14 44 85 78 49 08,
    70 40 22 06 19 59 87 65 25 07, 01 31 91 91 74 56 49, 91 50 11 13 44 76 78 49 17 26 54 82 91,
    82 60 21 13 35 64 82 91 83 76 69""".split(",")

def stand_in_digits(n, seed, device="cpu"):
    """n drawn digits, uint8 (n, 1, 28, 28), and labels, int64 (n,). A seed always gives the same digits."""
    rng = np.random.default_rng(seed)
    images, labels = np.zeros((n, 1, 28, 28), np.uint8), rng.integers(10, size=n)
    for digit, stroke in enumerate(STROKES):
        grid = [(int(x), int(y)) for x, y in stroke.split()]
        points = rng.normal(grid, .35, (np.sum(labels == digit), len(grid), 2))
        for _ in range(2):  # smooth the line: double every point, then average each with its neighbours
            twice = np.repeat(points, 2, axis=1)
            points = (twice[:, :-2] + 2 * twice[:, 1:-1] + twice[:, 2:]) / 4
        x, y = (points - points.mean(axis=1, keepdims=True)).transpose(2, 0, 1)  # (images, points) each
        size, slant, pen = rng.normal([2.1, .25, .9], [.1, .2, .1], (len(x), 3)).T[:, :, None]
        at = size * np.stack([.7 * x - slant * y, y]) + 14
        z = (np.arange(28) - at[..., None]) / pen[..., None]  # (2, images, points, 28)
        columns, rows = np.exp(-np.minimum(z * z / 2, 20).astype(np.float32))  # smaller floats would be slow
        images[labels == digit, 0] = 255 * np.clip(rows.swapaxes(1, 2) @ columns * 1.6 - .4, 0, 1)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)

def text(path=None, stand_in="auto", ids=False):
    """A UTF-8 file, or tiny Shakespeare: (str, source); or int64 ids (T,), characters, source. OSError."""
    source = Path(path).name if path else "tiny Shakespeare"
    blob = Path(path).read_bytes() if path else fetch(TEXT, stand_in)
    if blob is None:
        from pydoc_data.topics import topics
        source, blob = "stand-in text", "\n".join(topics[key] for key in sorted(topics)).encode()
    corpus = blob.decode("utf-8-sig", errors="replace")
    is_text = corpus.strip() and "\ufffd" not in corpus  # U+FFFD replaces bytes that are not UTF-8
    require(is_text, Path(path or FOLDER / TEXT).absolute(), "UTF-8 text", "no text or other bytes")
    index = {character: i for i, character in enumerate(sorted(set(corpus)))}
    return (torch.tensor([index[c] for c in corpus]), list(index), source) if ids else (corpus, source)

def audio(path=None, stand_in="auto"):
    """(train, test, source): lists of (waveform float32 (T,) in [-1, 1] at 8 kHz, digit, speaker). OSError.
    Free Spoken Digit Dataset 1.0.10, or a folder of WAV files named like 7_anna_12.wav, where takes 0-4 are
    the test set. With other names digits are -1; then, or if a set would be empty, every tenth is a test."""
    if not path and (blob := fetch(AUDIO, stand_in)) is None:
        return *stand_in_tones(), "stand-in audio (fading tones)"
    wavs = [p for p in sorted(Path(path).iterdir()) if p.suffix.lower() == ".wav"] if path else []
    files = {p.name: p.read_bytes() for p in wavs} if path else unpack(blob)
    place, least = (Path(path).absolute(), 2) if path else (AUDIO, 3000)
    require(len(files) >= least, place, f"at least {least} whole .wav files", len(files))
    names = [re.fullmatch(r"([0-9])_([^_]*)_([0-9]+)\.wav", name, re.I) for name in files]
    names = names if all(names) else [{1: -1, 2: "", 3: 5}] * len(names)  # digit, speaker, recording
    tests = [int(m[3]) < 5 for m in names]
    tests = tests if len({*tests}) > 1 else [(i + 1) % min(10, len(names)) == 0 for i in range(len(names))]
    clips = [(read_wav(wav, name), int(m[1]), m[2]) for m, (name, wav) in zip(names, files.items())]
    train, test = ([clip for clip, t in zip(clips, tests) if t == part] for part in (False, True))
    return train, test, place.name if path else "Free Spoken Digit Dataset"

def unpack(blob):
    """{name: bytes} of the WAV files in a .tar.gz, unpacked in memory; {} where the archive is broken."""
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob))) as tar:
            return {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.name.endswith(".wav")}
    except Exception:
        return {}

def read_wav(blob, name):
    """The waveform of a WAV file, PCM or float, at 8 kHz, channels averaged: float32 (T,) in [-1, 1]."""
    try:
        at, chunks = blob.index(b"WAVE", 8, 12) + 4, {}
        while b"data" not in chunks:  # a chunk: four letters, its size, its contents, padded to an even size
            kind, size = struct.unpack_from("<4sI", blob, at)
            chunks[kind], at = blob[at + 8:at + 8 + size], at + 8 + size + size % 2
        code, channels, rate, bits = struct.unpack_from("<HHI6xH", chunks[b"fmt "])  # code 1: PCM, 3: float
        code, width = chunks[b"fmt "][24] if code == 0xFFFE else code, (bits + 7) // 8
        pad = {(1, 1): 3, (1, 2): 2, (1, 3): 1, (1, 4): 0, (3, 4): 0, (3, 8): 0}[code, width]
        raw = np.frombuffer(chunks[b"data"], np.uint8, size - size % (channels * width))
        raw = np.pad(raw.reshape(-1, channels, width), ((0, 0), (0, 0), (pad, 0)))  # PCM becomes int32
        raw[:, :, -1] ^= 128 if width == 1 else 0  # 8-bit WAV is unsigned
        pcm = raw.view("<i4") / 2**31 if code == 1 else np.asarray_chkfinite(raw.view(f"<f{width}"))
        n, pcm = len(pcm), pcm.mean(axis=(1, 2), dtype=float)
        if 0 < (wanted := round(n * 8000 / rate)) != n:  # resample by Fourier: frequencies above 4 kHz go
            pcm = np.fft.irfft(np.fft.rfft(pcm)[:wanted // 2 + 1], wanted) * wanted / n
    except (struct.error, LookupError, ValueError, ZeroDivisionError) as error:
        raise OSError(f"{name} is not a whole WAV file of PCM or 32- or 64-bit float ({error})") from error
    return pcm.clip(-1, 1).astype(np.float32)

def stand_in_tones():
    """3,000 clips as audio() gives them: the digit sets the pitch, the speaker how fast the tone fades."""
    clips, t, rng = [], np.arange(3200) / 8000, np.random.default_rng(0)
    for _, digit, speaker in np.ndindex(50, 10, 6):  # recordings, digits, speakers
        tone = np.sin(2 * np.pi * (110 * 1.13**digit * t + rng.uniform())) * np.exp(-(2 + 3 * speaker) * t)
        clips.append((tone.astype(np.float32), digit, f"player{speaker}"))
    return clips[300:], clips[:300]

if __name__ == "__main__":
    try:
        (x, y, _, _, digits), (corpus, book), (train, _, voices) = mnist(), text(), audio()
    except OSError as trouble:
        sys.exit(say(trouble) or 2)
    import matplotlib.pyplot as plt
    os.makedirs("out/data", exist_ok=True)
    print(f"{digits}: {len(x):,} images\n{book}: {len(corpus):,} characters\n{voices}: {len(train):,} clips")
    page = x[y.argsort(stable=True)][torch.linspace(0, len(y) - 1, 160).long()].view(10, 16, 28, 28)
    plt.imsave("out/data/mnist.png", page.transpose(1, 2).reshape(280, 448), cmap="gray_r")
    plt.figure().text(.02, .98, corpus[:800], va="top", family="monospace", size=7, parse_math=False)
    plt.savefig("out/data/text.png")
    row = np.concatenate([next(pcm for pcm, d, _ in train if d == digit) for digit in range(10)])
    plt.figure(figsize=(12, 3)).add_subplot(title=voices, xlabel="samples, 8,000 a second").plot(row, lw=.3)
    plt.savefig("out/data/audio.png")
