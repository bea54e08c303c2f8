"""The models of pixels against exact answers: enumeration, gradients, receptive fields, the plain way of sampling."""
import itertools
import math

import pytest
import torch

import gated_pixelcnn
import pixelcnn
import transformer_ar

CONDITIONS = [None, 3]
LAYERS = 2


def model_of(kind, seed=0, T=196):
    """Random weights everywhere, in float64: an untrained model would hide mistakes behind its zeros."""
    torch.manual_seed(seed)
    model = {"pixelcnn": lambda: pixelcnn.PixelCNN(4, LAYERS), "gated": lambda: gated_pixelcnn.GatedPixelCNN(4, LAYERS),
             "grey": lambda: gated_pixelcnn.GatedPixelCNN(4, LAYERS, 8),
             "patches": lambda: transformer_ar.Transformer(2, T, 16, 16, LAYERS, 2),
             "pixels": lambda: transformer_ar.Transformer(1, T, 2, 16, LAYERS, 2)}[kind]().double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.eval()


def all_images(side=3):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=side * side)), dtype=torch.float64).view(
        -1, 1, side, side)


@pytest.mark.parametrize("y", CONDITIONS)
@pytest.mark.parametrize("kind", ["pixelcnn", "gated"])
def test_probabilities_of_all_images_sum_to_one(kind, y):
    assert model_of(kind).log_prob(all_images(), y).exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("y", CONDITIONS)
@pytest.mark.parametrize("kind, K, T", [("patches", 16, 3), ("pixels", 2, 10)])
def test_probabilities_of_all_token_sequences_sum_to_one(kind, K, T, y):
    every = torch.tensor(list(itertools.product(range(K), repeat=T)))
    assert model_of(kind, T=T).log_prob(every, y).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_probabilities_of_all_grey_levels_sum_to_one():
    model = model_of("grey")
    x = torch.rand(1, 1, 4, 4).double().expand(256, 1, 4, 4).clone()
    x[:, 0, 2, 1] = torch.arange(256).double() / 255
    assert model.log_factors(x)[:, 0, 2, 1].exp().sum().item() == pytest.approx(1, abs=1e-6)


def support(model, side, pixel):
    """The pixels that have a gradient on the logit of one."""
    x = torch.randn(16, 1, side, side, dtype=torch.float64, requires_grad=True)
    model(x)[:, 0].flatten(1)[:, pixel].sum().backward()
    return (x.grad != 0).any(0)[0]


@pytest.mark.parametrize("kind", ["pixelcnn", "gated", "grey"])
def test_every_logit_knows_only_pixels_before_its_own(kind):
    model, side = model_of(kind), 6
    for pixel in range(side * side):
        seen = support(model, side, pixel).flatten()
        assert not seen[pixel:].any()
        assert pixel == 0 or seen[pixel - 1] or pixel % side == 0


@pytest.mark.parametrize("kind", ["patches", "pixels"])
def test_every_token_asks_only_tokens_before_it_and_all_of_those(kind):
    model, T = model_of(kind, T=30), 30
    x, K = torch.randint(2, (1, T)), model.K
    base = model(x)
    for t in range(T):
        other = x.clone()
        other[0, t] = (other[0, t] + 1) % K
        changed = (model(other) != base).any(2)[0]
        assert not changed[:t + 1].any() and changed[t + 1:].all()


def test_the_receptive_field_of_the_gated_model_is_a_rectangle_without_blind_spot():
    """Rows above: 3 + 2 layers of them, as far to either side; its own row: as far to the left."""
    reach = 3 + 2 * LAYERS
    for r, c in ((14, 14), (3, 20), (20, 2)):
        want = torch.zeros(28, 28, dtype=torch.bool)
        want[max(0, r - reach):r, max(0, c - reach):c + reach + 1] = True
        want[r, max(0, c - reach):c] = True
        assert torch.equal(support(model_of("gated"), 28, 28 * r + c), want)


