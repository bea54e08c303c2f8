"""A transformer of text without end, on transformer_ar.py (Beltagy et al. 2020, arXiv:2004.05150).

How does GPT write a text of any length? In transformer_ar.py each of 196 positions looks at itself
and all before it. Here it looks at the last W = 64 only, itself included: a sliding window. A
position t starts with the character x_t (in the chapter: x_{t−1}) and predicts x_{t+1}. With W = 3:

    layer 2            ·  ·  ·  ·  5          position 5 looks at 3, 4, 5
    layer 1            ·  ·  3  4  5          and 3 has looked at 1, 2, 3: so 5 hears of 1
    characters         1  2  3  4  5

Each layer reaches W − 1 further; L = 4 layers hear of the last 1 + L (W − 1) = 253 characters. No
position is told its place. Instead each head learns a number b_i for each distance i = t − s, which
is added to the chapter's scores (as in T5; Raffel et al. 2020). For s in the window of t,

    o_t = Σ_s w_ts v_s      w_ts ∝ exp(q_t · k_s / √d + b_{t−s})             ∝: scaled to a sum of 1
                                 = exp(q_t · k_s / √d) · exp(b_{t−s})     content times distance

At first b_i = −m i, with another m for each head, from 1 to 1/64, so that some look close by from
the first step on (Press et al. 2022). The factors exp(b_i) for i = 0, 1, 2, 3, …, 10, …, 63:

    m = 1          1   0.37   0.14   0.05   …   0.00   …   0.00     the last two or three characters
    m = 1/64       1   0.98   0.97   0.95   …   0.86   …   0.37     the whole window

What is minimised is char_rnn.py's −log p(x) / T = −(1/T) Σ_t log p(x_t | what t − 1 hears of). As
there, a state of fixed size is carried on: each layer's last W − 1 keys and values. They stay as
they are when the window moves on. With a learnt vector for each place in it, as in nanoGPT, all
would change and be computed anew for each character.

`python -m variations.transformer_text` takes 253 seconds on one core of an AMD EPYC (bfloat16), the
other busy. Nats a character (/ ln 2: bits) of tiny Shakespeare's last tenth: 1.495; in windows of
64, each read by itself, 1.547. Validation text: 1.397; char_rnn.py in as many seconds (2,100 of its
5,600 steps) 1.458. In float32 (5,545 steps, 232 s) windows of 64 cost 1.574; nanoGPT, 4 layers of
128, measured beside it after 241 s 1.687. It writes 623 characters a second, this page 2,089.
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from char_rnn import CharRNN, page, warmup_cosine
from data import text
from transformer_ar import Block, Run, add_common_flags, load_checkpoint, parse, positive_int


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=4, help="pieces of text a step")
    parser.add_argument("--length", type=positive_int, default=128, help="characters of a piece")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of AdamW")
    parser.add_argument("--width", type=positive_int, default=128, help="numbers at a position")
    parser.add_argument("--layers", type=positive_int, default=4, help="attention, then an MLP")
    parser.add_argument("--heads", type=positive_int, default=4, help="attentions side by side")
    parser.add_argument("--window", type=positive_int, default=64, help="W, positions looked at")
    parser.add_argument("--text", default="", help="a UTF-8 file instead of tiny Shakespeare")
    add_common_flags(parser, out="out/transformer_text", save_every=2000)
    return parse(parser, argv)


# %% Model
# A head's b becomes a matrix to add to its scores. Here W = 3; of six characters, two were read
# before (s = 1, 2) and four are new (t = 3 to 6). A dot is −∞: the weight is 0.
#
#               s = 1    2    3    4    5    6
#     t = 3       b_2  b_1  b_0    .    .    .
#     t = 4         .  b_2  b_1  b_0    .    .
#     t = 5         .    .  b_2  b_1  b_0    .
#     t = 6         .    .    .  b_2  b_1  b_0
def band(b, T, S):
    """b by distance (layers, heads, W) as a matrix for the last T of S places, (…, T, S)."""
    places = torch.arange(S, device=b.device)
    distance = places[S - T :, None] - places  # t − s
    seen = (distance >= 0) & (distance < b.shape[2])
    return b[:, :, distance.where(seen, 0)].masked_fill(~seen, -math.inf)


class TextTransformer(nn.Module):
    """p(x) of a text x. A character is a number, 0 to K − 1: its place in the list `characters`."""

    encode = CharRNN.encode  # these three stand in char_rnn.py
    surprise = CharRNN.surprise
    sample = CharRNN.sample  # reads and writes with the state that `forward` carries on

    def __init__(self, characters, width=128, layers=4, heads=4, window=64):
        super().__init__()
        if width % heads != 0:
            raise OSError(f"--width {width} is not a multiple of --heads {heads}")
        self.characters = characters
        codes = torch.tensor([ord(character) for character in characters])
        self.register_buffer("codes", codes)  # for checkpoints
        self.start = len(characters)  # one more: here a text begins
        self.token = nn.Embedding(len(characters) + 1, width)  # a vector for each
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        slopes = 64 ** -torch.linspace(0, 1, heads)  # m: 1, 1/4, 1/16, 1/64
        falling = -slopes[:, None] * torch.arange(window)
        self.b = nn.Parameter(falling.repeat(layers, 1, 1))  # (layers, heads, W)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(characters)))

    def empty_state(self, B):
        """Of each layer the keys and values so far, (2, B, heads, 0, d): there are none yet."""
        layers, heads, _ = self.b.shape
        d = self.token.embedding_dim // heads
        return [self.b.new_zeros(2, B, heads, 0, d)] * layers

    def forward(self, x, state):
        """Read on, x (B, T): logits of what comes after each, (B, T, K); the new state."""
        T = x.shape[1]
        S = state[0].shape[3] + T
        first_kept = max(0, S - self.b.shape[2] + 1)  # the next character sees the last W − 1
        h = self.token(x)
        after = []
        for block, past, bias in zip(self.blocks, state, band(self.b, T, S)):
            qkv = block.queries_keys_values(h)  # (3, B, heads, T, d)
            past_and_new = torch.cat([past.to(qkv.dtype), qkv[1:]], dim=3)  # keys and values
            after.append(past_and_new[:, :, :, first_kept:])
            k, v = past_and_new  # (B, heads, S, d) each
            scores = (qkv[0] / k.shape[3] ** 0.5) @ k.mT + bias  # (B, heads, T, S)
            h = block.add(h, scores.softmax(3).to(v.dtype) @ v)
        return self.head(h).float(), after


# %% Training
# Pieces begin anywhere, one in 20 with the start symbol. Their second half looks at full windows.
def main(argv=None):
    args = parse_flags(argv)
    x, characters, source = text(args.text, args.stand_in, ids=True)
    if len(x) < 1000 + 2 * args.length:
        raise OSError(f"{source!a} has {len(x):,} characters: too few")
    cuts = [len(x) * 89 // 100, len(x) * 9 // 10]  # as in char_rnn.py
    x, x_valid, x_test = x.to(args.device).tensor_split(cuts)

    torch.manual_seed(args.seed)
    model = TextTransformer(characters, args.width, args.layers, args.heads, args.window)
    model.to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), 0, (0.9, 0.99), weight_decay=0.1, fused=True)
    run = Run(args, source, len(x), "NLL, nats/char", model=model, optimizer=optimizer)
    piece = torch.arange(args.length + 1, device=args.device)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        first = torch.randint(len(x) - args.length, (args.batch_size, 1), device=args.device)
        sequence = x[first + piece]  # (B, length + 1)
        read = sequence[:, :-1].clone()
        read[torch.rand(args.batch_size, device=args.device) < 0.05, 0] = model.start
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            logits, _ = model(read, model.empty_state(args.batch_size))
        loss = F.cross_entropy(logits.mT, sequence[:, 1:])  # each predicts the next one
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            run.save(surprise_of_book(model, x_valid).mean().item())
            run.picture("samples.png", page(model.sample(), f"a sample, step {step:,}"))
    evaluate(run, model, x_test[:120_000])  # of a long text, a part


# %% Evaluation
def load(path="out/transformer_text/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    characters = [chr(code) for code in saved["model"]["codes"].tolist()]
    sizes = [saved["flags"][name] for name in ["width", "layers", "heads", "window"]]
    model = TextTransformer(characters, *sizes)
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


@torch.no_grad()
def surprise_of_book(model, x):
    """−log p of each character of a long text x (N,), exact, nats (N,)."""
    read = F.pad(x[:-1], (1, 0), value=model.start)
    state = model.empty_state(1)
    nats = []
    for piece, to_come in zip(read.split(256), x.split(256)):  # the whole at once has N² scores
        logits, state = model(piece[None], state)
        nats.append(F.cross_entropy(logits[0], to_come, reduction="none"))
    return torch.cat(nats)


@torch.no_grad()
def evaluate(run, model, x_test):
    """Results and pictures, from the last tenth of the text, (N,)."""
    torch.manual_seed(1)
    print("reading the last tenth ...", flush=True)
    layers, heads, W = model.b.shape
    windows = model.surprise(x_test.unfold(0, 65, 64))[:, 1:]  # 1 to 64 characters come before
    results = {
        "each character as likely, nats/char": math.log(len(model.characters)),
        "test NLL, nats/char": surprise_of_book(model, x_test).mean().item(),
        "test NLL in windows of 64, nats/char": windows.mean().item(),
    }
    run.report(results)
    run.picture("samples.png", page(model.sample(), "a sample"))

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    length = min(512, len(x_test) // 2)
    pieces = x_test.unfold(0, length, length).split(16)
    nats = torch.cat([model.surprise(piece) for piece in pieces]).mean(0).cpu()
    edges = [2**i for i in range(9) if 2**i < length]  # 1 character of context, 2 to 3, 4 to 7 …
    left.semilogx(edges, [nats[edge : 2 * edge].mean() for edge in edges], "o-", base=2)
    left.axvline(W, color="black", linestyle=":", label="W, what a layer sees")
    left.axvline(layers * (W - 1) + 1, color="black", label="what the last layer hears of")
    left.set(xlabel="characters of context (to twice as many)", ylabel="NLL, nats/char")
    left.set_title("how much does a longer context help?")
    for layer, b in enumerate(model.b.cpu(), 1):
        lines = right.loglog(range(1, W + 1), b.softmax(1).T, f"C{layer}")
        lines[0].set_label(f"layer {layer}")
    right.set(xlabel="1 + t − s", ylabel="exp(b), scaled to a sum of 1", ylim=(1e-4, 1))
    right.set_title("how far back each head (a line) has learnt to look")
    for axes in (left, right):
        axes.legend()
    run.picture("context.png", figure)


# %% Notes
# A draft after 170 steps, validation: 2.56 nats with rotary positions (Su et al. 2021), 2.35 with
# b, 2.17 with token vectors of variance 1 (PyTorch's own), not 0.02² (GPT-2's). More context than
# 64 characters hardly helps (context.png). To break: add 1 to first_kept; in pieces a text differs.


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
