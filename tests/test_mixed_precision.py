"""16-bit storage, autocast and loss scaling, on the CPU and where kernels run, against float32."""

import ml_dtypes
import numpy as np
import pytest

import gpucnn
from gpucnn import checkpoint, data, models, nn, ops, optim, tensorfile, train
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.train.step import CapturedStep, Step
from tests.check import assert_same_bits
from tests.kernel_check import assert_sound, assert_two_runs_equal

HALVES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a unit in the last place of 1
halves = pytest.mark.parametrize("name", HALVES)


def on(array, device):
    return devices.move(np.asarray(array), device)


def half(rng, shape, name, device):
    return on(rng.standard_normal(shape).astype(np.float32).astype(HALVES[name]), device)


def as_float32(array):
    return devices.to_numpy(array).astype(np.float32)


# Tensors


@halves
def test_tensors(name):
    x = gpucnn.tensor([[1.5, -2.0], [3.0, 0.1]], dtype=name, requires_grad=True)
    assert x.dtype == np.dtype(HALVES[name]) and str(x.dtype) in repr(x) and "1.5" in repr(x)
    assert x.numpy().dtype == x.dtype and x.to("float32").dtype == np.float32
    assert gpucnn.tensor(x, device="sim").to("float32").device == "sim"
    (x * 2).sum().backward()
    assert x.grad.dtype == x.dtype
    np.testing.assert_array_equal(as_float32(x.grad.data), 2)


def test_what_numpy_cannot_share_or_name():
    with pytest.raises(BufferError, match="no bfloat16; use .to"):
        np.from_dlpack(gpucnn.tensor([1.0], dtype="bfloat16"))
    assert np.from_dlpack(gpucnn.tensor([1.0], dtype="float16")).dtype == np.float16
    with pytest.raises(TypeError, match="dtype 'float8' is not supported"):
        gpucnn.tensor([1.0]).to("float8")


@halves
def test_files_hold_16_bits(name, tmp_path):
    array = np.arange(7, dtype=np.float32).astype(HALVES[name])
    tensorfile.save(tmp_path / "x.safetensors", {"a": array, "b": np.ones(3, np.float32)}, {"n": 1})
    found = tensorfile.load(tmp_path / "x.safetensors").tensors
    assert found["a"].dtype == array.dtype
    assert_same_bits(found["a"].view(np.uint16), array.view(np.uint16))
    assert tensorfile.load_weights(tmp_path / "x.safetensors")["b"].dtype == np.float32


@halves
def test_modules_in_16_bits(name, device, rng):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).to(device)
    expected = model.eval()(gpucnn.tensor(rng.standard_normal((2, 3, 8, 8)), "float32", device))
    model.to(name)
    assert model[0].weight.dtype == np.dtype(HALVES[name]) and model[1].running_var.dtype == np.float32
    rng = np.random.default_rng(20240229)
    found = model(gpucnn.tensor(rng.standard_normal((2, 3, 8, 8)), "float32", device).to(name))
    assert found.dtype == np.dtype(HALVES[name])
    np.testing.assert_allclose(as_float32(found.data), expected.numpy(), atol=16 * UNIT[name])
    with pytest.raises(TypeError, match="parameter 0 is b?float16"):
        optim.SGD(model.parameters(), lr=0.1)


# Casts


