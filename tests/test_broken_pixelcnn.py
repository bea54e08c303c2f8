"""The things to break of pixelcnn.py, broken: each edit is made on a copy, each promised symptom is measured."""
import torch
from broken import chapter, digits, thing, trained

FLAGS = "--steps 120 --batch-size 16 --channels 8 --layers 2 --lr 0.01"


def loss_and_ink(*edits):
    """The validation loss of a short run, and the share of black pixels in its samples."""
    _, model, _, run = trained("pixelcnn", *edits, flags=FLAGS)
    torch.manual_seed(0)
    return run["curve"][-1][2], model.sample(20).mean().item()


def test_1_a_pixel_that_sees_itself_leaves_no_loss_and_blank_pages():
    assert "give the stem see=4 for see=3" in thing("pixelcnn", 1)
    (usual, some), (loss, ink) = loss_and_ink(), loss_and_ink(("1, 2 * C, 4, 7, see=3", "1, 2 * C, 4, 7, see=4"))
    assert loss < 20 and usual > 60
    assert ink < 0.01 and 0.05 < some < 0.3


def test_2_a_pixel_seen_through_its_right_neighbour_leaves_no_loss_and_pages_of_one_colour():
    assert "In `Block`, see=4 for see=3" in thing("pixelcnn", 2)
    (usual, some), (loss, ink) = loss_and_ink(), loss_and_ink(("C, C, 3, 5, see=3", "C, C, 3, 5, see=4"))
    assert loss < 20 and usual > 60
    assert (ink > 0.5 or ink < 0.01) and 0.05 < some < 0.3  # on real digits black ones, on drawn ones either


def test_3_drawn_pixels_that_are_not_kept_look_white_and_the_loss_is_what_it_is(tmp_path):
    edit = "self.stem.keep(2 * x[:, :, r:r + 1, c:c + 1] - 1, (r, c))\n", "\n"
    assert "In `sample`, drop the line with `keep`" in thing("pixelcnn", 3)
    _, model, _, run = trained("pixelcnn", flags=FLAGS)
    torch.save(run, tmp_path / "model.pt")
    broken = chapter("pixelcnn", edit).load(tmp_path / "model.pt")
    x = (digits()[2][:20] > 127).float()
    assert torch.allclose(broken.log_prob(x), model.log_prob(x))
    same = []
    for sampler in (model, broken):
        lower = []
        for given in (x, torch.zeros_like(x)):  # upper halves of digits, or white ones
            torch.manual_seed(0)
            lower.append(sampler.sample(20, given=given.flatten(1)[:, :392])[:, :, 14:])
        same.append(torch.equal(*lower))
    assert same == [False, True]
