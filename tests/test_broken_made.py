"""The things to break of made.py, broken: each edit is made on a copy, each promised symptom is measured."""
import torch
from broken import digits, thing, trained

FLAGS = "--steps 300 --batch-size 64 --hidden 64 --lr 0.06"
LATE = '"training": sum(self.losses) / len(self.losses)', \
    '"training": sum(self.losses[-50:]) / 50'  # the training loss of the last 50 steps


def test_1_a_pixel_that_sees_itself_leaves_no_loss_and_samples_are_noise():
    assert "make the direct mask >= for >" in thing("made", 1)
    edit = "(pixel[:, None] > pixel)", "(pixel[:, None] >= pixel)"
    (_, whole, _, usual), (_, broken, _, run) = trained("made", LATE, flags=FLAGS), trained(
        "made", LATE, edit, flags=FLAGS)
    assert run["curve"][-1]["training"] < 30 and usual["curve"][-1]["training"] > 60
    read, y = [], torch.arange(100) % 10
    for model in (whole, broken):
        torch.manual_seed(0)
        x = model.sample(100, y)
        read.append((torch.stack([whole.log_prob(x, d) for d in range(10)]).argmax(0) == y).float().mean())
    assert read[0] > 0.8 and read[1] < 0.5  # the share of samples that the whole chapter classifies as asked


def test_2_thresholded_digits_train_far_below_validation():
    assert "put (x[i] > 127).float() for binarise(x[i])" in thing("made", 2)
    edit = "log_prob(binarise(x[i]), labels", "log_prob((x[i] > 127).float(), labels"
    usual, broken = (trained("made", LATE, *edits, flags=FLAGS)[3]["curve"][-1] for edits in ([], [edit]))
    assert usual["training"] > usual["validation"] - 4 and broken["training"] < broken["validation"] - 8


def test_3_without_labels_samples_ignore_the_class_and_bayes_rule_cannot_classify():
    assert "Set --label-dropout 1" in thing("made", 3)
    right, same, y = [], [], digits()[3]
    for more in ("", " --label-dropout 1"):
        module, model, _, _ = trained("made", LATE, flags=FLAGS + more)
        x = module.binarise(digits()[2], seed=0)
        with torch.no_grad():
            right.append((torch.stack([model.log_prob(x, d) for d in range(10)]).argmax(0) == y).float().mean())
        samples = []
        for label in (1, 8):
            torch.manual_seed(0)
            samples.append(model.sample(20, label))
        same.append(torch.equal(*samples))
    assert right[0] > 0.5 and right[1] < 0.2
    assert same == [False, True]