@halves
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8, 33), (2, 5, 3, 4)])
def test_casts_are_exact(name, shape, device, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    found = ops.cast(on(x, device), name)
    assert devices.of(found) == devices.of(on(x, device))
    assert_same_bits(devices.to_numpy(found).view(np.uint16), x.astype(HALVES[name]).view(np.uint16))
    back = devices.to_numpy(ops.cast(found, "float32"))
    assert_same_bits(back, x.astype(HALVES[name]).astype(np.float32))


@halves
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 4), (1, 33, 7, 5), (2, 32, 8, 8), (0, 3, 4, 4)])
def test_casts_to_channels_last(name, shape, device, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    for source in (on(x, device), on(np.concatenate([x, x], axis=3), device)[..., ::2]):
        found = ops.cast(source, name, channels_last=True)
        assert np.moveaxis(found, 1, -1).flags.c_contiguous
        np.testing.assert_array_equal(as_float32(found), as_float32(source).astype(HALVES[name]).astype(np.float32))
    again = ops.cast(found, "float32")  # keeps the order
    assert np.moveaxis(again, 1, -1).flags.c_contiguous


def test_casts_are_sound(device, rng):
    x = on(rng.standard_normal((1, 34, 5, 7)).astype(np.float32), device)
    assert_sound(lambda: ops.cast(ops.cast(x, "bfloat16", channels_last=True), "float32"), device)


@halves
def test_casts_are_differentiable(name, device):
    x = gpucnn.tensor([1.0, 2.0, 3.0], device=device, requires_grad=True)
    y = x.astype(name)
    assert y.dtype == np.dtype(HALVES[name])
    y.backward([1.0, 0.5, 1 / 3])
    assert x.grad.dtype == np.float32
    assert_same_bits(x.grad.numpy(), np.float32([1.0, 0.5, 1 / 3]).astype(HALVES[name]).astype(np.float32))


# Operations: the float32 result of the same values, rounded once

OPERATIONS = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": F.elu,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d_3": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d_any": lambda x: F.max_pool2d(x, (3, 2), 1, 0, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "avg_pool2d_3": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool2d_any": lambda x: F.avg_pool2d(x, (3, 2), 1),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "global_avg_pool2d": F.global_avg_pool2d,
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "l2_pool2d": lambda x: F.l2_pool2d(x, 2),
    "local_response_norm": lambda x: F.local_response_norm(x, 3),
    "flatten": F.flatten,
    "concatenate": lambda x: F.concatenate([x, x], axis=1),
    "arithmetic": lambda x: x * 3.0,
    "power": lambda x: x**2,
}


@halves
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("where", ["cpu", "kernels"])
def test_operations_round_once(name, operation, where, device, rng):
    where = "cpu" if where == "cpu" else device
    for shape in ((2, 3, 8, 8), (1, 2, 9, 7)):
        x = half(rng, shape, name, where)
        wide = on(as_float32(x), where)
        a, b = gpucnn.Tensor(x, requires_grad=True), gpucnn.Tensor(wide, requires_grad=True)
        y, expected = OPERATIONS[operation](a), OPERATIONS[operation](b)
        assert y.dtype == x.dtype and y.device == expected.device
        assert_same_bits(as_float32(y.data), expected.numpy().astype(HALVES[name]).astype(np.float32))
        gradient = half(rng, y.shape, name, where)
        y.backward(gradient)
        expected.backward(as_float32(gradient))
        assert a.grad.dtype == x.dtype
        scale = np.abs(b.grad.numpy()).max()
        np.testing.assert_allclose(as_float32(a.grad.data), b.grad.numpy(), atol=8 * UNIT[name] * scale)


@halves
def test_channels_last_stays(name, device, rng):
    x = np.moveaxis(half(rng, (2, 4, 6, 3), name, device), -1, 1)
    y = gpucnn.functional.relu(x)
    assert np.moveaxis(y, 1, -1).flags.c_contiguous
    np.testing.assert_array_equal(as_float32(y), np.maximum(as_float32(x), 0))
    pooled = F.max_pool2d(x, 2)
    np.testing.assert_array_equal(as_float32(pooled), devices.to_numpy(F.max_pool2d(on(as_float32(x), device), 2)))


@halves
def test_dropout_has_float32s_mask(name, device, rng):
    x = half(rng, (5, 7), name, device)
    found = as_float32(ops.dropout(x, 0.4, 3, 5))
    expected = devices.to_numpy(ops.dropout(on(as_float32(x), device), 0.4, 3, 5))
    assert_same_bits(found, expected.astype(HALVES[name]).astype(np.float32))


