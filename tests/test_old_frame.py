"""The chapters of the first edition: one frame, exact resumption, clear refusals, a life outside this repository."""
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
    FILES,
    OLD,
    POSIX,
    ROOT,
    environment,
    equal_checkpoints,
    finished,
    flags,
    refused,
    run,
    write_mnist,
)

slow = pytest.mark.slow
chapters = pytest.mark.parametrize("name", OLD)
FAST = ["ebm", "pixelcnn"]  # whose whole tiny runs are not slow tests
frame_alone = pytest.mark.parametrize("name", ["pixelcnn"])  # for what lies in the frame, which is the same in all


@pytest.fixture(scope="module", params=[pytest.param(n, marks=() if n in FAST else slow) for n in OLD])
def done(request, tmp_path_factory):
    """(name, folder, what was printed) of a tiny finished run, by a copy of the script alone with data.py."""
    alone = tmp_path_factory.mktemp(request.param)
    shutil.copy(ROOT / f"{request.param}.py", alone)
    shutil.copy(ROOT / "data.py", alone)
    printed, _ = finished(run(request.param, alone / "out", "--stand-in always", cwd=alone))
    return request.param, alone / "out", printed


@pytest.fixture
def copy(done, tmp_path):
    """(name, a copy of that folder to play with)."""
    shutil.copytree(done[1], tmp_path / "out")
    return done[0], tmp_path / "out"


def test_a_run_leaves_what_it_promises(done):
    name, out, printed = done
    left = {f.name for f in out.iterdir()}
    assert {"samples.png", "curve.png", "growth.gif", "metrics.json", "model.pt", "settings.json"} <= left
    opening = importlib.import_module(name).__doc__
    assert all(f.rsplit(".", 1)[0] in opening for f in left if f.endswith(("png", "gif"))), "a picture not announced"
    assert not [f for f in left if f.endswith(".part")]
    assert printed.isascii()  # or a Windows log file would break the run
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["source"].startswith("stand-in") and metrics["source"] in printed
    assert metrics["steps done"] == 3 and metrics["settings"]["batch_size"] == 8 and metrics["device"]
    for key, value in metrics["results"].items():
        assert (f"{key}: {value:,.4f}" if isinstance(value, float) else f"{key}: {value:,}") in printed


def test_load_gives_a_model_that_samples(done):
    name, out, _ = done
    model = importlib.import_module(name).load(out / "model.pt", "cpu")
    for y in (None, 3, torch.tensor([1, 2, 3])):
        x = model.sample(3, y)
        if name in FILES:
            assert x.shape == (3, *model.shape)
        else:
            assert x.shape == (3, 1, 28, 28) and x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize("done", ["ebm", "pixelcnn"], indirect=True)  # as for `frame_alone`
@slow
def test_a_new_run_never_overwrites_an_old_one(copy):
    name, out = copy
    old = {f: (out / f).read_bytes() for f in ("model.pt", "metrics.json")}
    printed, _ = finished(run(name, out, "--seed 1", bare=True))
    assert "model-1.pt" in printed
    assert (out / "model-1.pt").read_bytes() == old["model.pt"] != (out / "model.pt").read_bytes()
    assert (out / "metrics-1.json").read_bytes() == old["metrics.json"]


@slow
@chapters
def test_killed_and_resumed_equals_never_interrupted(name, tmp_path):
    finished(run(name, tmp_path / "whole", "--steps 40", bare=True))
    process = run(name, tmp_path / "killed", "--steps 40", bare=True, save_every=0)
    while not (tmp_path / "killed" / "model.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    step = torch.load(tmp_path / "killed" / "model.pt", weights_only=True)["step"]
    assert 0 < step < 40
    finished(run(name, tmp_path / "killed", "--steps 40 --resume", bare=True))
    assert equal_checkpoints(tmp_path / "whole" / "model.pt", tmp_path / "killed" / "model.pt")


@pytest.mark.parametrize("done", ["ebm", "pixelcnn"], indirect=True)
@slow
def test_resume_keeps_the_flags_of_the_run(copy):
    name, out = copy
    argv = ["--resume", "--out", str(out), "--steps", "5", "--lr", "1e-4", "--device", "cpu"]
    command = BARE.format(name=name, save_every=20, argv=argv)
    finished(subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, text=True, stdout=-1, stderr=-1))
    saved = torch.load(out / "model.pt", weights_only=True)
    assert saved["step"] == 5 and saved["settings"]["batch_size"] == 8 and saved["settings"]["lr"] == 1e-4


