"""The things to break in vae.py: each is done, and shows what the notes promise."""
import torch
from broken import class_accuracy, digits, thing, trained

NAME, FLAGS = "vae", "--steps 700 --batch-size 32 --hidden 128 --lr 3e-3"


def units(module, model):
    """KL by dimension of test digits, (Z,)."""
    x = module.binarise(digits()[2], seed=0)
    with torch.no_grad():
        return module.gaussian_kl(*model.encode(x)).mean(0)


def test_1_an_encoder_that_learns_from_the_kl_alone_makes_a_class_one_blur():
    assert "decode z.detach()" in thing(NAME, 1)
    module, whole, _, _ = trained(NAME, flags=FLAGS)
    _, model, _, _ = trained(NAME, ("self.decode(z, y))\n        return log_lik", "self.decode(z.detach(), y))\n"
                                    "        return log_lik"), flags=FLAGS)
    assert units(module, model).sum() < 0.1 and units(module, whole).sum() > 3
    spread, usual = (m.sample(64, 3).std(0).mean().item() for m in (model, whole))
    assert spread < usual / 3


def test_2_under_a_mean_over_pixels_every_unit_collapses():
    assert "put .mean(1) for .sum(1)" in thing(NAME, 2)
    module, whole, _, _ = trained(NAME, flags=FLAGS)
    _, model, _, _ = trained(NAME, ('reduction="none").flatten(1).sum(1)', 'reduction="none").flatten(1).mean(1)'),
                             flags=FLAGS)
    assert (units(module, model) > 0.05).sum() == 0 and (units(module, whole) > 0.05).sum() > 3


def test_3_latents_that_cost_nothing_reconstruct_sharply_but_samples_are_noise():
    assert "Set --beta 0" in thing(NAME, 3)
    module, whole, _, usual = trained(NAME, flags=FLAGS)
    _, model, _, run = trained(NAME, flags=FLAGS + " --beta 0")
    x, y = module.binarise(digits()[2], seed=0), digits()[3]
    with torch.no_grad():
        pixels = [module.bernoulli_log_prob(x, m.decode(m.encode(x, y)[0], y)).mean() for m in (model, whole)]
    assert pixels[0] > pixels[1]
    asked = torch.arange(300) % 10
    right = [class_accuracy(m.sample(300, asked), asked) for m in (model, whole)]
    assert right[0] < 0.75 * right[1] and right[1] > 0.3
    assert run["curve"][-1]["validation"] > 2 * usual["curve"][-1]["validation"]
