"""VQ-VAE against exact answers: enumeration of codes, sums by hand, autograd, the plain way of sampling."""
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

import vqvae


def model_of(codes=3, entries=4, code_dim=2, conditional=True, std=0.3):
    """Random weights everywhere: an untrained prior would hide mistakes behind its zeros."""
    torch.manual_seed(0)
    model = vqvae.VQVAE(12, codes, entries, code_dim, conditional)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


def prior_of(K=3, T=4):
    torch.manual_seed(0)
    prior = vqvae.Prior(K, T, 6).double()
    for p in prior.parameters():
        torch.nn.init.normal_(p, std=0.8)
    return prior


def every(K=3, T=4):
    """All codes, (Kᵀ, T)."""
    return torch.tensor(list(itertools.product(range(K), repeat=T)))


def test_the_codebook_finds_the_nearest_entry():
    torch.manual_seed(0)
    book, z_e = vqvae.Codebook(7, 3), torch.randn(5, 4, 3)
    z = book.nearest(z_e)
    assert z.shape == (5, 4) and len(z.unique()) > 3
    for b, t in itertools.product(range(5), range(4)):
        distances = [math.dist(z_e[b, t].tolist(), e.tolist()) for e in book.entry]
        assert z[b, t] == distances.index(min(distances))


def test_the_gradient_at_the_entry_passes_straight_through():
    model, x, y = model_of(), torch.rand(6, 1, 28, 28).round(), torch.arange(6)
    z_e = torch.randn(6, 3, 2, requires_grad=True)
    log_likelihood, log_prior, z = model.terms(x, z_e, y)
    e = model.codebook.entry[z].clone().requires_grad_()
    at_e = vqvae.bernoulli_log_prob(x, model.decode(e, y))
    assert torch.allclose(log_likelihood, at_e, rtol=1e-5)
    wanted, = torch.autograd.grad(at_e.sum(), e)
    got, = torch.autograd.grad(log_likelihood.sum(), z_e, retain_graph=True)
    assert wanted.abs().min() > 0 and torch.allclose(got, wanted, atol=1e-4)
    assert torch.autograd.grad(log_prior.sum(), z_e, allow_unused=True)[0] is None  # argmin has none
    model.elbo(x, y).sum().backward()
    assert all((p.grad != 0).any() for p in model.encoder.parameters())


def test_entries_follow_the_running_mean_as_by_hand():
    book = vqvae.Codebook(2, 1, decay=0.9)
    book.count.copy_(torch.tensor([10.0, 10.0]))
    book.total.copy_(torch.tensor([[0.0], [40.0]]))
    book.entry.copy_(book.total / book.count[:, None])
    z_e = torch.tensor([1.0, 1.5, 3.0, 4.0, 5.0, 6.0]).view(2, 3, 1)
    z = book.nearest(z_e)
    assert z.tolist() == [[0, 0, 1], [1, 1, 1]]
    book.update(z_e, z)
    assert book.count.tolist() == pytest.approx([0.9 * 10 + 0.1 * 2, 0.9 * 10 + 0.1 * 4])
    assert book.entry.flatten().tolist() == pytest.approx([0.1 * 2.5 / 9.2, (0.9 * 40 + 0.1 * 18) / 9.4])


def test_in_the_long_run_entries_are_the_means_of_their_vectors():
    """As in k-means: of the same batch again and again."""
    torch.manual_seed(0)
    book, z_e = vqvae.Codebook(3, 2, decay=0.5), torch.randn(20, 3, 2) + 4 * torch.eye(3)[:, :2]
    for _ in range(60):
        book.update(z_e, book.nearest(z_e))
    z = book.nearest(z_e)
    assert z.unique().tolist() == [0, 1, 2]
    for k in range(3):
        assert torch.allclose(book.entry[k], z_e[z == k].mean(0), atol=1e-4)


