"""R3GAN's loss on gan.py: real against generated in pairs, R1 and R2 (Huang et al. 2025, arXiv:2501.05441).

What changes: the loss. The chapter's discriminator scores every image by itself; this one compares a real
digit x with a generated one G(z) of the same class. With D(x) its logit, σ(D(x) − D(G(z))) is the probability
that x is the real one of the two, and the generator's loss is the mirror of the discriminator's:

    D minimises  E log(1 + exp(−(D(x) − D(G(z))))) + γ/2 (E‖∇D(x)‖² + E‖∇D(G(z))‖²)     ∇: by the image
    G minimises  E log(1 + exp(−(D(G(z)) − D(x))))

The paper has D maximise, G minimise E f(D(G(z)) − D(x)), f(t) = −log(1 + exp(−t)). With the sign of D turned
it is minus D's loss here. G's loss is its non-saturating form, as in the authors' code. Both are log 2 =
0.693 for a constant D, and a number added to D changes nothing.

Why pairs: scored one by one, samples need only pass a threshold, and there are bad minima where modes are
left out; with pairs there are none (Sun et al. 2020, arXiv:2011.04926; relativistic losses go back to
Jolicoeur-Martineau 2018, arXiv:1807.00734). Why R2: R1 flattens D at the data alone, R2 also at the samples.
In the paper either is enough near the equilibrium, yet from the start R1 alone diverges and both converge.

What stays: the networks (with the minibatch standard deviation that the paper leaves out), the class, EMA,
and penalties at every fourth step with four times the weight (the paper: at every step). The paper lowers γ
during training; here it is constant, half of the chapter's: where p_G = p, R1 and R2 are equal, and together
weigh as much as the chapter's R1. Pixels are in [0, 1]; in [−1, 1], as in the paper, γ = 0.5 would be 2. As
D(x) alone means nothing, `game` shows the mean of σ(D(x) − D(G(z))).

Measured, 394 s of training on two cores, 405 s in all, 6,000 steps like the chapter: class accuracy 97.5 %
(gan.py: 99.0 %), Fréchet distance 1.3 (0.6). On digits, where the chapter's game is already steady, the loss
is no gain.
"""
import math

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gan
from data import mnist
from gan import drop_labels, grid, r1_penalty
from variations import start

SETTINGS = gan.SETTINGS | {
    "gamma": (0.5, "weight of R1 and R2, penalties at real and at generated digits; 0 for none", 0, 1000)}

def pairing_loss(winner, loser):
    """E −log σ(winner − loser) of logits (B,), pair by pair: D wants (real, fake), G wants (fake, real)."""
    return F.softplus(-(winner - loser)).mean()

def gradient_penalty(gamma, logits, images):
    """γ/2 (R1 + R2): the chapter's penalty at real and at generated images; both arguments (real, fake)."""
    (logits_real, logits_fake), (real, fake) = logits, images
    return gamma / 2 * (r1_penalty(logits_real, real) + r1_penalty(logits_fake, fake))

@torch.no_grad()
def margins(D, G, x, y):
    """D(x) − D(G(z)) (B,) of uint8 images x and as many samples of their classes y."""
    c = G.labels(y, len(y))  # all NULL in a model without classes
    return D(x / 255, c) - D(G.sample(len(x), y), c)

class Run(gan.Run):
    def picture(self, name, *figures):
        if name == "game.png":  # the chapter's, but its curves are of pairs
            ax = figures[0].axes[0]
            ax.lines[2].remove()  # of generated digits: 1 − that of unseen ones
            ax.relim()
            ax.set(title="mean σ(D(x) − D(G(z))): 0.5 means D cannot tell", ylabel="σ(D(x) − D(G(z)))")
            ax.legend()
        super().picture(name, *figures)

def main(argv=None):
    vars(gan).update(NAME="r3gan", SETTINGS=SETTINGS)  # for Run
    run = Run(argv)
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth is for validation
    run.baselines = {"discriminator loss if D is constant, nats": math.log(2)}

    torch.manual_seed(run.seed)
    G = gan.Generator(run.channels, run.latent_dim, run.label_dropout < 1)
    D = gan.Discriminator(run.channels)
    for net in (G, D):
        net.to(run.device, memory_format=torch.channels_last)
    decay = max(0.0, 1 - 10 / run.steps)  # the EMA of G's weights looks back over a tenth of the run
    ema = AveragedModel(G, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer_G, optimizer_D = (
        torch.optim.Adam(net.parameters(), lr=run.lr, betas=(0.0, 0.99), fused=True) for net in (G, D))
    schedule_G, schedule_D = (torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
        for optimizer in (optimizer_G, optimizer_D))
    for step in run.loop(G=G, D=D, ema=ema, optimizer_G=optimizer_G, optimizer_D=optimizer_D,
                         schedule_G=schedule_G, schedule_D=schedule_D):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        labels, penalise = drop_labels(y[i], run.label_dropout), step % 4 == 0  # R1 and R2 at every 4th step
        with run.autocast():  # the discriminator's step
            fake = G(torch.randn(run.batch_size, run.latent_dim, device=run.device), labels)
            pair = [v.detach().requires_grad_(penalise) for v in (x[i] / 255, fake)]  # of one class each
            logits_real, logits_fake = (D(v, labels) for v in pair)
        loss = pairing_loss(logits_real, logits_fake)
        penalty = 4 * gradient_penalty(run.gamma, (logits_real, logits_fake), pair) if penalise else 0
        optimizer_D.zero_grad()
        (loss + penalty).backward()
        optimizer_D.step()

        D.requires_grad_(False)  # the generator's step: gradients flow through D, not into it
        with run.autocast():
            logits_real, logits_fake = D(pair[0].detach(), labels), D(fake, labels)
        optimizer_G.zero_grad()
        pairing_loss(logits_fake, logits_real).backward()
        optimizer_G.step()
        D.requires_grad_(True)
        schedule_G.step()
        schedule_D.step()
        ema.update_parameters(G)
        if run.log(loss):  # a status line; True every 20 s and at the end
            seen = margins(D, ema.module, x[:n][:1000], y[:n][:1000])
            unseen = margins(D, ema.module, x[n:][:1000], y[n:][:1000])
            wins = [m.sigmoid().mean().item() for m in (seen, unseen, -unseen)]  # three, for gan.py's picture
            samples = grid(ema.module.sample(40, torch.arange(40) % 10), f"samples, step {step:,}")
            run.save(F.softplus(-unseen).mean().item(), samples, D=wins)
    gan.evaluate(run, ema.module, x[:n][:10000], y[:n][:10000], y_test)

if __name__ == "__main__":
    start(main)
