"""What the chapters in the old frame promise: a loop in plain sight, exact resumption, clear refusals, nothing lost."""
import ast
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from harness import (
    BARE,
    CHAPTERS,
    IMAGES,
    POSIX,
    ROOT,
    equal_checkpoints,
    finished,
    flags,
    refused,
    run,
    small,
    write_mnist,
)

chapters = pytest.mark.parametrize("name", CHAPTERS)
slow = pytest.mark.slow
ONE_FAST = ["realnvp", *(pytest.param(name, marks=slow) for name in CHAPTERS if name != "realnvp")]
one_fast = pytest.mark.parametrize("name", ONE_FAST)
FAST = ["char_rnn", "realnvp", "wavenet"]  # whose whole tiny runs are not slow tests
frame_alone = pytest.mark.parametrize("name", ["realnvp"])  # for what lies in the frame, which is the same in all
METHOD = {name: "log_prob" for name in CHAPTERS} | {  # what the opening's equation names and the loop calls
    "vqvae": "terms", "ebm": "energies", "char_rnn": "cross_entropy"}


def source(name):
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


# The shape of a file
@chapters
def test_the_loop_of_training_stands_in_main(name):
    main = next(n for n in ast.parse(source(name)).body if isinstance(n, ast.FunctionDef) and n.name == "main")
    loop = next(n for n in main.body if isinstance(n, ast.For) and ast.unparse(n.iter).startswith("run.loop("))
    called = [n.func.attr if isinstance(n.func, ast.Attribute) else n.func.id
              for n in ast.walk(loop) if isinstance(n, ast.Call)]
    assert {"zero_grad", "backward", "step", "log", "save", METHOD[name]} <= set(called)
    assert called.count("backward") == 1


@chapters
def test_a_chapter_has_its_shape(name):
    text = source(name)
    lines = text.split("\n")
    assert text.startswith("# /// script") and '"torch>=2.5", "numpy", "matplotlib"' in text
    opening = importlib.import_module(name).__doc__
    assert opening.count("\n") + 1 <= 40 and "arXiv" in opening.split("\n")[0]
    parts = [re.match(r"# %% (\w+)", line)[1] for line in lines if line.startswith("# %% ")]
    assert [p for k, p in enumerate(parts) if p not in parts[:k]] == [
        "Settings", "Model", "Training", "That", "Evaluation", "Notes", "The"]
    whole_idea = next(k for k, line in enumerate(lines) if line.startswith("# %% That is the whole idea"))
    assert whole_idea < 200 and text.count("\n") <= 400
    assert max(map(len, lines)) <= 110
    allowed = {"torch", "numpy", "matplotlib", "PIL", "data"} | sys.stdlib_module_names
    assert set(re.findall(r"^(?:import|from) (\w+)", text.split('"""', 2)[2], re.M)) <= allowed
    notes = text.split("# %% Notes\n")[1].split("# %% The frame")[0].strip().split("\n")
    assert len(notes) <= 25 and sum(bool(re.match(r"# \d\. ", line)) for line in notes) == 3
    assert "# Things to break:" in notes and "References" in text and "Read before" in text


@pytest.mark.parametrize("part", [
    "# %% The frame", "class Run", "def grid", "def drop_labels", "def binarise", 'if __name__ == "__main__"'])
def test_what_chapters_share_is_the_same_to_the_letter(part):
    pattern = rf"^{re.escape(part)}.*?(?=^\S|\Z)"
    found = [re.search(pattern, source(name), re.S | re.M) for name in CHAPTERS]
    if part == "def drop_labels":  # wavenet.py drops speakers as well
        found = [match for name, match in zip(CHAPTERS, found) if match and name != "wavenet"]
    found = [match.group() for match in found if match]
    assert len(found) >= 3 and len(set(found)) == 1
    assert not part.startswith(("#", "if", "class")) or len(found) == 8
    if part == "class Run":
        assert found[0].rstrip().count("\n") + 1 <= 140


# A whole run
@pytest.fixture(scope="module", params=[n if n in FAST else pytest.param(n, marks=slow) for n in CHAPTERS])
def done(request, tmp_path_factory):
    """(name, folder, what was printed) of a tiny finished run, by a copy of the script alone with data.py."""
    alone = tmp_path_factory.mktemp(request.param)
    shutil.copy(ROOT / f"{request.param}.py", alone)
    shutil.copy(ROOT / "data.py", alone)
    printed, _ = finished(run(request.param, alone / "out", cwd=alone))
    return request.param, alone / "out", printed


