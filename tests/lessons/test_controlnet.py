"""Lesson 2.5 against scikit-image and scipy (Canny and its steps), diffusers (ControlNet into the U-Net), and what must hold by construction."""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from scipy import ndimage
from skimage.feature import canny as reference_canny

from course_utils import data
from course_utils.lessons import controlnet as cn
from course_utils.lessons.ddpm import make_schedule
from course_utils.lessons.latent_diffusion import LatentDiffusion, TextUNet, load_latent_diffusion

from .test_latent_diffusion import filled, noise, randomise, renamed, unet_to_diffusers

PRECISIONS = pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
EIGHT = np.ones((3, 3))


# Canny


@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
def test_blur_and_slopes_equal_scipy(sigma):
    x = noise(3, 40, 33, seed=1, dtype=torch.float64)
    got = cn.gaussian(x, sigma)
    want = np.stack([ndimage.gaussian_filter(v, sigma, mode="nearest", truncate=4.0) for v in x.numpy()])
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-12, atol=1e-12)
    for mine, axis in zip(cn.sobel(x), (2, 1)):
        theirs = np.stack([ndimage.sobel(v, axis=axis - 1) / 8 for v in x.numpy()])
        torch.testing.assert_close(mine, torch.from_numpy(theirs), rtol=1e-12, atol=1e-12)


def test_a_ramp_has_its_slope():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    gx, gy = cn.sobel((0.25 * x - 0.5 * y)[None])
    assert (gx[:, 1:-1, 1:-1] == 0.25).all() and (gy[:, 1:-1, 1:-1] == -0.5).all()


def test_crests_equal_skimage():
    """The same picture in, the same crests out: every pixel, on noise and on emoji, up to rounding at ties. Canny with both thresholds next to nothing is its crests."""
    pictures = cn.gaussian(cn.grey(data.emoji("google", 64)[::400].tensor().double()), 1.5)
    for x in (noise(6, 50, 41, seed=2, dtype=torch.float64), pictures):
        crests = [reference_canny(v, sigma=0, low_threshold=8e-6, high_threshold=8e-6, mode="nearest") for v in x.numpy()]  # its slopes are 8 times ours
        want = torch.from_numpy(np.stack(crests))
        gx, gy = cn.sobel(x)
        got, m = cn.thin(gx, gy), torch.hypot(gx, gy)
        assert ((got >= 1e-6) != want).sum() <= 2e-4 * want.sum()
        assert ((got == 0) | (got == m)).all() and want.sum() > 500


def test_hysteresis_equals_labelling_and_flood_fill():
    g = torch.Generator().manual_seed(3)
    for share in (0.2, 0.41, 0.6):
        weak, strong = torch.rand(5, 30, 26, generator=g) < share, torch.rand(5, 30, 26, generator=g) < 0.02
        got = cn.hysteresis(weak, strong)
        for a, b, mine in zip(weak.numpy(), strong.numpy(), got.numpy()):
            labels, _ = ndimage.label(a, EIGHT)
            assert (mine == np.isin(labels, np.unique(labels[a & b])) & a).all()
            todo, filled_in = [tuple(p) for p in np.argwhere(a & b)], np.zeros_like(a)
            while todo:
                i, j = todo.pop()
                if 0 <= i < 30 and 0 <= j < 26 and a[i, j] and not filled_in[i, j]:
                    filled_in[i, j] = True
                    todo += [(i + p, j + q) for p in (-1, 0, 1) for q in (-1, 0, 1)]
            assert (mine == filled_in).all()


def disc_and_square(n=64):
    y, x = torch.meshgrid(torch.arange(n) + 0.13, torch.arange(n) - 0.21, indexing="ij")
    disc = torch.sigmoid((17 - torch.hypot(y - 30, x - 33)) * 2)
    square = ((y - 0.3 * x - 20).abs() < 12).double() * ((x + 0.3 * y - 40).abs() < 15)
    return torch.stack([disc.double(), square, (disc * 0.15 + 0.4).double()])


