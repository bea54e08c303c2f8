"""What every chapter promises: its shape, its frame, and that nothing is ever lost."""

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from chapters import (
    CHAPTERS,
    IMAGES,
    ROOT,
    TINY,
    checkpoint,
    data_folder,
    equal,
    lines,
    main,
    stop_at,
    touch,
)

import data

every = pytest.mark.parametrize("name", CHAPTERS)
images = pytest.mark.parametrize("name", IMAGES)
LONG = {"ddpm", "vqvae", "wavenet"}  # their mathematics needs more lines
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")


def text_of(name):
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def start(name, out, more="", **how):
    """A chapter as a user starts it, with tiny flags."""
    command = [
        sys.executable,
        f"{name}.py",
        *TINY[name].split(),
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *more.split()], **options | how)


@pytest.fixture(autouse=True)
def small_data(tmp_path_factory, monkeypatch):
    """240 + 60 drawn digits of ten classes, a text, 60 tones."""
    folder = tmp_path_factory.getbasetemp() / "digits"
    if not folder.exists():
        data_folder(folder)
    monkeypatch.setenv("DATA_DIR", str(folder))


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Files without contents in the place of pictures, which take most of a tiny run's time."""
    if not request.node.get_closest_marker("pictures"):
        for name in CHAPTERS:
            monkeypatch.setattr(importlib.import_module(name).Run, "picture", touch)


@pytest.fixture
def run(tmp_path):
    """A finished tiny run of vae.py."""
    main("vae", tmp_path / "out")
    return tmp_path / "out"


# The shape of a file
@pytest.mark.parametrize("name", [*CHAPTERS, "data"])
def test_a_statement_says_one_thing(name):
    nodes = list(ast.walk(ast.parse(text_of(name))))
    expressions = sum(isinstance(node, ast.expr) for node in nodes)
    assert expressions / sum(isinstance(node, ast.stmt) for node in nodes) <= 7.5
    assert not any(isinstance(node, ast.NamedExpr) for node in nodes)
    assert max(map(len, text_of(name).split("\n"))) <= 100
    assert "# fmt:" not in text_of(name) and "# noqa" not in text_of(name)


@every
def test_a_chapter_has_its_parts_and_none_is_too_long(name):
    text = text_of(name)
    above, frame = text.split("# %% The frame")
    first = above.split("# %% That is the whole idea. Below:")[0]
    parts = re.findall(r"^# %% (.*?)[.:]?$", above, re.M)
    wanted = ["Settings", "Model", "Training", "Evaluation", "Notes"]
    assert [part for part in parts if part in wanted] == wanted
    assert lines(above) <= (350 if name in LONG else 300)
    assert lines(first) + 1 <= (260 if name in LONG else 220)
    assert lines(frame) <= 165
    assert len(ast.get_docstring(ast.parse(text)).split("\n")) <= 55


def test_data_is_short():
    assert lines(text_of("data")) <= 260


@every
def test_the_frame_is_the_same_to_the_letter(name):
    assert text_of(name).split("# %% The frame")[1] == text_of("vae").split("# %% The frame")[1]


@pytest.mark.parametrize("part", ["grid", "ten_classes", "load_checkpoint", "warmup_cosine"])
def test_what_chapters_share_above_the_frame_is_the_same_too(part):
    pattern = rf"^def {part}\(.*?(?=^\S|\Z)"
    names = IMAGES if part in ("grid", "ten_classes") else CHAPTERS
    assert len({re.search(pattern, text_of(name), re.S | re.M).group() for name in names}) == 1


@every
def test_a_chapter_needs_nothing_but_its_packages(name):
    allowed = {"torch", "numpy", "matplotlib", "PIL", "data"} | sys.stdlib_module_names
    found = set()
    for node in ast.walk(ast.parse(text_of(name))):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    assert "torch" in found and found <= allowed


