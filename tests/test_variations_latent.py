"""Latent diffusion against closed forms: a Gaussian world for the chain, exact moments, a VAE that stays as it is."""
import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from harness import POSIX, ROOT, equal_checkpoints, finished, refused, run, small

import ddpm
import vae
from variations import latent_diffusion as ld

slow = pytest.mark.slow
TINY = "--steps 3 --vae-steps 3 --batch-size 8 --channels 8 --timesteps 12 --sampling-steps 2 --device cpu"
HASTY = """
import ddpm, vae
from variations import latent_diffusion as m
m.evaluate = lambda seconds, run, *_: run.report({{"seconds": seconds}})
def hasty(Run):
    save = Run.save
    def saved(self, *args, **more):
        save(self, *args, **more)
        self.pause = {pause}
    Run.pause, Run.save = {pause}, saved
hasty(vae.Run), hasty(ddpm.Run)
m.main({argv!r})
"""


def start(out, more="", pause=None):
    """The variation as a user would start it; with a pause, saving so often and without its evaluation."""
    argv = [*TINY.split(), "--out", str(out), *more.split()]
    code = ["-m", "variations.latent_diffusion", *argv]
    if pause is not None:
        code = ["-c", HASTY.format(pause=pause, argv=argv)]
    return subprocess.Popen([sys.executable, *code], cwd=ROOT, env=small(), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


@pytest.fixture(autouse=True)
def latents_have_no_clamp(monkeypatch):
    monkeypatch.setattr(ddpm, "predict_x0", ld.predict_x0)


def tiny(latent_dim=3, timesteps=50, x=None, scattered=False):
    torch.manual_seed(0)
    model = ld.LatentDiffusion(8, timesteps, trained=vae.VAE(16, latent_dim, False), x=x).double()
    model.vae.float()  # it reads float32, what `binarise` gives
    if scattered:
        for p in model.net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model


def digits(n=300):
    return torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def grey(x):
    return x / 127.5 - 1


# The chain, where z_0 ~ N(0, I): without f, the prediction is the best
def test_without_f_each_ddim_step_turns_the_latent_by_a_known_angle():
    """With √ᾱ_t = cos θ_t, a stride from t to s scales z by cos(θ_t − θ_s), and the variance by its square."""
    model, z = tiny(timesteps=1000), torch.randn(5, 3, 1, 1, dtype=torch.float64)
    angle = model.alpha_bar.flatten().sqrt().clamp(max=1).acos()
    path = [(t, v) for t, v, _ in ddpm.ddim(model, z, torch.arange(5), 25, 1.6)]
    assert len(path) == 26 and path[0][0] == 1000 and path[-1][0] == 0
    for (t, v), (s, w) in zip(path, path[1:]):
        torch.testing.assert_close(w, (angle[t] - angle[s]).cos() * v, rtol=1e-9, atol=0)
    shrunk = (path[-1][1] / z).unique()
    assert shrunk.max() - shrunk.min() < 1e-9 and 0.9 < shrunk[0] < 0.99


def test_without_f_fine_ddim_keeps_mean_0_and_variance_1():
    model, z = tiny(timesteps=1000), torch.ones(1, 3, 1, 1, dtype=torch.float64)
    *_, (_, end, _) = ddpm.ddim(model, z, None, 1000)  # linear in z: the factor squared is the variance
    assert end.square().unique().item() == pytest.approx(1, abs=0.01)
    zero = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    assert all((v == 0).all() for _, v, _ in ddpm.ddim(model, zero, None, 1000))


def test_without_f_algorithm_2_keeps_the_variance_at_exactly_1():
    """v ← c² v + β_t, with the chapter's coefficients and this model's prediction; no noise after the last step."""
    model, variance = tiny(timesteps=1000), 1.0
    one = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    for t in range(1000, 0, -1):
        beta, alpha_bar = model.beta[t].item(), model.alpha_bar[t].item()
        eps = model.eps(one, t, 3)
        assert eps.unique().item() == pytest.approx((1 - alpha_bar) ** 0.5, rel=1e-9)
        c = (1 - beta / (1 - alpha_bar) ** 0.5 * eps[0, 0].item()) / (1 - beta) ** 0.5
        variance = c**2 * variance + beta * (t > 1)
        assert variance == pytest.approx(1 if t > 1 else 1 - beta, abs=1e-6)


def test_ddim_reaches_any_gaussian_when_the_prediction_is_exact():
    """Its mean lies outside of the range of pixels: the chapter's clamp would not let z_0 come there."""
    model, mean, std = tiny(latent_dim=1, timesteps=1000), 3.0, 0.4

    def eps(z, t, y=None, w=1):  # E[ε | z_t] for z_0 ~ N(mean, std²)
        a = model.alpha_bar[t]
        return (1 - a).sqrt() * (z - a.sqrt() * mean) / (a * std**2 + 1 - a)
    model.eps = eps
    z = torch.randn(4000, 1, 1, 1, dtype=torch.float64)
    z = (z - z.mean()) / z.std()
    *_, (_, end, _) = ddpm.ddim(model, z, None, 500)
    assert end.mean().item() == pytest.approx(mean, abs=0.01) and end.std().item() == pytest.approx(std, abs=0.01)


def test_the_untrained_loss_is_the_mean_of_alpha_bar():
    """ε − √(1 − ᾱ)(√ᾱ z_0 + √(1 − ᾱ) ε) has the variance ᾱ, for any z_0 of variance 1."""
    model, x = tiny(x=digits()), digits()
    torch.manual_seed(0)
    losses = torch.tensor([model.loss(grey(x)).item() for _ in range(100)])
    error = losses.std().item() / 100**0.5
    assert losses.mean().item() == pytest.approx(model.alpha_bar[1:].mean().item(), abs=4 * error) and error < 0.01


# The network
def test_a_vector_of_times_and_classes_gives_what_each_alone_gives():
    model, z = tiny(scattered=True), torch.randn(6, 3, 1, 1, dtype=torch.float64)
    t, y = torch.tensor([1, 7, 7, 30, 49, 50]), torch.tensor([0, 9, 10, 3, 3, 10])
    together = model.eps(z, t, y)
    assert together.shape == z.shape
    for i in range(6):
        alone = model.eps(z[i:i + 1], t[i].item(), y[i:i + 1])
        torch.testing.assert_close(alone, together[i:i + 1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.eps(z[2:3], 7), together[2:3], rtol=1e-5, atol=1e-6)  # None: the null label

    def f(t, y):
        return model.eps(z, t, y) - (1 - model.alpha_bar[t]).sqrt() * z
    for other in (f(t, (y + 1) % 11), f(t.flip(0), y)):
        assert (other - f(t, y)).abs().max() > 1e-3


# Standardising
def test_the_latents_of_the_training_digits_get_mean_0_and_variance_1():
    """μ + σ and μ − σ of every digit have together the moments of all draws of z."""
    x = digits()
    model = tiny(x=x)
    mean, log_var = model.vae.encode(vae.binarise(x, seed=2))
    z = torch.cat([mean + (log_var / 2).exp(), mean - (log_var / 2).exp()])
    z = (z - model.m) / model.s
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)
    plain = torch.cat([mean, mean]).var(0, correction=0)
    assert ((model.s.square() - plain) > 0.1).all()  # the variances of q count


def test_decoding_undoes_standardising():
    model = tiny(x=digits())
    mean, decoded = torch.randn(20, 3, dtype=torch.float64), []
    model.vae.encode = lambda x, y=None: (mean, torch.full_like(mean, -math.inf))  # σ = 0: z is the mean
    model.vae.decode = lambda z, y=None: decoded.append(z) or torch.zeros(len(z), 1, 28, 28)
    z = model.encode(digits(20))
    assert z.shape == (20, 3, 1, 1) and not torch.allclose(z.flatten(1), mean, atol=0.1)
    assert model.decode(z).shape == (20, 1, 28, 28)
    torch.testing.assert_close(decoded[0], mean, rtol=1e-9, atol=1e-9)


def test_the_loss_sees_draws_of_q_standardised(monkeypatch):
    model, seen = tiny(x=digits()), []
    mean, log_var = torch.randn(1, 3, dtype=torch.float64), torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    inputs = []
    model.vae.encode = lambda x, y=None: inputs.append(x) or (mean.expand(len(x), 3), log_var.expand(len(x), 3))
    monkeypatch.setattr(ddpm.DDPM, "loss", lambda self, z, y: seen.append(z) or z.sum())
    x = torch.cat([torch.zeros(2000, 1, 28, 28), torch.full((2000, 1, 28, 28), 255.0)])
    model.loss(grey(x), None)
    z = seen[0].flatten(1) * model.s + model.m
    assert torch.equal(inputs[0], x / 255)  # black and white pixels are not dithered
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.12, rtol=0)
    torch.testing.assert_close(z.std(0), (log_var[0] / 2).exp(), atol=0, rtol=0.06)


