"""The things to break of realnvp.py, broken: what the bits/dim say, and what is true."""
import math

import torch
from broken import chapter, digits, thing, trained

FLAGS = "--steps 80 --batch-size 16 --channels 8 --couplings 6 --lr 6e-3"


def bits(run):
    return run["curve"][-1]["validation"]


def true_bits(model):
    """By `log_prob` of the whole chapter, of a model that a broken one has trained."""
    honest = chapter("realnvp").RealNVP(8, 6)
    honest.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        return -honest.log_prob(digits()[2], digits()[3]).mean().item() / 784 / math.log(2)


def test_1_a_tenth_of_the_noise_brings_the_loss_below_0_which_is_no_bound():
    assert "put torch.rand(x.shape, device=x.device) / 10" in thing("realnvp", 1)
    old = "v, log_det_logit = logit((x + torch.rand(x.shape, device=x.device)"
    edit = old, f"{old} / 10"
    (_, whole, _, usual), (_, broken, _, run) = trained("realnvp", flags=FLAGS), trained(
        "realnvp", edit, flags=FLAGS)
    assert bits(run) < -0.3 and bits(usual) > 1
    assert true_bits(broken) > true_bits(whole)


def test_2_scales_that_do_not_count_make_the_bits_wrong_and_samples_noise():
    new = "0 * log_scale.flatten(1).sum(1)"
    assert f"return {new}" in thing("realnvp", 2)
    edit = "+ shift, " + new[4:], "+ shift, " + new
    (_, whole, _, usual), (_, broken, _, run) = trained("realnvp", flags=FLAGS), trained(
        "realnvp", edit, flags=FLAGS)
    assert bits(run) < bits(usual) - 0.3 and true_bits(broken) > true_bits(whole) + 0.5
    grain = []
    for model in (whole, broken):
        torch.manual_seed(0)
        x = model.sample(50, torch.arange(50) % 10)
        grain.append((x[..., 1:] - x[..., :-1]).abs().mean().item())  # from each pixel to the next
    assert grain[1] > 2 * grain[0]


def test_3_pixels_that_no_coupling_changes_keep_bits_high():
    new = "MASKS = [[1, 0, 0, 1]] * 6"
    assert new in thing("realnvp", 3)
    old = "MASKS = [[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]]"
    broken, whole = trained("realnvp", (old, new), flags=FLAGS), trained("realnvp", flags=FLAGS)
    assert bits(broken[3]) > bits(whole[3]) + 0.1
    x = torch.zeros(2, 1, 28, 28)
    x[1, 0, ::2] = 1  # do pixels at the lower right of each 2 x 2 heed those above them?
    for (_, model, _, _), changed in ((broken, False), (whole, True)):
        with torch.no_grad():
            a, b = model(x)[0][:, 588:]  # channel 3 goes out after the first scale
        assert torch.allclose(a, b, atol=1e-5) != changed
