"""What the results of the runs say of p(x): −log p of a test example, exact or bounded.

Three figures are kept apart. Class-conditional: −log p(x | y), of a network that is given the
class. Marginal: −log p(x) of the same network, p(x) = Σ_y p(y) p(x | y). Unconditional: −log p(x)
of a network that was trained without classes, a run of its own.
"""

import runs

EXACT = ["made", "pixelcnn", "gated_pixelcnn", "transformer_ar", "char_rnn", "wavenet"]
INSTEAD = {"gan": "none", "ebm": "up to a constant"}  # of a figure
CONDITIONAL = {  # the key in the results; its last words are the unit
    "made": "NLL, nats",
    "pixelcnn": "NLL, nats",
    "gated_pixelcnn": "NLL, nats",
    "transformer_ar": "NLL, nats",
    "vae": "-ELBO, nats",
    "vqvae": "bound, nats",
    "realnvp": "bound, bits/dim",
    "ddpm": "bound, bits/dim",
    "char_rnn": "test NLL, nats/char",
    "wavenet": "NLL, bits/sample",
}
DIGITS = {"nats": 2, "bits/dim": 3, "nats/char": 4, "bits/sample": 3}  # behind the point

# The marginal needs ten passes for a digit. Where it is of some digits only, the class-conditional
# figure of the same digits stands beside it.
ESTIMATED = ["pixelcnn", "gated_pixelcnn", "transformer_ar"]  # so, and not bounds
MARGINAL = {
    "made": ("NLL, marginal over classes, nats", "NLL, nats"),
    "vae": ("marginal over classes, 100 samples, every 50th image", "-ELBO, every 50th image"),
    "vqvae": (
        "bound, marginal over classes, every 10th image, nats",
        "bound, every 10th image, nats",
    ),
}
for name in ESTIMATED:
    mixture = "NLL, marginal over classes, every 10th image, nats"
    MARGINAL[name] = (mixture, "NLL, every 10th image, nats")


def conditional(run):
    """Of a run's own network: given the class, or without classes; None if there is none."""
    key, results = CONDITIONAL.get(runs.chapter(run)), runs.read(run)
    return results["results"][key] if key and results else None


def unconditional(name):
    return conditional(f"{name}-unconditional")


def marginal(name):
    """What the mixture gains on some digits is carried over to all of them."""
    results = runs.read(name).get("results")
    if not results or name not in MARGINAL:
        return None
    mixture, given_class = MARGINAL[name]
    return results[CONDITIONAL[name]] + results[mixture] - results[given_class]


def sign(name):
    return "" if name in EXACT else "≤ "


def unit(name):
    return CONDITIONAL[name].split(", ")[-1]


def written(name, value):
    """A figure of a chapter as the tables have it, without its unit."""
    return f"{sign(name)}{value:.{DIGITS[unit(name)]}f}"
