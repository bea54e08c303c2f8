"""The things to break of realnvp.py, broken: what the bits/dim say, and what is true."""
import argparse
import math

import torch
from broken import chapter, digits, thing, trained

FLAGS = "--steps 80 --batch-size 16 --channels 8 --couplings 6 --lr 6e-3"
BITS = "test -log p(x), bits/dim, class not told"


def test_1_noise_that_is_not_charged_brings_bits_below_0():
    new = "return (level + u / 10) / 256, x.new_zeros(len(x))"
    assert new in thing("realnvp", 1)
    old = "return (level + u) / 256, torch.where(level > 0, 0, bell.log_prob(u)).flatten(1).sum(1)"
    _, _, broken, run = trained("realnvp", (old, new), flags=FLAGS)
    _, _, whole, unbroken = trained("realnvp", flags=FLAGS)
    assert broken[BITS] < -0.3 and whole[BITS] > 1
    assert run["curve"][-1][2] < -0.3 and unbroken["curve"][-1][2] > 1


def test_2_uncounted_scales_make_bits_a_lie_and_the_true_ones_worse():
    new = "0 * log_scale.flatten(1).sum(1)"
    assert f"return {new}" in thing("realnvp", 2)
    _, model, broken, run = trained("realnvp", ("self.back], " + new[4:], "self.back], " + new), flags=FLAGS)
    _, _, whole, _ = trained("realnvp", flags=FLAGS)
    assert broken[BITS] < whole[BITS] - 0.5
    honest = chapter("realnvp").build(argparse.Namespace(**run["settings"]))
    honest.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        true = -honest.log_prob(digits()[2] / 255).mean().item() / 784 / math.log(2)
    assert true > whole[BITS] + 1


def test_3_pixels_that_no_coupling_changes_keep_bits_high():
    new = "FINE = [(0, 3)] * 6"
    assert new in thing("realnvp", 3)
    broken = trained("realnvp", ("FINE = [(0, 3), (1, 2), (0, 1), (2, 3), (0, 2), (1, 3)]", new), flags=FLAGS)
    whole = trained("realnvp", flags=FLAGS)
    assert broken[2][BITS] > whole[2][BITS] + 0.15
    for (_, model, _, _), changed in ((broken, False), (whole, True)):  # is noise at the lower right of each 2 x 2
        x = torch.zeros(2, 1, 28, 28)  # pixels a matter of the pixels around?
        x[1, 0, ::2] = 1
        a, b = model(x)[0][:, 588:]  # channel 3, the last to go out at the first scale
        assert torch.allclose(a, b, atol=1e-5) != changed
