"""Masked diffusion against sums over all masks, all orders and all outcomes of four tokens of two symbols."""
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from harness import ROOT, finished, refused, small

import transformer_ar
from variations import masked_diffusion

T, K, Y = 4, 2, 3  # tokens, symbols, [MASK] is K; the class asked for
TOKENS = torch.tensor(list(itertools.product(range(K), repeat=T)))  # all 16 outcomes
ORDERS = list(itertools.permutations(range(T)))
MASKS = torch.tensor(list(itertools.product([False, True], repeat=T)))[1:]  # all 15 that hide a token


@pytest.fixture
def symbols(monkeypatch):
    """Symbols stay symbols: `log_prob` and `sample` take and give tokens (B, T)."""
    for name in ("to_tokens", "to_images"):
        monkeypatch.setattr(masked_diffusion, name, lambda tokens, patch: tokens)


def scatter(model, std=0.5, seed=1):
    """Random weights in float64, so that tokens depend on each other: an untrained model hides mistakes."""
    torch.manual_seed(seed)
    for name, p in model.double().named_parameters():
        if p.dim() > 1 or name.endswith("bias"):  # all but the scales of layer norm, which are 1
            torch.nn.init.normal_(p, std=std if p.dim() > 1 else 0.1)
    model.symbol.weight.data *= 2
    return model.eval()


def tiny(conditional=True):
    """A model of four tokens, two rows of two, each of two symbols."""
    model = masked_diffusion.MaskedDiffusion(8, 2, 2, 1, conditional)
    model.row, model.column, model.T = torch.nn.Embedding(2, 8), torch.nn.Embedding(2, 8), T
    return scatter(model)


def image_model(patch=2):
    return scatter(masked_diffusion.MaskedDiffusion(8, 1, 2, patch))


@torch.no_grad()
def log_p(model, known, y, w=1.0):
    """log p(x_i | the known tokens, y), (N, T, K), of partly known tokens (N, T), with guidance w."""
    logits = model(known, y)
    if w != 1:
        null = model(known, transformer_ar.NULL)
        logits = null + w * (logits - null)
    return logits.double().log_softmax(2)


def log_p_in_groups(model, groups, y=Y, w=1.0):
    """log of the product p(x) (16,) when groups of places are drawn one after the other, independent inside."""
    known, total = torch.full_like(TOKENS, K), torch.zeros(len(TOKENS), dtype=torch.float64)
    for group in groups:
        factors = log_p(model, known, y, w).gather(2, TOKENS[:, :, None])[:, :, 0]
        total += factors[:, list(group)].sum(1)
        known = known.clone()
        known[:, list(group)] = TOKENS[:, list(group)]
    return total


def log_p_by_order(model, y=Y):
    """log p(x) of the any-order autoregressive model, (24 orders, 16 outcomes)."""
    return torch.stack([log_p_in_groups(model, [[i] for i in order], y) for order in ORDERS])


def nll_under_mask(model, mask, y=Y):
    """Σ over masked places of −log p(x_i | x_t, y), of all outcomes (16,)."""
    factors = log_p(model, TOKENS.masked_fill(mask, K), y).gather(2, TOKENS[:, :, None])[:, :, 0]
    return -(factors * mask).sum(1)


def bound_by_masks(model, y=Y):
    """E_m [T/m Σ …] of all outcomes (16,): m uniform, then every mask of m tokens equally likely."""
    return sum(nll_under_mask(model, mask, y) * T / mask.sum() / (T * math.comb(T, int(mask.sum())))
               for mask in MASKS)


def recorded(model, monkeypatch):
    """A list that collects (tokens, logits) of every pass through the network."""
    calls, forward = [], model.forward

    def record(tokens, y=None):
        calls.append((tokens.clone(), forward(tokens, y)))
        return calls[-1][1]
    monkeypatch.setattr(model, "forward", record)
    return calls


# The bound

