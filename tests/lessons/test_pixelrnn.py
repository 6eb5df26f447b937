"""Lesson 2.1: probabilities over all 512 binary 3×3 pictures, causal Jacobians, and each layer against slow loops and torch's own LSTM cell."""

import pytest
import torch
from torch import nn

from course_utils.lessons import pixelrnn as px

SMALL = {
    "logistic": lambda h, w: px.LogisticChain(h, w),
    "pixelcnn": lambda h, w: px.PixelCNN(5, 3),
    "gated": lambda h, w: px.GatedPixelCNN(5, 4),
    "row": lambda h, w: px.RowLSTM(5),
    "diagonal": lambda h, w: px.DiagonalBiLSTM(5),
}
each = pytest.mark.parametrize("name", SMALL)


def net_of(name, height, width, seed=0, std=0.3):
    return px.randomise(SMALL[name](height, width).double(), seed, std)


def binary(*shape, seed=0):
    return px.binarise(torch.full(shape, 0.5, dtype=torch.float64), seed)


@each
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_probabilities_of_all_512_pictures_sum_to_one(name, seed):
    x = px.all_pictures()
    assert x.shape == (512, 1, 3, 3) and len(x.flatten(1).unique(dim=0)) == 512
    p = px.log_likelihood(net_of(name, 3, 3, seed)(x), x).exp()
    assert abs(p.sum().item() - 1) < 1e-12 and p.min() > 0


@each
@pytest.mark.parametrize("height, width", [(2, 4), (4, 2), (1, 6), (6, 1)])
def test_they_sum_to_one_for_other_shapes(name, height, width):
    x = px.all_pictures(height, width)
    assert abs(px.log_likelihood(net_of(name, height, width)(x), x).exp().sum().item() - 1) < 1e-12


@each
@pytest.mark.parametrize("height, width", [(4, 5), (6, 3)])
def test_jacobian_is_strictly_causal(name, height, width):
    J = sum(px.jacobian(net_of(name, height, width, seed), height, width, seed).abs() for seed in range(4))
    assert J.triu().max() == 0  # exactly
    assert J.tril(-1).max() > 0


def unseen(name, height, width):
    """Pairs (later, earlier) of pixels without any gradient, for several random weights and pictures."""
    J = sum(px.jacobian(net_of(name, height, width, seed), height, width, seed).abs() for seed in range(12))
    before = torch.ones(height * width, height * width, dtype=torch.bool).tril(-1)
    return [(divmod(i, width), divmod(j, width)) for i, j in (before & (J == 0)).nonzero().tolist()]


def test_gated_has_no_blind_spot():
    """On a picture smaller than the network's depth each earlier pixel reaches each later logit."""
    assert unseen("gated", 5, 6) == []


def test_diagonal_misses_only_the_last_pixel_of_the_row_above():
    """Mask A hides that pixel from its own state, and no later pixel of its row can pass it on; the first kernel sees 3 columns to the right."""
    assert unseen("diagonal", 5, 6) == [((r, s), (r - 1, 5)) for r in range(1, 5) for s in (0, 1)]


def test_pixelcnn_has_its_blind_spot_and_the_gated_one_has_none():
    """PixelCNN sees, d rows up, at most d columns to the right more than its first kernel; deeper layers do not help."""
    before = px.earlier(9, 7)
    blind = before & (px.reach(px.randomise(px.PixelCNN(6, 8).double(), std=0.3), 9, 7) == 0)
    deeper = before & (px.reach(px.randomise(px.PixelCNN(6, 12).double(), std=0.3), 9, 7) == 0)
    assert blind.sum() > 0 and torch.equal(blind, deeper)
    assert (blind.nonzero()[:, 1] > 7).all()  # all of it to the right
    assert (px.reach(px.randomise(px.GatedPixelCNN(6, 8).double(), std=0.3), 9, 7)[before] > 0).all()


