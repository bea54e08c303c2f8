"""Models of pixels against exact answers: enumeration, gradients, receptive fields, plain sampling."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import gated_pixelcnn
import pixelcnn
import transformer_ar
from transformer_ar import to_images, to_tokens

CONDITIONS = [None, 3]
PIXELS, TOKENS = ["pixelcnn", "gated"], ["patches", "pixels"]
LAYERS = 2


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model_of(kind, size=(28, 28), conditional=True, layers=LAYERS):
    """Random weights everywhere: an untrained model would hide mistakes behind its zeros. `size` is that of
    the images; convolutions take any up to 28 x 28."""
    torch.manual_seed(0)
    model = {"pixelcnn": lambda: pixelcnn.PixelCNN(4, layers, conditional),
             "gated": lambda: gated_pixelcnn.GatedPixelCNN(4, layers, conditional),
             "patches": lambda: transformer_ar.Transformer(16, layers, 2, 2, conditional),
             "pixels": lambda: transformer_ar.Transformer(16, layers, 2, 1, conditional)}[kind]()
    if kind in TOKENS:
        model.row, model.column = (torch.nn.Embedding(side // model.patch, 16) for side in size)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.eval()


def random_images(n, side=28):
    return (torch.rand(n, 1, side, side) < 0.5).double()


def symbols_of(model, x):
    """The sequence (n, T) that the model factorises: pixels, or tokens."""
    return to_tokens(x, model.patch) if hasattr(model, "patch") else x.flatten(1).long()


def all_images(H, W):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=H * W))).view(-1, 1, H, W)


@pytest.mark.parametrize("y", CONDITIONS)
@pytest.mark.parametrize("kind, H, W", [
    ("pixelcnn", 3, 3), ("pixelcnn", 2, 5), ("gated", 3, 3), ("gated", 5, 2),
    ("pixels", 3, 3), ("pixels", 2, 5), ("patches", 2, 6), ("patches", 4, 2)])
def test_probabilities_of_all_images_sum_to_one(kind, H, W, y):
    with torch.no_grad():
        p = model_of(kind, (H, W)).log_prob(all_images(H, W), y).double().exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p.max() > 3 / len(p)  # and are not all the same


@pytest.mark.parametrize("kind", PIXELS + TOKENS)
def test_the_marginal_over_the_classes_is_the_mixture(kind):
    """p(x) = Σ_y p(y) p(x | y) of all images of 2 x 4 sums to one."""
    model, x = model_of(kind, (2, 4)), all_images(2, 4)
    with torch.no_grad():
        by_class = torch.stack([model.log_prob(x, y).double() for y in range(10)])
    assert (by_class.logsumexp(0) - math.log(10)).exp().sum().item() == pytest.approx(1, abs=1e-5)


def support(model, side, pixel):
    """The pixels that have a gradient on the logit of one."""
    x = torch.randn(16, 1, side, side, requires_grad=True)
    model(x)[:, 0].flatten(1)[:, pixel].sum().backward()
    return (x.grad != 0).any(0)[0]


@pytest.mark.parametrize("kind", PIXELS)
def test_every_logit_depends_on_pixels_before_its_own_only(kind):
    model, side = model_of(kind), 6
    for pixel in range(side * side):
        seen = support(model, side, pixel).flatten()
        assert not seen[pixel:].any()
        assert pixel == 0 or seen[pixel - 1] or pixel % side == 0


@pytest.mark.parametrize("kind, side", [("pixels", 6), ("patches", 12)])
def test_every_logit_depends_on_all_tokens_before_its_own_and_on_no_other(kind, side):
    model, T = model_of(kind, (side, side)), 36
    x = symbols_of(model, random_images(8, side))
    with torch.no_grad():
        base = model(x)
        for t in range(T):
            other = x.clone()
            other[:, t] = (other[:, t] + 1) % model.K
            changed = (model(other) != base).any(2).any(0)
            assert not changed[:t + 1].any() and changed[t + 1:].all()


def test_every_logit_of_784_tokens_depends_on_tokens_before_its_own_only():
    """Beyond 256 tokens the fused call does the attention: the whole of it, with gradients on its input."""
    model = model_of("pixels")
    tokens = torch.randint(2, (1, 784))
    for t in (0, 1, 300, 783):
        h = model.embed(tokens).detach().requires_grad_()
        out = h
        for block in model.blocks:
            out = block(out)
        model.head(model.norm(out))[0, t].square().sum().backward()
        seen = (h.grad[0] != 0).any(1)
        assert seen[:t + 1].all() and not seen[t + 1:].any()  # position t is given token t − 1


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_receptive_field_of_the_gated_model_is_a_rectangle_without_blind_spot(layers):
    """Rows above: 3, and 2 for every layer, as far to either side; its own row: as far to the left."""
    model, reach = model_of("gated", layers=layers), 3 + 2 * layers
    for r, c in ((14, 14), (3, 20), (20, 2)):
        want = torch.zeros(28, 28, dtype=torch.bool)
        if layers:  # without a block the vertical stack has no way to the logits
            want[max(0, r - reach):r, max(0, c - reach):c + reach + 1] = True
        want[r, max(0, c - reach):c] = True
        assert torch.equal(support(model, 28, 28 * r + c), want)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_blind_spot_of_pixelcnn_is_where_its_masks_put_it(layers):
    """Mask by mask: from a place to what a 3 x 5 mask B sees, at last to what a 4 x 7 mask A sees."""
    seen = {(14, 14)}
    for _ in range(layers):
        seen = {(r - up, c + side) for r, c in seen for up in (0, 1, 2) for side in range(-2, 3)
                if up or side < 1}
    seen = {(r - up, c + side) for r, c in seen for up in range(4) for side in range(-3, 4) if up or side < 0}
    want = torch.zeros(28, 28, dtype=torch.bool)
    want[tuple(zip(*seen))] = True
    assert torch.equal(support(model_of("pixelcnn", layers=layers), 28, 28 * 14 + 14), want)
    full = torch.zeros(28, 28, dtype=torch.bool)
    reach = 3 + 2 * layers
    full[14 - reach:14, 14 - reach:15 + reach] = full[14, 14 - reach:14] = True
    assert not (want & ~full).any() and (full & ~want).any() == (layers > 0)  # the stem alone has none


@pytest.mark.parametrize("kind", PIXELS)
def test_two_channels_say_where_a_pixel_is_and_nothing_else_does(kind):
    """Of an image that is the same everywhere, far from its edges, logits differ by the coordinates alone."""
    model = model_of(kind, layers=1)
    ramp = torch.arange(28) / 13.5 - 1
    assert torch.allclose(model.ij[0, 0], ramp[:, None].expand(28, 28))  # the row
    assert torch.allclose(model.ij[0, 1], ramp.expand(28, 28))  # the column
    x = torch.ones(1, 1, 28, 28)
    with torch.no_grad():
        here, right, below = (model(x)[0, 0, r, c] for r, c in ((12, 12), (12, 13), (13, 12)))
        assert (here - right).abs() > 1e-5 and (here - below).abs() > 1e-5 and (right - below).abs() > 1e-5
        model.place.weight[:, 1] = 0
        here, right, below = (model(x)[0, 0, r, c] for r, c in ((12, 12), (12, 13), (13, 12)))
        assert torch.allclose(here, right, atol=1e-6) and (here - below).abs() > 1e-5
        model.place.weight[:, 0] = 0
        here, right, below = (model(x)[0, 0, r, c] for r, c in ((12, 12), (12, 13), (13, 12)))
        assert torch.allclose(here, right, atol=1e-6) and torch.allclose(here, below, atol=1e-6)


@pytest.mark.parametrize("kind", PIXELS)
def test_masked_weights_are_never_used(kind):
    model, x = model_of(kind), random_images(3)
    before = model(x)
    hidden = 0
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "mask"):
                hidden += (layer.mask == 0).sum().item()
                layer.weight += 1e3 * (1 - layer.mask)
    assert torch.equal(before, model(x))
    # A hides the last 4 of 7 places, B the last 2 of 5; the first vertical kernel hides its own row
    assert hidden == {"pixelcnn": 4 + 2 * LAYERS, "gated": 7 + 4 + 2 * LAYERS}[kind]


@pytest.mark.parametrize("kind", PIXELS + TOKENS)
def test_log_prob_is_the_product_of_conditionals_taken_one_by_one(kind):
    """What comes from the pixel (token) in question on is replaced: its conditional does not change."""
    model, x, y = model_of(kind, (6, 6)), random_images(5, 6), torch.tensor([1, 5, 7, 10, 5])
    slow = torch.zeros(5)
    with torch.no_grad():
        symbols = symbols_of(model, x)
        seen = torch.randint_like(symbols, model.K if kind in TOKENS else 2)  # what must not be looked at
        for i in range(symbols.shape[1]):
            if kind in TOKENS:
                p = model(seen, y)[:, i].softmax(1)
            else:
                one = model(seen.view_as(x).double(), y).flatten(1)[:, i].sigmoid()
                p = torch.stack([1 - one, one], 1)
            slow += p.gather(1, symbols[:, i:i + 1])[:, 0].log()
            seen[:, i] = symbols[:, i]
        assert torch.allclose(model.log_prob(x, y).double(), slow, rtol=1e-5)


def plain_logits(model, x, y, w):
    """Logits (n, T, K) of images x, guided by hand: by causality those x was sampled from, in one pass."""
    def logits(y):
        if hasattr(model, "patch"):
            return model(to_tokens(x, model.patch), y).double()
        one = model(x, y).flatten(1)[:, :, None]
        return torch.cat([torch.zeros_like(one), one], 2)  # of 0 and of 1

    return w * logits(y) + (1 - w) * logits(10)


@pytest.mark.parametrize("y, guidance", [(None, 1.0), (None, 2.0), (4, 1.0), (torch.arange(8), 2.0)])
@pytest.mark.parametrize("kind, T", [("pixelcnn", 784), ("gated", 784), ("patches", 196), ("pixels", 784)])
@torch.no_grad()
def test_sampling_gives_the_same_as_the_plain_way(kind, T, y, guidance):
    """The sampler computes place by place and caches; the plain way computes whole passes. By causality one
    pass over the sample has the logits of all its steps: drawn again with the same random numbers, each
    symbol is the same."""
    model = model_of(kind)
    torch.manual_seed(5)
    x = model.sample(8, y, guidance)
    assert x.shape == (8, 1, 28, 28) and 0.05 < x.mean() < 0.95
    torch.manual_seed(5)
    y = torch.randint(10, (8,)) if y is None else y
    logits = plain_logits(model, x, y, guidance)
    symbols = symbols_of(model, x)
    assert symbols.shape == (8, T)
    for t in range(T):
        if kind in TOKENS:
            drawn = torch.multinomial(logits[:, t].softmax(1), 1)[:, 0]
        else:
            drawn = (torch.rand(8) < logits[:, t, 1].sigmoid()).long()
        assert torch.equal(drawn, symbols[:, t])


@pytest.mark.parametrize("kind", PIXELS)
@torch.no_grad()
def test_the_first_rows_pixel_by_pixel_with_a_whole_pass_for_each(kind):
    """The plain way without causality's help: rows to come are not there, pixels to come are 0."""
    model, y = model_of(kind), torch.tensor([1, 8])
    torch.manual_seed(5)
    fast = model.sample(2, y)
    torch.manual_seed(5)
    x = torch.zeros(2, 1, 28, 28)
    for i in range(5 * 28):
        r, c = divmod(i, 28)
        x[:, 0, r, c] = (torch.rand(2) < model(x[:, :, :r + 1], y)[:, 0, r, c].sigmoid()).double()
    assert torch.equal(fast[:, :, :5], x[:, :, :5]) and 0.05 < x[:, :, :5].mean() < 0.95


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kind", PIXELS + ["patches"])
@torch.no_grad()
def test_symbols_come_as_often_as_they_are_likely(kind, guidance):
    """In 100 samples a symbol's count is within 4 standard deviations of the sum of its probabilities."""
    model = model_of(kind)
    torch.manual_seed(1)
    x = model.sample(100, 3, guidance)
    p = plain_logits(model, x, 3, guidance).softmax(2)
    symbols = symbols_of(model, x)
    count = torch.bincount(symbols.flatten(), minlength=p.shape[2])
    assert ((count - p.sum((0, 1))).abs() < 4 * (p * (1 - p)).sum((0, 1)).sqrt()).all()


