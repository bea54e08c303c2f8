"""data.py: own, official, missing and damaged files, stand-ins; no test asks the network."""

import gzip
import hashlib
import io
import os
import re
import runpy
import signal
import struct
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data

REAL = data.folder()
needs_real_data = pytest.mark.skipif(not (REAL / data.AUDIO).exists(), reason=f"{REAL} lacks them")
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = data.MNIST
MD5 = r"\(md5 [0-9a-f]{6}\)"
draw = data.stand_in_digits


# Tools
@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The data folder, empty, without a network; the many stand-in digits are few, to be quick."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "datasets"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(data, "stand_in_digits", lambda n, seed: draw(n // 100, seed))
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


def serve(monkeypatch, files):
    """Let mirrors give {end of a URL: bytes}; the URLs asked for, in turn."""
    asked = []

    def urlopen(url, timeout):
        assert timeout == 15
        asked.append(url)
        return io.BytesIO(next(files[end] for end in files if url.endswith(end)))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def make_official(monkeypatch, files):
    for name, blob in files.items():
        monkeypatch.setitem(data.OFFICIAL, hashlib.md5(blob).hexdigest(), name)


def refusal(call, *args, **flags):
    """The one sentence of the OSError that a call must end in."""
    with pytest.raises(OSError) as caught:
        call(*args, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def idx(values):
    """MNIST's format: 0, 0, 8, the number of dimensions; their sizes; the values, a byte each."""
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def four(n=24, n_test=6, labels=10):
    """What MNIST's four files hold, made up: {name: bytes}."""
    x = np.random.default_rng(0).integers(256, size=(n + n_test, 28, 28))
    y = np.arange(n + n_test) % labels
    return dict(zip(data.MNIST, map(idx, [x[:n], y[:n], x[n:], y[n:]]), strict=True))


def write(folder, files):
    """Write {name: bytes}, gzipped where the name says so."""
    for name, blob in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(blob, 1) if name.endswith(".gz") else blob)


def encoded(image, kind="PNG"):
    blob = io.BytesIO()
    image.save(blob, kind)
    return blob.getvalue()


def png(level):
    return encoded(Image.new("L", (28, 28), level))


def chunk(name, contents):
    return name + struct.pack("<I", len(contents)) + contents + bytes(len(contents) % 2)