def test_a_dead_entry_restarts_at_a_vector_of_the_batch_that_has_no_entry_near():
    torch.manual_seed(0)
    book, z_e = vqvae.Codebook(4, 2), torch.randn(8, 7, 2)
    share = 8 * 7 / 4
    book.count.fill_(share)
    book.count[3] = 0.01 * share
    book.total.copy_(book.entry * book.count[:, None])
    for k in range(3):
        z_e[:, 2 * k:2 * k + 2] = book.entry[k]  # all vectors are at entries, but for those of the last code
    z_e[1:, 6] = book.entry[0]
    z = torch.cdist(z_e, book.entry[:3]).argmin(2)
    before = book.entry.clone()
    book.update(z_e, z)
    assert torch.allclose(book.entry[3], z_e[0, 6]) and book.count[3] == share
    far = z[0, 6]  # the one entry of the others that a vector draws away
    for k in range(3):
        assert torch.equal(book.entry[k].isclose(before[k], atol=1e-6).all(), k != far)


def test_the_codebook_starts_at_vectors_of_the_first_batch():
    torch.manual_seed(0)
    book = vqvae.Codebook(6, 2)
    z_e, before = book.entry + 0.1 * torch.randn(4, 6, 2), book.entry.clone()
    book.update(z_e, torch.arange(6).expand(4, 6))
    for entries, at_data in (book.entry, True), (before, False):
        distances = (entries[:, None] - z_e.flatten(0, 1)).norm(dim=2)
        assert ((distances.min(1).values < 1e-5) == at_data).all()


@pytest.mark.parametrize("y", [3, 10])
def test_probabilities_of_all_codes_sum_to_one(y):
    log_p = prior_of().log_prob(every(), torch.full((81,), y)).double()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5) and log_p.std() > 0.5


def test_the_prior_depends_on_codes_before_and_on_the_class_alone():
    """The first code's probability, a sum over the later codes, is the output after the class alone."""
    prior = prior_of()
    p = [prior.log_prob(every(), torch.full((81,), y)).double().exp().view(3, 3, 3, 3) for y in (1, 2)]
    assert not torch.allclose(p[0], p[1], atol=1e-3)
    first = p[0].sum((1, 2, 3))
    logits = prior.head(prior.lstm((prior.label.weight[1] + prior.place.weight[0])[None, None])[0])[0, 0]
    assert torch.allclose(first, logits.softmax(0), atol=1e-5)
    assert not torch.allclose(p[0][0].sum((1, 2)) / first[0], p[0][1].sum((1, 2)) / first[1], atol=1e-3)


def test_codes_drawn_one_by_one_are_those_of_the_plain_way():
    """The same random numbers, and conditionals that are quotients of sums of log_prob's probabilities."""
    prior, y = prior_of(), torch.tensor([1, 2, 10]).repeat(20)
    torch.manual_seed(1)
    fast = prior.sample(y)
    p = torch.stack([prior.log_prob(every(), torch.full((81,), d)).detach().double().exp().view(3, 3, 3, 3)
                     for d in range(11)])
    torch.manual_seed(1)
    joint, plain = p[y], []  # of the codes drawn so far and all others: (60, 3, ...)
    for _ in range(4):
        marginal = joint.flatten(2).sum(2) if joint.dim() > 2 else joint
        plain.append(torch.multinomial(marginal / marginal.sum(1, keepdim=True), 1)[:, 0])
        joint = joint[torch.arange(60), plain[-1]]
    assert torch.equal(fast, torch.stack(plain, 1)) and len(fast.unique(dim=0)) > 10


def test_an_untrained_prior_takes_t_log_k():
    prior = vqvae.Prior(32, 16)
    log_p = prior.log_prob(torch.randint(32, (5, 16)), torch.arange(5))
    assert torch.allclose(log_p, torch.tensor(-16 * math.log(32)))


