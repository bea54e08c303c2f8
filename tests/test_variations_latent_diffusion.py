"""Latent diffusion: the scale of codes and its KL, the chain on codes, two stages in one run."""

import pytest
import torch
from chapters import check_samples, digits, short_run
from torch.distributions import Normal, kl_divergence

from variations import latent_diffusion
from variations.latent_diffusion import SIGMA, LatentDiffusion, code_images


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LatentDiffusion(4)


def test_the_kl_of_every_code_is_the_constant_of_the_opening(model):
    with torch.no_grad():
        mu = model.autoencoder.encode(digits()[0][:1200]).flatten(1)
    assert mu.shape == (1200, 196)
    kl = kl_divergence(Normal(mu, SIGMA), Normal(0.0, 1.0)).mean(1)
    assert (mu.std(0) > 0.01).all() and (kl - 1.63).abs().max() < 0.005


def test_the_price_of_a_code_is_what_it_tells_plus_what_the_prior_misses():
    torch.manual_seed(0)
    q = torch.rand(5, 7).softmax(1)  # q(z | x) of five images and seven codes
    p = torch.rand(7).softmax(0)
    q_z = q.mean(0)
    price = (q * (q / p).log()).sum(1).mean()
    told = (q * (q / q_z).log()).sum(1).mean()
    missed = (q_z * (q_z / p).log()).sum()
    assert torch.allclose(price, told + missed) and missed > 0.001


def test_untrained_the_chain_takes_all_for_noise_and_every_block_computes_a_code(model):
    z = torch.randn(3, 4, 7, 7)
    sizes = []
    for part in (model.network.stem, model.network.down, model.network.up, model.network.head):
        part.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    eps = model.network(z, torch.tensor([1, 500, 1000]), torch.tensor([0, 9, 10]))
    bias = model.network.head.bias[:, None, None]
    assert torch.allclose(eps, z + bias) and sizes == [(7, 7)] * 4


@pytest.mark.parametrize("steps", [1, 12, 1000])
def test_with_the_right_noise_ddim_arrives_at_the_code(model, steps):
    code = torch.randn(3, 4, 7, 7).clamp(-3, 3)

    class Oracle(torch.nn.Module):
        def forward(self, z, t, y):
            alpha_bar = model.alpha_bar[t]
            return (z - alpha_bar.sqrt() * code) / (1 - alpha_bar).sqrt()

    model.network = Oracle()
    times = [(t, z0) for t, _, z0 in model.ddim(torch.arange(3), steps, 1.6)]
    assert times[0][0] == 1000 and len(times) <= steps
    assert torch.allclose(times[-1][1], code, atol=1e-3)
    wanted = model.autoencoder.decoder(code)
    assert torch.allclose(model.sample(torch.arange(3), steps), wanted, atol=1e-3)


def test_pictures_of_codes_put_the_channels_in_a_square():
    z = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 7, 7)
    image = code_images(z)[0, 0]
    assert image.shape == (28, 28)
    corners = image[[1, 1, -2, -2], [1, -2, 1, -2]]
    assert torch.allclose(corners, torch.tensor([3, 4, 5, 6]) / 6)


def test_stage_one_moves_the_autoencoder_alone_and_stage_two_the_chain_alone():
    flags = "--batch-size 8 --channels 4 --save-every 2 --first-steps 2"
    one, _ = short_run(latent_diffusion, f"--steps 2 {flags}")
    both, _ = short_run(latent_diffusion, f"--steps 4 {flags}")
    torch.manual_seed(0)
    new = LatentDiffusion(4).state_dict()
    for name, value in one.state_dict().items():
        first = name.startswith("autoencoder")
        trained = torch.equal(value, both.state_dict()[name])
        assert trained if first else torch.equal(value, new[name])
    changed = one.autoencoder.decoder[0].weight != new["autoencoder.decoder.0.weight"]
    assert changed.any()
    assert (both.network.head.weight != one.network.head.weight).any()
    check_samples(both)
