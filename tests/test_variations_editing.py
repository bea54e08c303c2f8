"""Inpainting and DDIM's latents against closed forms, with the optimal denoiser of Gaussian data."""
import math
import subprocess
import sys

import pytest
import torch
from harness import ROOT, TINY, finished, run, small
from test_ddpm import MU, gaussian_data, last, optimal, random_model

import ddpm
from variations import editing


@pytest.mark.parametrize("t, s", [(2, 1), (500, 499), (1000, 999), (700, 350), (10, 0)])
def test_posterior_is_bayes_rule_for_gaussians(t, s):
    model = optimal()
    a_t, a_s = model.alpha_bar[t], model.alpha_bar[s]
    x0, x = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64), torch.full((1, 1, 1, 1), -0.8, dtype=torch.float64)
    mean, var = editing.posterior(model, x0, x, t, s)
    if s == 0:
        assert mean.item() == pytest.approx(0.3) and var.item() == 0
        return
    # prior x_s ~ N(√a_s x0, 1 - a_s), likelihood x_t ~ N(√k x_s, 1 - k): precisions add
    k = a_t / a_s
    precision = 1 / (1 - a_s) + k / (1 - k)
    assert var.item() == pytest.approx(1 / precision.item(), rel=1e-9)
    expected = (a_s.sqrt() * 0.3 / (1 - a_s) + k.sqrt() * -0.8 / (1 - k)) / precision
    assert mean.item() == pytest.approx(expected.item(), rel=1e-9)


def test_ddim_is_undone_by_ddim_encode():
    torch.manual_seed(0)
    model, x0 = optimal(), gaussian_data(4)
    assert (last(ddpm.ddim(model, editing.encode(model, x0, 200), steps=200)) - x0).abs().max() < 1e-2
    assert editing.encode(model, x0, 1000).std().item() == pytest.approx(1, abs=0.05)


def test_inpainting_keeps_what_is_known():
    model, x0 = random_model(), torch.rand(2, 1, 28, 28) * 2 - 1
    x = editing.inpaint(model, x0, torch.arange(28).view(28, 1) < 14, torch.tensor([1, 2]), steps=20)
    assert torch.allclose(x[:, :, :14], x0[:, :, :14], atol=1e-6)
    assert not torch.allclose(x[:, :, 14:], x0[:, :, 14:], atol=0.1)


def test_inpainted_pixels_have_the_data_s_mean_and_variance():
    torch.manual_seed(0)
    model, known = optimal(s2=0.2**2), torch.arange(28).view(28, 1) < 14
    x = editing.inpaint(model, gaussian_data(32, 0.2**2), known)[:, :, 14:]
    assert x.mean().item() == pytest.approx(MU, abs=0.01) and x.std().item() == pytest.approx(0.2, rel=0.04)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_every_time_asked_for_is_one_that_training_draws(steps):
    model, x = optimal(T=50), torch.randn(1, 1, 28, 28).double()
    editing.encode(model, x, steps)
    assert min(model.net.asked) >= 1 and max(model.net.asked) <= 50 and len(model.net.asked) <= steps
    model.net.asked.clear()
    editing.inpaint(model, x, torch.zeros(28, 28).bool(), steps=steps, w=1)
    asked = model.net.asked
    assert asked[0] == 50 and min(asked) >= 1 and asked == sorted(set(asked), reverse=True) and len(asked) <= steps


def test_the_class_reaches_what_is_inpainted():
    model, x, out = random_model(), torch.rand(3, 1, 28, 28) * 2 - 1, []
    for y in (torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4])):
        torch.manual_seed(0)
        out.append(editing.inpaint(model, x, torch.zeros(28, 28).bool(), y, 5))
    assert torch.allclose(out[0][:2], out[1][:2], atol=1e-5) and not torch.allclose(out[0][2], out[1][2])


def test_a_great_circle_keeps_the_length_and_goes_at_one_speed():
    a, b = (v / v.flatten(1).norm(dim=1).view(2, 1, 1, 1) for v in torch.randn(2, 2, 1, 4, 4).double())
    path = torch.stack([editing.great_circle(a, b, u / 6) for u in range(7)]).flatten(2)
    assert torch.allclose(path[0], a.flatten(1)) and torch.allclose(path[6], b.flatten(1))
    assert torch.allclose(path.norm(dim=2), torch.ones(7, 2).double())
    steps = (path[1:] - path[:-1]).norm(dim=2)
    assert torch.allclose(steps, steps[:1].expand(6, 2)) and 0 < steps.sum(0).min() < math.pi


def test_it_runs_tiny_and_needs_a_trained_model(tmp_path):
    command = [sys.executable, "-m", "variations.editing", "--strides", "3", "--encoding", "3", "--device", "cpu",
               "--out", str(tmp_path / "a"), "--model", str(tmp_path / "ddpm" / "model.pt")]
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=small())
    assert process.returncode == 2 and "model.pt is missing" in process.stderr and "Traceback" not in process.stderr
    assert TINY["ddpm"]
    finished(run("ddpm", tmp_path / "ddpm", bare=True))
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=small())
    assert process.returncode == 0, process.stderr
    left = {file.name for file in (tmp_path / "a").iterdir()}
    assert left == {"metrics.json", "inpainting.png", "interpolation.png", "interpolation.gif"}
