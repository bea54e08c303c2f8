"""The things to break in vae.py: each is done, and shows what the opening promises."""
import math

import torch
from broken import digits, thing, trained

NAME, FLAGS = "vae", "--steps 500 --batch-size 32 --channels 8 --samples 10"
KL, PIXELS, ALIVE = "of it KL(q || p)", "of it -log p(x | z)", "latents that say more than 0.05 nats"


def test_1_an_encoder_that_hears_of_the_kl_alone_makes_a_class_one_blur():
    edit = "self.decode(z, y)), gaussian_kl", "self.decode(z.detach(), y)), gaussian_kl"
    assert "self.decode(z.detach(), y)" in thing(NAME, 1)
    _, whole, good, _ = trained(NAME, flags=FLAGS)
    _, model, bad, _ = trained(NAME, edit, flags=FLAGS)
    assert bad[KL] < 0.1 and good[KL] > 3
    spread, usual = (m.sample(64, 3).std(0).mean().item() for m in (model, whole))
    assert spread < usual / 3


def test_2_under_a_mean_over_pixels_every_latent_collapses():
    edit = 'x.expand_as(logits), reduction="none").flatten(1).sum(1)', \
        'x.expand_as(logits), reduction="none").flatten(1).mean(1)'
    assert "put .mean(1) for .sum(1)" in thing(NAME, 2)
    _, _, good, _ = trained(NAME, flags=FLAGS)
    _, _, bad, _ = trained(NAME, edit, flags=FLAGS)
    assert bad[ALIVE] == 0 and bad[KL] < 0.1
    assert good[ALIVE] > 3 and good[KL] > 3


def test_3_codes_that_cost_nothing_redraw_sharply_but_samples_are_rubbish():
    edit = "loss = (s.beta * kl.sum(1)", "loss = (0 * kl.sum(1)"
    assert "put 0 for s.beta" in thing(NAME, 3)
    _, whole, good, usual = trained(NAME, flags=FLAGS)
    _, model, bad, run = trained(NAME, edit, flags=FLAGS)
    assert bad[PIXELS] < good[PIXELS]
    x, y = digits()[0][:2000].flatten(1) / 255, digits()[1][:2000]
    asked = torch.arange(300) % 10
    right = [(y[torch.cdist(m.sample(300, asked).flatten(1), x).argmin(1)] == asked).float().mean().item()
             for m in (model, whole)]  # the share of samples whose nearest digit is of the class asked for
    assert right[0] < 0.75 * right[1] and right[1] > 0.3
    assert run["curve"][-1][2] > 784 * math.log(2) > 2 * usual["curve"][-1][2]