@POSIX
@pytest.mark.parametrize("name", ["pixelcnn", "ebm"])
@slow
def test_ctrl_c_stops_after_a_step_and_still_evaluates(name, tmp_path):
    process = run(name, tmp_path, "--steps 1000000", bare=True, save_every=0)
    while not (tmp_path / "model.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = finished(process)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert 0 < metrics["steps done"] < 1000000 and "--resume" in printed
    assert torch.load(tmp_path / "model.pt", weights_only=True)["step"] == metrics["steps done"]


@pytest.mark.parametrize("bad", ["--steps 0", "--steps many", "--lr nan", "--lr -1", "--batch-size -3", "--seed -1",
                                 "--device cuda:99", "--device abacus", "--stand-in perhaps", "--no-such-flag 1"])
@frame_alone
def test_bad_flags_get_one_sentence_and_status_2(name, bad, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(flags(name, tmp_path / "out", bad))
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", "another chapter", "cut short"])
@frame_alone
def test_bad_saved_runs_are_refused(name, damage, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"name": "another"}, path)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage != "another chapter":
        path.write_bytes(damage)
    with pytest.raises(OSError, match="model.pt"):  # which the last lines of a script turn into status 2, as below
        importlib.import_module(name).main(flags(name, tmp_path, "--resume"))


@pytest.mark.parametrize("done", ["ebm", "pixelcnn"], indirect=True)
@slow
def test_a_saved_run_of_another_size_is_refused(copy):
    name, out = copy
    before = (out / "model.pt").read_bytes()
    size = "--channels 16"
    assert "does not fit" in refused(run(name, out, f"--resume --steps 9 {size}"))
    assert (out / "model.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["char_rnn", "pixelcnn", "wavenet"])  # one for each loader
@slow
def test_data_that_cannot_be_read_is_refused(name, tmp_path):
    file = FILES.get(name, "train-images-idx3-ubyte.gz")
    write_mnist(tmp_path, 24, 2)
    (tmp_path / file).write_bytes(b"\x1f\x8b cut short")
    err = refused(run(name, tmp_path / "out", "--stand-in auto", env=os.environ | {"DATA_DIR": str(tmp_path)}))
    assert file in err


@frame_alone
def test_an_out_folder_that_cannot_be_written_is_refused_at_once(name, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(run(name, tmp_path / "file" / "out"))
    if os.name == "posix":
        (tmp_path / "locked").mkdir(mode=0o500)
        locked = tmp_path / "locked" if os.geteuid() else Path("/proc/locked")  # root may write to any real folder
        with pytest.raises(OSError, match="cannot write"):
            importlib.import_module(name).main(flags(name, locked / "out"))


@POSIX
@pytest.mark.parametrize("done", ["pixelcnn", "char_rnn"], indirect=True)
@slow
def test_a_full_disk_is_said_and_costs_nothing_that_was_saved(copy):
    import resource
    name, out = copy
    before = (out / "model.pt").read_bytes()
    full = run(name, out, "--resume --steps 6", preexec_fn=lambda: resource.setrlimit(  # no file beyond 3 kB
        resource.RLIMIT_FSIZE, (3000, 3000)))
    assert "cannot write" in refused(full)
    assert (out / "model.pt").read_bytes() == before
    assert not list(out.glob("*.part"))


@slow
@chapters
def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(name, tmp_path):
    err = refused(run(name, tmp_path, "--lr 1e30 --steps 300"))
    assert re.search(r"not finite at step \d+", err) and not (tmp_path / "model.pt").exists()


def test_the_frame_is_the_same_in_every_chapter():
    frames = {re.search(r"# %% The frame.*?(?=\n# %% )", (ROOT / f"{n}.py").read_text(encoding="utf-8"), re.S).group()
              for n in OLD}
    assert len(frames) == 1


@chapters
def test_a_chapter_has_its_shape(name):
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith("# /// script") and '"torch>=2.5", "numpy", "matplotlib"' in text
    assert re.findall(r"^# %% (\w+)", text, re.M)[0] == "Settings"
    allowed = {"torch", "numpy", "matplotlib", "PIL", "data"} | sys.stdlib_module_names
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.M)) <= allowed
    opening = importlib.import_module(name).__doc__
    for part in ("What you will see", "What differs", "References", "Read before", "Things to break"):
        assert part in opening


def commands(path):
    """Every `python something.py` line of README.md or of an opening."""
    return re.findall(r"\bpython ((?:\w+/)?\w+\.py(?: --?[\w.-]+(?: [\w./-]+)?)*)", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", sorted({c for f in (f"{n}.py" for n in OLD)
                                         for c in commands(ROOT / f)
                                         if c.split(".")[0] in OLD and " " in c}))  # bare ones: `done`
@slow
def test_every_command_printed_runs(line, tmp_path):
    name, *rest = line.split()
    argv = [*rest, *flags(name.removesuffix(".py"), tmp_path)]
    body = BARE.format(name=name.removesuffix(".py"), save_every=20, argv=argv)
    finished(subprocess.Popen([sys.executable, "-c", body], cwd=ROOT, text=True, stdout=-1, stderr=-1,
                              env=environment()))
    assert (tmp_path / "metrics.json").exists() != ("--help" in rest)