@pytest.mark.parametrize("kind", PIXELS + ["patches"])
def test_class_and_no_class_are_different_paths_and_both_get_gradients(kind):
    model, x = model_of(kind), random_images(4)
    assert not torch.allclose(model.log_prob(x, 2), model.log_prob(x), rtol=1e-4)
    assert not torch.allclose(model.log_prob(x, 2), model.log_prob(x, 3), rtol=1e-4)
    assert torch.equal(model.log_prob(x, 10), model.log_prob(x))
    y = torch.tensor([2, 2, 10, 5])
    by_hand = torch.stack([model.log_prob(x[i:i + 1], int(y[i]))[0] for i in range(4)])
    assert torch.allclose(model.log_prob(x, y), by_hand)
    (-model.log_prob(x, y).sum()).backward()
    tables = [m.weight.grad for n, m in model.named_modules() if n.endswith("label")]
    assert len(tables) == (1 if kind == "patches" else LAYERS)
    assert all((g != 0).any(1).nonzero()[:, 0].tolist() == [2, 5, 10] for g in tables)


@pytest.mark.parametrize("kind", PIXELS + ["patches"])
def test_labels_are_drawn_uniformly_if_open_and_null_in_an_unconditional_model(kind):
    model, y = model_of(kind), torch.tensor([3, 10, 0])
    assert model.labels(7, 4).tolist() == [7] * 4 and torch.equal(model.labels(y, 3), y)
    share = model.labels(None, 20000).bincount(minlength=11) / 20000
    assert share[10] == 0 and ((share[:10] - 0.1).abs() < 0.01).all()
    model = model_of(kind, conditional=False)
    for y in (None, 7, torch.tensor([3, 10, 0])):
        assert model.labels(y, 3).tolist() == [10] * 3


