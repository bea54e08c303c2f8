"""The things to break of ddpm.py, broken: no residual, a chain that ends too early, noise after the last step."""
import pytest
import torch
from broken import chapter, digits, thing, trained

FLAGS = "--steps 300 --batch-size 32 --channels 8 --timesteps 50 --sampling-steps 8 --lr 5e-3"
ASKED = torch.arange(100) % 10


def draw(module, model):
    torch.manual_seed(0)
    return module.ddim_sample(model, 100, ASKED, 8, 1.6)


def test_1_without_the_residual_connection_the_loss_falls_later():
    assert 'leave out "x +"' in thing("ddpm", 1)
    edit, flags = ("return x + F.pixel_shuffle", "return F.pixel_shuffle"), FLAGS.replace("300", "100")
    late, early = (trained("ddpm", *edits, flags=flags)[3]["curve"][-1]["validation"] for edits in ([edit], []))
    assert late > 1.4 * early  # 1.6 after 100 steps; after 300 about 1.15


def test_2_samples_that_begin_with_more_noise_than_training_saw_come_out_too_dark():
    new = "torch.linspace(0.1, 2, timesteps)"
    assert new in thing("ddpm", 2)
    module, broken, _, _ = trained("ddpm", ("torch.linspace(0.1, 20, timesteps)", new), flags=FLAGS)
    _, whole, _, _ = trained("ddpm", flags=FLAGS)
    x0, flat = digits()[2] / 127.5 - 1, torch.full((256,), 1 / 256)
    still, gone = (module.bound_terms(model, x0, flat)[2].mean().item() for model in (broken, whole))
    assert still > 100 and gone < 1  # nats that x_T still holds of x_0
    assert draw(module, broken).mean() > 1.3 * draw(module, whole).mean()


def test_3_noise_after_the_last_step_leaves_digits_grainy():
    assert 'leave out "if t > 1 else 0"' in thing("ddpm", 3)
    _, whole, _, _ = trained("ddpm", flags=FLAGS)
    module = chapter("ddpm", ("torch.randn_like(x) if t > 1 else 0", "torch.randn_like(x)"))
    broken = module.DDPM(8, 50)
    broken.load_state_dict(whole.state_dict())
    samples = []
    for model in (broken, whole):
        torch.manual_seed(0)
        samples.append(model.sample(50, ASKED[:50]))
    inside = (samples[1] > 0.1) & (samples[1] < 0.9)  # where pixels in [0, 1] are not clamped
    grain = (samples[0] - samples[1])[inside].std().item()
    assert inside.sum() > 1000 and 2 * grain == pytest.approx(whole.beta[1].sqrt().item(), rel=0.1)