def test_canny_equals_skimage():
    """Same thresholds (theirs are on 8 times our slopes), in double precision. Every pixel of shapes and noise; of emoji at least 95 in 100 equal at
    every pixel, and 99.5 % of all edge pixels: a crest of two exactly equal pixels is decided by the last bit, and may carry a weak chain with it."""
    emoji = data.emoji("google", 64)
    emoji = cn.grey(emoji[np.random.default_rng(0).permutation(len(emoji))[:120]].tensor().double())
    for x in (disc_and_square(), noise(4, 64, 64, seed=4, dtype=torch.float64).mul(0.5), emoji):
        for sigma, low, high in ((1.5, 0.03, 0.07), (1.0, 0.02, 0.05)):
            got = cn.canny(x, sigma, low, high)
            want = np.stack([reference_canny(v, sigma, 8 * low, 8 * high, mode="nearest") for v in x.numpy()])
            assert want.sum() > 100
            wrong = (got.numpy() != want).sum((1, 2))
            assert (wrong > 0).mean() <= (0.05 if len(x) > 100 else 0) and wrong.sum() <= 5e-3 * want.sum()


def test_canny_finds_a_circle():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    r = torch.hypot(y - 31.3, x - 32.2)
    edges = cn.canny(torch.sigmoid(2 * (20 - r))[None])[0]
    assert (r[edges] - 20).abs().max() < 1 and 100 < edges.sum() < 150  # circumference 126
    assert not cn.canny(torch.full((1, 16, 16), 0.5)).any()
    assert torch.equal(cn.canny(torch.full((1, 3, 16, 16), 0.5)), torch.zeros(1, 16, 16, dtype=torch.bool))


# What is measured


def test_edge_f1_equals_distances():
    g = torch.Generator().manual_seed(5)
    a, b = torch.rand(2, 6, 20, 20, generator=g) < 0.08
    b[0], a[1] = a[0], False
    got = cn.edge_f1(a, b)
    for x, y, f in zip(a.numpy(), b.numpy(), got):
        share = lambda p, q: (ndimage.distance_transform_cdt(~q, "chessboard")[p] <= 1).mean() if p.any() and q.any() else 0.0  # noqa: E731
        p, r = share(x, y), share(y, x)
        assert abs(f.item() - (2 * p * r / (p + r) if p + r else 0)) < 1e-6
    assert got[0] == 1 and got[1] == 0


def test_silhouette_and_overlap():
    x = torch.ones(2, 3, 16, 16)
    x[0, :, 4:12, 4:12] = 0.2
    x[0, :, 6:9, 6:9] = 1.0  # a white hole inside belongs to the shape
    x[1, :, :5] = 0.5  # touches the border
    mask = cn.silhouette(x)
    assert mask[0].sum() == 64 and mask[1].sum() == 5 * 16
    assert cn.overlap(mask, mask.roll(1, 0)).allclose(torch.tensor(8 / 136))
    pack = data.emoji("google", 64)[:60]
    assert cn.overlap(cn.silhouette(pack.tensor()), torch.from_numpy(pack.alpha) > 127).mean() > 0.85


def test_conditions():
    pack = data.emoji("twitter", 64)[:5]
    c = cn.conditions(pack)
    assert c.shape == (5, 2, 64, 64) and c.dtype == torch.float32 and set(c.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(c[:, 0] > 0, cn.canny(pack.tensor())) and torch.equal(c[:, 1] > 0, torch.from_numpy(pack.alpha) > 127)


# The network


def to_diffusers(state, levels, layers, look):
    """Our names → ControlNetModel's; the copied parts are named as in the U-Net."""
    own = {k: v for k, v in state.items() if k.startswith(("look.", "zeros."))}
    out = unet_to_diffusers({k: v for k, v in state.items() if k not in own}, levels, layers)
    skips = len({k for k in own if k.startswith("zeros.")}) // 2 - 1
    place = {f"zeros.{i}": f"controlnet_down_blocks.{i}" for i in range(skips)} | {f"zeros.{skips}": "controlnet_mid_block"}
    place |= {f"look.{2 + 2 * k}": f"controlnet_cond_embedding.blocks.{k}" for k in range(2 * look - 2)}
    place |= {"look.0": "controlnet_cond_embedding.conv_in", f"look.{4 * look - 2}": "controlnet_cond_embedding.conv_out"}
    return out | renamed(own, place, {})


def together(channels, widths, layers, attention, look=(8, 12, 16, 16), condition=2, seed=6):
    """Our U-Net and ControlNet, and theirs with equal weights, every parameter random; patch = 1."""
    shape = dict(channels=channels, widths=widths, layers=layers, attention=attention, context_width=24, styles=3, patch=1, groups=8, head_dim=16)
    unet, control = randomise(TextUNet(**shape), seed), randomise(cn.ControlNet(condition, look, **shape), seed + 1)
    common = dict(
        in_channels=channels, block_out_channels=widths, layers_per_block=layers, norm_num_groups=8, num_class_embeds=3, cross_attention_dim=24,
        attention_head_dim=[w // 16 for w in widths], use_linear_projection=False, mid_block_type="UNetMidBlock2DCrossAttn",
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
    )  # fmt: skip
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)]
    their_unet = filled(UNet2DConditionModel(out_channels=channels, up_block_types=up, **common), unet_to_diffusers(unet.state_dict(), len(widths), layers))
    theirs = ControlNetModel(conditioning_channels=condition, conditioning_embedding_out_channels=look, **common)
    return unet, control, their_unet, filled(theirs, to_diffusers(control.state_dict(), len(widths), layers, len(look)))