@pytest.mark.parametrize("kind", PIXELS + ["patches"])
@torch.no_grad()
def test_an_unconditional_model_ignores_the_class(kind):
    x, same = random_images(3), []
    for conditional in (False, True):
        model = model_of(kind, conditional=conditional)
        samples = []
        for y, w in ((1, 1.0), (torch.tensor([8, 3, 10]), 1.0), (8, 3.0)):
            torch.manual_seed(0)
            samples.append(model.sample(3, y, w))
        same.append([torch.equal(samples[0], s) for s in samples[1:]]
                    + [torch.equal(model.log_prob(x), model.log_prob(x, y)) for y in (2, torch.arange(3))])
    assert same == [[True] * 4, [False] * 4]


def test_samples_without_a_class_are_of_the_mixture_over_classes():
    """sample(n) draws the class first: here pixels are 1 in 3 of 10 classes, 0 under the null label."""
    model = transformer_ar.Transformer(16, 1, 2, 2)
    for table in (model.symbol, model.row, model.column, model.label):
        torch.nn.init.zeros_(table.weight)
    for block in model.blocks:
        torch.nn.init.zeros_(block.out.weight)
        torch.nn.init.zeros_(block.mlp[2].weight)
    with torch.no_grad():
        model.label.weight[:3, 0], model.label.weight[3:, 1] = 10, 10
        model.head.weight[15, 0], model.head.weight[0, 1] = 10, 10
    x, drawn = model.sample(1000)[:, 0, 0, 0], model.sample(100, 10)[:, 0, 0, 0]
    assert x.mean().item() == pytest.approx(0.3, abs=0.06) and drawn.sum() == 0