@pytest.mark.parametrize("y", [None, 7])
def test_the_elbo_is_one_term_of_the_sum_over_all_codes(y):
    model, x = model_of(), torch.rand(5, 1, 28, 28).round()
    label = vqvae.NULL if y is None else y
    with torch.no_grad():
        bound, joint = model.elbo(x, y), []
        for z in every(4, 3):
            pixels = model.decode(model.codebook.entry[z].expand(5, 3, 2), label).double().sigmoid()
            log_likelihood = (x * pixels.log() + (1 - x) * (1 - pixels).log()).flatten(1).sum(1)
            joint.append(log_likelihood + model.prior.log_prob(z[None], torch.tensor([label])))
        joint = torch.stack(joint, 1)  # (5, 64)
        z = torch.cdist(model.encode(x, label), model.codebook.entry).argmin(2)
    place = (z * torch.tensor([16, 4, 1])).sum(1)
    assert torch.allclose(bound.double(), joint[range(5), place], atol=1e-2)
    assert (bound < joint.logsumexp(1)).all() and joint.std(1).min() > 1


def test_no_class_is_the_null_label():
    model, x = model_of(), torch.rand(3, 1, 28, 28).round()
    e = model.codebook.entry[torch.randint(4, (3, 3))]
    for f, v in (model.encode, x), (model.decode, e), (model.elbo, x):
        assert torch.equal(f(v), f(v, vqvae.NULL)) and not torch.equal(f(v), f(v, 3))
    model.conditional = False
    for f, v in (model.encode, x), (model.decode, e), (model.elbo, x):
        assert torch.equal(f(v, 3), f(v, vqvae.NULL))


def test_samples_are_decoded_codes_of_the_prior_of_their_class():
    model, y = model_of(), torch.arange(10)
    torch.manual_seed(0)
    x = model.sample(10, y)
    torch.manual_seed(0)
    z = model.prior.sample(y)
    with torch.no_grad():
        by_hand = torch.cat([torch.stack([model.codebook.entry[k] for k in row])[None] for row in z])
        assert torch.equal(x, model.decode(by_hand, y).sigmoid())
    assert x.shape == (10, 1, 28, 28) and x.min() > 0 and x.max() < 1
    drawn = model.labels(None, 5000).bincount(minlength=11) / 5000
    assert drawn.tolist() == pytest.approx([0.1] * 10 + [0], abs=4 * (0.09 / 5000) ** 0.5)
    model.conditional = False
    assert (model.labels(None, 50) == vqvae.NULL).all()


class Enough(Exception):
    """The results are there: the evaluation can end."""


@pytest.mark.parametrize("used", [1, 2, 4, None])
def test_the_results_have_the_perplexity_of_the_codes_and_the_parts_of_the_bound(used, monkeypatch):
    """Of `used` entries, equally often, the perplexity is `used`; None: of the encoder's codes, by hand."""
    model, x, y, results = model_of(), torch.rand(40, 1, 28, 28).round(), torch.arange(40) % 10, {}
    if used:
        monkeypatch.setattr(model, "encode", lambda x, y=None: model.codebook.entry[
            torch.arange(3 * len(x)).view(-1, 3) % used])

    def report(all_of_them):
        results.update(all_of_them)
        raise Enough
    with pytest.raises(Enough):
        vqvae.evaluate(SimpleNamespace(entries=4, codes=3, report=report), model, x, y)
    with torch.no_grad():
        z = model.codebook.nearest(model.encode(x, y))
        shares = [z.flatten().tolist().count(k) / 120 for k in range(4)]
        entropy = -sum(s * math.log(s) for s in shares if s)
        assert results["perplexity of the codes"] == pytest.approx(used or math.exp(entropy), rel=1e-5)
        assert sum(s > 0 for s in shares) == used or not used and entropy > 0.1
        codes, bound = -model.prior.log_prob(z, y).mean().item(), -model.elbo(x, y).mean().item()
    assert results["of it -log p(z | y), the codes"] == pytest.approx(codes, rel=1e-5)
    assert results["test -ELBO, conditional, nats"] == pytest.approx(bound, rel=1e-5)


def test_the_likelihood_of_all_small_images_sums_to_one():
    images = every(2, 9).double().view(-1, 1, 3, 3)
    logits = torch.randn(1, 1, 3, 3, dtype=torch.float64).expand(512, 1, 3, 3)
    assert vqvae.bernoulli_log_prob(images, logits).exp().sum().item() == pytest.approx(1, abs=1e-9)
