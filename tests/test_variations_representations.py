"""representations: probes against closed forms, codes that may be rescaled, features of models."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

import ddpm
import ebm
import vae
import vqvae
from variations import representations as page


def some_images(n):
    return torch.randint(256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("decay", [0.01, 1.0])
def test_at_the_probe_the_loss_is_flat_wherever_the_search_began(decay):
    torch.manual_seed(0)
    f, y = torch.randn(60, 5), torch.arange(60) % 3
    layer, again = page.fit(f, y, decay), page.fit(f, y, decay)
    loss = F.cross_entropy(layer(f), y) + decay / 2 * (layer.weight**2).sum()
    slopes = torch.cat([slope.flatten() for slope in grad(loss, list(layer.parameters()))])
    assert slopes.abs().max() < 1e-3
    torch.testing.assert_close(layer.weight, again.weight, atol=1e-2, rtol=0)
    torch.testing.assert_close(layer(f).softmax(1), again(f).softmax(1), atol=1e-2, rtol=0)


def test_for_groups_the_probe_gives_the_shares_of_labels_in_each():
    group = torch.arange(40) % 2
    y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 1]).repeat(5)
    layer = page.fit(F.one_hot(group).float(), y, decay=0.0)
    for g in range(2):
        shares = y[group == g].bincount(minlength=3) / 20
        p = layer(F.one_hot(torch.tensor(g), 2).float()).softmax(0)
        torch.testing.assert_close(p, shares, atol=1e-3, rtol=0)


def corners(n, seed):
    """Points around three corners, far apart, and the number of their corner."""
    torch.manual_seed(seed)
    y = torch.arange(n) % 3
    return 10 * F.one_hot(y, 3) + torch.randn(n, 3), y


def test_separable_labels_are_all_found_and_the_error_is_that_of_the_test():
    (f, y), (g, v), (h, w) = corners(90, 0), corners(30, 1), corners(30, 2)
    features = torch.cat([f, g, h])
    assert page.test_error(features, [y, v, w], torch.arange(30)) == 0
    wrong = torch.where(torch.arange(30) < 12, (w + 1) % 3, w)
    assert page.test_error(features, [y, v, wrong], slice(None)) == pytest.approx(12 / 30)
    spoilt = torch.where(torch.arange(90) < 30, y, (y + 1) % 3)  # rows that are not asked for
    assert page.test_error(features, [spoilt, v, w], torch.arange(30)) == 0


def test_the_weight_decay_is_the_best_in_validation(monkeypatch):
    f, y = torch.zeros(9, 2), torch.arange(9) % 2
    right = {0.0001: 3, 0.001: 1, 0.01: 5, 0.1: 2}  # how many rows of a set each layer reads right

    def layer(f, y, decay):
        return lambda f: F.one_hot((torch.arange(len(f)) >= right[decay]).long() ^ 1, 2).float()

    monkeypatch.setattr(page, "fit", layer)
    ones = torch.ones(9, dtype=torch.long)
    found = page.test_error(torch.cat([f, f, f]), [y, ones, 1 - ones], slice(None))
    assert found == pytest.approx(5 / 9)  # 0.01 is right 5 times in validation, wrong 5 in the test


@pytest.mark.parametrize("c", [0.01, 7.0])
@torch.no_grad()
def test_rescaled_codes_change_the_loss_of_the_vae_alone(c):
    torch.manual_seed(0)
    two, x = page.two_models(3), vae.binarise(some_images(4))
    for name, model in two.items():
        torch.manual_seed(1)
        before, codes = model.elbo(x, page.alike(x)), page.code(model, x)
        model.encoder.last.weight[:3] *= c
        model.encoder.last.bias[:3] *= c
        model.decoder.first.weight[:, :3] /= c
        torch.manual_seed(1)
        after = model.elbo(x, page.alike(x))
        torch.testing.assert_close(page.code(model, x), c * codes, atol=1e-5, rtol=1e-5)
        assert torch.allclose(after, before, atol=1e-3, rtol=0) == (name == "plain")


def test_draws_like_codes_have_their_mean_and_covariance():
    torch.manual_seed(0)
    codes = torch.randn(30, 3) @ torch.tensor([[2.0, 1, 0], [0, 1, 0.5], [0, 0, 0.2]]) + 5
    z = page.draw_like(codes, 200_000)
    torch.testing.assert_close(z.mean(0), codes.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(z.T.cov(), codes.T.cov(correction=0), atol=0.05, rtol=0)


@torch.no_grad()
def test_features_of_the_chapters_models():
    x = some_images(6)
    letters = page.vqvae_features(vqvae.VQVAE(4, entries=5, width=8), x)
    assert letters.shape == (6, 16, 5) and torch.equal(letters.sum(2), torch.ones(6, 16))
    model = ebm.EBM(4)
    torch.manual_seed(1)
    features = page.ebm_features(model, x)
    torch.manual_seed(1)
    noisy = ebm.add_noise(x / 255, model.noise)
    bowl = (noisy**2).sum((1, 2, 3)) / (2 * model.noise**2)
    energies = bowl[:, None] - 30 / model.noise**2 * model.net[-1](features)
    torch.testing.assert_close(energies, model.energies(noisy))


@pytest.mark.parametrize("timesteps", [12, 1000])
@torch.no_grad()
def test_the_ddpm_is_told_no_class_and_keeps_no_hook(timesteps):
    model, x, found = ddpm.DDPM(4, timesteps), some_images(6), []
    for factor in (1, -3):
        model.network.label.weight[:10] *= factor
        torch.manual_seed(1)
        found.append(page.ddpm_features(model, x))
    assert found[0].shape == (6, 8, 7, 7) and torch.equal(*found)
    assert not model.network.coarse2._forward_hooks


def test_runs_that_exist_are_probed_and_missing_ones_named(tmp_path, capsys):
    model, path = ebm.EBM(4, classes=3), tmp_path / "ebm.pt"
    flags = {"channels": 4, "sample_steps": 100, "classes": 3}
    torch.save({"flags": flags, "model": model.state_dict()}, path)
    args = Namespace(device="cpu", vqvae="none.pt", ddpm=tmp_path, ebm=path)
    two, x = page.two_models(2), some_images(3)
    sizes = {
        name: features(x).flatten(1).shape for name, features in page.representations(two, args)
    }
    assert sizes == {"pixels": (3, 784), "autoencoder": (3, 2), "VAE": (3, 2), "ebm*": (3, 128)}
    said = capsys.readouterr().out
    assert "vqvae.py" in said and "ddpm.py" in said and "ebm" not in said
