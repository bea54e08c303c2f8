"""The things to break in pixelcnn.py: each is done, and shows what the notes promise."""
import torch
from broken import chapter, continued, digits, thing, trained

NAME, FLAGS = "pixelcnn", "--steps 120 --batch-size 16 --channels 8 --layers 2 --lr 0.01"


def loss_and_samples(*edits):
    """The validation loss of a short run, and 20 samples."""
    _, model, _, run = trained(NAME, *edits, flags=FLAGS)
    torch.manual_seed(0)
    return run["curve"][-1]["validation"], model.sample(20, torch.arange(20) % 10)


def test_1_a_pixel_that_sees_itself_leaves_no_loss_and_every_image_empty():
    assert "give the stem see=4 for see=3" in thing(NAME, 1)
    usual, x = loss_and_samples()
    loss, empty = loss_and_samples(("1, 2 * C, 4, 7, see=3", "1, 2 * C, 4, 7, see=4"))
    assert loss < 20 and usual > 60
    assert empty.mean() < 0.01 and 0.05 < x.mean() < 0.3


def test_2_a_pixel_seen_through_its_right_neighbour_leaves_no_loss_and_nothing_of_a_digit():
    assert "In `Block`, put see=4 for see=3" in thing(NAME, 2)
    usual, x = loss_and_samples()
    loss, broken = loss_and_samples(("C, C, 3, 5, see=3", "C, C, 3, 5, see=4"))
    assert loss < 20 and usual > 60
    assert 0.05 < x.mean() < 0.3 and (broken.mean() > 0.5 or broken.mean() < 0.01)  # of one colour, either


def test_3_drawn_pixels_that_are_not_stored_count_as_0_and_the_loss_stays_the_same(tmp_path):
    assert "put pass for the line with `stem.store`" in thing(NAME, 3)
    line = "            self.stem.store(2 * x[:, :, r:r + 1, c:c + 1] - 1, at)  # later pixels depend on it\n"
    _, model, _, run = trained(NAME, flags=FLAGS)
    torch.save(run, tmp_path / "model.pt")
    broken = chapter(NAME, (line, "")).load(tmp_path / "model.pt")
    x, y = (digits()[2][:20] > 127).float(), digits()[3][:20]
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
