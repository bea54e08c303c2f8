"""The things to break in gated_pixelcnn.py: each is done, and shows what the opening promises."""
import torch
from broken import chapter, digits, thing, trained

NAME, FLAGS = "gated_pixelcnn", "--steps 100 --batch-size 8 --channels 16 --layers 1 --lr 0.01"
NATS = "test -log p(x), nats, network not told the class"


def test_1_v_sees_the_row_the_loss_falls_to_0_samples_are_blank():
    edit = "MaskedConv(1, C, 4, 7, see=0)", "MaskedConv(1, C, 4, 7, see=7)"
    assert "give the first stem see=7 for see=0" in thing(NAME, 1)
    _, whole, good, _ = trained(NAME, flags=FLAGS)
    _, model, bad, _ = trained(NAME, edit, flags=FLAGS)
    ink, usual = model.sample(32).mean(), whole.sample(32).mean()
    assert bad[NATS] < good[NATS] / 5
    assert ink < 0.01 and usual > 0.05


def test_2_rows_that_do_not_know_those_above_do_not_fit_together():
    edit = "gate(self.along(h, at) + above + to_h)", "gate(self.along(h, at) + to_h)"
    assert "drop `+ above`" in thing(NAME, 2)
    _, whole, good, _ = trained(NAME, flags=FLAGS)
    _, model, bad, _ = trained(NAME, edit, flags=FLAGS)
    x = [m.sample(32) for m in (model, whole)]
    fit = [((v[:, :, :-1] * v[:, :, 1:]).sum() / v.sum()).item() for v in x]  # the share of ink with ink right below
    assert bad[NATS] > 1.2 * good[NATS]
    assert fit[0] < 0.75 * fit[1]


def test_3_a_sampler_that_sees_white_draws_the_same_below_every_upper_half():
    loop = "            for stem in self.stems:\n"
    edit = loop + "                stem.keep(2 * x[:, :, r:r + 1, c:c + 1] - 1, (r, c))\n", ""
    assert "drop the two lines with `stem`" in thing(NAME, 3)
    _, whole, _, _ = trained(NAME, flags=FLAGS)
    half = (digits()[2][:8] > 127).float().flatten(1)[:, :392]

    def lower(sample, given):
        torch.manual_seed(0)
        return sample(whole, 8, given=given)[:, :, 14:]

    for sample, blind in ((chapter(NAME, edit).GatedPixelCNN.sample, True), (type(whole).sample, False)):
        assert torch.equal(lower(sample, half), lower(sample, torch.zeros_like(half))) == blind