@pytest.mark.parametrize("patch", [1, 2])
def test_untrained_models_score_784_ln_2(patch):
    x = random_images(2)
    for model in (pixelcnn.PixelCNN(8, 2), gated_pixelcnn.GatedPixelCNN(8, 2),
                  transformer_ar.Transformer(16, 1, 2, patch)):
        for y in CONDITIONS:
            assert torch.allclose(model.log_prob(x, y).double(), torch.tensor(-784 * math.log(2)))


def test_attention_written_out_is_the_fused_call():
    q, k, v = torch.randn(3, 2, 4, 50, 8)
    out, weights = transformer_ar.attention(q, k, v)
    assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert torch.allclose(weights.sum(3), torch.ones(2, 4, 50)) and (weights.triu(1) == 0).all()
    assert (weights.tril() > 0).sum() == 8 * 50 * 51 / 2  # to itself and all before it


@pytest.mark.parametrize("T", [20, 300])
def test_a_block_is_attention_and_an_mlp_each_added_to_its_input(T):
    """Of either way of computing it: written out, and beyond 256 positions fused."""
    torch.manual_seed(0)
    block, x = transformer_ar.Block(16, 4), torch.randn(3, T, 16)
    q, k, v = block.project(x)
    assert q.shape == k.shape == v.shape == (3, 4, T, 4)
    flat = torch.cat([part.transpose(1, 2).flatten(2) for part in (q, k, v)], 2)
    assert torch.allclose(flat, block.qkv(block.norm1(x)))
    h = x + block.out(transformer_ar.attention(q, k, v)[0].transpose(1, 2).flatten(2))
    assert torch.allclose(block(x), h + block.mlp(block.norm2(h)))