@halves
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(name, training, device, rng):
    for shape in ((4, 3, 4, 4), (6, 8), (3, 5, 3, 3)):
        results = []
        x = half(rng, shape, name, device)
        gradient = half(rng, shape, name, device)
        for value in (x, on(as_float32(x), device)):
            layer = nn.BatchNorm2d(shape[1]).to(device)
            layer.training = training
            a = gpucnn.Tensor(value, requires_grad=True)
            y = layer(a)
            y.backward(as_float32(gradient) if value is not x else gradient)
            assert y.dtype == a.grad.dtype == value.dtype and layer.weight.grad.dtype == np.float32
            results.append([y.data, a.grad.data, layer.weight.grad.data, layer.running_var])
        (y, gx, gw, running), wide = map(as_float32, results[0]), list(map(as_float32, results[1]))
        assert_same_bits(y, wide[0].astype(HALVES[name]).astype(np.float32))
        assert_same_bits(gx, wide[1].astype(HALVES[name]).astype(np.float32))
        assert_same_bits(gw, wide[2])
        assert_same_bits(running, wide[3])


def test_kernels_are_sound(device, rng):
    x, gy = half(rng, (1, 3, 6, 8), "bfloat16", device), half(rng, (1, 3, 3, 4), "bfloat16", device)

    def run():
        shape = ops.pool_shape("max_pool2d", x.shape, 2)
        y, switches = ops.max_pool2d_forward(x, shape)
        mean, inverse = ops.batch_norm_statistics(x, 1e-5)
        return (
            y,
            ops.max_pool2d_backward(gy, switches, shape),
            ops.avg_pool2d_forward(x, shape, True),
            ops.avg_pool2d_backward(gy, shape, True),
            ops.relu_forward(x),
            ops.dropout(x, 0.3, 1, 2),
            ops.batch_norm_apply(x, mean, inverse, None, None),
            ops.batch_norm_backward(x, x, mean, inverse, None, True)[0],
        )

    def checked():
        return tuple(ops.cast(result, "float32") for result in run())

    assert_two_runs_equal(checked, device)
    assert_sound(checked, device)


@halves
def test_losses_are_float32(name, device, rng):
    scores = gpucnn.Tensor(half(rng, (6, 10), name, device), requires_grad=True)
    loss = F.cross_entropy(scores, np.arange(6))
    assert loss.dtype == np.float32 and F.softmax(scores).dtype == np.float32
    loss.backward()
    assert scores.grad.dtype == scores.dtype
    expected = F.cross_entropy(on(as_float32(scores.data), device), np.arange(6))
    assert_same_bits(loss.numpy(), devices.to_numpy(expected))


# Autocast


def test_contexts_nest():
    assert gpucnn.get_autocast() is None
    with gpucnn.autocast("bfloat16"):
        assert gpucnn.get_autocast() == HALVES["bfloat16"]
        with gpucnn.autocast("float16"):
            assert gpucnn.get_autocast() == np.float16
        with gpucnn.autocast("float16", enabled=False):
            assert gpucnn.get_autocast() is None
        assert gpucnn.get_autocast() == HALVES["bfloat16"]
    assert gpucnn.get_autocast() is None
    with pytest.raises(ValueError, match="'float32' is no 16-bit dtype; use one of bfloat16, float16"):
        gpucnn.autocast("float32")
    with pytest.raises(ValueError, match="'bfloat16' is one of storage; use `with gpucnn.autocast"):
        gpucnn.precision("bfloat16")


