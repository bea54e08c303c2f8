"""editing: projections, steps and walks against Gaussian pixels, where Bayes' rule is known."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from chapters import data_folder, main
from test_ddpm import oracle, some_digits

import ddpm
from variations import editing

MU, SIGMA = -0.2, 0.15  # of independent Gaussian pixels; a noise of 0.2 is added to them below


def gaussian_pixels():
    """A model whose guess at such pixels is E[x_0 | x_t]."""

    def guess(x, alpha_bar):
        gain = alpha_bar.sqrt() * SIGMA**2 / (alpha_bar * SIGMA**2 + 1 - alpha_bar)
        return MU + gain * (x - alpha_bar.sqrt() * MU)

    return oracle(guess)


def matrix(A):
    """The rows of the linear map A of images."""
    return torch.stack([A(e.view(1, 1, 28, 28)).flatten() for e in torch.eye(784)], dim=1)


def test_both_projections_are_those_of_the_opening():
    torch.manual_seed(0)
    model, x0, image = ddpm.DDPM(8), 2 * torch.rand(784) - 1, torch.randn(1, 1, 28, 28)
    known = torch.rand(28, 28) < 0.3
    projections = []

    def spy(model, n, project, steps, repeats):
        projections.append(project)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editing, "from_noise", spy)
        editing.inpaint(model, image, known)
        editing.super_resolve(model, editing.block_means(image))
    pixels = torch.eye(784)[known.flatten()]
    for A, project in zip((pixels, matrix(editing.block_means)), projections):
        W = torch.diag(1.01 - x0**2)
        weight = torch.linalg.solve(A @ W @ A.T, A @ image.flatten() - A @ x0)
        nearest = x0 + W @ A.T @ weight
        ours = project(x0.view(1, 1, 28, 28)).flatten()
        torch.testing.assert_close(ours, nearest, atol=1e-4, rtol=0)
        torch.testing.assert_close(A @ ours, A @ image.flatten(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("t, s", [(2, 1), (500, 499), (700, 350), (10, 0)])
def test_a_step_back_is_bayes_rule_and_a_short_one_the_chapter_s(t, s):
    model, n = ddpm.DDPM(8), 200_000
    torch.manual_seed(0)
    x0 = torch.full((n, 1, 1, 1), 0.3)
    x = torch.full((n, 1, 1, 1), -0.8)
    times = torch.full((n,), t)
    drawn = editing.step_back(model, x, times, torch.full((n,), s), x0)
    a_t, a_s = model.alpha_bar[t].item(), model.alpha_bar[s].item()
    k = a_t / a_s  # x_t ~ N(√k x_s, 1 − k), x_s ~ N(√a_s x_0, 1 − a_s): precisions add
    variance = 1 / (1 / (1 - a_s) + k / (1 - k)) if s else 0.0
    mean = variance * (0.3 * a_s**0.5 / (1 - a_s) - 0.8 * k**0.5 / (1 - k)) if s else 0.3
    assert drawn.mean().item() == pytest.approx(mean, abs=5 * variance**0.5 / n**0.5 + 1e-4)
    assert drawn.var().item() == pytest.approx(variance, rel=0.02, abs=1e-8)
    there = model.add_noise(x0, times * 0 + s, torch.randn_like(x0))  # and forth: equation 4
    forth = editing.step_forth(model, there, times * 0 + s, times)
    assert forth.mean().item() == pytest.approx(0.3 * a_t**0.5, abs=0.01)
    assert forth.var().item() == pytest.approx(1 - a_t, rel=0.02)
    if s == t - 1:
        theirs = model.posterior(torch.tensor(-0.8), t, torch.tensor(0.3))
        assert [part.item() for part in theirs] == pytest.approx([mean, variance], rel=1e-2)


def test_what_is_known_is_kept_and_the_rest_has_the_right_spread():
    torch.manual_seed(0)
    model, known = gaussian_pixels(), torch.arange(28)[:, None] < 14
    image = MU + SIGMA * torch.randn(100, 1, 28, 28)
    filled = editing.inpaint(model, image, known, 1000, 1)
    torch.testing.assert_close(filled[:, :, :14], image[:, :, :14])
    assert filled[:, :, 14:].mean().item() == pytest.approx(MU, abs=0.005)
    assert filled[:, :, 14:].std().item() == pytest.approx(SIGMA, rel=0.03)
    means = editing.block_means(image)
    sharp = editing.super_resolve(model, means, 1000, 1)
    torch.testing.assert_close(editing.block_means(sharp), means, atol=1e-5, rtol=0)
    rest = sharp - editing.enlarge(means)
    assert rest.std().item() == pytest.approx(SIGMA * math.sqrt(48 / 49), rel=0.03)


def test_noise_is_measured_on_plain_images_and_nearly_so_on_digits():
    torch.manual_seed(0)
    for s in (0.1, 0.5, 2.0):
        noise = s * torch.randn(100, 1, 28, 28)
        assert editing.noise_strength(noise).mean().item() == pytest.approx(s, rel=0.01)
    for s in (0.5, 2.0):
        v = some_digits(100) + s * torch.randn(100, 1, 28, 28)
        assert editing.noise_strength(v).mean().item() == pytest.approx(s, rel=0.15)


def test_the_time_is_that_whose_noise_matches():
    model = ddpm.DDPM(8)
    t = torch.tensor([1, 7, 300, 1000])
    alpha_bar = model.alpha_bar[t].flatten()
    s = ((1 - alpha_bar) / alpha_bar).sqrt()
    assert editing.matching_time(model, 0.9999 * s).tolist() == t.tolist()
    assert editing.matching_time(model, torch.tensor([0.0, 1e6])).tolist() == [1, 1000]


def test_one_pass_is_the_mean_and_a_walk_a_draw_with_twice_its_square_error():
    torch.manual_seed(0)
    x0 = MU + SIGMA * torch.randn(100, 1, 28, 28)
    v = x0 + 0.2 * torch.randn_like(x0)
    with pytest.MonkeyPatch.context() as patch:  # these pixels are no image with plain parts
        patch.setattr(editing, "noise_strength", lambda v: torch.full((len(v),), 0.2))
        mean, draw = editing.remove_noise(gaussian_pixels(), v, 250)
    gain = SIGMA**2 / (SIGMA**2 + 0.2**2)
    torch.testing.assert_close(mean, MU + gain * (v - MU), atol=0.01, rtol=0)
    least = SIGMA**2 * (1 - gain)
    assert F.mse_loss(mean, x0).item() == pytest.approx(least, rel=0.03)
    assert F.mse_loss(draw, x0).item() == pytest.approx(2 * least, rel=0.04)


@pytest.mark.pictures
def test_it_runs_on_a_tiny_model_and_asks_for_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(data_folder(tmp_path / "data")))
    flags = ["--device", "cpu", "--stand-in", "never", "--steps", "2", "--draws", "2"]
    flags += ["--stride", "6", "--out", str(tmp_path / "out"), "--model"]
    with pytest.raises(OSError, match="missing"):
        editing.main([*flags, str(tmp_path / "none.pt")])
    main("ddpm", tmp_path / "ddpm", "--classes 1")
    editing.main([*flags, str(tmp_path / "ddpm" / "model.pt")])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert all(math.isfinite(value) for value in metrics["results"].values())
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"inpainting.png", "super_resolution.png", "noise_64.png"} <= pictures
