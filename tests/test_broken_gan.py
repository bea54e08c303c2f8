"""The things to break of gan.py, broken: a game that one side throws, a D too sure, a z with two values."""
import torch
from broken import chapter, thing, trained

FLAGS = "--steps 300 --batch-size 32 --channels 8 --latent-dim 16 --lr 2e-3"


def test_1_a_generator_that_helps_the_discriminator_brings_its_loss_to_0():
    new = "return F.softplus(fake).mean()"
    assert new in thing("gan", 1)
    _, _, _, broken = trained("gan", ("return F.softplus(-fake).mean()", new), flags=FLAGS)
    _, _, _, whole = trained("gan", flags=FLAGS)
    assert broken["curve"][-1]["validation"] < 0.05 and whole["curve"][-1]["validation"] > 0.4
    assert broken["curve"][-1]["D"][2] < 0.05 and whole["curve"][-1]["D"][2] > 0.1  # of generated digits


def test_2_without_r1_the_answers_for_training_and_generated_digits_part():
    assert "Set --gamma 0" in thing("gan", 2)
    broken, whole = (trained("gan", flags=FLAGS + more)[3]["curve"][-1]["D"] for more in (" --gamma 0", ""))
    assert broken[0] - broken[2] > 0.45 and whole[0] - whole[2] < 0.4


def test_3_a_z_of_one_number_leaves_each_row_of_style_one_of_two():
    assert "Set --latent-dim 1" in thing("gan", 3)
    torch.manual_seed(0)
    for Z, alike in ((1, True), (16, False)):
        model = chapter("gan").Generator(8, Z)  # of any weights
        x = model.sample(40, 3, torch.rand(40, Z) + 0.1)  # of forty z, all above 0
        minus = model.sample(1, 3, -torch.ones(1, Z))
        assert torch.allclose(x, x[:1].expand_as(x), atol=1e-5) == alike
        assert not torch.allclose(x[:1], minus, atol=1e-4)