def wav(samples, rate=8000, bits=16, code=1, extensible=False, before=b"", after=b""):
    """A WAV file, put together by hand, of samples in [-1, 1], (T,) or (T, channels)."""
    samples = np.asarray(samples, float)
    raw = samples.astype(f"<f{max(bits // 8, 4)}").tobytes()
    if code != 3:
        whole = np.floor(samples * (2 ** (bits - 1) - 1)) + 128 * (bits == 8)
        raw = whole.astype("<i4").reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
    frame = bits // 8 * (samples.shape[1] if samples.ndim > 1 else 1)
    kind = 0xFFFE if extensible else code
    form = struct.pack("<HHIIHH", kind, frame * 8 // bits, rate, rate * frame, frame, bits)
    form += struct.pack("<HHIH14x", 22, bits, 0, code) if extensible else b""
    body = b"WAVE" + before + chunk(b"fmt ", form) + chunk(b"data", raw) + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def sine(rate, hertz=440):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate // 4) / rate)


WHOLE = wav(sine(8000))


# The real data
@needs_real_data
def test_the_real_data_have_their_names(monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(REAL))
    x, y, x_test, y_test, source = data.mnist("never")
    assert source == "MNIST" and len(x) == 60000 and x_test.shape == (10000, 1, 28, 28)
    assert y[:5].tolist() == [5, 0, 4, 1, 9] and y_test[:5].tolist() == [7, 2, 1, 0, 4]
    corpus, source = data.text(REAL / data.TEXT)  # official bytes, wherever they are
    assert source == "tiny Shakespeare" and len(corpus) == 1115394
    train, test, source = data.audio(stand_in="never")
    assert source == "Free Spoken Digit Dataset" and (len(train), len(test)) == (2700, 300)
    assert np.bincount([digit for _, digit, _ in test]).tolist() == [30] * 10


@needs_real_data
def test_mirrors_may_pack_the_real_data_anew(folder, monkeypatch):
    files = {name: gzip.compress(data.read(REAL / name), 0) for name in data.MNIST}
    files["1.0.10.tar.gz"] = gzip.compress(data.read(REAL / data.AUDIO), 0)
    files["input.txt"] = data.read(REAL / data.TEXT)
    asked = serve(monkeypatch, files)
    sources = [load(stand_in="never")[-1] for load in (data.mnist, data.text, data.audio)]
    assert sources == ["MNIST", "tiny Shakespeare", "Free Spoken Digit Dataset"]
    assert len(asked) == 6 == len(list(folder.iterdir()))


# MNIST's four files
def test_own_files_are_used_as_they_are_gunzipped_too(folder):
    write(folder, four())
    x, y, x_test, y_test, source = data.mnist()
    assert x.shape == (24, 1, 28, 28) and x.dtype == torch.uint8 and y.dtype == torch.int64
    assert x.numpy().tobytes() == four()[IMAGES][16:] and y_test.tolist() == [4, 5, 6, 7, 8, 9]
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(data.read(path))
        path.unlink()
    plain = data.mnist("never")
    assert all(map(torch.equal, plain[:4], (x, y, x_test, y_test))) and plain[4] == source


def test_a_source_names_the_folder_and_tells_contents_apart(folder, monkeypatch):
    write(folder, four())
    source = data.mnist()[-1]
    assert re.fullmatch(rf"images in datasets {MD5}", source)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    monkeypatch.chdir(folder)
    for same in ("~/datasets", "."):
        monkeypatch.setenv("DATA_DIR", same)
        assert data.mnist()[-1] == source
    write(folder, four(labels=9))
    assert data.mnist()[-1] != source


def test_labels_beyond_the_classes_are_refused_and_one_class_makes_all_alike(folder):
    write(folder, four(n=200, n_test=56, labels=256))  # 200 to 255 are in the test only
    assert data.mnist()[3].max() == data.mnist(classes=256)[3].max() == 255
    assert "up to 255: give --classes 256" in refusal(data.mnist, classes=255)
    _, y, _, y_test, _ = data.mnist(classes=1)
    assert not y.any() and not y_test.any()


DAMAGED = [
    {IMAGES: b"<html>404</html>"},
    {LABELS: b""},
    {TEST_IMAGES: four()[TEST_IMAGES][:-1]},
    {IMAGES: four()[LABELS]},
    {LABELS: four()[IMAGES]},
    {IMAGES: idx(np.zeros((24, 32, 32)))},
    {LABELS: idx(np.zeros(23))},
    {LABELS: gzip.compress(four()[LABELS])[:-9]},
    four(n=11),
    four(n_test=0),
]


@pytest.mark.parametrize("files", DAMAGED)
def test_damaged_files_and_too_few_images_are_refused(folder, files):
    write(folder, four() | files)
    for name, blob in files.items():
        (folder / name).write_bytes(blob)  # not packed
    assert "datasets" in refusal(data.mnist)


@pytest.mark.parametrize("own", [True, False])
def test_only_official_files_are_completed_by_downloads(folder, monkeypatch, own):
    write(folder, four())
    asked = serve(monkeypatch, {LABELS: (folder / LABELS).read_bytes()})
    make_official(monkeypatch, {LABELS: four()[LABELS]} if own else four())
    (folder / LABELS).unlink()
    if own:
        assert LABELS in refusal(data.mnist) and not asked and not (folder / LABELS).exists()
    else:
        assert data.mnist("never")[1].tolist()[:3] == [0, 1, 2] and len(asked) == 1


# Downloads
def test_mirrors_are_tried_in_turn_until_one_gives_official_bytes(folder, monkeypatch):
    folder.rmdir()
    make_official(monkeypatch, four())
    files = {f"cvdf-datasets/mnist/{name}": gzip.compress(blob) for name, blob in four().items()}
    files[f"amazonaws.com/mnist/{LABELS}"] = b"other bytes"  # and of the others nothing
    asked = serve(monkeypatch, files)
    first = data.mnist("never")
    assert asked == [url.format(name) for name in data.MNIST for url in data.MIRRORS[:2]]
    assert all(map(torch.equal, first[:4], data.mnist("never")[:4])) and len(asked) == 8
    assert sorted(path.name for path in folder.iterdir()) == sorted(data.MNIST)


def test_without_a_network_the_stand_in_serves_loudly(folder, capsys):
    for name, load in {IMAGES: data.mnist, data.TEXT: data.text, data.AUDIO: data.audio}.items():
        assert load(stand_in="auto")[-1].startswith("stand-in")
        assert capsys.readouterr().err.count(f"NO REAL DATA: {folder / name} is missing") == 1
        assert f"{folder / name} is missing" in refusal(load, stand_in="never")
    assert not list(folder.iterdir())


def test_always_made_up_asks_neither_network_nor_folder(folder, capsys):
    write(folder, {data.TEXT: b"To be", data.AUDIO: b"", "cats/1.png": b""})
    assert data.mnist("always")[-1] == "stand-in digits"
    assert data.mnist("always", classes=1)[1].max() == 0
    assert "--classes 10" in refusal(data.mnist, "always", classes=3)
    assert data.text(stand_in="always")[-1] == "stand-in text"
    assert data.audio(stand_in="always")[-1] == "stand-in audio (fading tones)"
    assert capsys.readouterr().err == ""


@pytest.fixture
def short_text(monkeypatch):
    """Tiny Shakespeare is these few words, which can be downloaded."""
    make_official(monkeypatch, {data.TEXT: b"To be"})
    serve(monkeypatch, {"input.txt": b"To be"})


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_full_disk_is_said_and_leaves_nothing(folder, short_text, step, monkeypatch, capsys):
    def fail(path, _):
        with path.open("ab") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, step, fail)
    assert str(folder / data.TEXT) in refusal(data.text, stand_in="never")
    assert "No space left" in capsys.readouterr().err and not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_named(folder, short_text, monkeypatch):
    write(folder, {"file": b""})
    monkeypatch.setenv("DATA_DIR", str(folder / "file"))  # no folder, not even for root
    sentence = refusal(data.text, stand_in="never")
    assert str(folder / "file") in sentence and "DATA_DIR" in sentence