def test_row_lstm_sees_a_triangle_and_little_of_its_row():
    seen = px.reach(px.randomise(px.RowLSTM(8).double(), std=0.3), 12, 7) > 0
    widths = seen.sum(1)
    assert (widths[:13].diff() <= 0).any() and not seen[13:].any()
    assert seen[12].nonzero().flatten().tolist() == [3, 4, 5, 6]  # 3 by the first kernel, 1 more by the masked 1×3
    assert not seen[11].all() and seen[3].all()


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("kh, kw", [(3, 3), (7, 7), (1, 3), (5, 3)])
def test_masked_convolution_equals_a_loop(kind, kh, kw):
    conv = px.randomise(px.MaskedConv2d(kind, 2, 3, kh, kw).double())
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = conv.bias[None, :, None, None].expand(2, 3, 5, 6).clone()
    for r in range(5):
        for s in range(6):
            for dr in range(-(kh // 2), kh // 2 + 1):
                for ds in range(-(kw // 2), kw // 2 + 1):
                    past = dr < 0 or (dr == 0 and (ds < 0 or (ds == 0 and kind == "B")))
                    if past and 0 <= r + dr < 5 and 0 <= s + ds < 6:
                        want[:, :, r, s] += x[:, :, r + dr, s + ds] @ conv.weight[:, :, dr + kh // 2, ds + kw // 2].T
    torch.testing.assert_close(conv(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_lstm_equals_torchs_cell(dtype, tol):
    cell = px.randomise(nn.LSTMCell(4, 3).to(dtype))
    x, h, c = (torch.randn(5, d, generator=torch.Generator().manual_seed(d)).to(dtype) for d in (4, 3, 3))
    gates = nn.functional.linear(x, cell.weight_ih, cell.bias_ih) + nn.functional.linear(h, cell.weight_hh, cell.bias_hh)
    for got, want in zip(px.lstm(gates, c, 1), cell(x, (h, c))):
        torch.testing.assert_close(got, want, rtol=tol, atol=tol)
    turned = px.lstm(gates.T[None], c.T[None], 1)  # features on another axis
    torch.testing.assert_close(turned[0][0].T, cell(x, (h, c))[0], rtol=tol, atol=tol)


def test_row_lstm_on_a_column_is_torchs_lstm():
    """In a picture one pixel wide the 1×3 convolutions see their centre only: an ordinary LSTM down the column."""
    net, x = px.randomise(px.RowLSTM(4).double()), binary(3, 1, 6, 1)
    e = net.first(2 * x - 1)[..., 0].permute(2, 0, 1)  # (6, 3, 4)
    ref = nn.LSTM(4, 4).double()
    ref.weight_ih_l0.data, ref.weight_hh_l0.data = net.i2s.weight[:, :, 0, 1], net.s2s.weight[:, :, 1]
    ref.bias_ih_l0.data, ref.bias_hh_l0.data = net.i2s.bias, torch.zeros(16).double()
    want = net.head((e + ref(e)[0]).permute(1, 2, 0)[..., None])
    torch.testing.assert_close(net(x), want, rtol=1e-10, atol=1e-10)


def test_row_lstm_equals_a_loop_over_pixels():
    net, x = px.randomise(px.RowLSTM(3).double()), binary(2, 1, 4, 5)
    e, D = net.first(2 * x - 1), 3
    h, c = torch.zeros(2, D, 4, 5).double(), torch.zeros(2, D, 4, 5).double()
    at = lambda v, r, s: v[:, :, r, s] if r >= 0 and 0 <= s < 5 else torch.zeros(2, D).double()  # noqa: E731
    for r in range(4):
        for s in range(5):
            gates = net.i2s.bias + sum(at(e, r, s + k - 1) @ net.i2s.weight[:, :, 0, k].T for k in (0, 1))
            gates = gates + sum(at(h, r - 1, s + k - 1) @ net.s2s.weight[:, :, k].T for k in range(3))
            i, f, g, o = gates.chunk(4, 1)
            memory = f.sigmoid() * at(c, r - 1, s) + i.sigmoid() * g.tanh()
            h, c = h.clone(), c.clone()
            h[:, :, r, s], c[:, :, r, s] = o.sigmoid() * memory.tanh(), memory
    torch.testing.assert_close(net(x), net.head(e + h), rtol=1e-10, atol=1e-10)


def one_direction(net, e, direction):
    """The slow way: one pixel after another with torch.nn.LSTMCell."""
    B, D, H, W = e.shape
    cell, w = nn.LSTMCell(2 * D, D).to(e), net.weight[direction].T
    cell.weight_ih.data, cell.weight_hh.data = torch.cat([w[:, :D], w[:, 2 * D :]], 1), w[:, D : 2 * D]
    cell.bias_ih.data, cell.bias_hh.data = net.bias[direction, 0], torch.zeros(4 * D).to(e)
    h, c, zero = {}, {}, e.new_zeros(B, D)
    for r in range(H):
        for s in range(W):
            z = torch.cat([e[:, :, r, s], h.get((r - 1, s), zero)], 1)
            h[r, s], c[r, s] = cell(z, (h.get((r, s - 1), zero), c.get((r, s - 1), zero)))
    return torch.stack([torch.stack([h[r, s] for s in range(W)], 2) for r in range(H)], 2)


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("height, width", [(5, 7), (7, 4), (1, 5), (5, 1), (3, 3)])
def test_diagonal_bilstm_equals_one_pixel_at_a_time(height, width, dtype, tol):
    net, x = px.randomise(px.DiagonalBiLSTM(4).to(dtype)), binary(3, 1, height, width).to(dtype)
    e = net.first(2 * x - 1)
    right = one_direction(net, e.flip(3), 1).flip(3)
    below = torch.zeros_like(right)
    below[:, :, 1:] = right[:, :, :-1]
    torch.testing.assert_close(net(x), net.head(e + one_direction(net, e, 0) + below), rtol=tol, atol=tol)


@pytest.mark.parametrize("height, width", [(4, 5), (5, 2), (1, 3), (3, 1)])
def test_skew_and_back(height, width):
    x = torch.rand(2, 3, height, width)
    skewed = px.skew(x)
    assert skewed.shape == (2, 3, height, height + width - 1)
    for r in range(height):
        torch.testing.assert_close(skewed[..., r, r : r + width], x[..., r, :], rtol=0, atol=0)
    assert (skewed != 0).sum() == x.numel()
    torch.testing.assert_close(px.unskew(skewed), x, rtol=0, atol=0)


def test_gated_layer_equals_masked_convolutions():
    """The two cut-off, shifted convolutions are masked 3×3 and 1×3 convolutions."""
    layer = px.randomise(px.GatedLayer(4, 4).double())
    v, h = torch.randn(2, 2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    full = torch.zeros(8, 4, 3, 3).double()
    full[:, :, :2] = layer.vertical.weight
    a = nn.functional.conv2d(v, full, layer.vertical.bias, padding=1)
    row = torch.zeros(8, 4, 1, 3).double()
    row[..., :2] = layer.horizontal.weight
    b = nn.functional.conv2d(h, row, layer.horizontal.bias, padding=(0, 1))
    above = torch.zeros_like(a)
    above[:, :, 1:] = a[:, :, :-1]
    b = b + layer.link(above)
    got_v, got_h = layer(v, h)
    torch.testing.assert_close(got_v, a[:, :4].tanh() * a[:, 4:].sigmoid(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_h, h + layer.out(b[:, :4].tanh() * b[:, 4:].sigmoid()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["pixelcnn", "gated", "row", "diagonal"])
def test_context_gives_the_same_logits(name):
    """What the sampler shows the network is enough: the last row's logits equal those of the whole picture."""
    net, x = net_of(name, 0, 0, std=0.4), binary(2, 1, 16, 6)
    whole = net(x)
    for row in (0, 3, 9, 15):
        torch.testing.assert_close(net(px.context(net, x, row))[:, :, -1], whole[:, :, row], rtol=1e-9, atol=1e-9)


def test_samples_follow_the_exact_probabilities():
    net, every = px.randomise(px.GatedPixelCNN(4, 2).double(), 3), px.all_pictures(2, 3)
    p = px.log_likelihood(net(every), every).exp()
    u = torch.rand(20_000, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = px.sample(net, u)
    count = torch.bincount((drawn.flatten(1).long() << torch.arange(6)).sum(1), minlength=64)
    error = (count / len(u) - p) / (p * (1 - p) / len(u)).sqrt()
    assert error.abs().max() < 4.5 and error.square().mean() < 1.6


def test_completion_keeps_what_is_known_and_the_same_numbers_give_the_same_picture():
    net, x = net_of("row", 0, 0), binary(3, 1, 5, 4)
    known = torch.zeros(5, 4, dtype=torch.bool)
    known[:2] = True
    u = torch.rand(3, 1, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = px.sample(net, u, x, known), px.sample(net, u, x, known)
    assert torch.equal(a, b) and torch.equal(a[:, :, :2], x[:, :, :2]) and set(a.unique().tolist()) <= {0.0, 1.0}
    cold = px.sample(net, u, x, known, temperature=1e-6)
    assert px.log_likelihood(net(cold), cold).isfinite().all()


def test_log_likelihood_equals_torchs_bernoulli():
    a, x = torch.randn(4, 1, 3, 5, generator=torch.Generator().manual_seed(0)).double(), binary(4, 1, 3, 5)
    want = torch.distributions.Bernoulli(logits=a).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(px.log_likelihood(a, x), want, rtol=1e-12, atol=1e-12)


def test_binarise_draws_by_grey_value_and_repeats():
    grey = torch.linspace(0, 1, 5).expand(20_000, 5)
    x = px.binarise(grey, 0)
    assert torch.equal(x, px.binarise(grey, 0)) and not torch.equal(x, px.binarise(grey, 1))
    assert (x.mean(0) - grey[0]).abs().max() < 0.015 and x[:, 0].sum() == 0 and x[:, 4].min() == 1


def test_build_names_the_four():
    nets = px.build({"PixelCNN": 4, "Gated PixelCNN": 4, "Row LSTM": 4, "Diagonal BiLSTM": 4}, 2)
    assert list(nets) == list(px.KINDS) and nets["PixelCNN"].rows == 6 and nets["Row LSTM"].rows is None
    assert all(net(torch.zeros(1, 1, 28, 28)).shape == (1, 1, 28, 28) for net in nets.values())


def test_bent_digits_stay_digits():
    """No amount, no change; otherwise each picture in its own way, in [0, 1], and in its place."""
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    x[:, :, :6], x[:, :, 22:], x[..., :6], x[..., 22:] = 0, 0, 0, 0
    draw = torch.Generator().manual_seed(2)
    torch.testing.assert_close(px.bent(x, draw, 0, 0, 0), x, rtol=0, atol=1e-5)
    y = px.bent(x[:1].expand(4, -1, -1, -1), draw)
    assert y.shape == (4, 1, 28, 28) and y.min() >= 0 and y.max() <= 1 and (y[0] - y[1]).abs().max() > 0.1
    centre = lambda p: (p.sum(2) * torch.arange(28)).sum(2) / p.sum((2, 3))  # noqa: E731
    assert (centre(y) - centre(x[:1])).abs().max() < 1
    turned = px.bent(x, draw, turn=3.0, scale=0, slant=0)  # bilinear, so a little is lost
    assert (turned.sum((1, 2, 3)) / x.sum((1, 2, 3)) - 1).abs().max() < 0.05


def test_what_does_not_fit_gets_a_sentence():
    import pytest

    from course_utils.errors import CourseError
    from course_utils.lessons import pixelrnn as lesson

    for wrong in (("C", 1, 1, 3, 3), ("b", 1, 1, 3, 3), ("A", 1, 1, 4, 3)):
        with pytest.raises(CourseError, match="Mask"):
            lesson.MaskedConv2d(*wrong)
    net, u = lesson.PixelCNN(2, 1), torch.rand(2, 1, 4, 4)
    for wrong in (255 * u + 1, u * torch.nan, u.byte(), 2 * u.round() - 1.5):
        with pytest.raises(CourseError, match="nats"):
            lesson.nats(net, wrong)
    known = torch.zeros(4, 4, dtype=torch.bool)
    for wrong in ({"x": u[:1]}, {"x": torch.rand(2, 1, 6, 6)}, {"known": known[:3, :3]}, {"known": known.float()}, {"temperature": -1}):
        with pytest.raises(CourseError, match="sample takes"):
            lesson.sample(net, u, **wrong)