def test_the_blind_spot_of_pixelcnn_is_where_its_masks_put_it():
    """Followed by hand, mask by mask: from a place to what a 3 x 5 mask B sees, and at last to what mask A sees."""
    seen = {(14, 14)}
    for _ in range(LAYERS):
        seen = {(r - up, c + side) for r, c in seen for up in (0, 1, 2) for side in range(-2, 3)
                if up or side < 1}
    seen = {(r - up, c + side) for r, c in seen for up in range(4) for side in range(-3, 4) if up or side < 0}
    want = torch.zeros(28, 28, dtype=torch.bool)
    want[tuple(zip(*seen))] = True
    assert torch.equal(support(model_of("pixelcnn"), 28, 28 * 14 + 14), want)
    full = torch.zeros(28, 28, dtype=torch.bool)
    reach = 3 + 2 * LAYERS
    full[14 - reach:14, 14 - reach:15 + reach] = full[14, 14 - reach:14] = True
    assert (full & ~want).any() and not (want & ~full).any()


@pytest.mark.parametrize("kind", ["pixelcnn", "gated", "grey", "patches", "pixels"])
def test_log_prob_takes_the_conditionals_one_by_one(kind):
    """Pixels from the one in question on are replaced by others: its own conditional must not notice."""
    model = model_of(kind, T=36 if kind == "pixels" else 9)
    levels = 255 if kind == "grey" else 1
    x = (torch.rand(4, 1, 6, 6).double() * levels).round() / levels
    x = model.tokens(x) if kind in ("patches", "pixels") else x
    whole = model.log_factors(x, torch.tensor([1, 5, 7, 10])).flatten(1)
    for i in range(whole.shape[1]):
        other = x.clone().flatten(1)
        other[:, i + 1:] = 1 - other[:, i + 1:] if other.is_floating_point() else 0
        part = model.log_factors(other.view_as(x), torch.tensor([1, 5, 7, 10])).flatten(1)
        assert torch.allclose(part[:, i], whole[:, i], atol=1e-10)
    assert torch.allclose(whole.sum(1), model.log_prob(x, torch.tensor([1, 5, 7, 10])), atol=1e-9)