def test_the_bound_is_the_mean_over_all_orders_and_the_mixture_of_orders_is_a_distribution():
    model = tiny()
    by_order, bound = log_p_by_order(model), bound_by_masks(model)
    assert torch.allclose(by_order.exp().sum(1), torch.ones(24, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(bound, -by_order.mean(0), atol=1e-6)
    mixture = by_order.exp().mean(0)
    assert (bound > -mixture.log()).all()  # Jensen
    assert by_order.std(0).min() > 0.05  # the orders disagree: the bound is not tight
    assert 0.5 < (-bound).exp().sum() < 0.999


def test_both_forms_of_the_bound_are_equal():
    """The integral over t of 1/t E[Σ …], where t^m (1 − t)^(T − m) is the probability of a mask of m tokens."""
    model = tiny()
    t = ((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)[:, None]
    by_t = torch.zeros(16, dtype=torch.float64)
    for mask in MASKS:
        m = int(mask.sum())
        by_t += (t ** (m - 1) * (1 - t) ** (T - m)).mean() * nll_under_mask(model, mask)
    assert torch.allclose(by_t, bound_by_masks(model), atol=1e-6)


@pytest.mark.parametrize("y", [Y, None])
@pytest.mark.parametrize("draws", [1, 3])
def test_draws_of_the_bound_have_its_mean(symbols, y, draws):
    """Of each outcome alone: m is uniform wherever a row stands. Its 8 rows lie side by side, with counts alike."""
    model, n, x = tiny(), 400, TOKENS.repeat_interleave(8, 0)
    exact = bound_by_masks(model, transformer_ar.NULL if y is None else y)
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = -torch.stack([model.log_prob(x, y, draws) for _ in range(n)]).double().view(n, 16, 8).mean(2)
    z = (drawn.mean(0) - exact) / (drawn.std(0) / n**0.5)
    assert z.abs().max() < 4.5
    assert exact.std() > 0.2 and (drawn.std(0) < 2.5).all()  # so the means are known to an eighth


def test_several_draws_are_the_mean_of_spread_counts_for_the_same_digit(symbols, monkeypatch):
    model = tiny()
    calls = recorded(model, monkeypatch)
    x = TOKENS[[5, 9, 12]]
    found = model.log_prob(x, torch.tensor([1, 2, 3]), draws=4)
    (tokens, logits), = calls
    masked = tokens == K
    assert sorted(masked.sum(1)[::3].tolist()) == [1, 2, 3, 4]  # T draws of a digit: each count once
    assert torch.equal(tokens[~masked], x.repeat(4, 1)[~masked])
    nll = -logits.log_softmax(2).gather(2, x.repeat(4, 1)[:, :, None])[:, :, 0]
    single = -(nll * masked).sum(1) * T / masked.sum(1)
    assert torch.allclose(found, single.view(4, 3).mean(0), atol=1e-5)
    with torch.no_grad():
        again = model(tokens, torch.tensor([1, 2, 3] * 4))
    assert torch.allclose(logits, again, atol=1e-6)  # the classes follow their digits


def test_with_predictions_that_know_no_context_the_bound_is_the_exact_nll(symbols):
    """For every number of masked tokens, on average over the places; and by draws."""
    model = tiny()
    torch.nn.init.zeros_(model.symbol.weight)  # the input has only position and class
    p = log_p(model, TOKENS, Y)
    nll = -p.gather(2, TOKENS[:, :, None])[:, :, 0].sum(1)
    assert nll.std() > 0.3
    for m in range(1, T + 1):
        of_m = [nll_under_mask(model, mask) * T / m for mask in MASKS if mask.sum() == m]
        assert torch.allclose(torch.stack(of_m).mean(0), nll, atol=1e-6)
    assert torch.allclose(-log_p_by_order(model), nll.expand(24, 16), atol=1e-6)
    assert torch.exp(-bound_by_masks(model)).sum().item() == pytest.approx(1, abs=1e-6)
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = -torch.stack([model.log_prob(TOKENS, Y) for _ in range(500)]).double()
    assert ((drawn.mean(0) - nll) / (drawn.std(0) / 500**0.5)).abs().max() < 4.5


@pytest.mark.parametrize("patch", [1, 2])
def test_an_untrained_model_gives_784_ln_2_under_every_mask(patch):
    model, x = masked_diffusion.MaskedDiffusion(8, 1, 2, patch), torch.randint(2, (9, 1, 28, 28)).float()
    assert torch.allclose(-model.log_prob(x), torch.full((9,), 784 * math.log(2)), rtol=1e-5)


def test_counts_are_uniform_for_each_row_and_spread_evenly_over_a_batch(symbols, monkeypatch):
    model = tiny()
    calls = recorded(model, monkeypatch)
    torch.manual_seed(2)
    for _ in range(500):
        model.log_prob(TOKENS[:3])
        model.log_prob(TOKENS[:8])
    m = torch.stack([(tokens == K).sum(1) for tokens, _ in calls[::2]])
    for row in range(3):
        share = m[:, row].bincount(minlength=T + 1) / len(m)
        assert share[0] == 0 and (share[1:] - 1 / T).abs().max() < 4.5 * (3 / 16 / len(m)) ** 0.5
    assert all(len(set(row.tolist())) == 3 for row in m)
    for tokens, _ in calls[1::2]:  # a batch of 8 has every count twice
        assert (tokens == K).sum(1).bincount(minlength=T + 1).tolist() == [0, 2, 2, 2, 2]


def test_every_mask_of_m_tokens_is_equally_likely(symbols, monkeypatch):
    model = tiny()
    calls = recorded(model, monkeypatch)
    torch.manual_seed(3)
    for _ in range(100):
        model.log_prob(TOKENS.repeat(5, 1))
    masks = (torch.cat([tokens for tokens, _ in calls]) == K).long()  # 8,000
    code = (masks << torch.arange(T)).sum(1)
    share = code.bincount(minlength=16) / len(code)
    for k in range(1, 16):
        p = 1 / (T * math.comb(T, bin(k).count("1")))
        assert abs(share[k] - p) < 4.5 * (p * (1 - p) / len(code)) ** 0.5
    assert share[0] == 0


# The network

def test_no_logit_depends_on_a_token_that_is_masked_and_every_one_on_all_others(monkeypatch):
    model, x = image_model(), torch.randint(2, (1, 1, 28, 28)).double()
    calls = recorded(model, monkeypatch)
    seen = {"masked": 0, "given": 0}
    for place in range(0, 784, 41):
        other = x.clone()
        other.view(-1)[place] = 1 - other.view(-1)[place]
        r, c = divmod(place, 28)
        token = r // 2 * 14 + c // 2
        with torch.no_grad():
            for image in (x, other):
                torch.manual_seed(place)  # the same masks
                model.log_prob(image, 3)
        (before, logits), (after, changed) = calls[-2:]
        if before[0, token] == model.K:
            assert torch.equal(before, after) and torch.equal(logits, changed)
            seen["masked"] += 1
        else:
            assert before[0, token] != after[0, token] and ((before == model.K) == (after == model.K)).all()
            assert (logits != changed).any(2).all()  # before it as well as after it: no causal mask
            seen["given"] += 1
    assert min(seen.values()) >= 4


def test_attention_is_the_softmax_of_all_scores():
    """One block, by hand, from the chapter's own layers."""
    model = image_model()
    tokens = torch.randint(model.K + 1, (2, model.T))
    with torch.no_grad():
        h, block = model.embed(tokens, 4), model.blocks[0]
        q, k, v = block.project(h)
        weights = torch.einsum("bhtd,bhsd->bhts", q, k).div(q.shape[3] ** 0.5).softmax(3)
        h = h + block.out(torch.einsum("bhts,bhsd->bthd", weights, v).flatten(2))
        h = h + block.mlp(block.norm2(h))
        assert torch.allclose(model(tokens, 4), model.head(model.norm(h)).float(), atol=1e-5)


def test_the_null_label_is_the_default_and_classes_differ_where_they_are_known(symbols):
    for conditional in (True, False):
        model = tiny(conditional)

        def seeded(y, x=TOKENS, model=model):
            torch.manual_seed(7)
            with torch.no_grad():
                return model.log_prob(x, y)
        by_class = torch.stack([seeded(y) for y in range(11)])
        assert torch.equal(seeded(None), by_class[10])
        mixed = torch.arange(16) % 11
        assert torch.allclose(seeded(mixed), by_class[mixed, torch.arange(16)], atol=1e-5)
        differ = (by_class[:, None] - by_class).abs().amax(2) > 1e-3
        assert torch.equal(differ, ~torch.eye(11).bool() & torch.tensor(conditional))


# The sampler

def groupings(steps):
    """Every order of the places, cut into as many groups as there are steps, of sizes as equal as they can be."""
    sizes = [sum(place * steps // T == step for place in range(T)) for step in range(steps)]
    for order in ORDERS:
        order = iter(order)
        yield [list(itertools.islice(order, size)) for size in sizes]


def distribution_of(steps, model, w=1.0):
    return torch.stack([log_p_in_groups(model, groups, Y, w) for groups in groupings(steps)]).exp().mean(0)


def shares(tokens):
    return (tokens * (K ** torch.arange(T - 1, -1, -1))).sum(1).bincount(minlength=16) / len(tokens)


def close(share, p, n):
    return ((share - p).abs() < 4.5 * (p * (1 - p) / n) ** 0.5 + 1e-12).all()


@pytest.mark.parametrize("steps, w", [(4, 1), (1, 1), (2, 1), (3, 1), (4, 2.5), (9, 1)])
def test_samples_come_as_often_as_the_enumeration_says(symbols, steps, w):
    """S = T (or more): the mixture over all orders of the autoregressive products. Fewer: over all groupings."""
    model, n = tiny(), 10000
    p = distribution_of(min(steps, T), model, w)
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    torch.manual_seed(4)
    found = shares(model.sample(n, Y, w, steps))
    assert close(found, p, n)
    assert not close(found, distribution_of(1 if steps > 1 else 4, model, w), n)  # the band is narrow enough
    if w == 1 and steps >= T:
        assert torch.allclose(p, log_p_by_order(model).exp().mean(0))
    if w != 1:
        assert not close(found, distribution_of(4, model), n)


def test_given_tokens_stay_and_the_others_are_drawn_from_the_conditional_of_all_orders(symbols):
    model, n = tiny(), 10000
    given = torch.tensor([[K, 1, K, 0]]).expand(n, -1)
    torch.manual_seed(5)
    x = model.sample(n, Y, steps=4, given=given)
    assert (x[:, 1] == 1).all() and (x[:, 3] == 0).all() and (given[:, 0] == K).all()
    p = torch.zeros(2, 2, dtype=torch.float64)
    for i, j in ((0, 2), (2, 0)):  # both orders of the two that are not given
        for a in range(2):
            known = torch.tensor([[K, 1, K, 0]])
            first = log_p(model, known, Y)[0, i, a]
            known[0, i] = a
            for b in range(2):
                total = (first + log_p(model, known, Y)[0, j, b]).exp() / 2
                p[(a, b) if i == 0 else (b, a)] += total
    found = (2 * x[:, 0] + x[:, 2]).bincount(minlength=4) / n
    assert p.sum().item() == pytest.approx(1, abs=1e-6) and close(found, p.flatten(), n)
    alone = torch.full((1, T), K).index_fill(1, torch.tensor([0, 1, 2]), 1)  # steps with nothing to draw
    assert (model.sample(1, Y, steps=4, given=alone)[:, :3] == 1).all()


@pytest.mark.parametrize("patch, steps", [(2, 5), (2, 49), (2, 196), (2, 784), (1, 10)])
def test_unmasking_keeps_what_is_drawn_leaves_no_mask_and_draws_as_many_in_each_step(patch, steps):
    model, frames = image_model(patch), []
    torch.manual_seed(6)
    x = model.sample(3, torch.tensor([0, 4, 9]), steps=steps, frames=frames)
    S = min(steps, model.T)
    assert len(frames) == S and x.shape == (3, 1, 28, 28) and set(x.unique().tolist()) == {0, 1}
    before, places = torch.full((3, model.T), model.K), []
    for tokens in frames:
        assert torch.equal(tokens[before < model.K], before[before < model.K])
        new = (before == model.K) & (tokens < model.K)
        assert all(model.T // S <= k <= -(-model.T // S) for k in new.sum(1).tolist())
        places.append(new)
        before = tokens
    assert before.max() < model.K and torch.equal(transformer_ar.to_images(before, patch), x)
    assert not torch.equal(places[0][0], places[0][1])  # every digit has an order of its own


@pytest.mark.parametrize("w", [1, 2])
def test_batches_of_fifty_draw_what_one_batch_would(symbols, w):
    model, y = tiny(), torch.arange(120) % 10
    torch.manual_seed(8)
    x = model.sample(120, y, w, 4)
    torch.manual_seed(8)
    tokens, turn = torch.full((120, T), K), torch.rand(120, T).argsort(1)
    for step in range(T):
        now = turn == step
        p = torch.cat([log_p(model, tokens[i:i + 1], y[i:i + 1], w) for i in range(120)]).exp()
        tokens[now] = torch.multinomial(p[now].float(), 1)[:, 0]
    assert (x == tokens).float().mean() > 0.99  # but for a rounding


def test_masked_tokens_are_grey_in_pictures():
    for patch in (1, 2):
        model = image_model(patch)
        x = torch.randint(2, (2, 1, 28, 28)).float()
        hidden = torch.arange(28) < 14
        tokens = transformer_ar.to_tokens(x, patch)
        tokens[:, :model.T // 2] = model.K
        assert torch.equal(masked_diffusion.show(tokens, model), torch.where(hidden[:, None], 0.5, x))


# Training, and whole runs

def test_a_few_steps_on_two_patterns_lower_the_bound_to_their_entropy(symbols):
    """x is 0000 or 1111, one as likely as the other: ln 2 nats, in every order."""
    torch.manual_seed(9)
    model = masked_diffusion.MaskedDiffusion(16, 1, 2, 1, False)
    model.row, model.column, model.T = torch.nn.Embedding(2, 16), torch.nn.Embedding(2, 16), T
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        x = torch.randint(2, (32, 1)).expand(-1, T)
        loss = -model.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bound = bound_by_masks(model, transformer_ar.NULL)[[0, 15]].mean().item()
    assert math.log(2) - 1e-4 < bound < math.log(2) + 0.1
    x = model.sample(200, steps=4)
    assert (x == x[:, :1]).all(1).float().mean() > 0.9 and 0.3 < x.float().mean() < 0.7


TINY = "--batch-size 8 --width 8 --layers 1 --heads 2 --sampling-steps 7 --device cpu".split()


def start(out, *more):
    command = [sys.executable, "-m", "variations.masked_diffusion", *TINY, "--out", str(out), *more]
    return subprocess.Popen(command, cwd=ROOT, env=small(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_tiny_run_writes_its_results_and_pictures_and_goes_on(tmp_path):
    out, _ = finished(start(tmp_path / "a", "--steps", "3"))
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["script"] == "masked_diffusion" and metrics["step"] == 3
    results = metrics["results"]
    assert all(math.isfinite(value) for value in (results | metrics["baselines"]).values())
    assert 300 < results["test −ELBO, conditional, nats"] < 560 and 0 < results["its standard error"] < 20
    assert 300 < results["every 10th digit: −ELBO, unconditional, nats"] < 560
    assert "3/3" in out and "−ELBO, nats" in out
    for file in ("samples.png", "curve.png", "unmasking.gif", "steps.png", "inpainting.png"):
        assert (tmp_path / "a" / file).stat().st_size > 1000
    finished(start(tmp_path / "a", "--steps", "4", "--resume", "--patch", "2"))
    saved = torch.load(tmp_path / "a" / "model.pt", weights_only=True)
    assert saved["name"] == "masked_diffusion" and [point["step"] for point in saved["curve"]] == [3, 4]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.slow
def test_faults_end_with_status_2_and_the_default_folder_has_the_variation_s_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "file" in refused(start(tmp_path / "file"))
    assert "multiple" in refused(start(tmp_path / "b", "--heads", "3"))
    assert "out of range" in refused(start(tmp_path / "b", "--sampling-steps", "0"))
    text, _ = finished(start(tmp_path, "--help"))
    assert "out/masked_diffusion" in text and f"optimiser steps ({masked_diffusion.SETTINGS['steps'][0]})" in text