# A run, and a model that is loaded again
@every
@pytest.mark.pictures
def test_a_run_leaves_what_it_promises(name, tmp_path, capsys):
    main(name, tmp_path)
    printed = capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert {"samples.png", "curve.png", "metrics.json", "model.pt"} <= names
    assert any(name.endswith(".gif") for name in names)
    assert not any(name.endswith(".part") for name in names)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for key, value in metrics["results"].items():
        assert f"{key}: {value:.4g}" in printed
    for part in (metrics["source"], " examples", "weights", "cpu", "threads", "float"):
        assert part in printed
    assert metrics["step"] == metrics["flags"]["steps"] and metrics["seconds"] > 0


@images
def test_a_loaded_model_samples_anywhere(name, tmp_path):
    main(name, tmp_path)
    module = importlib.import_module(name)
    model = module.load(tmp_path / "model.pt", "cpu")
    y = torch.tensor([1, 2, 3])
    with torch.inference_mode():
        x = model.sample(y)
    assert x.shape == (3, 1, 28, 28) and x.min() >= 0 and x.max() <= 1
    assert model.sample(y[:0]).shape == (0, 1, 28, 28)
    torch.manual_seed(0)
    alone = model.sample(y)
    drawn = []
    torch.manual_seed(0)
    thread = threading.Thread(target=lambda: drawn.append(model.sample(y)))
    thread.start()
    thread.join()
    assert torch.equal(drawn[0], alone)


@images
def test_one_class_gives_an_unconditional_model(name, tmp_path):
    main(name, tmp_path, "--classes 1")
    model = importlib.import_module(name).load(tmp_path / "model.pt")
    assert model.classes == 1 and model.sample(torch.zeros(2, dtype=torch.long)).shape[0] == 2


@images
@pytest.mark.parametrize(
    "labels, more", [((0, 8), ""), ((1, 26), "--classes 27"), ((0, 2), "--classes 3")]
)
def test_other_labels_train_and_draw(name, labels, more, tmp_path, monkeypatch):
    low, high = labels
    data_folder(tmp_path / "own", labels=list(range(low, high + 1)))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "own"))
    main(name, tmp_path / "out", more)
    assert (tmp_path / "out" / "samples.png").exists()


def test_labels_beyond_the_classes_are_refused_with_the_flag_to_give(tmp_path, monkeypatch):
    data_folder(tmp_path / "own", labels=list(range(1, 27)))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "own"))
    with pytest.raises(OSError, match="--classes 27"):
        main("vae", tmp_path / "out")


def test_grid_takes_any_number_of_images():
    vae = importlib.import_module("vae")
    for n in (1, 10, 16):
        assert vae.grid(torch.rand(n, 1, 28, 28), "title").axes


def test_a_number_that_is_none_becomes_null(run):
    vae = importlib.import_module("vae")
    args = vae.parse_flags(["--resume", "--out", str(run)])
    again = vae.Run(args, checkpoint(run)["source"], 1, "loss")
    again.report({"a": float("nan"), "b": 1.0})
    assert json.loads((run / "metrics.json").read_text())["results"] == {"a": None, "b": 1.0}


# Resuming
@every
def test_interrupted_and_resumed_equals_never_interrupted(name, tmp_path, monkeypatch):
    main(name, tmp_path / "whole", "--steps 4 --save-every 2")
    with monkeypatch.context() as patch:
        stop_at(importlib.import_module(name), 3, patch)
        with pytest.raises(KeyboardInterrupt):
            main(name, tmp_path / "broken", "--steps 4 --save-every 2")
    assert checkpoint(tmp_path / "broken")["step"] == 2
    main(name, tmp_path / "broken", "--resume")
    whole, broken = (checkpoint(tmp_path / part) for part in ("whole", "broken"))
    assert equal(whole | {"seconds": 0}, broken | {"seconds": 0})
    results = [
        json.loads((tmp_path / part / "metrics.json").read_text()) for part in ("whole", "broken")
    ]
    assert results[0]["results"] == results[1]["results"]


