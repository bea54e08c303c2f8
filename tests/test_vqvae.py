"""VQ-VAE: nearest codes, what the gradient reaches, and the bound, against all pages there are."""

import functools

import pytest
import torch
from chapters import TINY, check_samples, class_accuracy, digits, edited, short_run

import vqvae


@pytest.fixture
def model():
    """With two entries, so that its 2^16 pages can be counted, and weights that say something."""
    torch.manual_seed(0)
    model = vqvae.VQVAE(channels=2, entries=2, code_dim=3, width=8, classes=3)
    with torch.no_grad():
        for weights in (
            model.prior.output.weight,
            model.decoder[0].weight,
            model.encoder[0].weight,
        ):
            weights.mul_(4)
    return model


@functools.cache
def all_pages():
    return (torch.arange(2**16)[:, None] >> torch.arange(16)) % 2


def an_image():
    torch.manual_seed(1)
    return torch.rand(1, 1, 28, 28).round()


def test_the_nearest_entry():
    table = torch.tensor([[0.0, 0], [2, 0], [0, 2]])  # of the comment
    z = torch.tensor([[[1.2, 0.4]]])
    assert (z[0] - table).square().sum(1).tolist() == pytest.approx([1.6, 0.8, 4.0])
    assert vqvae.nearest(z, table).tolist() == [[1]]
    torch.manual_seed(0)
    z, entries = torch.randn(5, 16, 7), torch.randn(40, 7)
    distances = (z[:, :, None] - entries).square().sum(3)
    assert torch.equal(vqvae.nearest(z, entries), distances.argmin(2))


def test_straight_through_is_e_with_the_gradient_of_z():
    z, e = torch.randn(2, 5, 3, requires_grad=True).unbind()
    passed, weights = vqvae.straight_through(z, e), torch.randn(5, 3)
    torch.testing.assert_close(passed, e)
    by_z, by_e = torch.autograd.grad((passed * weights).sum(), (z, e), allow_unused=True)
    assert torch.equal(by_z, weights) and by_e is None


def test_which_term_of_the_loss_teaches_whom():
    model = vqvae.VQVAE(channels=4, entries=8, width=8)
    x, y = torch.rand(6, 1, 28, 28).round(), torch.arange(6)
    z = model.encode(x)
    k = vqvae.nearest(z, model.entries)
    e = model.entries[k]
    terms = {
        "pixels": vqvae.log_likelihood(x, model.decode(vqvae.straight_through(z, e), y)),
        "codebook": (z.detach() - e).square(),
        "commitment": (z - e.detach()).square(),
        "price": model.prior.log_prob(k, y),
    }
    taught = {}
    for name, term in terms.items():
        model.zero_grad()
        term.sum().backward(retain_graph=True)
        names = [name for name, p in model.named_parameters() if p.grad is not None]
        taught[name] = {part.split(".")[0] for part in names}
    assert taught == {
        "pixels": {"encoder", "decoder"},
        "codebook": {"entries"},
        "commitment": {"encoder"},
        "price": {"prior"},
    }


@torch.no_grad()
def test_the_prior_sees_the_class_and_exactly_the_codes_before():
    prior = vqvae.Prior(entries=8, width=8, classes=3)
    k, y = torch.randint(8, (20, 16)), torch.arange(20) % 3
    logits = prior(k, y)
    assert ((logits - prior(k, (y + 1) % 3)).abs().amax((0, 2)) > 1e-5).all()
    for place in range(16):
        other = k.clone()
        other[:, place] = (k[:, place] + 1) % 8
        seen = (logits - prior(other, y)).abs().amax((0, 2)) > 1e-5
        assert not seen[: place + 1].any() and seen[place + 1 :].all()
    prior.eval()  # another way through torch.nn.TransformerEncoder
    torch.testing.assert_close(prior(k, y), logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_bound_is_one_of_the_terms_that_sum_to_p_of_x(model):
    x, y = an_image(), torch.tensor([2])
    log_prior, log_joint = [], []
    for pages in all_pages().split(4096):
        label = y.expand(len(pages))
        log_prior.append(model.prior.log_prob(pages, label))
        logits = model.decode(model.entries[pages], label)
        coins = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
        log_joint.append(coins + log_prior[-1])
    assert torch.cat(log_prior).exp().sum().item() == pytest.approx(1, abs=1e-3)
    log_joint = torch.cat(log_joint)
    k = vqvae.nearest(model.encode(x), model.entries)
    here = (all_pages() == k).all(1).nonzero().item()
    bound, exact = model.elbo(x, y).item(), log_joint.logsumexp(0).item()
    assert bound < exact and bound == pytest.approx(log_joint[here].item(), abs=1e-2)
    log_posterior = log_joint.log_softmax(0)[here].item()
    assert bound == pytest.approx(exact + log_posterior, abs=1e-2)  # what the bound loses


@torch.no_grad()
def test_codes_are_written_as_often_as_they_are_probable(model):
    n = 8000
    k, y = torch.randint(2, (1, 16)).repeat(n, 1), torch.full((n,), 1)
    written = model.write(k.clone(), y, range(13, 16))
    assert torch.equal(written[:, :13], k[:, :13])
    k[:8, 13:] = torch.cartesian_prod(*[torch.arange(2)] * 3)
    p = model.prior.log_prob(k[:8], y[:8]).softmax(0)
    counts = (written[:, 13:] @ torch.tensor([4, 2, 1])).bincount(minlength=8)
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt() + 1).all()


