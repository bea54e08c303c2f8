"""The things to break of ddpm.py, broken: a class that comes late, a chain that ends too early, too much noise."""
import argparse
import math

import torch
from broken import chapter, digits, thing, trained

FLAGS = "--steps 250 --batch-size 32 --channels 8 --timesteps 50 --ddim-steps 8 --lr 5e-3"
FEWER = (  # digits to evaluate on
    ("errors(x_test, y_test, 5000)", "errors(x_test, y_test, 200)"), ("model, x, each=10)", "model, x, each=1)"),
    ("pixel_histogram(x, x_test) / bit", "pixel_histogram(x[:500], x_test) / bit"),
    ("average.sample(250, 7)", "average.sample(25, 7)"))
ASKED = torch.arange(100) % 10


def draw(model, **how):
    torch.manual_seed(0)
    return model.sample(100, ASKED, **how)


def read_as_asked(images):
    """The share whose nearest neighbour, among 5,000 digits, is of the class asked for."""
    x, y, *_ = digits()
    nearest = torch.cdist(images.flatten(1), x[:5000].flatten(1) / 255).argmin(1)
    return (y[nearest] == ASKED).float().mean().item()


def test_1_the_loss_of_the_paper_brings_digits_as_fast_but_the_class_late():
    assert "In `weight`, clamp at 1," in thing("ddpm", 1)
    _, broken, late, _ = trained("ddpm", ("clamp(max=10)", "clamp(max=1)"), *FEWER, flags=FLAGS)
    _, whole, early, _ = trained("ddpm", *FEWER, flags=FLAGS)
    error = "test noise error, mean square a pixel"
    assert late[error] < 1.1 * early[error]
    assert read_as_asked(draw(broken)) < read_as_asked(draw(whole)) - 0.15


def test_2_samples_that_begin_with_more_noise_than_training_saw_come_out_too_dark():
    new = "torch.linspace(0.1, 2, timesteps)"
    assert new in thing("ddpm", 2)
    _, broken, _, _ = trained("ddpm", ("torch.linspace(0.1, 20, timesteps)", new), *FEWER, flags=FLAGS)
    _, whole, _, _ = trained("ddpm", *FEWER, flags=FLAGS)
    x0 = digits()[2] / 127.5 - 1
    still, gone = (model.prior_term(x0).mean().item() / 784 / math.log(2) for model in (broken, whole))
    assert still > 0.2 and gone < 0.001
    assert draw(broken).mean() > 1.3 * draw(whole).mean()


def test_3_four_times_the_variance_drowns_digits_in_grain():
    new = "return mean, 4 * (1 - a_s) / (1 - a_t) * (1 - keep)"
    assert new in thing("ddpm", 3)
    _, whole, _, run = trained("ddpm", *FEWER, flags=FLAGS)
    module = chapter("ddpm", (new.replace("4 * ", ""), new))
    broken = module.build(argparse.Namespace(**run["settings"]))
    broken.load_state_dict(whole.state_dict())
    grain = []
    for model in (broken, whole):
        x = draw(model, steps=model.T, guidance=1.0, ancestral=True)  # the full chain, as in the last row of ddim_steps
        grain.append((x[..., 1:] - x[..., :-1]).abs().mean().item())  # from each pixel to the next
    assert grain[0] > 1.4 * grain[1]