PRODUCTS = {
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (2, 3, 6, 6), (4, 3, 3, 3), (4,)),
    "conv2d_relu": (lambda x, w, b: F.conv2d_relu(x, w, b), (2, 3, 6, 6), (4, 3, 3, 3), (4,)),
    "conv1d": (F.conv1d, (2, 3, 8), (4, 3, 3), (4,)),
    "conv3d": (F.conv3d, (1, 2, 4, 4, 4), (3, 2, 2, 2, 2), (3,)),
    "conv_transpose2d": (F.conv_transpose2d, (2, 3, 4, 4), (3, 4, 3, 3), (4,)),
    "linear": (F.linear, (5, 9), (4, 9), (4,)),
    "matmul": (lambda x, w, b: F.matmul(x, w) + b, (5, 9), (9, 4), (4,)),
    "locally_connected2d": (F.locally_connected2d, (2, 2, 4, 4), (3, 3, 3, 2, 2, 2), (3, 3, 3)),
}


@halves
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("where", ["cpu", "kernels"])
def test_products_follow_float32(name, product, where, device, rng):
    where = "cpu" if where == "cpu" else device
    function, *shapes = PRODUCTS[product]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    results = []
    for enabled in (True, False):
        x, w, b = (nn.Parameter(on(array.copy(), where)) for array in arrays)
        with gpucnn.autocast(name, enabled):
            y = function(x, w, b)
        y.sum().backward()
        assert [t.grad.dtype for t in (x, w, b)] == [np.float32] * 3
        results.append([y.data, x.grad.data, w.grad.data, b.grad.data])
        assert y.dtype == (np.dtype(HALVES[name]) if enabled and product != "matmul" else np.float32)
    for found, expected in zip(*results, strict=True):
        expected = as_float32(expected)
        bound = 8 * UNIT[name] * max(np.abs(expected).max(), 1)
        np.testing.assert_allclose(as_float32(found), expected, atol=bound)


def test_weights_are_cast_once_until_they_change(monkeypatch, device):
    casts = []
    original = ops.cast

    def counted(x, *arguments):
        casts.append(x.shape)
        return original(x, *arguments)

    layer = nn.Linear(3, 2).to(device)
    x = gpucnn.tensor(np.ones((4, 3), np.float32), device=device)
    monkeypatch.setattr(ops, "cast", counted)
    with gpucnn.autocast("bfloat16"):
        for _ in range(3):
            y = layer(x)
            F.mse_loss(y, F.cast(x[:, :2], "bfloat16")).backward()
        assert casts.count((2, 3)) == 1
        before = as_float32(y.data)
        optim.SGD(layer.parameters(), lr=0.5).step()
        assert np.abs(as_float32(layer(x).data) - before).max() > 0.01
        assert casts.count((2, 3)) == 2
        layer.load_state_dict({"weight": np.zeros((2, 3)), "bias": np.zeros(2)})
        np.testing.assert_array_equal(as_float32(layer(x).data), 0)
        layer.weight.data[...] = 1
        gpucnn.parameters_changed()
        np.testing.assert_array_equal(as_float32(layer(x).data), 3)


def test_residual_sums_of_both_kinds(device, rng):
    x = gpucnn.tensor(rng.standard_normal((2, 3, 4, 4)), "float32", device, requires_grad=True)
    conv = nn.Conv2d(3, 3, 3, padding=1).to(device)
    with gpucnn.autocast("bfloat16"):
        first = conv(x)
        y = conv(first) + first + x  # gradients meet in 16 bits, too
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == conv.weight.grad.dtype == np.float32


# Training


def losses_of(model, precision, device, steps, capture=False, scaler=None, size=32):
    gpucnn.manual_seed(0)
    arguments = {} if model == "lenet5" else {"width": 0.125, "image_size": 32}
    network = models.create(model, in_channels=1, num_classes=10, **arguments)
    network.to(device)
    digits = data.load("digits").train.limit(2048).resize(network.input_shape[1:])
    loader = data.DataLoader(digits, size, shuffle=True, normalize=data.Normalize(*digits.statistics()), seed=0)
    optimizer = (
        optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        if model == "lenet5"
        else optim.AdamW(network.parameters(), lr=1e-3)
    )
    step = (CapturedStep if capture else Step)(network, optimizer, precision=precision, scaler=scaler)
    losses, epoch = [], 0
    while len(losses) < steps:
        for images, labels in loader.epoch(epoch):
            loss, _ = step.backward(devices.move(images, device), labels)
            losses.append(loss.item())
            step.update()
            if len(losses) == steps:
                break
        epoch += 1
    return np.array(losses), network


@pytest.mark.parametrize(("model", "steps"), [("lenet5", 200), ("vgg11_bn", 48)])
def test_training_follows_float32_on_the_cpu(model, steps):
    expected, _ = losses_of(model, "float32", "cpu", steps)
    found, _ = losses_of(model, "bfloat16", "cpu", steps)
    assert np.mean(expected[-16:]) < 0.75 * expected[0]
    assert abs(found.mean() / expected.mean() - 1) < 0.02


def test_training_follows_float32_where_kernels_run(device):
    expected, _ = losses_of("lenet5", "float32", device, 6, size=8)
    found, network = losses_of("lenet5", "bfloat16", device, 6, size=8)
    assert abs(found.mean() / expected.mean() - 1) < 0.02
    captured, replayed = losses_of("lenet5", "bfloat16", device, 6, capture=True, size=8)
    np.testing.assert_array_equal(captured, found)
    for one, other in zip(network.parameters(), replayed.parameters(), strict=True):
        assert_same_bits(one.numpy(), other.numpy())


@pytest.mark.parametrize("where", ["cpu", "kernels"])
def test_scaler_skips_and_recovers(where, device):
    where = "cpu" if where == "cpu" else device
    layer = nn.Linear(4, 3).to(where)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    scaler = optim.GradScaler(init_scale=2.0**40, growth_interval=3)
    x, labels = gpucnn.tensor(np.ones((2, 4), np.float32), device=where), np.array([0, 2])
    before, made, scales = layer.weight.numpy().copy(), [], []
    for _ in range(36):
        optimizer.zero_grad()
        with gpucnn.autocast("float16"):
            loss = F.cross_entropy(layer(x), labels)
        scaler.scale(loss).backward()
        weight, skipped = layer.weight.numpy().copy(), scaler.skipped
        scaler.step(optimizer)
        scaler.update()
        made.append(scaler.skipped == skipped)
        scales.append(scaler.factor)
        if not made[-1]:
            assert_same_bits(layer.weight.numpy(), weight)
    assert not made[0] and made[-5:].count(True) >= 3 and scaler.skipped == made.count(False)
    assert optimizer.state_dict()["steps"] == [made.count(True)] * 2
    assert max(scales[-12:]) > min(scales[-12:])  # grows again
    assert np.isfinite(layer.weight.numpy()).all() and np.abs(layer.weight.numpy() - before).max() > 0.05
    again = optim.GradScaler()
    again.load_state_dict(scaler.state_dict())
    assert again.state_dict() == scaler.state_dict()


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "dampening": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, l1_decay=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5),
    "centered": lambda p: optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "adagrad_decay": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.3),
    "adadelta": lambda p: optim.Adadelta(p),
}


def gradients_with_gaps(rng):
    """(gradient of each step, whether it is finite): the first step and some others are to be skipped."""
    steps = rng.standard_normal((9, 5)).astype(np.float32)
    steps[[0, 3, 4], [1, 0, 4]] = np.inf, np.nan, -np.inf
    return [(step, bool(np.isfinite(step).all())) for step in steps]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_skipped_steps_leave_no_trace(name, device, rng):
    """The bits are those of an optimiser that never saw the steps, also where parameters join later."""
    values = rng.standard_normal(5).astype(np.float32)
    joined, alone = ([gpucnn.tensor(values, device=device, requires_grad=True) for _ in range(2)] for _ in range(2))
    scaled, plain = OPTIMIZERS[name](joined), OPTIMIZERS[name](alone)
    scaler = optim.GradScaler(init_scale=1.0)
    for step, (gradient, finite) in enumerate(gradients_with_gaps(rng)):
        for n in range(2 if step > 5 else 1):
            scale = np.float32(scaler.factor)
            joined[n].grad = gpucnn.tensor(gradient * scale, device=device)
            alone[n].grad = gpucnn.tensor(gradient, device=device)
        scaler.step(scaled)
        scaler.update()
        if finite:
            plain.step()
        for one, other in zip(joined, alone, strict=True):
            assert_same_bits(one.numpy(), other.numpy())
    assert scaler.skipped == 3 and scaler.factor == 1 / 8
    ends, expected = scaled.state_dict(), plain.state_dict()
    assert ends["steps"] == expected["steps"] == [6, 3]
    for mine, its in zip(ends["state"], expected["state"], strict=True):
        assert {key: devices.to_numpy(array).tobytes() for key, array in mine.items()} == {
            key: devices.to_numpy(array).tobytes() for key, array in its.items()
        }


@pytest.mark.parametrize("name", ["momentum", "adamw", "dampening"])
def test_the_host_reads_nothing(name, device, monkeypatch):
    parameter = gpucnn.tensor(np.ones(3, np.float32), device=device, requires_grad=True)
    optimizer, scaler = OPTIMIZERS[name]([parameter]), optim.GradScaler()
    gradients = [gpucnn.tensor(np.ones(3, np.float32), device=device) for _ in range(3)]
    reads, read = [], devices.to_numpy
    for step, gradient in enumerate(gradients):
        if step == 1:  # the first one moves the scale to the device
            monkeypatch.setattr(devices, "to_numpy", lambda array: reads.append(array) or read(array))
        parameter.grad = gradient
        scaler.step(optimizer)
        scaler.update()
    assert bool(reads) == (name == "dampening") == (not optimizer.skips_on_device)


class Descent(optim.Optimizer):
    """An optimiser of a user's own, which knows nothing of skips."""

    def update(self, parameters, gradients, states, step, options):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= options["lr"] * gradient


def test_optimizers_of_ones_own_are_skipped_by_the_host(device):
    parameter = gpucnn.tensor(np.ones(3, np.float32), device=device, requires_grad=True)
    optimizer, scaler = Descent([parameter], lr=0.5, weight_decay=0.0, l1_decay=0.0), optim.GradScaler(init_scale=4.0)
    for wrong in (True, False):
        parameter.grad = gpucnn.tensor(np.full(3, np.inf if wrong else 2.0, np.float32), device=device)
        scaler.step(optimizer)
        scaler.update()
        assert_same_bits(parameter.numpy(), np.full(3, 1.0 if wrong else 0.5, np.float32))
    assert optimizer.steps == [1]


def test_captured_steps_with_a_scaler(device):
    """The same bits as ordinary steps, those that are skipped among them, and a scale that falls and grows."""
    scalers = [optim.GradScaler(init_scale=2.0**20, growth_interval=2) for _ in range(2)]
    expected, network = losses_of("lenet5", "float16", device, 8, size=2, scaler=scalers[0])
    found, replayed = losses_of("lenet5", "float16", device, 8, size=2, scaler=scalers[1], capture=True)
    np.testing.assert_array_equal(found, expected)
    assert scalers[0].state_dict() == scalers[1].state_dict() and 1 < scalers[0].skipped < 7
    for one, other in zip(network.parameters(), replayed.parameters(), strict=True):
        assert_same_bits(one.numpy(), other.numpy())


def scaling(device, scale):
    return on(np.array([scale, 0, 0, np.nan], np.float32), device)


def test_unscaling_many_gradients(device, rng):
    arrays = [rng.standard_normal(n % 37 + 1).astype(np.float32) for n in range(150)]
    for wrong in (None, np.nan, np.inf, -np.inf):
        gradients, numbers = [on(array.copy(), device) for array in arrays], scaling(device, 4.0)
        if wrong is not None:
            gradients[66][-1] = wrong
        found = ops.unscale(gradients, numbers)
        assert devices.to_numpy(numbers)[3] == (0 if wrong is None else 1)
        assert_same_bits(devices.to_numpy(found[3]), arrays[3] / 4)
    numbers = scaling(device, 4.0)
    assert ops.unscale([], numbers) == [] and devices.to_numpy(numbers)[3] == 0