# Stage two leaves the VAE as it is
def test_the_loss_of_the_chain_sends_no_gradient_to_the_vae():
    model, x = tiny(x=digits(), scattered=True).float(), grey(digits(20))
    before = {name: v.clone() for name, v in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(x, torch.arange(20) % 11).backward()
        optimizer.step()
    assert all(p.grad is None for p in model.vae.parameters())
    for name, v in model.state_dict().items():
        assert torch.equal(v, before[name]) == (not name.startswith("net.")), name


def test_samples_are_probabilities_of_pixels_of_the_class_asked_for():
    model = tiny(scattered=True).float()
    torch.manual_seed(3)
    a = ld.sample(model, 4, torch.tensor([0, 0, 5, 5]), 6, 1.6)
    torch.manual_seed(3)
    b = ld.sample(model, 4, torch.tensor([0, 0, 5, 6]), 6, 1.6)
    assert a.shape == (4, 1, 28, 28) and 0 < a.min() and a.max() < 1
    assert torch.equal(a[:3], b[:3]) and not torch.equal(a[3], b[3])
    assert ld.sample(model, 3).shape == ld.sample(model, 3, 7).shape == (3, 1, 28, 28)


# Whole runs
@slow
def test_a_tiny_run_writes_its_results_and_pictures_and_keeps_the_vae_of_stage_one(tmp_path):
    out, _ = finished(start(tmp_path / "a"))
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["script"] == "latent_diffusion" and metrics["step"] == 3
    assert all(math.isfinite(value) for value in (metrics["results"] | metrics["baselines"]).values())
    assert {"seconds of stage one", "seconds for 1,000 samples", "seconds for 1,000 samples, ddpm.py"} < set(
        metrics["results"])
    for file in ("samples.png", "curve.png", "reconstructions.png", "chain.gif"):
        assert (tmp_path / "a" / file).stat().st_size > 1000
    assert "-ELBO, nats" in out and "noise prediction error" in out
    first = torch.load(tmp_path / "a-vae" / "model.pt", weights_only=True)
    second = torch.load(tmp_path / "a" / "model.pt", weights_only=True)
    assert first["name"] == "vae" and first["settings"]["label_dropout"] == 1 and first["settings"]["beta"] == 0.5
    for name, v in first["state"]["model"].items():
        assert torch.equal(v, second["state"]["model"][f"vae.{name}"])
        assert torch.equal(v, second["state"]["ema"][f"module.vae.{name}"])
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a-vae"}


def killed(process, path):
    """Wait for a first checkpoint, then kill; how many steps it has."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    return torch.load(path, weights_only=True)["step"]


@slow
def test_killed_in_either_stage_and_resumed_equals_never_interrupted(tmp_path):
    steps = "--steps 40 --vae-steps 40 --seed 3 --beta 0.7"
    finished(start(tmp_path / "whole", steps, pause=20))
    out = tmp_path / "killed"
    assert 0 < killed(start(out, steps, pause=0), tmp_path / "killed-vae" / "model.pt") < 40
    assert not (out / "model.pt").exists()
    assert 0 < killed(start(out, steps + " --resume", pause=0), out / "model.pt") < 40
    finished(start(out, "--steps 40 --vae-steps 40 --resume", pause=20))
    for end in ("", "-vae"):
        whole, other = (tmp_path / f"{name}{end}" / "model.pt" for name in ("whole", "killed"))
        assert equal_checkpoints(whole, other)
        first, second = (torch.load(path, weights_only=True)["settings"] for path in (whole, other))
        assert first == second and first["seed"] == 3 and first["beta"] == 0.7


@slow
@POSIX
def test_ctrl_c_in_stage_one_ends_the_run_and_resume_goes_on(tmp_path):
    process = start(tmp_path / "a", "--vae-steps 100000", pause=0)
    while not (tmp_path / "a-vae" / "model.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = finished(process, 130)
    assert "--resume goes on" in out and not (tmp_path / "a" / "model.pt").exists()
    step = torch.load(tmp_path / "a-vae" / "model.pt", weights_only=True)["step"]
    model = torch.load(tmp_path / "a-vae" / "model.pt", weights_only=True)
    model["settings"]["steps"] = step + 2  # not the whole 100,000
    torch.save(model, tmp_path / "a-vae" / "model.pt")
    finished(start(tmp_path / "a", "--resume", pause=20))
    assert torch.load(tmp_path / "a-vae" / "model.pt", weights_only=True)["step"] == step + 2
    assert torch.load(tmp_path / "a" / "model.pt", weights_only=True)["step"] == 3


@slow
def test_a_trained_run_of_vae_py_takes_the_place_of_stage_one(tmp_path):
    finished(run("vae", tmp_path / "vae", bare=True))  # 16 hidden units, 4 latents, with classes
    given = tmp_path / "vae" / "model.pt"
    before = given.read_bytes()
    finished(start(tmp_path / "a", f"--vae {given}", pause=20))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "vae"} and given.read_bytes() == before
    saved = torch.load(tmp_path / "a" / "model.pt", weights_only=True)["state"]["model"]
    for name, v in torch.load(given, weights_only=True)["state"]["model"].items():
        assert torch.equal(v, saved[f"vae.{name}"])
    assert saved["m"].shape == (4,)
    finished(start(tmp_path / "a", "--resume --steps 5", pause=20))
    assert torch.load(tmp_path / "a" / "model.pt", weights_only=True)["step"] == 5


@slow
def test_the_saved_model_loads_and_samples(tmp_path, monkeypatch):
    finished(start(tmp_path / "a", "--channels 256 --timesteps 1000", pause=20))
    monkeypatch.setattr(ddpm, "NAME", "latent_diffusion")
    monkeypatch.setattr(ddpm, "DDPM", ld.LatentDiffusion)
    model = ddpm.load(tmp_path / "a" / "model.pt")
    saved = torch.load(tmp_path / "a" / "model.pt", weights_only=True)["state"]["ema"]
    assert torch.equal(model.s, saved["module.s"]) and ld.sample(model, 2, 4).shape == (2, 1, 28, 28)


@slow
def test_faults_end_with_status_2_and_the_default_folder_has_the_variation_s_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "file" in refused(start(tmp_path / "file"))
    assert "none.pt is missing" in refused(start(tmp_path / "a", f"--vae {tmp_path / 'none.pt'}"))
    assert "damaged" in refused(start(tmp_path / "a", f"--vae {tmp_path / 'file'}"))
    assert "out of range" in refused(start(tmp_path / "a", "--beta -1"))
    text, _ = finished(start(tmp_path, "--help"))
    assert "out/latent_diffusion" in " ".join(text.split())
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