@pytest.fixture
def copy(done, tmp_path):
    """(name, a copy of that folder to play with)."""
    shutil.copytree(done[1], tmp_path / "out")
    return done[0], tmp_path / "out"


def test_a_run_leaves_what_it_promises(done):
    name, out, printed = done
    left = {f.name: f.stat().st_mtime_ns for f in out.iterdir()}
    assert {"samples.png", "curve.png", "metrics.json", "model.pt"} <= set(left)
    assert any(f.endswith(".gif") for f in left) and not [f for f in left if f.endswith(".part")]
    assert all(left["metrics.json"] < t for f, t in left.items() if f.endswith(("png", "gif")))  # numbers come first
    assert printed.isascii() and "now evaluating" in printed
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["source"] and metrics["step"] == 3 and metrics["device"]
    assert metrics["source"].startswith("images in ") or name not in IMAGES
    assert metrics["settings"]["batch_size"] == 8 and metrics["seconds of training"] > 0 and metrics["baselines"]
    for key, value in metrics["results"].items():
        assert (f"{key}: {value:,.4f}" if isinstance(value, float) else f"{key}: {value:,}") in printed


def test_load_gives_a_model_that_samples(done):
    name, out, _ = done
    model = importlib.import_module(name).load(out / "model.pt", "cpu")
    if name == "char_rnn":
        assert len(model.spell(model.sample(2, 20)[1])) == 20
        return
    for y in (None, 3, torch.tensor([1, 2, 3])):
        if name == "wavenet":
            x = model.sample(3, y, length=50)
            assert x.shape == (3, 50) and x.min() >= -1 and x.max() <= 1
            continue
        x = model.sample(3, y)
        assert x.shape == (3, 1, 28, 28) and x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize("name", ["realnvp", "wavenet", *(pytest.param(n, marks=slow) for n in IMAGES if n != "realnvp")])
def test_label_dropout_1_gives_an_unconditional_model(name, tmp_path):
    """It saw the null label alone, so it draws from there whatever the class."""
    drawn = []
    for more in ("", "--label-dropout 1"):
        finished(run(name, tmp_path / more[-1:], more, bare=True))
        model = importlib.import_module(name).load(tmp_path / more[-1:] / "model.pt")
        torch.manual_seed(0)
        for p in model.parameters():  # after three steps the classes hardly differ
            torch.nn.init.normal_(p, std=1.0 if name == "transformer_ar" else 0.3)
        for y in (10, 3, None):
            torch.manual_seed(0)
            drawn.append(model.sample(4, y))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[3], drawn[4])
    assert len(model.sample(3, torch.tensor([1, 2, 3]))) == 3


@chapters
def test_help_is_ascii_and_has_an_example(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(name).main(["--help"])
    out = capsys.readouterr().out
    assert out.isascii() and f"usage: {name}.py [--steps 1000" in out
    assert "--label-dropout" in out or name == "char_rnn"


@one_fast
def test_help_can_be_printed_on_an_ascii_terminal(name):
    env = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    out, err = finished(subprocess.Popen([sys.executable, f"{name}.py", "--help"], cwd=ROOT, text=True,
                                         stdout=-1, stderr=-1, env=env))
    assert "usage:" in out and not err


@pytest.mark.parametrize("bad, says", [
    ("--steps 0", "out of range: 1 to"), ("--steps many", "invalid int"), ("--lr nan", "out of range: 0 to 10"),
    ("--lr inf", "out of range: 0 to 10"), ("--lr -1", "out of range: 0 to 10"), ("--batch-size -3", "out of range: 1"),
    ("--seed -1", "out of range: 0 to"), ("--label-dropout 1.5", "out of range: 0 to 1"),
    ("--label-dropout nan", "out of range: 0 to 1"),
    ("--device gpu", "--device: invalid choice"), ("--device cuda:99", "--device: invalid choice"),
    ("--stand-in perhaps", "--stand-in: invalid choice"), ("--no-such-flag 1", "unrecognized")])
@frame_alone
def test_bad_flags_get_one_sentence_and_status_2(name, bad, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(flags(name, tmp_path / "out", bad))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.strip().splitlines()) == 1 and says in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, bad, says", [
    ("char_rnn", "--dropout 5", "0 to 0.99"), ("char_rnn", "--length 1", "2 to"), ("char_rnn", "--top-k -1", "0 to"),
    ("char_rnn", "--temperature -1", "0 to"), ("wavenet", "--duration 0", "0.01 to"), ("wavenet", "--layers 0", "1 to"),
    ("transformer_ar", "--patch 3", "1 to 2"), ("vqvae", "--entries 1", "2 to"), ("ebm", "--buffer 0", "1 to")])
