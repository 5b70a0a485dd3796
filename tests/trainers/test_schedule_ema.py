from __future__ import annotations

import pytest
import trainable_net

from accel.trainers.schedule import average_decay, learning_rate, triangular


def test_learning_rate_warms_up_linearly_then_follows_a_cosine_to_almost_zero():
    rates = [learning_rate(step, 10, 4, 0.4) for step in range(10)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.380194, 0.324698, 0.244504, 0.155496, 0.075302, 0.019806], abs=1e-6)


def test_learning_rate_without_warm_up_begins_below_its_peak():
    assert learning_rate(0, 3, 0, 1.0) == pytest.approx(0.853553, abs=1e-6)


def test_a_triangular_rate_comes_down_in_a_straight_line():
    rates = [triangular(step, 10, 4, 0.7) for step in range(10)]
    assert rates == pytest.approx([0.175, 0.35, 0.525, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_average_decay_grows_to_its_limit():
    assert [average_decay(step, 0.9) for step in (0, 1, 10, 80, 81, 1000)] == pytest.approx([0.1, 2 / 11, 11 / 20, 0.9, 0.9, 0.9])


def test_without_a_decay_the_average_is_the_source_whenever_it_is_asked_for():
    torch = pytest.importorskip("torch")
    from accel.trainers.ema import Average, floating

    torch.manual_seed(0)
    module = trainable_net.build().train()
    average = Average(module, 0.0)
    for _ in range(2):
        module(torch.randn(4, 3, 32, 32))
        with torch.no_grad():
            module[0].weight.add_(1.0)
        average.update()
        saved = average.state_dict()
        assert not average.module.training
        for mine, theirs in ((floating(average.module), floating(module)), (saved["module"].values(), module.state_dict().values())):
            assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True) if one.is_floating_point())
    assert saved["updates"] == 2


def test_average_follows_its_formula_for_weights_and_batchnorm_statistics():
    torch = pytest.importorskip("torch")
    from accel.trainers.ema import Average, floating

    torch.manual_seed(0)
    module = trainable_net.build()
    average = Average(module, 0.5)
    want = [tensor.clone() for tensor in floating(module)]
    module.train()
    for step in range(20):
        module(torch.randn(4, 3, 32, 32))  # moves the statistics
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        want = [decay * old + (1 - decay) * new for old, new in zip(want, floating(module), strict=True)]
    assert len(want) == 7  # conv; weight, bias, mean and variance of BatchNorm; weight and bias of the classifier
    for got, expected in zip(floating(average.module), want, strict=True):
        torch.testing.assert_close(got, expected)
    assert not average.module.training
    assert not torch.equal(average.module.state_dict()["1.running_mean"], torch.zeros(8))