SHAPES = [(4, (16, 32), 1, (True, True)), (16, (32, 48, 64), 2, (False, True, True))]


@PRECISIONS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_control_equals_diffusers(shape, dtype, tol):
    unet, control, their_unet, theirs = (m.to(dtype) for m in together(*shape))
    z, c = noise(3, shape[0], 8, 8, seed=7, dtype=dtype), noise(3, 2, 64, 64, seed=8, dtype=dtype)
    words, t, style = noise(3, 5, 24, seed=9, dtype=dtype), torch.tensor([1, 77, 1000]), torch.tensor([0, 2, 1])
    with torch.no_grad():
        mine = control(z, t, words, style, c)
        down, mid = theirs(z, t, words, c, class_labels=style, conditioning_scale=1.0, return_dict=False)
        assert len(mine) == len(down) + 1 and mid.std() > 0.05
        for a, b in zip(mine, (*down, mid)):
            torch.testing.assert_close(a, b, rtol=tol, atol=tol)
        for scale in (1.0, 0.4):
            down, mid = theirs(z, t, words, c, class_labels=style, conditioning_scale=scale, return_dict=False)
            want = their_unet(z, t, words, class_labels=style, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
            got = cn.steer(unet, control, z, t, words, style, c, scale)
            torch.testing.assert_close(got, want, rtol=tol, atol=tol)
        assert (got - unet(z, t, words, style)).abs().max() > 0.1  # the control does something


def test_gradients_equal_diffusers():
    unet, control, their_unet, theirs = (m.double() for m in together(*SHAPES[0]))
    z, c, words = noise(2, 4, 8, 8, seed=7).double(), noise(2, 2, 64, 64, seed=8).double(), noise(2, 5, 24, seed=9).double()
    t, style = torch.tensor([5, 600]), torch.tensor([1, 2])
    cn.steer(unet.requires_grad_(False), control, z, t, words, style, c).square().mean().backward()
    down, mid = theirs(z, t, words, c, class_labels=style, return_dict=False)
    their_unet.requires_grad_(False)
    out = their_unet(z, t, words, class_labels=style, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    out.square().mean().backward()
    mine = to_diffusers({k: p.grad for k, p in control.named_parameters()}, 2, 1, 4)
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-8, atol=1e-12, msg=name)
    assert all(p.grad is None for p in unet.parameters())


def test_a_new_controlnet_says_nothing():
    """From a U-Net: the same copy in both libraries, every residual exactly 0, the U-Net's output the same bit for bit."""
    shape = dict(channels=4, widths=(16, 32), context_width=24, head_dim=16, patch=2)
    unet = randomise(TextUNet(**shape), 10)
    control = cn.ControlNet.from_unet(unet, **shape)
    state = control.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in unet.state_dict().items() if k in state) and "up.0.res.conv1.weight" not in state
    z, c, words = noise(2, 4, 16, 16, seed=11), noise(2, 2, 64, 64, seed=12), noise(2, 5, 24, seed=13)
    t, style = torch.tensor([5, 600]), torch.tensor([1, 2])
    assert all((a == 0).all() for a in control(z, t, words, style, c))
    assert torch.equal(cn.steer(unet, control, z, t, words, style, c), unet(z, t, words, style))
    _, _, their_unet, _ = together(*SHAPES[0])
    theirs = ControlNetModel.from_unet(their_unet, conditioning_channels=2)
    down, mid = theirs(noise(2, 4, 8, 8), t, words, noise(2, 2, 64, 64), class_labels=style, return_dict=False)
    assert all((a == 0).all() for a in (*down, mid))


