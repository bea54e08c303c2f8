"""Masked diffusion against sums over all masks, orders and outcomes of four tokens of two kinds."""

import itertools
import math

import pytest
import torch
from chapters import check_samples

from transformer_ar import to_images, to_tokens
from variations.masked_diffusion import MASK, MaskedDiffusion, with_grey

TOKENS = torch.tensor(list(itertools.product([0, 1], repeat=4)))  # all 16 outcomes
ORDERS = list(itertools.permutations(range(4)))
Y = torch.tensor([0])


class Four(MaskedDiffusion):
    """Images of 4 x 4 pixels, four tokens, each 0 or 1; probabilities from a random function."""

    def __init__(self):
        super().__init__(8)
        torch.manual_seed(3)
        self.T = 4
        self.table = torch.nn.Sequential(
            torch.nn.Linear(4 * 17, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8)
        ).requires_grad_(False)
        self.table[0].weight *= 8
        self.table[2].weight *= 8

    def forward(self, tokens, y):
        one_hot = torch.nn.functional.one_hot(tokens, 17).float().flatten(1)
        two = self.table(one_hot).view(-1, 2, 4)
        return torch.cat([two, torch.full((len(two), 14, 4), -math.inf)], dim=1)


@pytest.fixture
def four():
    return Four()


def nll(model, hidden):
    """−log p of each token of all 16 outcomes where the tokens of the list `hidden` are masked."""
    seen = TOKENS.clone()
    seen[:, hidden] = MASK
    return -model(seen, Y).log_softmax(1).gather(1, TOKENS[:, None])[:, 0]


def by_groups(model, calls):
    """−log p of the 16 outcomes for each order, cut into so many groups drawn at once."""
    size = 4 // calls
    found = []
    for order in ORDERS:
        groups = [list(order[i : i + size]) for i in range(0, 4, size)]
        steps = [nll(model, sum(groups[i:], []))[:, g].sum(1) for i, g in enumerate(groups)]
        found.append(sum(steps))
    return torch.stack(found)


def n_step_bound(model, N):
    """Σ_n 1/n E Σ over masked tokens of −log p, at t = n/N: the bound of N steps."""
    total = torch.zeros(16, dtype=torch.double)
    n = torch.arange(1, N + 1, dtype=torch.double)
    for size in range(1, 5):
        weight = ((n / N) ** size * (1 - n / N) ** (4 - size) / n).sum()
        for hidden in itertools.combinations(range(4), size):
            total += weight * nll(model, list(hidden))[:, list(hidden)].sum(1)
    return total


def test_the_bound_of_n_steps_becomes_the_mean_over_all_orders(four):
    exact = by_groups(four, 4).mean(0).double()
    assert torch.allclose(n_step_bound(four, 1), by_groups(four, 1)[0].double(), atol=1e-5)
    errors = [(n_step_bound(four, N) - exact).abs().max() for N in (10, 100, 1000)]
    assert errors[0] > 9 * errors[1] > 81 * errors[2] and errors[2] < 0.01


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_the_loss_is_on_average_the_mean_over_all_orders(four, calls):
    exact = by_groups(four, calls).mean(0)
    x = to_images_of_four(TOKENS)
    torch.manual_seed(0)
    drawn = -torch.stack([four.elbo(x, Y, calls) for _ in range(4000)])
    error = drawn.std(0) / 4000**0.5
    assert ((drawn.mean(0) - exact).abs() < 4.5 * error + 1e-5).all() and error.max() < 0.15
    assert exact.std() > 0.5  # so a wrong weight would be seen


def to_images_of_four(tokens):
    bits = tokens[:, None] // torch.tensor([1, 2, 4, 8])[:, None] % 2
    x = torch.nn.functional.fold(bits.float(), 4, 2, stride=2)
    assert torch.equal(to_tokens(x, 2), tokens)
    return x


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_samples_come_as_often_as_a_sum_over_orders_says_and_the_bound_is_one(four, calls):
    groups = by_groups(four, calls)
    p = (-groups).exp().mean(0)
    assert abs(p.sum() - 1) < 1e-5
    assert (groups.mean(0) >= -p.log() - 1e-5).all()
    torch.manual_seed(0)
    hidden = torch.full((20_000, 4), MASK)
    *_, tokens = four.unmask(hidden, Y.expand(20_000), calls)
    share = (tokens @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16) / 20_000
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 20_000) ** 0.5 + 1e-9).all()


def test_what_is_given_stays_and_each_call_draws_as_many():
    model = MaskedDiffusion(8)
    given = torch.full((3, 196), MASK)
    left = []
    for tokens in model.unmask(given, torch.arange(3), 7):
        assert torch.equal(tokens[given < MASK], given[given < MASK])
        left.append((tokens == MASK).sum(1).tolist())
        given = tokens
    assert left == [[m] * 3 for m in range(168, -1, -28)]
    assert torch.equal(with_grey(given), to_images(given, 2))
    assert (with_grey(torch.full_like(given, MASK)) == 0.5).all()
    check_samples(model)


def test_every_token_depends_on_every_seen_one_and_on_the_class():
    model = MaskedDiffusion(8)
    tokens = torch.randint(16, (1, 196))
    with torch.no_grad():
        before = model(tokens, Y)
        for place in (0, 100, 195):
            other = tokens.clone()
            other[0, place] = MASK
            assert (model(other, Y) != before).any(1).all()
        assert (model(tokens, Y + 1) != before).any(1).all()
