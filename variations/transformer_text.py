"""A transformer of characters on transformer_ar.py: tiny Shakespeare, as in nanoGPT.

What changes: the tokens. Patches become characters, K symbols, and images windows of T = 256 characters that
begin anywhere in the text; the input of position 1 is the null label. Logits, log_prob and cached sampler are
the chapter's; beyond T characters the window slides on one by one (`continued`).

Why: to compare with char_rnn.py. An LSTM carries all that it has read in a state of fixed size; here the last
T characters are each within reach, no earlier one; context.png shows how much they help. One book is little
data: hence residual dropout, and char_rnn.py's weight decay and clipping.

Protocol: the last tenth of the text is the test, as in nanoGPT; nats per character over windows of 256 side
by side, without the first character of each, which has no context. (nanoGPT averages random windows, its CPU
run windows of 64; char_rnn.py reads 16 long streams.) The characters after it have little context; a
second figure takes only those with T / 2 or more before them. Validation: a hundredth, just before the test.
Papers: Radford et al. 2019 (GPT-2); github.com/karpathy/nanoGPT, config train_shakespeare_char.

Measured, 459 s of training on two cores, 473 s in all: 1.567 nats/char, and 1.560 with at least 128
characters of context, where char_rnn.py, which reads on in long streams, reaches 1.4537. nanoGPT publishes
1.88 for 3 minutes of a CPU and 1.4697 for 3 minutes of a GPU.
"""
import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

import transformer_ar
from char_rnn import CharRNN, page
from data import text
from variations import checked, start

SETTINGS = {key: transformer_ar.SETTINGS[key] for key in ("lr", "width", "layers", "heads")} | {
    "steps": (4000, "optimiser steps", 1, 10**9),
    "batch_size": (16, "windows per step", 1, 10**6),
    "length": (256, "T, characters of a window", 2, 10**5),
    "dropout": (0.1, "residual dropout: of what attention and MLP add", 0, 0.99),
    "text": ("", "a UTF-8 file of your own instead of tiny Shakespeare")}

class TextTransformer(transformer_ar.Transformer):
    """p(x) of windows x (B, T) of symbols, the tokens; characters (K,) are their Unicode numbers."""
    spell = CharRNN.spell
    def __init__(self, characters, length=256, width=128, layers=4, heads=2, dropout=0.0):
        super().__init__(width, layers, heads, conditional=False)
        self.register_buffer("characters", characters)
        self.K, self.T = len(characters), length
        self.symbol, self.position = nn.Embedding(self.K, width), nn.Embedding(length, width)
        self.head = nn.Linear(width, self.K)
        nn.init.normal_(self.symbol.weight, std=0.1)
        nn.init.normal_(self.position.weight, std=0.1)
        nn.init.zeros_(self.head.weight)
        del self.row, self.column
        for block in self.blocks:
            block.out = nn.Sequential(block.out, nn.Dropout(dropout))
            block.mlp.append(nn.Dropout(dropout))

    def positions(self):
        return self.position.weight

    @torch.no_grad()
    def continued(self, length):  # a text (length,), each character given up to T − 1 before it
        x = self.sample(1)
        while x.shape[1] < length:
            window = F.pad(x[:, 1 - self.T:], (0, 1))  # its last symbol is still to be drawn
            x = torch.cat([x, torch.multinomial(self(window)[:, -1].softmax(1), 1)], 1)
        return x[0, :length]

    @torch.no_grad()
    def surprisal(self, x, stride):
        """−log p of each character, nats (windows, T), of a text x (N,) in windows `stride` apart."""
        return torch.cat([F.cross_entropy(self(window).transpose(1, 2), window, reduction="none")
                          for window in x.unfold(0, self.T, stride).split(64)])

def main(argv=None):
    vars(transformer_ar).update(NAME="transformer_text", LOSS="NLL, nats/char", ITEMS="windows", load=checked,
                                SETTINGS=SETTINGS, to_tokens=lambda x, patch: x, to_images=lambda x, patch: x)
    run = transformer_ar.Run(argv)
    x, characters, run.source = text(run.text or None, run.stand_in, ids=True)
    if len(x) < (least := 100 * run.length + 100):
        raise OSError(f"{run.source} has {len(x):,} characters, but {least:,} are needed")
    if run.width % run.heads:
        raise OSError(f"--width {run.width} is not a multiple of --heads {run.heads}")
    x, x_valid, x_test = x.to(run.device).tensor_split([len(x) * 89 // 100, len(x) * 9 // 10])
    run.baselines = {"uniform, nats/char": math.log(len(characters))}

    torch.manual_seed(run.seed)
    codes = torch.tensor([ord(c) for c in characters])
    model = TextTransformer(codes, run.length, run.width, run.layers, run.heads, run.dropout).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), run.lr, (0.9, 0.99), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    offset = torch.arange(run.length, device=run.device)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        first = torch.randint(len(x) - run.length + 1, (run.batch_size, 1), device=run.device)
        with run.autocast():
            loss = -model.log_prob(x[first + offset]).mean() / run.length
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            model.eval()
            validation = model.surprisal(x_valid, run.length)[:, 1:].mean().item()
            run.save(validation, page(model.spell(model.continued(600)), f"a sample, step {step:,}"))
            model.train()
    torch.manual_seed(1)
    T, surprisal = run.length, model.eval().surprisal(x_test[:1_000_000], run.length)
    loss, late = surprisal[:, 1:].mean().item(), model.surprisal(x_test[:1_000_000], T // 2)[:, -(T // 2):]
    run.report({"test NLL, nats/char": loss, "test NLL, bits/char": loss / math.log(2),
                f"test NLL, nats/char, after {T - T // 2} or more characters": late.mean().item()})
    run.picture("samples.png", page(model.spell(model.continued(800)), "a sample"))
    ax = Figure(figsize=(6, 4), layout="constrained").subplots()
    edges = [2**k for k in range(T.bit_length()) if 2**k < T] + [T]  # 1 character before, 2 to 3, 4 to 7, …
    ax.semilogx(edges[:-1], [surprisal[:, a:b].mean().item() for a, b in zip(edges, edges[1:])], "o-", base=2)
    ax.set(title="how much context helps", xlabel="characters before (to twice as many)", ylabel="nats/char")
    run.picture("context.png", ax.figure)

if __name__ == "__main__":
    start(main)