def test_a_unet_of_another_shape_is_refused():
    with pytest.raises((ValueError, RuntimeError)):
        cn.ControlNet.from_unet(TextUNet(widths=(16, 32), head_dim=16), widths=(16, 48), head_dim=16)
    with pytest.raises(ValueError, match="own shape"):
        cn.ControlNet.from_unet(TextUNet(widths=(16, 32), head_dim=16), widths=(16, 32), layers=2, head_dim=16)


def test_learning_comes_in_waves():
    shape = dict(widths=(16, 32), context_width=24, head_dim=16)
    unet = randomise(TextUNet(**shape), 14).requires_grad_(False)
    control = cn.ControlNet.from_unet(unet, **shape).requires_grad_(True)
    z, c, words = noise(2, 4, 16, 16, seed=15), noise(2, 2, 64, 64, seed=16), noise(2, 5, 24, seed=17)
    seen = []
    for _ in range(3):
        control.zero_grad()
        cn.steer(unet, control, z, torch.tensor([5, 600]), words, torch.tensor([1, 2]), c).square().mean().backward()
        seen.append([p.grad.abs().max().item() > 0 for p in (control.zeros[0].weight, control.conv_in.weight, control.look[-1].weight, control.look[0].weight)])
        torch.optim.SGD(control.parameters(), lr=0.1).step()
    assert seen == [[True, False, False, False], [True, True, True, False], [True] * 4]


class Tiny(LatentDiffusion):
    """The sampler of 2.4 with stand-ins for its encoders."""

    def words(self, captions):
        return torch.stack([noise(20, 128, seed=len(c)) for c in captions])

    def decode(self, z):
        return z


def test_sampling_under_control():
    """The sampler of 2.4 doubles the condition for guidance; a scale of 0 gives the locked model's picture."""
    shape = dict(widths=(16, 32), head_dim=16)
    unet, control = randomise(TextUNet(**shape), 18), randomise(cn.ControlNet(**shape), 19)

    ld = Tiny(None, unet, None, make_schedule())
    c, captions = (noise(2, 2, 64, 64, seed=20) > 1).float(), ["cat", "house"]
    sample = lambda **more: ld.sample(captions, steps=2, seed=1, w=2.0, **more)  # noqa: E731
    plain, off, on = sample(), sample(unet=cn.Controlled(unet, control, 0.0), condition=[c]), sample(unet=cn.Controlled(unet, control), condition=[c])
    torch.testing.assert_close(plain, off)
    assert (plain - on).abs().max() > 1e-3
    words, none = ld.words(captions), ld.words(["", ""])
    start = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    t, style = torch.full((2,), 1000), torch.ones(2, dtype=torch.long)
    a, b = (cn.steer(unet, control, start, t, w, style, c) for w in (words, none))
    torch.testing.assert_close(ld.denoiser(captions, 1, 2.0, cn.Controlled(unet, control), condition=[c])(start, t), b + 2 * (a - b), rtol=1e-4, atol=1e-5)


def test_guidance_leads_away_from_no_words_and_no_drawing():
    """One step of the controlled sampler, by hand; weight 1 is the controlled model alone."""
    from course_utils.lessons.ddpm import split

    shape = dict(widths=(16, 32), head_dim=16)
    unet, control = randomise(TextUNet(**shape), 21), randomise(cn.ControlNet(**shape), 22)

    ld, c, captions = Tiny(None, unet, None, make_schedule()), (noise(2, 2, 64, 64, seed=20) > 1).float(), ["cat", "house"]
    start = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    t, style = torch.full((2,), 1000), torch.ones(2, dtype=torch.long)
    a, b = cn.steer(unet, control, start, t, ld.words(captions), style, c, 0.7), unet(start, t, ld.words(["", ""]), style)
    for w in (1.0, 2.5):
        want, _ = split((b + w * (a - b)).detach(), start, t, ld.schedule)
        torch.testing.assert_close(cn.sample_controlled(ld, control, captions, c, w=w, scale=0.7, steps=1, seed=4), want, rtol=1e-4, atol=1e-5)