@pytest.mark.parametrize("kind", TOKENS)
def test_a_position_is_given_the_token_before_and_the_first_one_the_class(kind):
    model, y = model_of(kind), torch.tensor([2, 10, 7])
    tokens = torch.randint(model.K, (3, model.T))
    h = model.embed(tokens, y)
    assert h.shape == (3, model.T, 16)
    place = torch.stack([r + c for r in model.row.weight for c in model.column.weight])  # row after row
    assert torch.allclose(h[:, 0], model.label.weight[y] + place[0])
    assert torch.allclose(h[:, 1:], model.symbol.weight[tokens[:, :-1]] + place[1:])
    assert torch.equal(model.embed(tokens), model.embed(tokens, 10))


@pytest.mark.parametrize("patch", [1, 2])
def test_tokens_and_images_are_the_same_thing(patch):
    model, x = transformer_ar.Transformer(16, 1, 2, patch), random_images(5)
    tokens = to_tokens(x, patch)
    assert tokens.shape == (5, model.T) == (5, (28 // patch) ** 2) and model.K == 2 ** patch**2
    assert tokens.min() == 0 and tokens.max() == model.K - 1
    assert torch.equal(to_images(tokens, patch).double(), x)
    every = torch.randint(model.K, (5, model.T))
    assert torch.equal(to_tokens(to_images(every, patch), patch), every)
    if patch == 1:
        assert torch.equal(tokens, x.flatten(1).long())
        return
    for t, a in ((1, x[:, 0, :2, 2:4].long()), (14, x[:, 0, 2:4, :2].long())):  # the second; below the first
        assert torch.equal(tokens[:, t], a[:, 0, 0] + 2 * a[:, 0, 1] + 4 * a[:, 1, 0] + 8 * a[:, 1, 1])


@pytest.mark.parametrize("module", [pixelcnn, gated_pixelcnn, transformer_ar])
def test_digits_are_binarised_and_labels_dropped_at_their_rates(module):
    grey = torch.tensor([0, 51, 127, 255], dtype=torch.uint8).repeat(20000, 1)
    mean = module.binarise(grey, seed=3).mean(0)
    assert mean[0] == 0 and mean[3] == 1
    assert mean.tolist() == pytest.approx([0, 0.2, 127 / 255, 1], abs=0.015)
    assert torch.equal(module.binarise(grey, seed=3), module.binarise(grey, seed=3))
    assert not torch.equal(module.binarise(grey), module.binarise(grey))
    y = torch.arange(20000) % 10
    dropped = module.drop_labels(y, 0.1)
    assert ((dropped == y) | (dropped == module.NULL)).all()
    assert (dropped == module.NULL).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (module.drop_labels(y, 1.0) == module.NULL).all() and torch.equal(module.drop_labels(y, 0.0), y)
