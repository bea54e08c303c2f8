"""data.py: the loaders on real, synthetic, damaged and missing files; downloads from a local server; the stand-ins."""
import gzip
import hashlib
import io
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

import data

REAL = Path(os.environ.get("DATA_DIR") or data.FOLDER)
SCRIPT = Path(data.__file__).resolve()
NAMES = [*data.MNIST, data.TEXT, data.AUDIO]
PAYLOAD = bytes(range(256)) * 5000
N, N_TEST = 1500, 250  # images in the made-up files
HEADERS = {"train-images-idx3-ubyte.gz": (N, 28, 28), "train-labels-idx1-ubyte.gz": (N,),
           "t10k-images-idx3-ubyte.gz": (N_TEST, 28, 28), "t10k-labels-idx1-ubyte.gz": (N_TEST,)}


# %% Tools and fixtures
def need(*names):
    """Skip a test of real data where they are not there."""
    if missing := [name for name in names if not (REAL / name).exists()]:
        pytest.skip(f"no real data: {REAL} lacks {', '.join(missing)} (set DATA_DIR)")


def wav(x, rate=8000, bits=16):
    """The bytes of a PCM WAV file of samples in [-1, 1], (T,) or (T, channels)."""
    x = np.asarray(x, np.float64)
    x = np.rint((x[:, None] if x.ndim == 1 else x) * (2 ** (bits - 1) - 1)).astype("<i4")
    raw = (x + 128).astype(np.uint8) if bits == 8 else x[..., None].view(np.uint8)[..., : bits // 8]
    file = io.BytesIO()
    with wave.open(file, "wb") as f:
        f.setnchannels(x.shape[1])
        f.setsampwidth(bits // 8)
        f.setframerate(rate)
        f.writeframes(raw.tobytes())
    return file.getvalue()


def archive(files):
    """The bytes of a .tar.gz of {name: bytes}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for name, blob in files.items():
            member = tarfile.TarInfo(f"fsdd/recordings/{name}")
            member.size = len(blob)
            tar.addfile(member, io.BytesIO(blob))
    return file.getvalue()


def idx(shape, values=None, magic=None):
    """A gzipped IDX file of the values, else of bytes 0..9 in turn, which serve as pixels and as labels."""
    head = np.array([2048 + len(shape) if magic is None else magic, *shape], ">u4").tobytes()
    size = int(np.prod(shape))
    values = (bytes(range(10)) * (size // 10 + 1))[:size] if values is None else values
    return gzip.compress(head + values, 1, mtime=0)


def flip(blob):
    """The same with one byte in the middle changed."""
    i = len(blob) // 2
    return blob[:i] + bytes([blob[i] ^ 255]) + blob[i + 1:]


@pytest.fixture(scope="module")
def sound():
    """Files of the right shape with made-up contents: {name: bytes}, no real data needed."""
    noise = np.random.default_rng(0).uniform(-1, 1, (3000, 60))
    takes = [f"{d}_{p}_{t}.wav" for d in range(10) for p in ("ann", "bob", "cy", "di", "ed", "flo") for t in range(50)]
    return {name: idx(shape) for name, shape in HEADERS.items()} | {
        data.TEXT: b"To be, or not to be\n", data.AUDIO: archive({t: wav(x) for t, x in zip(takes, noise)})}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test has its own data folder, not made yet, and only dead mirrors."""
    monkeypatch.setattr(data, "FOLDER", tmp_path / "datasets")
    monkeypatch.setattr(data, "SECONDS", .4)
    monkeypatch.setattr(data, "MIRRORS", {name: [f"http://127.0.0.1:1/{name}"] for name in NAMES})
    monkeypatch.setenv("no_proxy", "*")
    return data.FOLDER


@pytest.fixture
def filled(folder, sound):
    """The data folder with the six made-up files in it."""
    folder.mkdir()
    for name, blob in sound.items():
        (folder / name).write_bytes(blob)
    return folder


@pytest.fixture
def sealed(monkeypatch):
    """Calling it makes every later request and every later writing an error, for root too."""
    def refuse(*args, **kwargs):
        raise AssertionError(f"not allowed here: {args}")

    def seal():
        monkeypatch.setattr(urllib.request, "urlopen", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        for name in ("write_bytes", "write_text", "mkdir", "touch", "replace", "rename"):
            monkeypatch.setattr(Path, name, refuse)
        for name in ("replace", "rename", "makedirs", "mkdir"):
            monkeypatch.setattr(os, name, refuse)
    return seal


@pytest.fixture(scope="module")
def real():
    """Real MNIST as mnist() returns it."""
    need(*data.MNIST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "FOLDER", REAL)
        return data.mnist("never")


@pytest.fixture(scope="module")
def server():
    """A server on this machine: /<behaviour>/<name>, with .files, .seen (the paths asked for, in turn), .url."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            _, how, name = self.path.split("/", 2)
            self.server.seen.append(f"{how}/{name}")
            blob = self.server.files.get(name, b"")
            if how == "missing":
                return self.send_error(404)
            if how == "silent":
                return over.wait(9)
            if how == "noise":
                return self.wfile.write(b"\0\1 no HTTP at all\r\n\r\n")
            self.send_response(200)
            self.send_header("Content-Length", "many" if how == "lengthless" else str(len(blob)))
            self.end_headers()
            self.wfile.write(blob if how == "good" else flip(blob) if how in ("wrong", "lengthless")
                             else blob[: len(blob) // 2])  # short, stalled
            if how == "stalled":
                self.wfile.flush()
                over.wait(9)

        def do_CONNECT(self):  # a proxy that keeps silent
            over.wait(9)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads, http.block_on_close = True, False
        http.handle_error = lambda *args: None  # a client that hangs up is no news
        http.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, args=(.05,), daemon=True).start()
        yield http
        over.set()
        http.shutdown()


@pytest.fixture
def mirrors(server, monkeypatch):
    """mirrors({name: bytes}, "short", "good"): these files are right, and these are their mirrors, in turn."""
    def set_up(files, *hows):
        server.files, server.seen = files, []
        urls = {name: [f"http://127.0.0.1:1/{name}" if how == "dead" else f"{server.url}/{how}/{name}" for how in hows]
                for name in files}
        monkeypatch.setattr(data, "MIRRORS", data.MIRRORS | urls)
        sums = {n: (hashlib.md5 if n in data.MNIST else hashlib.sha256)(b).hexdigest() for n, b in files.items()}
        monkeypatch.setattr(data, "CHECKS", data.CHECKS | {n: s for n, s in sums.items() if n != data.AUDIO})
        return urls
    return set_up


def refusal(call, *args, **kwargs):
    """The text of the OSError that a call must end in: one line."""
    with pytest.raises(OSError) as error:
        call(*args, **kwargs)
    assert str(error.value).strip() and "\n" not in str(error.value)
    return str(error.value)


def shape(arrays):
    return [(tuple(a.shape), a.dtype) for a in arrays]


def mnist_shape(n, n_test):
    return [((n, 1, 28, 28), torch.uint8), ((n,), torch.int64),
            ((n_test, 1, 28, 28), torch.uint8), ((n_test,), torch.int64)]


# %% MNIST
def test_mnist_real(real):
    x, y, x_test, y_test, source = real
    assert source == "MNIST" and shape(real[:4]) == mnist_shape(60000, 10000)
    assert y[:5].tolist() == [5, 0, 4, 1, 9] and y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert x.float().mean().item() / 255 == pytest.approx(.1306604762738429, rel=1e-5)  # the published mean
    assert x[0, 0, 5].tolist()[12:24] == [3, 18, 18, 18, 126, 136, 175, 26, 166, 255, 247, 127]  # the first "5"
    assert (x_test[:, 0, 0] == 0).all() and x_test.max() == 255


@pytest.mark.parametrize("stand_in", ["auto", "never"])
def test_files_in_a_read_only_folder_are_used_as_they_are(filled, sealed, stand_in, capsys):
    """No request, nothing written, although no checksum of these made-up files is right."""
    for path in filled.iterdir():
        path.chmod(0o444)
    filled.chmod(0o555)
    before = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(filled.iterdir())]
    sealed()
    x, y, x_test, y_test, source = data.mnist(stand_in)
    assert source.startswith("images in datasets (md5 ") and shape((x, y, x_test, y_test)) == mnist_shape(N, N_TEST)
    assert torch.equal(y, torch.arange(N) % 10) and torch.equal(y_test, torch.arange(N_TEST) % 10)
    assert torch.equal(x[-1].flatten().long(), torch.arange((N - 1) * 784, N * 784) % 10)
    assert torch.equal(x_test[1].flatten().long(), torch.arange(784, 1568) % 10)
    assert data.text(stand_in=stand_in) == ("To be, or not to be\n", "tiny Shakespeare")
    train, test, source = data.audio(stand_in=stand_in)
    assert (len(train), len(test), source) == (2700, 300, "Free Spoken Digit Dataset")
    assert [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(filled.iterdir())] == before
    assert capsys.readouterr().err == ""
    filled.chmod(0o755)


DAMAGE = {"truncated": lambda b: b[: len(b) // 2], "without its end": lambda b: b[:-4], "a byte changed": flip,
          "empty": lambda b: b"", "no gzip": lambda b: b"<html>404</html>",
          "a byte too few": lambda b: gzip.compress(gzip.decompress(b)[:-1], 1),
          "too many": lambda b: gzip.compress(gzip.decompress(b) + bytes(784), 1)}


@pytest.mark.parametrize("name, how", [(n, h) for n in data.MNIST for h in DAMAGE])
def test_damaged_mnist_file(filled, sound, name, how):
    (filled / name).write_bytes(DAMAGE[how](sound[name]))
    message = refusal(data.mnist)
    assert str(filled / name) in message and "expected" in message and "found" in message
    assert not re.search("damaged|delete", message.removeprefix(str(filled / name)))  # it may be the user's own


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
REFUSED = {  # {case: (the files put in place of sound ones, the one to be named, what was expected, what was found)}
    "labels where images belong": ({IMAGES: idx((N,))}, IMAGES, "2051", "2049"),
    "images where labels belong": ({TEST_LABELS: idx((N_TEST, 28, 28))}, TEST_LABELS, "2049", "2051"),
    "32-bit floats": ({IMAGES: idx((N, 28, 28), magic=0xD03)}, IMAGES, "2051", str(0xD03)),
    "an empty body": ({IMAGES: gzip.compress(b"")}, IMAGES, "2051", "0"),
    "a cut header": ({LABELS: gzip.compress(b"\0\0\10\1\0\0")}, LABELS, "12", "0"),
    "32 x 32": ({IMAGES: idx((N, 32, 32))}, IMAGES, "28, 28", "32, 32"),
    "1 x 784": ({TEST_IMAGES: idx((N_TEST, 1, 784))}, TEST_IMAGES, "28, 28", "1, 784"),
    "no pixels": ({IMAGES: idx((N, 0, 0))}, IMAGES, "28, 28", "0, 0"),
    "a header of more images": ({IMAGES: idx((N + 1, 28, 28), bytes(N * 784))}, IMAGES, str(N + 1), str(N * 784)),
    "a header of fewer images": ({IMAGES: idx((N - 1, 28, 28), bytes(N * 784))}, IMAGES, str(N - 1), str(N * 784)),
    "a header of 2^32 - 1 images": ({IMAGES: idx((2**32 - 1, 28, 28), bytes(784))}, IMAGES, str(2**32 - 1), "784"),
    "a label too many": ({LABELS: idx((N + 1,))}, LABELS, str(N), str(N + 1)),
    "a test label too few": ({TEST_LABELS: idx((N_TEST - 1,))}, TEST_LABELS, str(N_TEST), str(N_TEST - 1)),
    "no labels": ({LABELS: idx((0,))}, LABELS, "12", "0"),
    "label 10": ({LABELS: idx((N,), bytes(N - 1) + b"\n")}, LABELS, "0 to 9", "10"),
    "test label 255": ({TEST_LABELS: idx((N_TEST,), b"\xff" * N_TEST)}, TEST_LABELS, "0 to 9", "255"),
    "11 images": ({IMAGES: idx((11, 28, 28)), LABELS: idx((11,))}, IMAGES, "12", "11"),
    "no images": ({IMAGES: idx((0, 28, 28)), LABELS: idx((0,))}, IMAGES, "12", "0"),
    "no test images": ({TEST_IMAGES: idx((0, 28, 28)), TEST_LABELS: idx((0,))}, TEST_IMAGES, "1", "0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_of_another_format_are_refused(filled, case):
    files, name, expected, found = REFUSED[case]
    for file, blob in files.items():
        (filled / file).write_bytes(blob)
    message = refusal(data.mnist)
    parts = re.fullmatch(f"{re.escape(str(filled / name))}: expected (.*), found (.*)", message)
    assert parts and expected in parts[1] and re.search(rf"\b{found}\b", parts[2])


def put_images(folder, n=20, n_test=3, seed=0):
    """The four files with n and n_test random images and labels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for part, count in (("train", n), ("t10k", n_test)):
        images, labels = rng.bytes(count * 784), rng.integers(10, size=count).astype(np.uint8).tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx((count, 28, 28), images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx((count,), labels))
    return folder


def source_of(folder, monkeypatch):
    monkeypatch.setattr(data, "FOLDER", folder)
    return data.mnist("never")[4]


@pytest.mark.parametrize("n, n_test", [(12, 1), (1500, 250)])
def test_any_number_of_images(tmp_path, monkeypatch, n, n_test):
    monkeypatch.setattr(data, "FOLDER", put_images(tmp_path / "small", n, n_test))
    *arrays, _ = data.mnist("never")
    rng = np.random.default_rng(0)
    assert shape(arrays) == mnist_shape(n, n_test)
    assert arrays[0].numpy().tobytes() == rng.bytes(n * 784)
    assert arrays[1].tolist() == rng.integers(10, size=n).tolist()
    assert arrays[2].numpy().tobytes() == rng.bytes(n_test * 784)


def test_the_source_names_the_images(tmp_path, monkeypatch):
    """Images that are not MNIST are named after their folder and their contents, always alike."""
    fashion = put_images(tmp_path / "fashion-mnist")
    source = source_of(fashion, monkeypatch)
    assert re.fullmatch(r"images in fashion-mnist \(md5 [0-9a-f]{6}\)", source)
    blobs = b"".join((fashion / name).read_bytes() for name in data.MNIST)
    assert hashlib.md5(blobs).hexdigest()[:6] in source
    assert source_of(put_images(tmp_path / "copy" / "fashion-mnist"), monkeypatch) == source
    other = source_of(put_images(tmp_path / "other" / "fashion-mnist", seed=1), monkeypatch)
    assert other.startswith("images in fashion-mnist (md5 ") and other != source
    monkeypatch.chdir(fashion)
    assert source_of(Path("."), monkeypatch) == source  # DATA_DIR=. has a name too


@pytest.mark.parametrize("name", data.MNIST)
def test_one_file_of_another_source_is_not_mnist(tmp_path, monkeypatch, name):
    """The same pixels and labels, yet one of the four files is not the official one."""
    need(*data.MNIST)
    (tmp_path / "mixed").mkdir()
    for file in data.MNIST:
        blob = (REAL / file).read_bytes()
        blob = gzip.compress(gzip.decompress(blob), 1, mtime=0) if file == name else blob
        (tmp_path / "mixed" / file).write_bytes(blob)
    assert source_of(tmp_path / "mixed", monkeypatch).startswith("images in mixed (md5 ")


# %% Stand-in digits
def test_stand_in_always_touches_neither_network_nor_folder(filled, sealed, capsys, monkeypatch):
    """The folder holds only damaged files, and every request and writing is an error."""
    for path in filled.iterdir():
        path.write_bytes(b"damaged")
    sealed()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    *arrays, source = data.mnist("always")
    assert source.startswith("stand-in") and shape(arrays) == mnist_shape(60000, 10000)
    assert not torch.equal(arrays[0][:10000], arrays[2])  # the test digits are others
    assert data.text(stand_in="always")[1].startswith("stand-in")
    assert data.audio(stand_in="always")[2].startswith("stand-in")
    assert capsys.readouterr().err == ""


def test_stand_in_digits():
    x, y = data.stand_in_digits(4000, 7)
    again, other = data.stand_in_digits(4000, 7), data.stand_in_digits(4000, 8)
    assert shape((x, y)) == [((4000, 1, 28, 28), torch.uint8), ((4000,), torch.int64)]
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert not torch.equal(x, other[0]) and not torch.equal(y, other[1])
    assert y.bincount(minlength=10).min() > 320 and y.bincount().max() < 480 and y.max() == 9  # 400 each, 4 sigma
    assert x.amax((1, 2, 3)).min() > 230 and (x == 0).flatten(1).float().mean(1).min() > .4  # a background of zeros
    mass = x[:, 0].double()
    across, down = ((mass.sum(at) @ torch.arange(28.).double()) / mass.sum((1, 2)) for at in (1, 2))
    for middle in (across, down):
        assert abs(middle.mean() - 14) < .5 and (middle - 14).abs().max() < 3  # MNIST: 14.0
    assert .09 < x.float().mean() / 255 < .17  # MNIST: 0.13
    assert len({i.numpy().tobytes() for i in x}) == len(x)  # no two alike


@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_few_stand_in_digits(n):
    """Also where some digit does not occur."""
    assert shape(data.stand_in_digits(n, 0)) == [((n, 1, 28, 28), torch.uint8), ((n,), torch.int64)]


def test_a_classifier_of_real_digits_reads_the_stand_in(real):
    x, y, x_test, y_test, _ = real
    nn, threads = torch.nn, torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 12, 5, 2), nn.ReLU(), nn.Conv2d(12, 32, 3, 2), nn.ReLU(), nn.Flatten(),
                            nn.Dropout(.3), nn.Linear(800, 10))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(4):
            for batch in torch.randperm(10000).split(100):
                loss = nn.functional.cross_entropy(net(x[batch] / 255), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    net.eval()
    with torch.no_grad():
        drawn, labels = data.stand_in_digits(3000, 5)
        read, read_real = net(drawn / 255).argmax(1) == labels, net(x_test[:3000] / 255).argmax(1) == y_test[:3000]
    torch.set_num_threads(threads)
    assert read_real.float().mean() >= .93  # else the judge is no judge
    assert read.float().mean() >= .95
    assert min(read[labels == d].float().mean().item() for d in range(10)) >= .85


# %% Downloads
@pytest.mark.parametrize("bad", ["wrong", "short", "missing", "dead", "silent", "stalled", "noise", "lengthless"])
def test_a_bad_mirror_is_passed_over(folder, server, mirrors, sealed, capsys, bad):
    name = data.TEXT
    urls, start = mirrors({name: PAYLOAD}, bad, "good")[name], time.monotonic()
    assert data.fetch(name, "auto") == PAYLOAD
    assert time.monotonic() - start < 6  # data.SECONDS is 0.4, the silent server waits 9
    err = capsys.readouterr().err
    assert urls[0] in err and "STAND-IN" not in err and "Traceback" not in err
    if bad == "wrong":
        assert any(urls[0] in line and "checksum" in line for line in err.splitlines())
    else:
        assert any(urls[0] in line and re.search("cannot", line) for line in err.splitlines())
    assert server.seen == [f"{how}/{name}" for how in (bad, "good") if how != "dead"]
    assert [p.name for p in folder.iterdir()] == [name] and (folder / name).read_bytes() == PAYLOAD
    sealed()
    assert data.fetch(name, "never") == PAYLOAD  # without network
    assert capsys.readouterr().err == ""


def test_every_mirror_is_tried_in_turn(folder, server, mirrors, capsys):
    hows = ["missing", "wrong", "short", "noise", "good"]
    urls = mirrors({data.TEXT: PAYLOAD}, *hows, "good")[data.TEXT]
    assert data.fetch(data.TEXT, "never") == PAYLOAD
    assert server.seen == [f"{how}/{data.TEXT}" for how in hows]  # and the second good one was not asked
    places = [capsys.readouterr().err] * len(hows)
    places = [err.index(url) for err, url in zip(places, urls)]
    assert places == sorted(places)


@pytest.mark.parametrize("stand_in", ["auto", "never"])
def test_only_bad_mirrors(folder, server, mirrors, capsys, stand_in):
    mirrors({data.TEXT: PAYLOAD}, "wrong", "short", "missing", "dead")
    if stand_in == "auto":
        assert data.fetch(data.TEXT, "auto") is None
    else:
        assert data.TEXT in refusal(data.fetch, data.TEXT, "never")
    assert server.seen == [f"{how}/{data.TEXT}" for how in ("wrong", "short", "missing")]
    assert not folder.exists() or not list(folder.iterdir())
    assert capsys.readouterr().err.count("checksum") >= 1


def test_the_file_appears_whole(folder, mirrors, monkeypatch):
    """It is written beside its place and then moved there in one step."""
    moves, replace = [], os.replace

    def watch(a, b):
        moves.append((Path(a).read_bytes() == PAYLOAD, Path(a).parent == folder, Path(b).name, Path(b).exists()))
        replace(a, b)
    monkeypatch.setattr(os, "replace", watch)
    mirrors({data.TEXT: PAYLOAD}, "good")
    data.fetch(data.TEXT, "never")
    assert moves == [(True, True, data.TEXT, False)]
    assert [p.name for p in folder.iterdir()] == [data.TEXT]


def test_all_six_files_are_downloaded_and_kept(folder, server, mirrors, sealed, sound, capsys):
    """Through the loaders; the audio archive is checked by its 3,000 recordings."""
    mirrors(sound, "good")
    first = data.mnist("never"), data.text(stand_in="never"), data.audio(stand_in="never")
    assert server.seen == [f"good/{name}" for name in NAMES]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == sound
    sealed()
    second = data.mnist("never"), data.text(stand_in="never"), data.audio(stand_in="never")
    assert first[0][4] == second[0][4] == "MNIST"  # their checksums are those that the test set up as official
    assert all(torch.equal(a, b) for a, b in zip(first[0][:4], second[0][:4]))
    assert first[1] == second[1]
    assert all(np.array_equal(a[0], b[0]) for i in (0, 1) for a, b in zip(first[2][i], second[2][i]))


@pytest.mark.parametrize("name", NAMES)
def test_real_files_pass_the_check(folder, server, mirrors, monkeypatch, name):
    """The checksums written into data.py are those of the real files, and a spoiled copy fails."""
    need(name)
    blob, checks = (REAL / name).read_bytes(), data.CHECKS
    mirrors({name: blob}, "short", "good")
    monkeypatch.setattr(data, "CHECKS", checks)
    assert data.fetch(name, "never") == blob and (folder / name).read_bytes() == blob
    assert server.seen == [f"short/{name}", f"good/{name}"]


def test_a_spoiled_archive_is_not_kept(folder, server, mirrors, sound, capsys):
    """One changed byte: 3,000 names are still there, yet the gzip checksum tells."""
    mirrors({data.AUDIO: sound[data.AUDIO]}, "wrong", "good")
    assert data.fetch(data.AUDIO, "never") == sound[data.AUDIO]
    assert server.seen == [f"wrong/{data.AUDIO}", f"good/{data.AUDIO}"]


# %% No network
LOADERS = {"mnist": data.mnist, "text": lambda s: data.text(stand_in=s), "audio": lambda s: data.audio(stand_in=s)}
FIRST = {"mnist": "train-images-idx3-ubyte.gz", "text": data.TEXT, "audio": data.AUDIO}


@pytest.mark.parametrize("kind", LOADERS)
def test_no_network(folder, capsys, monkeypatch, kind):
    monkeypatch.setattr(data, "stand_in_digits", lambda n, *_: (torch.zeros(n), torch.zeros(n)))  # the slow part
    assert LOADERS[kind]("auto")[-1].startswith("stand-in")
    loud = [line for line in capsys.readouterr().err.splitlines() if "STAND-IN" in line]
    assert len(loud) == 1 and FIRST[kind] in loud[0] and "NO REAL DATA" in loud[0]
    message = refusal(LOADERS[kind], "never")
    assert FIRST[kind] in message and str(folder) in message
    assert not folder.exists() or not list(folder.iterdir())


def test_one_missing_mnist_file_gives_the_whole_stand_in(filled, monkeypatch):
    """Never half real and half drawn."""
    (filled / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(data, "stand_in_digits", lambda n, seed, device: (n, seed))
    *arrays, source = data.mnist()
    assert arrays == [60000, 0, 10000, 1] and source.startswith("stand-in")
    assert "t10k-labels-idx1-ubyte.gz" in refusal(data.mnist, "never")


# %% Text
def test_text_real(monkeypatch):
    need(data.TEXT)
    monkeypatch.setattr(data, "FOLDER", REAL)
    corpus, source = data.text(stand_in="never")
    assert source == "tiny Shakespeare" and len(corpus) == 1115394 and len(set(corpus)) == 65
    assert corpus.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    ids, vocabulary, source = data.text(ids=True)
    assert source == "tiny Shakespeare" and shape([ids]) == [((1115394,), torch.int64)]
    assert vocabulary == sorted(set(corpus)) and "".join(vocabulary[i] for i in ids.tolist()) == corpus


@pytest.mark.parametrize("corpus", ["a", "banana\n", "Grüße, 世界 🎈\r\n\tend ", " \n x"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_text_of_the_user(tmp_path, sealed, corpus, bom):
    path = tmp_path / "mine.txt"
    path.write_bytes(bom + corpus.encode())
    sealed()
    assert data.text(path) == data.text(str(path)) == (corpus, "mine.txt")
    ids, vocabulary, source = data.text(path, ids=True)
    assert ids.dtype == torch.int64 and source == "mine.txt" and vocabulary == sorted(set(corpus))
    assert "".join(vocabulary[i] for i in ids) == corpus


@pytest.mark.parametrize("blob", [b"", b"\xef\xbb\xbf", b" \n\t\r\n ", b"caf\xe9 noir", "hello".encode("utf-16"), None],
                         ids=["empty", "BOM only", "whitespace", "Latin-1", "UTF-16", "missing"])
@pytest.mark.parametrize("own", [True, False])
def test_text_refused(tmp_path, folder, blob, own):
    path = tmp_path / "mine.txt" if own else folder / data.TEXT
    path.parent.mkdir(exist_ok=True)
    if blob is not None:
        path.write_bytes(blob)
    message = refusal(data.text, path) if own else refusal(data.text, stand_in="never")
    assert path.name in message


def test_text_stand_in():
    corpus, source = data.text(stand_in="always")
    assert source == "stand-in text" and corpus == data.text(stand_in="always")[0] and len(corpus) > 300_000
    ids, vocabulary, _ = data.text(stand_in="always", ids=True)
    assert "".join(vocabulary[i] for i in ids.tolist()) == corpus


# %% Audio
def check_clips(train, test):
    """What holds for the real archive, the made-up one and the stand-in."""
    assert (len(train), len(test)) == (2700, 300)
    for clips, each in ((train, 270), (test, 30)):
        assert np.bincount([digit for _, digit, _ in clips]).tolist() == [each] * 10
        speakers = [speaker for *_, speaker in clips]
        assert len(set(speakers)) == 6 and {speakers.count(s) for s in speakers} == {each * 10 // 6}
        for pcm, digit, _ in clips:
            assert pcm.dtype == np.float32 and pcm.ndim == 1 and len(pcm) and type(digit) is int
            assert -1 <= pcm.min() < pcm.max() <= 1


def test_audio_real(monkeypatch):
    need(data.AUDIO)
    monkeypatch.setattr(data, "FOLDER", REAL)
    train, test, source = data.audio(stand_in="never")
    check_clips(train, test)
    assert source == "Free Spoken Digit Dataset"
    assert {c[2] for c in train} == {"george", "jackson", "lucas", "nicolas", "theo", "yweweler"}
    with tarfile.open(REAL / data.AUDIO) as tar:
        for name, clips in (("7_jackson_32", train), ("0_theo_4", test), ("3_lucas_5", train)):
            member = next(m for m in tar if m.name.endswith(f"/{name}.wav"))
            with wave.open(tar.extractfile(member)) as f:
                pcm = np.frombuffer(f.readframes(f.getnframes()), "<i2") / 32768
            alike = [c for c in clips if np.array_equal(c[0], pcm.astype(np.float32))]
            assert [c[1:] for c in alike] == [(int(name[0]), name.split("_")[1])]


def test_audio_archive(filled):
    """The made-up archive: the samples come through unchanged, and recordings 0-4 are the test set."""
    train, test, source = data.audio()
    check_clips(train, test)
    noise = np.random.default_rng(0).uniform(-1, 1, (3000, 60)).reshape(10, 6, 50, 60)
    for clips, at in ((train, slice(5, None)), (test, slice(0, 5))):
        assert np.allclose([c[0] for c in clips], noise[:, :, at].reshape(-1, 60), atol=1e-4)
    assert [c[2] for c in test[:30:5]] == ["ann", "bob", "cy", "di", "ed", "flo"]


def test_audio_stand_in():
    train, test, source = data.audio(stand_in="always")
    again = data.audio(stand_in="always")
    check_clips(train, test)
    assert source.startswith("stand-in")
    for a, b in zip(train + test, again[0] + again[1]):
        assert np.array_equal(a[0], b[0]) and a[1:] == b[1:]
    pitch = []
    for digit in range(10):
        lags = []
        for pcm in [c[0] for c in train if c[1] == digit][::30]:
            lags.append(15 + np.argmax([np.dot(pcm[400:2400], pcm[400 + k: 2400 + k]) for k in range(15, 90)]))
        assert max(lags) - min(lags) <= 1  # one pitch whoever plays
        pitch.append(8000 / np.mean(lags))
    assert len(set(pitch)) == 10 and pitch == sorted(pitch) and min(np.diff(pitch)) > 5


@pytest.mark.parametrize("how", ["truncated", "without its end", "a byte changed", "empty", "no gzip", "2,999 files"])
def test_damaged_archive(filled, sound, how):
    blob = sound[data.AUDIO]
    (filled / data.AUDIO).write_bytes(
        archive(dict(list(data.unpack(blob).items())[1:])) if how == "2,999 files" else DAMAGE[how](blob))
    message = refusal(data.audio)
    assert str(filled / data.AUDIO) in message
    assert re.search("remove|replace", message)  # what to do


def sine(rate, seconds=.24, hertz=440, high=.5):
    return high * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def clip_of(folder, blob):
    """A WAV file as audio() reads it, beside another one."""
    folder.mkdir(exist_ok=True)
    for name in ("7_anna_12.wav", "7_anna_1.wav"):
        (folder / name).write_bytes(blob)
    train, test, source = data.audio(folder)
    assert source == folder.name and np.array_equal(train[0][0], test[0][0])
    assert train[0][1:] == test[0][1:] == (7, "anna") and train[0][0].dtype == np.float32
    return train[0][0]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 11025])
def test_a_sine_stays_the_same_sine(tmp_path, rate, bits, channels):
    pcm = clip_of(tmp_path / "wavs", wav(np.stack([sine(rate)] * channels, 1), rate, bits))
    assert len(pcm) == 1920 and np.abs(pcm).max() <= 1
    assert np.abs(pcm - sine(8000))[150:-150].max() < (.01 if bits == 8 else .003)  # the ends ring a little
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(1920), 8000))
    assert abs(int(spectrum.argmax()) - 440) <= 1  # 1 Hz a bin


def test_channels_are_averaged_and_inaudible_pitches_do_not_fold(tmp_path):
    one = np.stack([sine(16000), 0 * sine(16000)], 1)
    assert np.abs(clip_of(tmp_path / "one", wav(one, 16000)) - sine(8000) / 2)[150:-150].max() < .003
    high = wav(sine(44100, .5, 6000), 44100)  # would be heard at 2 kHz if samples were only left out
    assert np.abs(clip_of(tmp_path / "high", high)).max() < .001


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_loud_square_wave_stays_in_range(tmp_path, rate):
    """Resampling overshoots at jumps; the contract is [-1, 1]."""
    pcm = clip_of(tmp_path / "wavs", wav(np.sign(sine(rate, .24, 100) + 1e-9), rate))
    assert .8 < np.abs(pcm).mean() and np.abs(pcm).max() <= 1


def test_names_of_recordings(tmp_path):
    names = ["7_anna_12", "7_anna_4", "0_bob_0", "9_bob_5", "3_Élise-2_49", "3_Élise-2_3"]
    for i, name in enumerate(names):
        (tmp_path / f"{name}.wav").write_bytes(wav(np.zeros(100 + i)))
    (tmp_path / "notes.txt").write_text("no sound")
    train, test, source = data.audio(str(tmp_path))
    assert source == tmp_path.name
    assert sorted((len(p), d, s) for p, d, s in train) == [(100, 7, "anna"), (103, 9, "bob"), (104, 3, "Élise-2")]
    assert sorted((len(p), d, s) for p, d, s in test) == [(101, 7, "anna"), (102, 0, "bob"), (105, 3, "Élise-2")]


@pytest.mark.parametrize("n, expected", [(2, [1]), (9, [8]), (10, [9]), (20, [9, 19]), (25, [9, 19])])
def test_other_names(tmp_path, n, expected):
    """Every tenth file in the order of names is the test set, at least one."""
    for i in random.Random(0).sample(range(n), n):
        (tmp_path / f"take {i:02}.wav").write_bytes(wav(np.zeros(100 + i)))
    train, test, _ = data.audio(tmp_path)
    assert {digit for _, digit, _ in train + test} == {-1}
    assert sorted(len(c[0]) - 100 for c in train + test) == list(range(n))
    assert [len(c[0]) - 100 for c in test] == expected


@pytest.mark.parametrize("odd", ["door.wav", "10_anna_3.wav", "x_anna_3.wav", "7_anna.wav", "7_anna_x.wav",
                                 "7_anna_3_4.wav", "7_anna_².wav"])
def test_one_odd_name_takes_the_digits_from_all(tmp_path, odd):
    for name in ("7_anna_12.wav", "8_anna_1.wav", odd):
        (tmp_path / name).write_bytes(wav(np.zeros(50)))
    train, test, _ = data.audio(tmp_path)
    assert [c[1] for c in train + test] == [-1] * 3 and len(test) == 1


@pytest.mark.parametrize("takes", [range(5, 30), range(5), [7, 7], [4, 4]])
def test_takes_on_one_side_of_5_are_split_as_other_names_are(tmp_path, takes):
    """Neither set may be empty: every tenth file is a test, at least one; digits and speakers are kept."""
    names = sorted(f"{i % 10}_{'anna' if i % 2 else 'bob'}_{take}.wav" for i, take in enumerate(takes))
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(wav(np.zeros(100 + i)))
    train, test, _ = data.audio(tmp_path)
    clips = sorted(train + test, key=lambda c: len(c[0]))
    assert [[str(digit), speaker] for _, digit, speaker in clips] == [name.split("_")[:2] for name in names]
    last = min(10, len(names)) - 1
    assert [len(c[0]) - 100 for c in test] == list(range(last, len(names), 10)) and train


def test_the_ending_may_be_in_capitals(tmp_path):
    for i, name in enumerate(["7_anna_12.WAV", "8_anna_1.Wav", "9_bob_3.wav", "1_bob_3.WAVE", "wav"]):
        (tmp_path / name).write_bytes(wav(np.zeros(100 + i)))
    train, test, _ = data.audio(tmp_path)
    assert [(len(p), d, s) for p, d, s in train] == [(100, 7, "anna")]
    assert [(len(p), d, s) for p, d, s in test] == [(101, 8, "anna"), (102, 9, "bob")]


# %% WAV files put together by hand
def chunk(kind, body):
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def riff(code, bits, raw, channels=1, rate=8000, extensible=False, before=b"", after=b""):
    """The bytes of a WAV file of any format, with chunks before and after those of the sound."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else code, channels, rate, rate * frame, frame, bits)
    if extensible:  # then the code stands at the beginning of a GUID
        form += struct.pack("<HHIH", 22, bits, 0, code) + bytes.fromhex("000000001000800000aa00389b71")
    body = b"WAVE" + before + chunk(b"fmt ", form) + chunk(b"data", raw) + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits", [32, 64])
def test_floats_come_through_as_they_are(tmp_path, bits, extensible):
    x = np.random.default_rng(0).uniform(-1, 1, (500, 2)).astype(f"<f{bits // 8}")
    for channels in (1, 2):
        own = np.ascontiguousarray(x[:, :channels])
        pcm = clip_of(tmp_path / f"{channels}", riff(3, bits, own.tobytes(), channels, 8000, extensible))
        assert np.array_equal(pcm, own.astype(float).mean(1).astype(np.float32))


@pytest.mark.parametrize("bits", [32, 64])
def test_a_sine_in_floats_stays_the_same_sine(tmp_path, bits):
    raw = sine(44100).astype(f"<f{bits // 8}").tobytes()
    pcm = clip_of(tmp_path / "wavs", riff(3, bits, raw, rate=44100))
    assert len(pcm) == 1920 and np.abs(pcm - sine(8000))[150:-150].max() < .003


def test_floats_louder_than_1_are_clipped(tmp_path):
    raw = np.array([0, .5, 1.5, -7, 1], "<f4").tobytes()
    assert clip_of(tmp_path / "wavs", riff(3, 32, raw)).tolist() == [0, .5, 1, -1, 1]


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_extensible_pcm_is_pcm(tmp_path, bits):
    blob = wav(np.random.default_rng(0).uniform(-1, 1, (301, 1)), 8000, bits)
    raw = blob[44:44 + 301 * bits // 8]
    plain = clip_of(tmp_path / "plain", blob)
    assert len(plain) == 301 and np.abs(plain).max() > .9
    assert np.array_equal(plain, clip_of(tmp_path / "by hand", riff(1, bits, raw)))
    assert np.array_equal(plain, clip_of(tmp_path / "extensible", riff(1, bits, raw, extensible=True)))


@pytest.mark.parametrize("before, after", [
    (chunk(b"LIST", b"1"), b""), (chunk(b"JUNK", bytes(8)) + chunk(b"bext", b"data"), chunk(b"LIST", b"ok")),
    (b"", b"rubbish"), (chunk(b"fact", bytes(4)), struct.pack("<4sI", b"LIST", 999) + b"cut")])
def test_other_chunks_are_passed_over(tmp_path, before, after):
    raw = np.array([0, 16384, -32768], "<i2").tobytes()
    assert clip_of(tmp_path / "wavs", riff(1, 16, raw, before=before, after=after)).tolist() == [0, .5, -1]


def test_an_odd_number_of_bytes_needs_no_padding_at_the_end(tmp_path):
    blob = riff(1, 8, bytes([128, 192, 0]))
    assert clip_of(tmp_path / "wavs", blob[:-1]).tolist() == [0, .5, -1]


WAV = wav(sine(16000), 16000)
BROKEN = {"empty": b"", "text": b"this is no sound at all, only a name", "header only": WAV[:30],
          "cut in a sample": WAV[:-1001], "cut between samples": WAV[:-1000], "no data": WAV[:36],
          "float": WAV[:20] + b"\3\0" + WAV[22:], "rate 0": WAV[:24] + bytes(4) + WAV[28:],
          "255 bits": WAV[:34] + b"\xff\0" + WAV[36:], "0 channels": WAV[:22] + bytes(2) + WAV[24:],
          "endless format": WAV[:16] + b"\0\0\0\xff" + WAV[20:],
          "A-law": riff(6, 8, bytes(100)), "ADPCM": riff(2, 4, bytes(100)), "MP3": riff(85, 16, bytes(100)),
          "half floats": riff(3, 16, bytes(100)), "64-bit integers": riff(1, 64, bytes(800)),
          "0 bits": riff(1, 0, bytes(100)), "not a number": riff(3, 32, np.full(9, np.nan, "<f4").tobytes()),
          "infinite": riff(3, 64, np.full(9, np.inf).tobytes()), "cut floats": riff(3, 32, bytes(400))[:-4],
          "no format": b"RIFF\0\0\0\0WAVE" + chunk(b"data", bytes(100)),
          "AIFF": b"FORM\0\0\0\0AIFF" + WAV[12:],
          "a short extensible format": WAV[:20] + b"\xfe\xff" + WAV[22:],
          "extensible A-law": riff(6, 8, bytes(100), extensible=True)}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_wav(tmp_path, how):
    (tmp_path / "1_ok_1.wav").write_bytes(WAV)
    (tmp_path / "2_broken_7.wav").write_bytes(BROKEN[how])
    assert "2_broken_7.wav" in refusal(data.audio, tmp_path)


@pytest.mark.parametrize("n", [None, 0, 1])
def test_too_few_wavs(tmp_path, n):
    path = tmp_path / "wavs"
    if n is not None:
        path.mkdir()
        (path / "readme.txt").write_text("nothing here")
        for i in range(n):
            (path / f"{i}_anna_7.wav").write_bytes(WAV)
    assert str(path) in refusal(data.audio, path)


def test_a_folder_that_is_not_there_or_is_none(tmp_path):
    (tmp_path / "sound.wav").write_bytes(WAV)
    missing, file = (refusal(data.audio, tmp_path / name) for name in ("sounds", "sound.wav"))
    assert re.search("No such file or directory|cannot find the path", missing)
    assert re.search("(?i)not a directory|directory name is invalid", file)


def test_the_folder_that_one_is_in_has_a_name_too(tmp_path, monkeypatch):
    for i in (1, 12):
        (tmp_path / f"7_anna_{i}.wav").write_bytes(WAV)
    monkeypatch.chdir(tmp_path)
    assert data.audio(".")[2] == tmp_path.name


# %% python data.py
def run(cwd, folder):
    """The script as a user runs it, behind a dead proxy: (status, stdout, lines of stderr)."""
    env = os.environ | {"DATA_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    env |= {name: "http://127.0.0.1:1" for name in ("http_proxy", "https_proxy")} | {"no_proxy": ""}
    done = subprocess.run([sys.executable, SCRIPT], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, [s for s in done.stderr.splitlines() if "font cache" not in s]


def check_pages(cwd):
    import matplotlib.image
    pages = cwd / "out" / "data"
    assert sorted(p.name for p in pages.iterdir()) == ["audio.png", "mnist.png", "text.png"]
    for page in pages.iterdir():
        assert matplotlib.image.imread(page)[..., :3].std() > .02  # something is drawn
    assert matplotlib.image.imread(pages / "mnist.png").shape[:2] == (280, 448)


def test_script_with_real_data(tmp_path):
    need(*NAMES)
    before = sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in REAL.iterdir())
    status, out, err = run(tmp_path, REAL)
    assert (status, err) == (0, [])
    assert "MNIST: 60,000 images" in out and "1,115,394 characters" in out and "2,700 clips" in out
    check_pages(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in REAL.iterdir()) == before


def test_script_without_network(tmp_path, filled):
    """Images are there, the other two files are not."""
    (filled / data.TEXT).unlink()
    (filled / data.AUDIO).unlink()
    status, out, err = run(tmp_path, filled)
    loud = [line for line in err if "STAND-IN" in line]
    assert status == 0 and len(loud) == 2 and data.TEXT in loud[0] and data.AUDIO in loud[1]
    assert len(re.findall("^stand-in", out, re.M)) == 2 and f"): {N:,} images" in out and "2,700 clips" in out
    check_pages(tmp_path)


def test_script_with_a_damaged_file(tmp_path, filled, sound):
    (filled / "t10k-images-idx3-ubyte.gz").write_bytes(sound["t10k-images-idx3-ubyte.gz"][:300])
    status, out, err = run(tmp_path, filled)
    assert status == 2 and len(err) == 1 and err[0].startswith("data.py: ") and "t10k-images-idx3-ubyte.gz" in err[0]
    assert not list((tmp_path / "out").rglob("*.png"))


# %% Ctrl-C
posix = pytest.mark.skipif(os.name != "posix", reason="a signal of POSIX")


def interrupt(command, ready, **env):
    """Send Ctrl-C when the process has printed a line with the word `ready`: one line may be left, and status 130."""
    process = subprocess.Popen([sys.executable, *command], cwd=SCRIPT.parent, env=os.environ | env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1)
    assert any(ready in line for line in process.stdout)  # reads on until that line
    process.send_signal(signal.SIGINT)
    lines = [line for line in process.communicate(timeout=30)[0].splitlines() if line.strip()]
    assert process.returncode in (-signal.SIGINT, 130)  # a shell reports both as 130
    assert lines == ["KeyboardInterrupt"]


@posix
@pytest.mark.parametrize("command, slow", [(["-c", "import data"], "numpy"), (["-c", "import data"], "torch"),
                                           (["-c", "import data, later"], "later"), ([str(SCRIPT)], "torch")])
def test_interrupted_while_importing(tmp_path, command, slow):
    """A module that is slow to import, in data.py or in a chapter after it."""
    (tmp_path / f"{slow}.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(30)\n")
    interrupt(command, "ready", PYTHONPATH=str(tmp_path))


@posix
@pytest.mark.parametrize("call", ["mnist()", "text()", "audio()"])
def test_interrupted_while_reading(filled, call):
    """A file that never comes: a pipe that nobody writes to."""
    name = {"mnist()": "t10k-images-idx3-ubyte.gz", "text()": data.TEXT, "audio()": data.AUDIO}[call]
    (filled / name).unlink()
    os.mkfifo(filled / name)
    code = f"import data; print('ready', flush=True); data.{call}"
    interrupt(["-c", code], "ready", DATA_DIR=str(filled))


@posix
def test_interrupted_while_downloading(folder, server):
    """python data.py behind a proxy that keeps silent."""
    interrupt([str(SCRIPT)], "downloading https", DATA_DIR=str(folder), https_proxy=server.url, no_proxy="")
    assert not folder.exists()


def test_only_interrupts_lose_their_traceback(tmp_path):
    """Every other error is printed as Python prints it."""
    command = [sys.executable, "-c", "import data; 1 / 0"]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr
