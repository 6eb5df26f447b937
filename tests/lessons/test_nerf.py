"""Lesson 3.6 against nerfacc, against torch's own trilinear lookup, and against closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from course_utils import data
from course_utils.lessons import nerf


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_volume_weights_match_nerfacc(dtype, tol):
    from nerfacc.volrend import accumulate_along_rays, render_weight_from_density

    edges = torch.rand(13, 25, dtype=dtype).cumsum(-1)
    sigma = torch.rand(13, 24, dtype=dtype) * 5
    colour = torch.rand(13, 24, 3, dtype=dtype)
    theirs, transmittance, _ = render_weight_from_density(edges[:, :-1], edges[:, 1:], sigma)
    ours = nerf.volume_weights(sigma, edges[:, 1:] - edges[:, :-1])
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)
    torch.testing.assert_close(1 - ours.cumsum(-1)[:, :-1], transmittance[:, 1:], rtol=tol, atol=tol)
    torch.testing.assert_close((ours[..., None] * colour).sum(1), accumulate_along_rays(theirs, colour), rtol=tol, atol=tol)


def test_a_wall_leaves_the_weights_in_front_of_it_alone():
    w = nerf.volume_weights(torch.tensor([0.1, 1e8]), torch.ones(2))
    torch.testing.assert_close(w, torch.tensor([1 - math.exp(-0.1), math.exp(-0.1)]), rtol=1e-6, atol=0)
    w = nerf.volume_weights(torch.tensor([[0.1, math.inf, 3.0], [0.0, 0.0, 0.0]]), torch.ones(2, 3))
    torch.testing.assert_close(w, torch.tensor([[1 - math.exp(-0.1), math.exp(-0.1), 0.0], [0.0, 0.0, 0.0]]))


def test_volume_weights_gradient():
    sigma, delta = torch.rand(3, 6, dtype=torch.float64, requires_grad=True), torch.rand(3, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: nerf.volume_weights(s, delta), (sigma,))


@pytest.mark.parametrize("n", [1, 3, 100])
def test_constant_density_is_exact(n):
    w = nerf.volume_weights(torch.full((n,), 1.3, dtype=torch.float64), torch.full((n,), 3.0 / n, dtype=torch.float64))
    assert abs(w.sum().item() - (1 - math.exp(-3.9))) < 1e-12


def test_quadrature_converges_to_the_integral():
    """Density 2s and colour s on [0, 1]: T = exp(−s²), C = ∫ 2 s² exp(−s²) ds = (√π/2) erf(1) − 1/e."""
    want = math.sqrt(math.pi) / 2 * math.erf(1) - math.exp(-1)
    error = []
    for n in (10, 100, 1000):
        s = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        error.append(abs((nerf.volume_weights(2 * s, torch.full_like(s, 1 / n)) * s).sum().item() - want))
    assert error[0] < 1e-2 and error[2] < 1e-6 and error[2] < error[1] < error[0]


def test_rays_return_to_their_pixels():
    v = data.objects("childHut")
    K = torch.as_tensor(v.K, dtype=torch.float64)
    for i in (0, 50, 109):
        R, t = torch.as_tensor(v.R[i], dtype=torch.float64), torch.as_tensor(v.t[i], dtype=torch.float64)
        o, d = nerf.pixel_rays(K, R, t, 64, 64)
        uv, z = nerf.project(o + 3.1 * d, K, R, t)
        rows, cols = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        torch.testing.assert_close(uv, torch.stack([cols, rows], -1).double() + 0.5, atol=1e-4, rtol=0)
        assert (z > 0).all()
        np.testing.assert_allclose(o[0, 0].numpy(), v.centres[i], atol=1e-4)


def test_orbit_pose_is_a_camera_of_the_pack():
    v = data.objects("chicken")
    c = v.centres[20]
    R, t = nerf.orbit_pose(math.degrees(math.atan2(c[0], c[2])), math.degrees(math.asin(c[1] / 3)))
    np.testing.assert_allclose(R.numpy(), v.R[20], atol=1e-4)
    np.testing.assert_allclose(t.numpy(), v.t[20], atol=1e-4)


def test_ball_interval_and_stratified():
    o, d = torch.tensor([[0.0, 0, -3], [0, 0, -3]]), F.normalize(torch.tensor([[0.0, 0, 1], [1, 0, 1]]), dim=-1)
    near, far, hit = nerf.ball_interval(o, d)
    assert hit.tolist() == [True, False] and near[0].item() == pytest.approx(2) and far[0].item() == pytest.approx(4)
    s = nerf.stratified(near[:1], far[:1], 50)
    edges = torch.linspace(2, 4, 51)
    assert ((s[0] >= edges[:-1] - 1e-6) & (s[0] <= edges[1:] + 1e-6)).all()


def test_a_ray_that_looks_away_or_starts_inside():
    o = torch.tensor([[0.0, 0, 3], [0.0, 0, 3], [0.0, 0, 0.5], [0.0, 0, -0.5]])
    d = torch.tensor([[0.0, 0, 1], [0.0, 0, -1], [0.0, 0, 1], [0.0, 0, 1]])
    near, far, hit = nerf.ball_interval(o, d)
    assert hit.tolist() == [False, True, True, True]
    torch.testing.assert_close(near[1:], torch.tensor([2.0, 0.0, 0.0]))
    torch.testing.assert_close(far[1:], torch.tensor([4.0, 0.5, 1.5]))


def test_stratified_keeps_double_precision():
    near, far = torch.tensor([2.0, 3.0], dtype=torch.float64), torch.tensor([4.0, 4.5], dtype=torch.float64)
    s = nerf.stratified(near, far, 3, jitter=False)
    torch.testing.assert_close(s, near[:, None] + (far - near)[:, None] * (torch.arange(3, dtype=torch.float64) + 0.5) / 3, rtol=1e-15, atol=0)


def test_positional_encoding_closed_form():
    x = torch.rand(7, 3, dtype=torch.float64)
    e = nerf.positional_encoding(x, 5)
    assert e.shape == (7, 33)
    torch.testing.assert_close(e[:, :3], x)
    for c in range(3):
        for k in range(5):
            torch.testing.assert_close(e[:, 3 + 5 * c + k], torch.sin(2**k * math.pi * x[:, c]), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(e[:, 18 + 5 * c + k], torch.cos(2**k * math.pi * x[:, c]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_sample_pdf_inverts_the_cdf(dtype, tol):
    """Against numpy's interpolation of the inverse cumulative distribution, on uneven bins."""
    edges = torch.rand(5, 9, dtype=dtype).cumsum(-1)
    w = torch.rand(5, 8, dtype=dtype) + 0.05
    cdf = F.pad((w / w.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    u = (np.arange(12) + 0.5) / 12
    want = np.stack([np.interp(u, c, e) for c, e in zip(cdf.double().numpy(), edges.double().numpy(), strict=True)])
    torch.testing.assert_close(nerf.sample_pdf(edges, w, 12, jitter=False), torch.tensor(want, dtype=dtype), rtol=tol, atol=tol)


def test_sample_pdf_never_leaves_the_edges():
    """Single precision: the running sum ends below 1, the last bins are empty, and u may round to 1."""
    w = torch.rand(2000, 100)
    w[:, 60:] = 0
    edges = torch.linspace(0, 1, 101).expand(2000, -1)
    s = nerf.sample_pdf(edges, w, 5000)
    assert s.min() >= 0 and s.max() <= 0.6 + 1e-6 and (s.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_dense_grid_matches_grid_sample(dtype, tol):
    enc = nerf.GridEncoding([5, 9], channels=3).to(dtype)
    for p in enc.parameters():
        p.data.normal_()
    x = torch.rand(200, 3, dtype=dtype) * 2 - 1
    x[0], x[1] = 1.0, -1.0  # the corners of the cube
    want = []
    for n, table in zip(enc.levels, enc.tables, strict=True):
        volume = table.view(1, n + 1, n + 1, n + 1, 3).permute(0, 4, 1, 2, 3)
        want.append(F.grid_sample(volume, x.flip(-1).view(1, 1, 1, -1, 3), align_corners=True)[0, :, 0, 0].T)
    torch.testing.assert_close(enc(x), torch.cat(want, -1), rtol=tol, atol=tol)


def test_hash_grid_matches_brute_force_and_its_gradient_is_right():
    enc = nerf.GridEncoding([3, 20], channels=2, max_rows=256).double()
    for p in enc.parameters():
        p.data.normal_()
    assert [len(t) for t in enc.tables] == [64, 256]
    x = torch.rand(20, 3, dtype=torch.float64) * 2 - 1
    got = enc(x)
    for i in range(20):
        p = ((x[i] + 1) * 10).tolist()
        low = [min(math.floor(v), 19) for v in p]
        want = torch.zeros(2, dtype=torch.float64)
        for k in range(8):
            corner = [low[a] + (k >> a & 1) for a in range(3)]
            weight = math.prod((p[a] - low[a]) if k >> a & 1 else 1 - (p[a] - low[a]) for a in range(3))
            row = (corner[0] ^ (corner[1] * 2654435761) ^ (corner[2] * 805459861)) % 256
            want += weight * enc.tables[1][row]
        torch.testing.assert_close(got[i, 2:], want, rtol=1e-10, atol=1e-10)
    index, weight = torch.randint(9, (6, 8)), torch.rand(6, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: nerf.WeightedRows.apply(t, index, weight), (torch.randn(9, 2, dtype=torch.float64, requires_grad=True),))


class Ball:
    """A field with a known answer: density 40 and colour red inside radius 0.5, nothing outside."""

    def density(self, x):
        return 40.0 * (x.norm(dim=-1) < 0.5)

    def __call__(self, x, d):
        return self.density(x), torch.tensor([1.0, 0, 0]).expand(len(x), 3)


class Shell:
    """A soft patterned shell of radius 0.5: most of a ray through it is empty."""

    def density(self, x):
        return 120.0 * torch.exp(-(((x.norm(dim=-1) - 0.5) / 0.05) ** 2))

    def __call__(self, x, d):
        return self.density(x), 0.5 + 0.5 * torch.sin(15 * x)


def test_render_of_a_known_ball():
    K = torch.tensor([[90.0, 0, 32], [0, 90, 32], [0, 0, 1]])
    R, t = nerf.orbit_pose(30, 20)
    colour, opacity, depth = nerf.render_view(Ball(), K, R, t, 64, n=128)
    assert opacity[32, 32] > 0.99 and opacity[0, 0] == 0
    torch.testing.assert_close(colour[0, 0], torch.ones(3))
    torch.testing.assert_close(colour[32, 32], torch.tensor([1.0, 0, 0]), atol=1e-2, rtol=0)
    assert depth[32, 32].item() == pytest.approx(2.5, abs=0.05)
    # the silhouette of a ball of radius r at distance D is a disc of radius f·r/√(D² − r²)
    assert (opacity > 0.5).sum().item() == pytest.approx(math.pi * (90 * 0.5 / math.sqrt(9 - 0.25)) ** 2, rel=0.05)


def test_a_camera_that_looks_away_sees_white():
    K = torch.tensor([[90.0, 0, 8], [0, 90, 8], [0, 0, 1]])
    R, t = nerf.orbit_pose(30, 20)
    flip = torch.diag(torch.tensor([-1.0, 1, -1]))
    field, occupancy = nerf.RadianceField(nerf.GridEncoding([4, 8]), 8, 1), nerf.Occupancy(8)
    colour, opacity, depth = nerf.render_view(field, K, flip @ R, flip @ t, 16, n=4, n_fine=4, occupancy=occupancy)
    assert (colour == 1).all() and (opacity == 0).all() and (depth == 0).all()
    assert occupancy.share == 1.0  # nothing was asked


def test_rays_through_empty_cells_only():
    occupancy = nerf.Occupancy(8)
    occupancy.mask[:] = False
    o, d = torch.tensor([[0.0, 0, -3]]), torch.tensor([[0.0, 0, 1]])
    for encoding in (nerf.GridEncoding([4, 8]), nerf.FrequencyEncoding(3)):
        colour, opacity, distance = nerf.render_rays(nerf.RadianceField(encoding, 8, 1), o, d, 4, 3, occupancy)
        assert colour.tolist() == [[1.0, 1.0, 1.0]] and opacity.item() == 0 and distance.item() == 0


@pytest.mark.parametrize("elevation", [-90, 90, 89.9, 0])
def test_orbit_pose_looks_at_the_origin_from_everywhere(elevation):
    R, t = nerf.orbit_pose(25, elevation)
    torch.testing.assert_close(R @ R.T, torch.eye(3), atol=1e-6, rtol=0)
    assert torch.linalg.det(R).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(t, torch.tensor([0.0, 0, 3]), atol=1e-6, rtol=0)


def test_coarse_to_fine_and_occupancy_agree_with_dense_sampling():
    K = torch.tensor([[90.0, 0, 32], [0, 90, 32], [0, 0, 1]])
    R, t = nerf.orbit_pose(0, 0)
    occupancy = nerf.Occupancy(16)
    occupancy.update(Ball())
    x = torch.rand(5000, 3) * 2 - 1
    assert occupancy(x)[x.norm(dim=-1) < 0.5].all() and 0.05 < occupancy.share < 0.6
    full = nerf.render_view(Ball(), K, R, t, 64, n=96)[0]
    torch.testing.assert_close(nerf.render_view(Ball(), K, R, t, 64, n=96, occupancy=occupancy)[0], full)
    fine = nerf.render_view(Shell(), K, R, t, 64, n=16, n_fine=16)[0]
    coarse = nerf.render_view(Shell(), K, R, t, 64, n=32)[0]
    exact = nerf.render_view(Shell(), K, R, t, 64, n=1000)[0]
    assert nerf.psnr(fine, exact) > nerf.psnr(coarse, exact) + 3


def test_field_depends_on_the_view_only_where_it_may():
    for encoding in (nerf.FrequencyEncoding(4), nerf.GridEncoding([4, 8]), nerf.GridEncoding([8, 64], 2, 512)):
        field = nerf.RadianceField(encoding, 16, 2)
        x, a, b = torch.rand(9, 3), F.normalize(torch.randn(9, 3), dim=-1), F.normalize(torch.randn(9, 3), dim=-1)
        (s1, c1), (s2, c2) = field(x, a), field(x, b)
        torch.testing.assert_close(s1, s2)
        torch.testing.assert_close(s1, field.density(x))
        assert not torch.allclose(c1, c2)
        field.view_dependent = False
        torch.testing.assert_close(field(x, a)[1], field(x, b)[1])


def test_a_grid_learns_a_scene_in_seconds():
    """Sixty steps on the real pack must beat the all-white picture by far: the whole chain learns."""
    v = data.objects("chicken", size=32)
    part = v.of("train")
    pairs = [nerf.pixel_rays(torch.as_tensor(v.K), torch.as_tensor(R), torch.as_tensor(t), 32, 32) for R, t in zip(part.R, part.t, strict=True)]
    o, d = (torch.stack(x).reshape(-1, 3) for x in zip(*pairs, strict=True))
    hit = nerf.ball_interval(o, d)[2]
    o, d, c = o[hit], d[hit], torch.as_tensor(part.images).reshape(-1, 3)[hit]
    field = nerf.RadianceField(nerf.GridEncoding([8, 16, 32]), 32, 1)
    optimiser = torch.optim.Adam(field.parameters(), lr=2e-2, betas=(0.9, 0.99))
    for _ in range(60):
        k = torch.randint(len(o), (300,))
        loss = F.mse_loss(nerf.render_rays(field, o[k], d[k], 24)[0], c[k])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    test = v.of("test")
    shot = nerf.render_view(field, torch.as_tensor(v.K), torch.as_tensor(test.R[0]), torch.as_tensor(test.t[0]), 32, n=32)[0]
    truth = torch.as_tensor(test.images[0])
    assert nerf.psnr(shot, truth) > 19 > nerf.psnr(torch.ones_like(truth), truth)
