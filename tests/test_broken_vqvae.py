"""The things to break of vqvae.py, broken: each edit is made on a copy, each promised symptom is measured."""
import torch
from broken import chapter, class_accuracy, digits, thing, trained

FLAGS = "--steps 600 --batch-size 32 --hidden 100 --entries 64 --codes 8 --code-dim 8 --lr 4e-3"


def measure(edit=None):
    """log p(x | z, y) of test digits, the perplexity, whether the encoder gets the likelihood's gradient."""
    module, model, _, _ = trained("vqvae", *[edit] * bool(edit), flags=FLAGS)
    x, y = module.binarise(digits()[2], seed=1), digits()[3]
    log_likelihood = model.terms(x, model.encode(x, y), y)[0].mean()
    gradient, = torch.autograd.grad(log_likelihood, model.encoder[0].weight, allow_unused=True)
    x, y = module.binarise(digits()[0][-2000:], seed=1), digits()[1][-2000:]  # of the validation digits
    with torch.no_grad():
        shares = model.codebook.nearest(model.encode(x, y)).flatten().bincount(minlength=64) / (8 * 2000)
    return log_likelihood.item(), torch.special.entr(shares).sum().exp().item(), gradient is not None


def test_1_without_the_straight_through_gradient_the_likelihood_stays_low():
    new = "e = self.codebook.entry[z]"
    assert new in thing("vqvae", 1)
    (usual, _, passes), (broken, _, breaks) = measure(), measure(
        ("e = z_e + (self.codebook.entry[z] - z_e).detach()", new))
    assert passes and not breaks
    assert broken < usual - 12


def test_2_entries_that_lose_their_vectors_stay_dead():
    assert "put self.count == 0 for self.count < 0.03 * share" in thing("vqvae", 2)
    (_, usual, _), (_, broken, _) = measure(), measure(
        ("dead = self.count < 0.03 * share", "dead = self.count == 0"))
    assert usual > 0.85 * 64 and broken < 0.8 * 64 and broken < usual - 8


def test_3_codes_drawn_without_the_prior_are_strokes_but_no_digits():
    new = "torch.randint(self.codebook.K, (n, self.T))"
    assert new in thing("vqvae", 3)
    _, model, _, _ = trained("vqvae", flags=FLAGS)
    y = torch.arange(100) % 10
    torch.manual_seed(0)
    broken = chapter("vqvae", ("self.prior.sample(y)", new)).VQVAE
    x = [kind.sample(model, 100, y) for kind in (type(model), broken)]
    right, left = [class_accuracy(v, y) for v in x], [v[..., :4].mean().item() for v in x]
    assert right[0] > 0.5 > 0.4 > right[1]
    assert left[0] < 0.02 < 0.06 < left[1]  # where no digit has a stroke
