"""The things to break in gated_pixelcnn.py: each is done, and shows what the notes promise."""
import torch
from broken import chapter, continued, digits, thing, trained

NAME, FLAGS = "gated_pixelcnn", "--steps 120 --batch-size 16 --channels 16 --layers 1 --lr 0.01"


def loss_and_samples(*edits):
    """The validation loss of a short run, and 30 samples."""
    _, model, _, run = trained(NAME, *edits, flags=FLAGS)
    torch.manual_seed(0)
    return run["curve"][-1]["validation"], model.sample(30, torch.arange(30) % 10)


def test_1_a_vertical_stack_that_sees_the_row_leaves_no_loss_and_every_image_empty():
    assert "give the first stem see=7 for see=0" in thing(NAME, 1)
    usual, x = loss_and_samples()
    loss, empty = loss_and_samples(("MaskedConv(1, C, 4, 7, see=0)", "MaskedConv(1, C, 4, 7, see=7)"))
    assert loss < usual / 5
    assert empty.mean() < 0.01 and x.mean() > 0.05


def test_2_rows_that_do_not_know_those_above_do_not_fit_together():
    assert 'drop "+ above"' in thing(NAME, 2)
    usual, x = loss_and_samples()
    loss, rows = loss_and_samples(("self.conv_h(h, at) + above + class_h", "self.conv_h(h, at) + class_h"))
    fit = [((v[:, :, :-1] * v[:, :, 1:]).sum() / v.sum()).item() for v in (rows, x)]  # 1s above a 1
    assert loss > 1.2 * usual
    assert fit[0] < 0.75 * fit[1]


def test_3_a_sampler_that_stores_no_pixel_draws_the_same_below_every_upper_half(tmp_path):
    assert "put pass for the line with `stem.store`" in thing(NAME, 3)
    edit = "stem.store(2 * x[:, :, r:r + 1, c:c + 1] - 1, at)", "pass"
    _, model, _, run = trained(NAME, flags=FLAGS)
    torch.save(run, tmp_path / "model.pt")
    broken = chapter(NAME, edit).load(tmp_path / "model.pt")
    x, y = (digits()[2][:8] > 127).float(), digits()[3][:8]
    with torch.no_grad():
        assert torch.equal(broken.log_prob(x, y), model.log_prob(x, y))
    same = []
    for sampler in (model, broken):
        lower = []
        for given in (x, torch.zeros_like(x)):  # upper halves of digits, or empty ones
            torch.manual_seed(0)
            lower.append(continued(sampler, y, given.flatten(1)[:, :392])[:, :, 14:])
        same.append(torch.equal(*lower))
    assert same == [False, True]
