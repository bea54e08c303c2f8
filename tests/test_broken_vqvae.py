"""The things to break in vqvae.py: each is done, and shows what the opening promises."""
from broken import chapter, thing, trained

NAME, FLAGS = "vqvae", "--steps 400 --batch-size 16 --channels 16 --width 16 --layers 1 --codes 64"
PIXELS, USED = "of it -log p(x | z), nats", "codes in use"


def test_1_without_a_gradient_straight_through_the_pixels_stay_dear():
    edit = "return index, z + (self.code[index].movedim(3, 1) - z).detach()", \
        "return index, self.code[index].movedim(3, 1)"
    assert edit[1] in thing(NAME, 1)
    _, _, good, _ = trained(NAME, flags=FLAGS)
    _, _, bad, _ = trained(NAME, edit, flags=FLAGS)
    assert bad[PIXELS] > 1.5 * good[PIXELS]


def test_2_lost_codes_stay_lost():
    edit = "dead = self.count < 0.03 * share", "dead = self.count == 0"
    assert "put self.count == 0 for self.count < 0.03 * share, and set --codes 64" in thing(NAME, 2)
    assert "--codes 64" in FLAGS
    _, _, good, _ = trained(NAME, flags=FLAGS)
    _, _, bad, _ = trained(NAME, edit, flags=FLAGS)
    assert bad[USED] < good[USED] / 2


def test_3_codes_drawn_by_dice_are_strokes_everywhere():
    edit = "self.draw(self.prior.sample(self.classes(y, n)))", "self.draw(torch.randint(self.codebook.K, (n, 49)))"
    assert "torch.randint(self.codebook.K, (n, 49))" in thing(NAME, 3)
    _, whole, _, _ = trained(NAME, flags=FLAGS)
    x = [kind.sample(whole, 100) for kind in (chapter(NAME, edit).VQVAE, type(whole))]
    left = [v[:, :, :, :4].mean().item() for v in x]  # where no digit has ink
    assert left[0] > 0.02 > 2 * left[1]