@torch.no_grad()
def test_samples_decode_what_the_prior_writes(model):
    y = torch.tensor([0, 2])
    torch.manual_seed(3)
    images = model.sample(y)
    torch.manual_seed(3)
    k = model.write(torch.zeros(2, 16, dtype=torch.long), y, range(16))
    torch.testing.assert_close(images, model.decode(model.entries[k], y).sigmoid())


def test_an_entry_that_is_not_used_for_100_steps_starts_anew_at_a_vector():
    model = vqvae.VQVAE(channels=2, entries=3, code_dim=2, width=8)
    z, k = torch.randn(4, 16, 2), torch.zeros(4, 16, dtype=torch.long)
    before = model.entries.detach().clone()
    model.restart_unused(z, k)  # the first step
    after = model.entries.detach().clone()
    assert torch.equal(after[0], before[0])
    for entry in after[1:]:
        assert (entry == z.flatten(0, 1)).all(1).any()
    for _ in range(99):
        model.restart_unused(z + 1, k)
    assert torch.equal(model.entries, after)
    model.restart_unused(z + 1, k)
    assert (model.entries[1:] != after[1:]).all() and torch.equal(model.entries[0], after[0])


@torch.no_grad()
def test_bounds_by_class(model):
    x = an_image().repeat(2, 1, 1, 1)
    for label, bound in enumerate(vqvae.bound_by_class(model, x)):
        torch.testing.assert_close(bound, model.elbo(x, torch.tensor([label, label])))


@pytest.mark.parametrize("more", ["", "--classes 1"])
def test_a_saved_model_samples(more):
    model, saved = short_run(vqvae, f"{TINY['vqvae']} {more}")
    assert len(saved["curve"]) == 2
    check_samples(model)


FLAGS = "--steps 400 --batch-size 50 --channels 8 --width 16 --lr 4e-3 --save-every 400"


@functools.cache
def after_a_short_run(*edits):
    """The model, its loss on validation images, and the perplexity of its codebook."""
    model, saved = short_run(edited("vqvae", *edits), FLAGS)
    with torch.no_grad():
        z = model.encode(vqvae.binarise(digits()[2]))
    shares = vqvae.nearest(z, model.entries).flatten().bincount(minlength=16) / 16_000
    perplexity = torch.special.entr(shares).sum().exp().item()
    return model, saved["curve"][-1]["validation"], perplexity


@pytest.mark.slow
def test_break_no_gradient_for_the_encoder():
    _, loss, _ = after_a_short_run(("decode(straight_through(z, e), ", "decode(e, "))
    assert loss > after_a_short_run()[1] + 20


@pytest.mark.slow
def test_break_unused_entries_stay():
    _, _, perplexity = after_a_short_run(("        model.restart_unused(z.detach(), k)\n", ""))
    assert perplexity < 0.6 * after_a_short_run()[2]


@pytest.mark.slow
def test_break_a_prior_that_sees_what_it_predicts():
    x, y, accuracy, price = digits()[2], torch.arange(200) % 10, [], []
    for edit in ((), ((", self.mask, is_causal=True", ""),)):
        model = after_a_short_run(*edit)[0]
        with torch.no_grad():
            k = vqvae.nearest(model.encode(vqvae.binarise(x)), model.entries)
            price.append(-model.prior.log_prob(k, digits()[3]).mean().item())
        accuracy.append(class_accuracy(model.sample(y), y))
    assert price[1] < 0.9 * price[0] and accuracy[1] < accuracy[0] - 0.2