# Folders of images
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1", "I;16", "I;16B", "I"])
def test_every_kind_of_image_becomes_grey(mode):
    levels = np.arange(784).reshape(28, 28) // 4
    levels = 255 * (levels > 99) if mode == "1" else levels
    image = Image.fromarray(levels.astype(np.uint8))
    if mode.startswith("I"):
        image = Image.fromarray((levels * 257).astype(">u2" if mode == "I;16B" else np.uint16))
    blob = encoded(image.convert(mode), "TIFF" if mode in ("CMYK", "I", "I;16B") else "PNG")
    assert np.array_equal(data.parse_image(blob)[0], levels)


def test_transparent_is_white_and_proportions_are_kept():
    assert data.parse_image(encoded(Image.new("RGBA", (28, 28), (0, 0, 0, 0)))).min() == 255
    image = Image.new("L", (100, 200), 200)
    image.paste(0, (0, 50, 100, 150))
    x = data.parse_image(encoded(image))[0]
    assert x[14].tolist() == [200] * 7 + [0] * 14 + [200] * 7 and (x < 100).sum() == 14 * 14


def test_a_folder_with_one_sub_folder_a_class(folder):
    for label, name in enumerate(["10", "2", "a"]):  # their sorted order
        write(folder, {f"{name}/{k}.png": png(50 * label + k) for k in range(20)})
    write(folder, {"a/notes.txt": b"", "a/.DS_Store": b"", "a/._1.png": b"", ".hidden/1.png": b""})
    x, y, x_test, y_test, source = data.mnist("never")
    assert (x.shape, x_test.shape) == ((50, 1, 28, 28), (10, 1, 28, 28))
    for images, labels in ((x, y), (x_test, y_test)):
        assert (images[:, 0, 9, 9] // 50).tolist() == labels.tolist() != sorted(labels)
    assert len(torch.cat([x, x_test])[:, 0, 9, 9].unique()) == 60  # each once
    assert re.fullmatch(rf"images in datasets {MD5}", source)
    assert all(map(torch.equal, data.mnist()[:4], (x, y, x_test, y_test)))


@pytest.mark.parametrize("place, classes", [("{1}.PNG", 1), ("training/{0}/{1}.png", 2)])
def test_other_folders_of_images_are_read_too(folder, place, classes):
    write(folder, {place.format(k % 2, k): png(k) for k in range(24)})
    x, y, _, _, _ = data.mnist("never")
    assert torch.equal(y, x[:, 0, 0, 0].long() % classes)


def test_few_images_are_refused_and_one_that_cannot_be_read_is_named(folder):
    write(folder, {f"a/{k}.png": png(0) for k in range(12)})
    assert "at least 12" in refusal(data.mnist)
    write(folder, {"a/cut.png": png(0)[:40]})
    assert "cut.png" in refusal(data.mnist)
    write(folder, four())
    assert len(data.mnist()[0]) == 24  # for files of MNIST's format come first


# Text
@pytest.mark.parametrize("corpus", ["a", "Grüße, 世界 🎈\r\n\tend ", "U+FFFD is \ufffd"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_text_of_ones_own(tmp_path, corpus, mark):
    write(tmp_path, {"café.txt": mark + corpus.encode()})
    found, source = data.text(tmp_path / "café.txt")
    assert found == corpus and re.fullmatch(rf"text in café\.txt {MD5}", source)
    ids, characters, again = data.text(str(tmp_path / "café.txt"), ids=True)
    assert ids.dtype == torch.int64 and characters == sorted(set(corpus)) and again == source
    assert "".join(characters[i] for i in ids) == corpus
    write(tmp_path, {"café.txt": corpus.encode() + b"!"})
    assert data.text(tmp_path / "café.txt")[1] != source


@pytest.mark.parametrize("blob", [b"", b" \n", b"caf\xe9", "hello".encode("utf-16")])
def test_what_is_no_text_is_refused_by_name(tmp_path, folder, blob):
    for path in (tmp_path, tmp_path / "missing.txt"):
        assert str(path) in refusal(data.text, path)
    write(folder, {data.TEXT: blob})
    assert data.TEXT in refusal(data.text)


def archive(folder, names):
    """Write sounds of these names in the archive that audio() looks for."""
    write(folder, {f"recordings/{name}.wav": WHOLE for name in names})
    with tarfile.open(folder / data.AUDIO, "w:gz") as tar:
        tar.add(folder / "recordings", "recordings")


def test_only_official_bytes_have_an_official_name(folder):
    write(folder, {data.TEXT: b"First Citizen:\n"})
    archive(folder, ["7_anna_1", "7_anna_9"])
    assert re.fullmatch(rf"text in {data.TEXT} {MD5}", data.text()[-1])
    assert re.fullmatch(rf"sounds in {data.AUDIO} {MD5}", data.audio()[-1])


@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
def test_a_name_is_clean_where_the_locale_knows_no_such_letter(tmp_path):
    write(tmp_path, {"café.txt": b"To be"})
    program = "import sys, data; print(ascii(data.text(sys.argv[1])[1]))"
    command = [sys.executable, "-c", program, tmp_path / "café.txt"]
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    printed = subprocess.check_output(command, cwd=Path(data.__file__).parent, env=plain)
    assert printed.startswith(rb"'text in caf\xe9.txt (md5 ")


# Sounds
def two(folder, blob):
    """A WAV file as audio() reads it, once for training and once as a test."""
    write(folder, {"7_anna_12.wav": blob, "8_ben_4.wav": blob})
    train, test, _ = data.audio(folder)
    assert train[0][1:] == (7, "anna") and test[0][1:] == (8, "ben")
    assert train[0][0].dtype == np.float32 and np.array_equal(train[0][0], test[0][0])
    return train[0][0]


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits, code", [(8, 1), (16, 1), (24, 1), (32, 1), (32, 3), (64, 3)])
def test_every_depth_is_read_among_other_chunks(tmp_path, bits, code, extensible):
    samples = np.random.default_rng(0).uniform(-1, 1, 501)
    before = chunk(b"LIST", b"odd") + chunk(b"bext", b"metadata fmt data")
    found = two(tmp_path, wav(samples, 8000, bits, code, extensible, before, b"rubbish"))
    assert len(found) == 501 and np.abs(found - samples).max() < (0.02 if bits == 8 else 1e-4)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_a_sine_stays_the_same_sine(tmp_path, rate):
    stereo = np.stack([2 * sine(rate), 0 * sine(rate)], axis=1)  # channels are averaged
    found = two(tmp_path, wav(stereo, rate))
    assert len(found) == 2000 and np.abs(found - sine(8000))[150:-150].max() < 0.003


def test_pitches_above_4_khz_do_not_fold_and_loud_sounds_are_clipped(tmp_path):
    assert np.abs(two(tmp_path, wav(sine(44100, 6000), 44100))).max() < 0.01
    assert two(tmp_path, wav([0, 0.5, 1.5, -7], bits=32, code=3)).tolist() == [0, 0.5, 1, -1]


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_a_streamed_sound_is_read_to_the_end_of_the_file(tmp_path, size):
    field = struct.pack("<I", size)
    streamed = WHOLE[:4] + field + WHOLE[8:40] + field + WHOLE[44:]
    assert np.array_equal(two(tmp_path, streamed), data.read_wav(WHOLE, "whole"))


ODD = [wav(sine(8000), rate=0), wav(sine(8000), bits=8, code=6), wav([np.nan] * 4, bits=32, code=3)]


@pytest.mark.parametrize("blob", [b"", b"no sound" * 9, WHOLE[:-1000], WHOLE[:36], *ODD])
def test_a_damaged_sound_is_named(tmp_path, blob):
    write(tmp_path, {"1_ok_1.wav": WHOLE, "2_broken_7.wav": blob})
    assert "2_broken_7.wav" in refusal(data.audio, tmp_path)


def test_names_give_digits_speakers_and_the_test(tmp_path):
    names = ["7_anna_12.wav", "7_anna_4.WAV", "0_bob_0.wav", "3_Élise-2_49.wav", "._7_anna_3.wav"]
    write(tmp_path, {name: wav(np.zeros(100 + k)) for k, name in enumerate(names)})
    train, test, source = data.audio(str(tmp_path))
    assert [(len(x), *names) for x, *names in train] == [(103, 3, "Élise-2"), (100, 7, "anna")]
    assert [(len(x), *names) for x, *names in test] == [(102, 0, "bob"), (101, 7, "anna")]
    assert re.fullmatch(rf"sounds in {tmp_path.name} {MD5}", source)
    (tmp_path / "3_Élise-2_49.wav").rename(tmp_path / "4_Élise-2_49.wav")
    assert data.audio(tmp_path)[-1] != source  # for names are labels


@pytest.mark.parametrize("name", ["take {:02}.wav", "7_anna_9{:02}.wav", "7_ann{:02}_1.wav"])
@pytest.mark.parametrize("n", [2, 10, 21])
def test_every_tenth_is_a_test_where_names_do_not_say(tmp_path, name, n):
    write(tmp_path, {name.format(i): wav(np.zeros(100 + i)) for i in range(n)})
    train, test, _ = data.audio(tmp_path)
    apart = min(n, 10)  # of fewer than ten the last is a test
    assert [len(clip[0]) for clip in test] == [99 + i for i in range(apart, n + 1, apart)]
    assert len(train) == n - len(test)


@pytest.mark.parametrize("odd", ["door.wav", "10_anna_3.wav", "7_anna.wav", "7_anna_².wav"])
def test_one_other_name_takes_the_digits_from_all(tmp_path, odd):
    write(tmp_path, dict.fromkeys(["7_anna_12.wav", "8_anna_1.wav", odd], WHOLE))
    train, test, _ = data.audio(tmp_path)
    assert [clip[1:] for clip in train + test] == [(-1, "")] * 3


def test_empty_sounds_are_left_out_and_said(tmp_path, capsys):
    sizes = {"0_a_1": 0, "0_a_2": 2, "0_a_3": 3, "0_a_9": 3}
    write(tmp_path, {f"{name}.wav": wav(np.zeros(size)) for name, size in sizes.items()})
    write(tmp_path, {"0_a_0.wav": wav([0], rate=44100)})
    train, test, _ = data.audio(tmp_path)
    said = capsys.readouterr().err
    assert (len(train), len(test)) == (1, 1) and "0_a_1" in said and "0_a_2" in said
    (tmp_path / "0_a_3.wav").unlink()
    assert "at least 2" in refusal(data.audio, tmp_path)


def test_folders_and_archives_without_sounds_are_refused(tmp_path, folder):
    assert "nowhere" in refusal(data.audio, tmp_path / "nowhere")
    for blob in (b"", b"<html>404</html>", bytes(2000)):
        write(folder, {data.AUDIO: blob})
        assert data.AUDIO in refusal(data.audio)


# Stand-ins
def test_drawn_digits_are_always_the_same():
    x, y = draw(1000, 7)
    assert y[:10].tolist() == [9, 6, 6, 8, 5, 7, 8, 2, 0, 3]
    assert x.shape == (1000, 1, 28, 28) and x.dtype == torch.uint8 and y.dtype == torch.int64
    assert x.float().mean().item() == pytest.approx(36.03, abs=0.1)
    assert torch.equal(x, draw(1000, 7)[0]) and not torch.equal(x, draw(1000, 8)[0])
    assert draw(0, 0)[0].shape == (0, 1, 28, 28) and draw(1, 0)[1].shape == (1,)


def test_the_stand_in_tones_rise_with_the_digit():
    train, test, _ = data.audio(stand_in="always")
    pitch = {digit: np.abs(np.fft.rfft(clip)).argmax() for clip, digit, _ in train}
    assert [*pitch.values()] == sorted(pitch.values()) and len(set(pitch.values())) == 10
    assert (len(train), len(test)) == (2700, 300)


# The program
def test_an_import_changes_nothing_in_the_host(monkeypatch):
    def host():
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        return handlers, dict(os.environ), sys.excepthook, torch.get_num_threads()

    monkeypatch.setattr(sys, "excepthook", lambda *error: None)
    before = host()
    runpy.run_path(data.__file__)
    assert host() == before


def test_the_script_draws_a_page_of_each_or_says_what_is_wrong(folder, monkeypatch, capsys):
    write(folder, four() | {data.TEXT: b"To be $"})
    archive(folder, [f"{k}_anna_{k}" for k in range(9)])
    monkeypatch.chdir(folder.parent)
    runpy.run_path(data.__file__, run_name="__main__")
    printed = capsys.readouterr().out
    assert "24 of 'images in datasets (md5 " in printed and "7 of 'text in" in printed
    pages = {path.name for path in Path("out/data").iterdir()}
    assert pages == {"audio.png", "mnist.png", "text.png"}
    write(folder, {LABELS: b"damaged"})
    with pytest.raises(SystemExit, match=rf"^data\.py: .*{LABELS}"):
        runpy.run_path(data.__file__, run_name="__main__")