def test_fingerprint_sees_a_single_bit():
    net = torch.nn.Linear(3, 2)
    before = cn.fingerprint(net)
    assert cn.fingerprint(net) == before
    value = net.weight.data[1, 2].item()
    net.weight.data[1, 2] = torch.nextafter(torch.tensor(value), torch.tensor(9.0))
    assert cn.fingerprint(net) != before
    net.weight.data[1, 2] = value
    assert cn.fingerprint(net) == before


# Small helpers, and what is stored


def test_pen():
    page = cn.pen("A1 I1 / e5*2")
    assert page.shape == (1, 2, 64, 64) and page[0, 0, 4, 4:61].all() and page[0, 0, 5].sum() == 0
    rows, columns = page[0, 0, 10:].nonzero().T.double()
    radius = torch.hypot(rows + 10 - 32, columns - 32)
    assert (radius - 14).abs().max() < 1 and not page[0, 1].any()
    for text in ("K1", "A0", "A", "5E", "house"):
        with pytest.raises(ValueError, match="no point"):
            cn.pen(text)


def test_pictures_survive_packing():
    x = data.emoji("google", 64)[:3].tensor()
    assert (cn.unpack_pictures(cn.pack_pictures(x)) - x).abs().mean() < 0.03


def test_stored_weights_steer():
    """On held-out emoji the stored ControlNet raises the edge F1, with few steps and no guidance."""
    from course_utils.lessons.latent_diffusion import load_latent_diffusion

    ld, control = load_latent_diffusion(), cn.load_controlnet()
    pack = data.emoji("google", 64).subset("concepts")[::30][:8]
    c = cn.conditions(pack) * torch.tensor([1.0, 0])[:, None, None]
    paint = lambda **more: cn.edge_f1(cn.canny(ld.sample(list(pack.names_en), w=1, steps=6, **more)), c[:, 0] > 0).mean()  # noqa: E731
    assert paint(unet=cn.Controlled(ld.unet, control), condition=[c]) > 1.3 * paint()


@pytest.mark.parametrize("word", ["E5*", "E5*x", "E5*-2", "E5*nan", "E5*inf", "E5*1e9", "E5*20"])
def test_a_circle_has_a_radius(word):
    with pytest.raises(ValueError, match="is no point"):
        cn.pen(f"A1 {word}")


def test_bytes_and_blurs_of_no_width_get_one_sentence():
    with pytest.raises(ValueError, match="divide by 255"):
        cn.canny(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    for sigma in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="width above 0"):
            cn.gaussian(torch.rand(1, 8, 8), sigma)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (2, 2, 2)])
def test_pictures_without_an_inside_have_no_crests(shape):
    crest = cn.thin(torch.rand(shape), torch.rand(shape))
    assert crest.shape == shape and not crest.any()


def test_conditions_that_do_not_fit_the_captions():
    ld, net = load_latent_diffusion(), cn.load_controlnet()
    c = (torch.rand(2, 2, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.9).float()
    want = cn.sample_controlled(ld, net, ["cat", "dog"], c, steps=1)
    torch.testing.assert_close(cn.sample_controlled(ld, net, ("cat", "dog"), c > 0, steps=1), want)
    for bad in (c[:1], c[:, :1], c[0], c[..., :32]):
        with pytest.raises(ValueError, match="are needed"):
            cn.sample_controlled(ld, net, ["cat", "dog"], bad, steps=1)
    with pytest.raises(ValueError, match="are needed"):
        cn.sample_controlled(ld, net, [], c[:0], steps=1)
    with pytest.raises(ValueError, match="too many values"):  # not the first drawing for all
        ld.sample(["cat", "dog"], w=1, steps=1, unet=cn.Controlled(ld.unet, net), condition=c)
