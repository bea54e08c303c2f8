"""few_steps: pairs, the condition on mean velocities and walks, against flows in closed form."""

import pytest
import torch
from chapters import check_samples

from variations import few_steps as fs
from variations.flow_matching import FlowMatching


@pytest.fixture
def model():
    """Students of a flow whose last layer is not zero and which knows no fast waves."""
    torch.manual_seed(0)
    teacher = FlowMatching(4, 10)
    torch.nn.init.normal_(teacher.network.head.weight, std=0.1)
    teacher.network.time[0].weight.data.view(-1, 2, 32)[..., :13] = 0
    return fs.FewSteps(teacher)


def batch():
    x = torch.randn(6, 1, 28, 28)
    times = torch.rand(2, 6, 1, 1, 1)
    return x, times.amax(0), times.amin(0), torch.arange(6)


def sigma(t):
    return ((1 - t) ** 2 + t**2).sqrt()


# Flows with known paths, x_0 e^{0.7 t} and the opening's σ_t ε: velocities and mean velocities.
FLOWS = {
    "exponential": (
        lambda x, t: 0.7 * x,
        lambda x, t, r: -x * torch.expm1(-0.7 * (t - r)) / (t - r),
    ),
    "opening": (
        lambda x, t: x * (2 * t - 1) / sigma(t) ** 2,
        lambda x, t, r: x * (1 - sigma(r) / sigma(t)) / (t - r),
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_the_condition_holds_for_the_mean_velocity_alone(name):
    velocity, mean = FLOWS[name]
    x, t, r, _ = (part.double() for part in batch())
    v = velocity(x, t)
    u, target = fs.both_sides(mean, x, t, r, v)
    torch.testing.assert_close(u, mean(x, t, r))
    torch.testing.assert_close(target, u)
    u, target = fs.both_sides(lambda x, t, r: velocity(x, t), x, t, r, v)
    assert (target - u).abs().max() > 0.1


def test_the_target_at_r_equal_to_t_is_the_velocity(model):
    x, t, _, y = batch()
    v = model.guided(x, t, t, y)
    _, target = fs.both_sides(lambda x, t, r: model.mean_flow(x, t, r, y), x, t, t, v)
    assert torch.equal(target, v)


@pytest.mark.parametrize("calls", [1, 3])
def test_chords_end_where_paths_end_and_a_step_along_the_slope_does_not(calls):
    velocity, mean = FLOWS["opening"]
    eps = torch.randn(50, 1, 1, 1, dtype=torch.float64)
    path = fs.walk(lambda x, t, r, y: mean(x, t, r), eps, None, calls)
    right = sigma(torch.linspace(1, 0, calls + 1, dtype=torch.float64)).view(-1, 1, 1, 1, 1) * eps
    torch.testing.assert_close(path, right, atol=1e-6, rtol=1e-6)
    end = fs.walk(lambda x, t, r, y: velocity(x, t), eps, None, 1)[-1]
    torch.testing.assert_close(end, torch.zeros_like(eps), atol=1e-6, rtol=0)


@pytest.mark.parametrize("calls", [1, 8])
def test_straight_paths_need_one_call(calls):
    """Pairs ε and 2 + ε / 4: through each x_t runs one line, of the velocity ε − z_0."""

    def velocity(x, t, r, y):
        eps = (x - 2 * (1 - t)) / ((1 - t) / 4 + t)
        return eps - (2 + eps / 4)

    eps = torch.randn(50, 1, 1, 1)
    end = fs.walk(velocity, eps, None, calls)[-1]
    torch.testing.assert_close(end, 2 + eps / 4)


def test_a_flow_of_constant_velocity_keeps_its_pairs_after_reflow(model):
    c = torch.linspace(-1, 1, 784).view(1, 1, 28, 28)
    model.teacher.network.forward = lambda x, t, y: c.expand_as(x)
    y = torch.arange(5)
    eps, z0 = model.couple(y)
    torch.testing.assert_close(z0, eps - c)
    model.straight.forward = model.teacher.network.forward
    assert model.reflow_loss(eps, z0, y) < 1e-10  # nothing is left to learn
    torch.testing.assert_close(fs.walk(model.reflow, eps, y, 1)[-1], z0)


def test_students_begin_as_the_flow_and_guidance_is_that_of_the_flow(model):
    x, t, r, y = batch()
    begun = model.teacher.network(x, 1000 * t.flatten(), y)
    torch.testing.assert_close(model.reflow(x, t, r, y), begun)
    torch.testing.assert_close(model.mean_flow(x, t, r, y), begun, atol=1e-3, rtol=1e-3)
    half = torch.full_like(t, 0.5)
    torch.testing.assert_close(model.guided(x, half, r, y), model.teacher.velocity(x, 0.5, y, 1.6))


def test_the_mean_flow_loss_and_its_gradient_in_closed_form(model):
    """Of f u, u right, f u + f (t − r) du/dt − v = (f − 1) v is missing; targets stand still."""
    _, mean = FLOWS["exponential"]
    f = torch.tensor(3.0, requires_grad=True)
    seen = {}

    def guided(x, t, r, y):
        seen.update(x=x, t=t)
        return 0.7 * x

    def mean_flow(x, t, r, y):
        seen.update(r=r)
        return f * mean(x, t + 1e-6, r)  # at r = t there is no 0 / 0

    model.guided, model.mean_flow = guided, mean_flow
    loss = model.mean_flow_loss(torch.randn(6, 1, 28, 28), torch.arange(6))
    loss.backward()
    v = 0.7 * seen["x"]
    rms = v.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(loss.detach(), 2 * rms.mean(), atol=1e-3, rtol=1e-3)
    slope = (v * mean_flow(**seen, y=None) / f).mean((1, 2, 3)) / rms  # of 2 rms by f u alone
    torch.testing.assert_close(f.grad, slope.mean().detach(), atol=1e-3, rtol=1e-3)
    assert (seen["r"] <= seen["t"]).all() and (seen["r"] >= 0).all()


def test_samples_and_a_model_that_is_loaded(model, tmp_path):
    check_samples(model)
    torch.save({"flags": {}, "model": model.state_dict()}, tmp_path / "model.pt")
    loaded = fs.load(tmp_path / "model.pt")
    x, t, r, y = batch()
    for name in ("guided", "reflow", "mean_flow"):
        assert torch.equal(getattr(loaded, name)(x, t, r, y), getattr(model, name)(x, t, r, y))