def test_scales_as_on_the_cpu(device):
    for state in ([2.0**126, 1, 3, 0], [2.0**127, 1, 0, 0], [2.0**-126, 1, 2, 1], [8, 0, 0, 0], [8, 5, 0, 1]):
        expected, numbers = np.array(state, np.float32), on(np.array(state, np.float32), device)
        skips = on(np.array([4], np.float32), device)
        ops.adjust_scale(expected, None, 2.0, 0.5, 2)
        ops.adjust_scale(numbers, skips, 2.0, 0.5, 2)
        assert_same_bits(devices.to_numpy(numbers), expected)
        assert devices.to_numpy(skips)[0] == 4 + state[3]


def test_unscaling_is_sound(device, rng):
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (3, 1030)]

    def run():
        numbers, skips = scaling(device, 2.0), on(np.zeros(1, np.float32), device)
        found = ops.unscale([on(array.copy(), device) for array in arrays], numbers)
        ops.adjust_scale(numbers, skips, 2.0, 0.5, 1)
        return (*found, numbers, skips)

    assert_sound(run, device)


def test_scaler_errors(device):
    with pytest.raises(ValueError, match="GradScaler: backoff_factor is 2; it must be between 0 and 1"):
        optim.GradScaler(backoff_factor=2)
    scaler = optim.GradScaler()
    with pytest.raises(ValueError, match="there was no step"):
        scaler.update()
    layer = nn.Linear(2, 2)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    scaler.unscale(optimizer)
    with pytest.raises(ValueError, match="unscaled already"):
        scaler.unscale(optimizer)
    with pytest.raises(ValueError, match="scale is 1e-60; it must be a finite number of float32 above 0"):
        scaler.load_state_dict({"scale": 1e-60, "good_steps": 0, "skipped": 0})
    dampened = optim.SGD(layer.to(device).parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    with pytest.raises(ValueError, match="CapturedStep: with these options SGD lets the host decide"):
        CapturedStep(layer, dampened, scaler=scaler)
    with pytest.raises(ValueError, match="precision 'half' is unknown"):
        Step(layer, optimizer, precision="half")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_runs_resume_bit_for_bit(precision, tmp_path):
    settings = {"limit": 64, "batch_size": 16, "schedule": "constant", "seed": 1, "device": "cpu", "clip_norm": 5.0}
    train.fit("lenet5", "digits", tmp_path / "whole", epochs=3, precision=precision, **settings)
    train.fit("lenet5", "digits", tmp_path / "parts", epochs=1, precision=precision, **settings)
    outcome = train.fit("lenet5", "digits", tmp_path / "parts", epochs=3, resume=True)
    assert outcome.config.precision == outcome.result["precision"] == precision
    whole, parts = (checkpoint.load(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    for name, array in whole.tensors.items():
        assert_same_bits(array, parts.tensors[name])
    assert whole.metadata["state"]["scaler"] == parts.metadata["state"]["scaler"]
    assert ("loss_scale" in outcome.history[-1]) == (precision == "float16")
    with pytest.raises(ValueError, match="cannot resume .* with precision 'float32'"):
        train.fit("lenet5", "digits", tmp_path / "parts", resume=True, precision="float32")
    trained = train.load_model(tmp_path / "whole" / "checkpoint.safetensors")
    assert trained.precision == precision
    again = train.evaluate(
        trained.model, data.load("digits").test.limit(64), trained.normalize, precision=trained.precision
    )
    assert again.accuracy == outcome.result["test_accuracy"]
    with pytest.raises(ValueError, match="precision 'half' is unknown; use one of float32, "):
        train.load_model(tmp_path / "whole" / "checkpoint.safetensors", precision="half")