def test_settings_of_a_chapter_have_ranges(name, bad, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(flags(name, tmp_path / "out", bad))
    assert stop.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("name, bad, says", [
    ("transformer_ar", "--width 15", "--width 15 is not a multiple of --heads 2"),
    ("char_rnn", "--length 5000", "are needed"), ("char_rnn", "--prompt é", "--prompt has characters"),
    ("char_rnn", "--text nowhere.txt", "nowhere.txt"), ("wavenet", "--audio nowhere", "nowhere")])
def test_what_does_not_fit_together_is_refused(name, bad, says, tmp_path):
    assert says in refused(run(name, tmp_path / "out", bad))
    assert not (tmp_path / "out").exists()


def commands():
    """Every `python NAME.py --flags` of the pages and of the chapters."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = [source(name) for name in CHAPTERS] + [page.read_text(encoding="utf-8") for page in pages]
    found = {c for text in texts for c in re.findall(r"\bpython (\w+\.py(?: --?[\w.-]+(?: [\w./-]+)?)+)", text)}
    return sorted(c for c in found if c.split(".")[0] in CHAPTERS)


@pytest.mark.parametrize("line", commands())
def test_every_command_printed_is_one_that_the_script_knows(line, tmp_path, capsys):
    name, *rest = line.split()
    module = importlib.import_module(name.removesuffix(".py"))
    if "--help" in rest:
        with pytest.raises(SystemExit, match="0"):
            module.Run(rest)
    else:
        module.Run([*rest, "--out", str(tmp_path), "--device", "cpu"])


# Earlier runs, other runs
@pytest.mark.parametrize("done", ONE_FAST, indirect=True)
def test_an_earlier_run_is_moved_aside_whole(copy):
    name, out = copy
    old = {f.name: f.read_bytes() for f in out.iterdir()}
    printed, _ = finished(run(name, out, "--seed 1", bare=True))
    aside = out.with_name(out.name + "-1")
    assert f"it moves to {aside}" in printed
    assert {f.name: f.read_bytes() for f in aside.iterdir()} == old
    assert torch.load(out / "model.pt", weights_only=True)["settings"]["seed"] == 1


@pytest.mark.parametrize("done", ["realnvp"], indirect=True)
def test_a_failed_start_leaves_the_earlier_run_alone(copy, tmp_path):
    name, out = copy
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    (tmp_path / "data").mkdir()
    write_mnist(tmp_path / "data", 24, 2)
    (tmp_path / "data" / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b cut short")
    error = refused(run(name, out, env=os.environ | {"DATA_DIR": str(tmp_path / "data")}))
    assert "train-images-idx3-ubyte.gz" in error
    refused(run(name, out, "--steps x"))
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    finished(run(name, out, "--resume --steps 4", bare=True))
    assert torch.load(out / "model.pt", weights_only=True)["step"] == 4


# Resuming
@one_fast
def test_killed_and_resumed_equals_never_interrupted(name, tmp_path):
    finished(run(name, tmp_path / "whole", "--steps 40", bare=True))
    process = run(name, tmp_path / "killed", "--steps 40", bare=True, save_every=0)
    while not (tmp_path / "killed" / "model.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 0 < torch.load(tmp_path / "killed" / "model.pt", weights_only=True)["step"] < 40
    finished(run(name, tmp_path / "killed", "--steps 40 --resume", bare=True))
    assert equal_checkpoints(tmp_path / "whole" / "model.pt", tmp_path / "killed" / "model.pt")


@pytest.mark.parametrize("done", ["realnvp", pytest.param("ebm", marks=slow)], indirect=True)
def test_resume_keeps_the_flags_of_the_run_but_more_steps_and_another_rate_are_welcome(copy):
    name, out = copy
    argv = ["--resume", "--out", str(out), "--steps", "5", "--lr", "1e-4", "--device", "cpu"]
    body = BARE.format(name=name, save_every=20, argv=argv)
    process = subprocess.Popen([sys.executable, "-W", "error", "-c", body], cwd=ROOT, text=True, stdout=-1, stderr=-1,
                               env=small())
    finished(process)
    saved = torch.load(out / "model.pt", weights_only=True)
    assert saved["step"] == 5 and saved["settings"]["batch_size"] == 8 and saved["settings"]["lr"] == 1e-4
    assert saved["state"]["optimizer"]["param_groups"][0]["max_lr"] == 1e-4
    assert saved["state"]["optimizer"]["param_groups"][0]["lr"] < 2e-5  # at the end of its cycle
    assert [point["step"] for point in saved["curve"]] == [3, 5]


def test_resume_with_nothing_there_starts_at_step_0(tmp_path):
    finished(run("realnvp", tmp_path / "out", "--resume", bare=True))
    assert torch.load(tmp_path / "out" / "model.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("done", ["realnvp"], indirect=True)
def test_resume_with_other_data_is_refused(copy):
    name, out = copy
    before = (out / "model.pt").read_bytes()
    error = refused(run(name, out, "--resume --steps 6", env=small(seed=5)))
    assert "was trained on images in" in error and error.count("md5") == 2
    assert (out / "model.pt").read_bytes() == before


@pytest.mark.parametrize("done", ["realnvp", pytest.param("ebm", marks=slow)], indirect=True)
def test_a_saved_run_of_another_size_is_refused(copy):
    name, out = copy
    before = (out / "model.pt").read_bytes()
    assert "does not fit" in refused(run(name, out, "--resume --steps 9 --channels 6"))
    assert (out / "model.pt").read_bytes() == before


def test_a_saved_run_without_a_part_that_is_asked_for_is_refused(tmp_path, monkeypatch):
    realnvp = importlib.import_module("realnvp")
    monkeypatch.setattr(realnvp, "load", lambda path: None)
    each = realnvp.Run(flags("realnvp", tmp_path))
    each.source = "no data"
    loop = each.loop(model=torch.nn.Linear(1, 1))
    next(loop)
    each.log(torch.tensor(1.0))
    each.save(1.0, realnvp.grid(torch.zeros(10, 1, 28, 28), "samples"))
    loop.close()
    again = realnvp.Run(flags("realnvp", tmp_path, "--resume"))
    again.source = "no data"
    with pytest.raises(OSError, match="does not fit"):
        next(again.loop(model=torch.nn.Linear(1, 1), ema=torch.nn.Linear(1, 1)))


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("damage", ["empty", "text", "another chapter", "no dict", "cut short", "malicious"])
@frame_alone
def test_bad_saved_runs_are_refused(name, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out" / "model.pt"
    path.parent.mkdir()
    torch.save({"another chapter": {"name": "another"}, "no dict": [1], "malicious": Evil()}.get(
        damage, {"name": name}), path)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage in ("empty", "text"):
        path.write_bytes(b"" if damage == "empty" else b"no checkpoint")
    with pytest.raises(OSError, match="model.pt"):  # which the last lines of a script turn into status 2
        importlib.import_module(name).main(flags(name, path.parent, "--resume"))
    with pytest.raises(OSError):
        importlib.import_module(name).load(path)
    assert not (tmp_path / "executed").exists()


def test_a_bad_saved_run_gets_one_sentence_and_status_2(tmp_path):
    (tmp_path / "model.pt").write_text("no checkpoint")
    assert "model.pt is missing, damaged" in refused(run("realnvp", tmp_path, "--resume"))
    assert (tmp_path / "model.pt").read_text() == "no checkpoint"


def test_a_run_of_the_first_edition_is_refused(tmp_path):
    """It has the chapter's name, but other settings and no source."""
    settings = {"steps": 5, "batch_size": 8, "lr": 0.1, "channels": 4, "seed": 0}
    torch.save({"name": "realnvp", "settings": settings, "step": 3, "seconds": 1.0, "curve": [(3, 500.0, 500.0)],
                "frames": [], "state": {"model": {}, "optimizer": {}}}, tmp_path / "model.pt")
    for use in (lambda: importlib.import_module("realnvp").main(flags("realnvp", tmp_path, "--resume")),
                lambda: importlib.import_module("realnvp").load(tmp_path / "model.pt")):
        with pytest.raises(OSError, match="model.pt"):
            use()


# Ctrl-C, NaN, disks
def interrupted(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT), (process.returncode, err)
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1, err
    return err


@POSIX
@one_fast
def test_ctrl_c_stops_after_a_step_and_still_evaluates(name, tmp_path):
    process = run(name, tmp_path, "--steps 1000000", bare=True, save_every=0)
    while not (tmp_path / "model.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = finished(process)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert 0 < metrics["step"] < 1000000 and "--resume" in printed
    assert torch.load(tmp_path / "model.pt", weights_only=True)["step"] == metrics["step"]


@POSIX
@pytest.mark.parametrize("moment", ["reading", pytest.param("evaluating", marks=slow), "drawing"])
def test_ctrl_c_at_another_moment_ends_in_one_line_and_costs_no_run(moment, tmp_path):
    """A copy of the chapter beside data.py, which waits for us at that moment."""
    text = source("realnvp")
    inline = "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(60)"
    place = {"reading": "    x, y, x_test, y_test, run.source = mnist(", "evaluating": "    torch.manual_seed(1)\n",
             "drawing": "        pages = []\n"}[moment]
    assert text.count(place) == 1
    condition = "if name == 'curve.png':\n            " if moment == "drawing" else ""
    indent = place[:len(place) - len(place.lstrip())]
    text = text.replace(place, f"{indent}{condition}{inline}\n{place}")
    (tmp_path / "data.py").write_text(source("data"), encoding="utf-8")
    (tmp_path / "realnvp.py").write_text(text, encoding="utf-8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.pt").write_text("an earlier run")
    process = run("realnvp", "out", cwd=tmp_path)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = interrupted(process)
    trained = moment != "reading"
    assert ("step 3 is saved in out" if trained else "nothing was saved") in error
    earlier = tmp_path / ("out-1" if trained else "out")
    assert [f.name for f in earlier.iterdir()] == ["model.pt"]
    assert (earlier / "model.pt").read_text() == "an earlier run"
    if moment == "drawing":
        assert (tmp_path / "out" / "metrics.json").exists()
    if trained:
        finished(run("realnvp", tmp_path / "out", "--resume --steps 4", bare=True))


@one_fast
def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(name, tmp_path):
    error = refused(broken(name, tmp_path, 5))
    assert "not finite at step 5" in error and "nothing was saved" in error and not (tmp_path / "model.pt").exists()


def broken(name, out, step, more=""):
    """A run whose loss is NaN at one step."""
    body = BARE.format(name=name, save_every=20, argv=flags(name, out, f"--steps 9 {more}"))
    body = body.replace("try:\n", f"""
log = m.Run.log
m.Run.log = lambda self, loss: log(self, loss * float("nan") if self.step == {step} else loss)
try:
""", 1)
    return subprocess.Popen([sys.executable, "-c", body], cwd=ROOT, text=True, stdout=-1, stderr=-1, env=small())


@pytest.mark.parametrize("done", ["realnvp"], indirect=True)
def test_the_last_good_checkpoint_outlives_a_loss_that_is_not_finite(copy):
    name, out = copy
    before = (out / "model.pt").read_bytes()
    assert "not finite at step 5" in refused(broken(name, out, 5, "--resume"))
    assert (out / "model.pt").read_bytes() == before


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The loss of the last step before a save is still finite; what its gradient does to the weights is not."""
    body = BARE.format(name="pixelcnn", save_every=20, argv=flags("pixelcnn", tmp_path)).replace("try:\n", """
step = m.torch.optim.Adam.step
def leap(self):
    step(self)
    if m.torch.tensor([state["step"] for state in self.state.values()]).max() == 3:
        for p in self.param_groups[0]["params"]:
            p.data.fill_(float("nan"))
m.torch.optim.Adam.step = leap
try:
""", 1)
    error = refused(subprocess.Popen([sys.executable, "-c", body], cwd=ROOT, text=True, stdout=-1, stderr=-1,
                                     env=small()))
    assert "not finite after step 3" in error and not (tmp_path / "model.pt").exists()


@frame_alone
def test_an_out_folder_that_cannot_be_written_is_refused_at_once(name, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file" / "out") in refused(run(name, tmp_path / "file" / "out"))
    if os.name == "posix":
        (tmp_path / "locked").mkdir(mode=0o500)
        locked = tmp_path / "locked" if os.geteuid() else Path("/proc/locked")  # root may write to any real folder
        with pytest.raises(OSError, match="locked"):
            importlib.import_module(name).main(flags(name, locked / "out"))


@POSIX
@pytest.mark.parametrize("done", ["realnvp"], indirect=True)
def test_a_full_disk_is_said_and_costs_nothing_that_was_saved(copy):
    import resource
    name, out = copy
    before = (out / "model.pt").read_bytes()
    full = run(name, out, "--resume --steps 6", preexec_fn=lambda: resource.setrlimit(  # no file beyond 3 kB
        resource.RLIMIT_FSIZE, (3000, 3000)))
    assert "File too large" in refused(full)
    assert (out / "model.pt").read_bytes() == before


def test_data_that_cannot_be_read_are_refused(tmp_path):
    write_mnist(tmp_path, 100, 20)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    error = refused(run("realnvp", tmp_path / "out", env=os.environ | {"DATA_DIR": str(tmp_path)}))
    assert "t10k-labels-idx1-ubyte.gz" in error and not (tmp_path / "out" / "model.pt").exists()