def test_killed_at_any_moment_a_run_goes_on_from_a_whole_checkpoint(tmp_path):
    flags = "--steps 400 --save-every 1"
    process = start("vae", tmp_path, flags)
    while not (tmp_path / "model.pt").exists() or checkpoint(tmp_path)["step"] < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    step = checkpoint(tmp_path)["step"]
    assert 3 <= step < 400
    main("vae", tmp_path, f"--resume --steps {step + 2}")
    assert checkpoint(tmp_path)["step"] == step + 2


def test_resume_obeys_and_records_new_steps_and_a_new_rate(run):
    main("vae", run, "--resume --steps 6 --lr 0.5")
    saved = checkpoint(run)
    assert saved["step"] == 6 and saved["flags"]["steps"] == 6 and saved["flags"]["lr"] == 0.5
    assert saved["optimizer"]["param_groups"][0]["lr"] < 0.5 / 10  # at the end of its cycle
    assert saved["flags"]["hidden"] == 16  # as in the saved run


@pytest.mark.parametrize("steps", [0, 2])
def test_resume_with_no_more_steps_evaluates_and_changes_no_checkpoint(run, steps):
    before = (run / "model.pt").read_bytes()
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    main("vae", run, f"--resume --steps {steps}")
    assert (run / "model.pt").read_bytes() == before
    again = json.loads((run / "metrics.json").read_text())
    assert again["results"] == metrics["results"] and again["step"] == again["flags"]["steps"] == 4


@every
def test_no_steps_evaluate_an_untrained_model(name, tmp_path):
    main(name, tmp_path, "--steps 0")
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 0


# Refusals: one sentence, and the old checkpoint whole
def damage(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "change, more, says",
    [
        (lambda out: (out / "model.pt").unlink(), "", "missing"),
        (lambda out: damage(out / "model.pt"), "", "damaged"),
        (lambda out: torch.save({"a": 1}, out / "model.pt"), "", "no checkpoint of this script"),
        (lambda out: None, "--hidden 17", "sizes"),
        (lambda out: data_folder(out.parent / "own", labels=[1]), "", "not images in own"),
    ],
)
def test_what_cannot_be_resumed_is_refused(run, change, more, says, monkeypatch):
    change(run)
    if (run.parent / "own").exists():
        monkeypatch.setenv("DATA_DIR", str(run.parent / "own"))
    before = [path.read_bytes() for path in sorted(run.iterdir())]
    with pytest.raises(OSError, match=says):
        main("vae", run, f"--resume --steps 6 {more}")
    assert [path.read_bytes() for path in sorted(run.iterdir())] == before


def test_a_checkpoint_of_another_chapter_is_refused(tmp_path):
    main("made", tmp_path)
    for use in (
        lambda: main("gan", tmp_path, "--resume"),
        lambda: main("vae", tmp_path, "--resume"),
    ):
        with pytest.raises(OSError, match="sizes|missing"):
            use()


def test_a_refusal_is_one_line_and_a_status(tmp_path):
    process = start("vae", tmp_path / "none", "--resume")
    out, error = process.communicate()
    assert process.returncode == 1 and not out and len(error.strip().split("\n")) == 1
    assert "model.pt is missing" in error