@pytest.mark.parametrize("y", [None, torch.tensor([1, 8])])
@pytest.mark.parametrize("kind", ["pixelcnn", "gated", "grey"])
def test_sampling_pixels_gives_the_same_as_the_plain_way(kind, y):
    model = model_of(kind)
    torch.manual_seed(5)
    fast = model.sample(2, y)
    torch.manual_seed(5)
    x = torch.zeros(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        for i in range(784):
            r, c = divmod(i, 28)
            logits = model(x[:, :, :r + 1], y)[:, :, r, c]  # a whole pass over all rows so far
            x[:, 0, r, c] = model.draw(logits)
    assert fast.shape == (2, 1, 28, 28) and torch.equal(fast, x)
    assert 0.05 < x.mean() < 0.95


@pytest.mark.parametrize("y", [None, torch.tensor([1, 8])])
@pytest.mark.parametrize("kind, T", [("patches", 196), ("pixels", 784)])
def test_sampling_tokens_gives_the_same_as_the_plain_way(kind, T, y):
    model = model_of(kind, T=T)
    torch.manual_seed(5)
    fast = model.sample(2, y)
    torch.manual_seed(5)
    x = torch.zeros(2, T, dtype=torch.long)
    with torch.no_grad():
        for t in range(T):
            x[:, t] = torch.multinomial(model(x[:, :t + 1], y)[:, t].softmax(1), 1)[:, 0]  # a pass over all so far
    assert fast.shape == (2, 1, 28, 28) and torch.equal(fast, model.images(x))
    assert 0.05 < fast.mean() < 0.95


@pytest.mark.parametrize("kind", ["pixelcnn", "gated", "patches"])
def test_given_pixels_are_kept_and_rows_are_watched(kind):
    model, rows = model_of(kind), []
    picture = (torch.rand(2, 1, 28, 28) < 0.5).double()
    given = model.tokens(picture)[:, :98] if kind == "patches" else picture.flatten(1)[:, :392]
    x = model.sample(2, given=given, watch=rows)
    assert torch.equal(x[:, :, :14].double(), picture[:, :, :14]) and torch.equal(rows[-1], x)
    assert len(rows) == (14 if kind == "patches" else 28)


@pytest.mark.parametrize("kind", ["pixelcnn", "gated", "patches"])
def test_class_and_no_class_are_different_paths_and_both_get_gradients(kind):
    model = model_of(kind)
    x = (torch.rand(4, 1, 28, 28) < 0.5).double()
    assert not torch.allclose(model.log_prob(x, 2), model.log_prob(x))
    assert not torch.allclose(model.log_prob(x, 2), model.log_prob(x, 3))
    assert torch.allclose(model.log_prob(x, 10), model.log_prob(x))
    (-model.log_prob(x, torch.tensor([2, 2, 10, 5])).sum()).backward()
    tables = [m.weight.grad for n, m in model.named_modules() if n.endswith("label")]
    assert tables and all((g != 0).any(1).nonzero()[:, 0].tolist() == [2, 5, 10] for g in tables)


def test_untrained_models_score_784_ln_2():
    x = (torch.rand(2, 1, 28, 28) < 0.5).float()
    for model in (pixelcnn.PixelCNN(8, 2), gated_pixelcnn.GatedPixelCNN(8, 2),
                  transformer_ar.Transformer(D=16, layers=1), transformer_ar.Transformer(1, 784, 2, 16, 1)):
        assert torch.allclose(model.log_prob(x), torch.tensor(-784 * math.log(2)))


@pytest.mark.parametrize("bits", [1, 8])
def test_drawn_pixels_come_as_often_as_they_are_likely(bits):
    torch.manual_seed(0)
    model = gated_pixelcnn.GatedPixelCNN(4, 1, bits).double()
    logits = torch.randn(1, 1 if bits == 1 else 30).double()
    model.forward = lambda x, y=None: logits[:, :, None, None].expand(len(x), -1, *x.shape[2:])
    levels = torch.arange(2 if bits == 1 else 256).double() / (1 if bits == 1 else 255)
    p = model.log_factors(levels.view(-1, 1, 1, 1)).exp().flatten()
    drawn = model.draw(logits.expand(200000, -1))
    seen = torch.bincount((drawn * (len(levels) - 1)).round().long(), minlength=len(levels)) / len(drawn)
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    assert (seen - p).abs().sum() < 0.05  # total variation of 200,000 draws over 256 levels


def test_attention_written_out_is_the_fused_call():
    q, k, v = torch.randn(3, 2, 4, 50, 8, dtype=torch.float64)
    out, weights = transformer_ar.attention(q, k, v)
    assert torch.allclose(out, torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert torch.allclose(weights.sum(3), torch.ones(2, 4, 50).double()) and (weights.triu(1) == 0).all()


@pytest.mark.parametrize("patch", [1, 2])
def test_tokens_and_images_are_the_same_thing(patch):
    model = transformer_ar.Transformer(patch, (28 // patch) ** 2, 2 ** patch**2, 16, 1)
    x = (torch.rand(5, 1, 28, 28) < 0.5).float()
    tokens = model.tokens(x)
    assert tokens.shape == (5, model.T) and tokens.min() == 0 and tokens.max() == model.K - 1
    assert torch.equal(model.images(tokens), x)
    if patch == 2:  # the second patch of the first row: its four pixels, bit by bit
        a = x[:, 0, :2, 2:4].long()
        assert torch.equal(tokens[:, 1], a[:, 0, 0] + 2 * a[:, 0, 1] + 4 * a[:, 1, 0] + 8 * a[:, 1, 1])