@pytest.mark.parametrize(
    "bad", ["--device gpu", "--batch-size 0", "--save-every 0", "--steps x", "--no 1"]
)
def test_a_bad_flag_is_refused_before_anything_is_made(bad, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main("vae", tmp_path / "out", bad)
    assert stop.value.code == 2 and bad.split()[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("vae").main(["--device", "cuda", "--out", str(tmp_path)])
    assert "--device" in capsys.readouterr().err


def test_an_out_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="--out"):
        main("vae", tmp_path / "file" / "out")


@POSIX
def test_a_full_disk_is_said_and_costs_nothing_that_was_saved(run):
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    before = (run / "model.pt").read_bytes()
    process = start("vae", run, "--resume --steps 6", preexec_fn=small_files)
    _, error = process.communicate()
    assert process.returncode == 1 and "model.pt" in error and len(error.strip().split("\n")) == 1
    assert (run / "model.pt").read_bytes() == before and not list(run.glob("*.part"))


@every
def test_a_loss_that_is_no_number_is_never_saved(name, tmp_path):
    with pytest.raises(FloatingPointError, match="--lr"):
        main(name, tmp_path, "--lr nan")
    assert checkpoint(tmp_path)["step"] == 0 and not checkpoint(tmp_path)["curve"]


# Other runs, other programs
def test_a_new_run_moves_the_files_of_an_earlier_one_and_nothing_else(run):
    (run / "sub").mkdir()
    (run / "sub" / "model.pt").write_text("another run")
    (run / "notes.txt").write_text("mine")
    before = checkpoint(run)
    main("vae", run, "--seed 1")
    (aside,) = run.glob("earlier-*")
    assert equal(checkpoint(aside), before) and (aside / "samples.png").exists()
    assert checkpoint(run)["flags"]["seed"] == 1
    assert (run / "sub" / "model.pt").exists() and (run / "notes.txt").exists()


def test_of_two_runs_in_one_folder_neither_writes_over_the_other(tmp_path, monkeypatch):
    vae = importlib.import_module("vae")
    args = vae.parse_flags([*TINY["vae"].split(), "--out", str(tmp_path / "out")])
    model = torch.nn.Linear(1, 1)
    first = vae.Run(args, "data", 1, "loss", model=model)
    second = vae.Run(args, "data", 1, "loss", model=model)
    for each in (second, first):
        each.step, each.started, each.losses = 1, time.time(), [torch.zeros(1)]
    second.save(0.0)
    with pytest.raises(OSError, match="another run"):
        first.save(0.0)
    assert checkpoint(tmp_path / "out")["step"] == 1


def test_out_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    main("vae", "~/x")
    main("vae", "~/x", "--resume --steps 0")
    assert importlib.import_module("vae").load("~/x/model.pt").classes == 10


@POSIX
def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(tmp_path):
    process = start("vae", tmp_path, "--steps 100000 --save-every 5")
    while not (tmp_path / "samples.png").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 1 and "--resume --steps 0" in error
    assert len(error.strip().split("\n")) == 1


def test_a_thread_may_train(tmp_path):
    thread = threading.Thread(target=main, args=("vae", tmp_path))
    thread.start()
    thread.join()
    assert checkpoint(tmp_path)["step"] == 4


def test_an_import_changes_nothing_in_the_host_and_dash_o_is_no_matter(run):
    program = f"""
import os, signal, sys
hook = sys.excepthook = lambda *error: None
signals = [signal.getsignal(s) for s in signal.valid_signals()]
environment = dict(os.environ)
import {", ".join(CHAPTERS)}
vae.load({str(run / "model.pt")!r})
if sys.excepthook is not hook or dict(os.environ) != environment:
    sys.exit("changed")
if signals != [signal.getsignal(s) for s in signal.valid_signals()]:
    sys.exit("signals")
"""
    assert subprocess.run([sys.executable, "-O", "-c", program], cwd=ROOT).returncode == 0


def test_a_kernels_own_flags_are_ignored_and_those_of_run_are_obeyed(monkeypatch):
    vae = importlib.import_module("vae")
    monkeypatch.setattr(sys, "argv", ["/x/ipykernel_launcher.py", "-f", "/tmp/kernel.json"])
    assert vae.parse_flags().steps > 1000
    monkeypatch.setattr(sys, "argv", ["vae.py", "--steps", "3"])
    assert vae.parse_flags().steps == 3


@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
def test_a_terminal_that_knows_no_such_letters_gets_others(tmp_path):
    data_folder(tmp_path / "café")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | plain | {"DATA_DIR": str(tmp_path / "café")}
    process = start("vae", tmp_path / "out", env=environment)
    _, error = process.communicate()
    assert process.returncode == 0, error
    help_text = subprocess.run(
        [sys.executable, "vae.py", "--help"], cwd=ROOT, env=environment, capture_output=True
    )
    assert help_text.returncode == 0


def test_the_data_of_the_tests_are_no_stand_in():
    assert data.mnist("never")[-1].startswith("images in digits")
