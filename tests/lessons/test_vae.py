"""Lesson 2.2 against torch.distributions, and against probabilistic PCA, where log p(x) is known."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from course_utils.lessons import vae


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scramble(model, seed=0, scale=0.3):
    """Every parameter random."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


# Pieces


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_kl_equals_torch(dtype, tol):
    mu, logvar = randn(50, 7, dtype=dtype), randn(50, 7, seed=1, dtype=dtype)
    want = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    torch.testing.assert_close(vae.kl_divergence(mu, logvar), want, rtol=tol, atol=tol)
    maps = vae.kl_divergence(mu.reshape(10, 5, 7, 1), logvar.reshape(10, 5, 7, 1))  # lesson 2.4 has codes with axes
    torch.testing.assert_close(maps, want.reshape(10, 5).sum(1), rtol=tol, atol=tol)


def test_kl_of_the_prior_is_zero():
    assert (vae.kl_divergence(torch.zeros(3, 4), torch.zeros(3, 4)) == 0).all()


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_bernoulli_log_prob_equals_torch(dtype, tol):
    x, logits = (randn(9, 784) > 0).to(dtype), 4 * randn(3, 9, 784, seed=1, dtype=dtype)
    want = Bernoulli(logits=logits).log_prob(x.expand_as(logits)).sum(-1)
    torch.testing.assert_close(vae.bernoulli_log_prob(x, logits), want, rtol=tol, atol=tol)
    extreme = torch.tensor([[1000.0, -1000.0]], dtype=dtype)
    assert vae.bernoulli_log_prob(torch.tensor([[1.0, 0.0]], dtype=dtype), extreme).item() == 0
    assert vae.bernoulli_log_prob(torch.tensor([[0.0, 1.0]], dtype=dtype), extreme).item() == -2000


def test_log_normal_equals_torch():
    x, mu, logvar = randn(6, 4, 3), randn(4, 3, seed=1), randn(4, 3, seed=2)
    want = Independent(Normal(mu, (0.5 * logvar).exp()), 1).log_prob(x)
    torch.testing.assert_close(vae.log_normal(x, mu, logvar), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(vae.log_normal(x), Independent(Normal(torch.zeros(3).double(), 1.0), 1).log_prob(x), rtol=1e-12, atol=1e-12)


def test_reparameterise_equals_torch_rsample():
    mu, logvar = randn(5, 3).requires_grad_(), randn(5, 3, seed=1).requires_grad_()
    torch.manual_seed(3)
    theirs = Normal(mu, (0.5 * logvar).exp()).rsample((4,))
    torch.manual_seed(3)
    ours = vae.reparameterise(mu, logvar, torch.normal(torch.zeros(4, 5, 3).double(), torch.ones(4, 5, 3).double()))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_through_the_draw_are_analytic():
    """For f(z) = zᵀ A z + c·z the gradient of E f is known, and symmetric pairs of eps give it without any sampling error."""
    D = 4
    A, c = randn(D, D), randn(D, seed=1)
    mu, logvar = randn(1, D, seed=2).requires_grad_(), randn(1, D, seed=3).requires_grad_()
    eps = math.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)]).double()[:, None]
    z = vae.reparameterise(mu, logvar, eps)[:, 0]
    by_mu, by_logvar = torch.autograd.grad(((z @ A) * z + z * c).sum(-1).mean(), (mu, logvar))
    torch.testing.assert_close(by_mu[0], (A + A.T) @ mu[0] + c, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_logvar[0], A.diagonal() * logvar[0].exp(), rtol=1e-12, atol=1e-12)


def test_gradients_of_random_draws_agree_on_average():
    mu, logvar = torch.full((400_000,), 0.7, dtype=torch.float64, requires_grad=True), torch.full((400_000,), -0.6, dtype=torch.float64, requires_grad=True)
    z = vae.reparameterise(mu, logvar, randn(400_000, seed=4))
    by_mu, by_logvar = torch.autograd.grad(z.sin().sum(), (mu, logvar))
    var = math.exp(-0.6)  # E sin z = exp(-var / 2) sin mu
    assert abs(by_mu.mean().item() - math.exp(-var / 2) * math.cos(0.7)) < 4e-3
    assert abs(by_logvar.mean().item() + 0.5 * var * math.exp(-var / 2) * math.sin(0.7)) < 4e-3


# The bounds


def linear(latent=3, pixels=6, seed=0):
    """A LinearVAE with random parameters; q is not the posterior."""
    return scramble(vae.LinearVAE(pixels, latent), seed, 0.5)


def posterior(model, x):
    """The exact posterior of a LinearVAE, with full covariance."""
    var = (2 * model.log_sigma).exp()
    M = model.W.T @ model.W + var * torch.eye(model.W.shape[1], dtype=x.dtype)
    return MultivariateNormal((x - model.b) @ torch.linalg.solve(M, model.W.T).T, var * torch.linalg.inv(M))


def sigma_points(D):
    return math.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)]).double()[:, None]


def test_elbo_is_short_of_the_truth_by_the_kl_to_the_posterior():
    model, x = linear(), randn(8, 6, seed=5)
    with torch.no_grad():
        bound = vae.elbo(model, x, sigma_points(3))[0].mean(0)  # exact: log p(x|z) is quadratic in eps
        mu, logvar = model.encode(x)
        gap = kl_divergence(MultivariateNormal(mu, torch.diag_embed(logvar.exp())), posterior(model, x))
        torch.testing.assert_close(bound + gap, model.exact(x), rtol=1e-10, atol=1e-10)
        assert (gap > 0.01).all()


@pytest.mark.parametrize("K", [1, 5])
def test_best_elbo_and_every_weight_equal_log_p(K):
    x = randn(400, 8, seed=6) @ randn(8, 8, seed=7) + randn(8, seed=8)
    model = vae.ppca(x, 3)
    with torch.no_grad():
        exact = model.exact(x)
        torch.testing.assert_close(vae.elbo(model, x, sigma_points(3))[0].mean(0), exact, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(vae.iwae_bound(model, x, randn(K, 400, 3, seed=9)), exact, rtol=1e-10, atol=1e-10)


def test_ppca_equals_tipping_and_bishops_likelihood():
    x = randn(300, 6, seed=10) @ randn(6, 6, seed=11)
    model = vae.ppca(x, 2)
    value = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    D, var = 6, value[2:].mean()
    want = -0.5 * (D * math.log(2 * math.pi) + value[:2].log().sum() + (D - 2) * var.log() + D)  # their eq. 9, for each example
    torch.testing.assert_close(model.exact(x).mean().detach(), want, rtol=1e-12, atol=1e-12)


def test_training_the_elbo_finds_probabilistic_pca():
    x = randn(100, 5, seed=12) @ randn(5, 5, seed=13)
    best = vae.ppca(x, 2).exact(x).mean().item()
    model = linear(2, 5, seed=1)
    search = torch.optim.LBFGS(model.parameters(), max_iter=500, history_size=30, tolerance_change=1e-15, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        search.zero_grad()
        loss = -vae.elbo(model, x, sigma_points(2))[0].mean()
        loss.backward()
        return loss

    search.step(closure)
    assert abs(-closure().item() - best) < 1e-6
    assert -closure().item() <= best + 1e-10


def test_iwae_rises_with_k_and_stays_below_the_truth():
    data, R = randn(100, 6, seed=14) @ randn(6, 6, seed=15), 10_000
    model, x = vae.ppca(data, 3), data[:4]
    with torch.no_grad():
        model.logvar += torch.tensor([0.9, -0.7, 0.8])  # no longer the posterior
        model.V *= 0.9
        many = x.repeat_interleave(R, 0)
        means = [vae.iwae_bound(model, many, randn(K, 4 * R, 3, seed=K)).reshape(4, R).mean(1) for K in (1, 2, 4, 16)]
        elbo = vae.elbo(model, x, sigma_points(3))[0].mean(0)
        exact = model.exact(x)
    torch.testing.assert_close(means[0], elbo, rtol=0, atol=0.05)  # K = 1 is the ELBO on average
    assert all((a < b + 0.02).all() for a, b in zip(means[:-1], means[1:]))
    assert (means[-1] < exact + 0.02).all() and (means[-1] > elbo + 0.1).all()


def test_iwae_equals_the_plain_mean_of_weights():
    torch.manual_seed(0)
    model = scramble(vae.VAE(4, 16, 12).double(), 2)
    x, eps = (randn(5, 12) > 0).double(), randn(7, 5, 4, seed=1)
    with torch.no_grad():
        mu, logvar = model.encode(x)
        q = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
        z = mu + (0.5 * logvar).exp() * eps
        log_px = Independent(Bernoulli(logits=model.decoder(z)), 1).log_prob(x.expand(7, 5, 12))
        prior = Independent(Normal(torch.zeros(4).double(), 1.0), 1)
        want = (log_px + prior.log_prob(z) - q.log_prob(z)).exp().mean(0).log()
        torch.testing.assert_close(vae.iwae_bound(model, x, eps), want, rtol=1e-10, atol=1e-10)


def test_bound_holds_for_a_vae_whose_integral_is_done_on_a_grid():
    """One-number code: log p(x) by brute force; ELBO <= IWAE-64 <= log p(x)."""
    model = scramble(vae.VAE(1, 8, 10).double(), 3, 0.8)
    x = (randn(6, 10, seed=2) > 0).double()
    with torch.no_grad():
        grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None, None]
        log_joint = model.log_px(x, grid.expand(-1, 6, 1)) + vae.log_normal(grid)
        exact = torch.logsumexp(log_joint, 0) + math.log(18 / 20_000)
        elbo = vae.elbo(model, x, randn(20_000, 6, 1, seed=3))[0].mean(0)
        iwae = vae.iwae_bound(model, x.repeat(500, 1), randn(64, 3000, 1, seed=4)).reshape(500, 6).mean(0)
    assert (elbo < exact).all() and (iwae <= exact + 0.01).all() and (elbo < iwae + 0.01).all()
    assert (exact - iwae).mean() < (exact - elbo).mean()


def test_elbo_parts_and_beta():
    model, x, eps = scramble(vae.VAE(3, 8, 10).double(), 4), (randn(5, 10) > 0).double(), randn(5, 3, seed=1)
    one, log_px, kl = vae.elbo(model, x, eps)
    five = vae.elbo(model, x, eps, 5.0)[0]
    torch.testing.assert_close(one, log_px - kl)
    torch.testing.assert_close(five, log_px - 5 * kl)


def test_colour_vae_density_equals_torch():
    torch.manual_seed(0)
    model = vae.ConvVAE(latent=8, widths=(8, 8, 8)).double()
    scramble(model, 5, 0.2)
    x, z = torch.rand(2, 3, 32, 32, dtype=torch.float64), randn(2, 8)
    want = Independent(Normal(model.decoder(z), model.log_sigma.exp()), 3).log_prob(x)
    torch.testing.assert_close(model.log_px(x, z), want, rtol=1e-10, atol=1e-10)
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (2, 8) and model.decoder(z).shape == x.shape


# The rest


def test_coverage_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii to the nearest neighbour: 1, 1, 2, 7
    assert vae.coverage(real, torch.tensor([[0.5]]), k=1) == 0.5
    assert vae.coverage(real, torch.tensor([[100.0]]), k=1) == 0.0
    assert vae.coverage(real, real, k=1) == 1.0


def test_grid_orientation_and_size():
    u = torch.tensor([-1.0, 0.0, 1.0])
    plane = vae.decode_grid(lambda z: torch.stack([z[:, 0], z[:, 0], z[:, 1], z[:, 1]], 1), u, pixels=2)
    assert plane.shape == (6, 6)
    assert plane[0, 5] > plane[0, 0]  # z_1 grows to the right (upper row of each tile)
    assert plane[1, 0] > plane[5, 0]  # z_2 grows upwards (lower row of each tile)


def test_judge_shapes():
    judge = vae.Judge()
    assert judge(torch.rand(3, 784)).shape == (3, 10) and judge.features(torch.rand(3, 784)).shape == (3, 64)


def test_what_does_not_fit_gets_a_sentence():
    import pytest

    from course_utils.errors import CourseError
    from course_utils.lessons import vae as lesson

    points = torch.randn(10, 3)
    for wrong in ((points, points, 10), (points, points, 0), (points, points[:0]), (points, points * torch.nan), (points[:0], points)):
        with pytest.raises(CourseError, match="Coverage"):
            lesson.coverage(*wrong)
    with pytest.raises(CourseError, match="judge"):
        lesson.Judge()(torch.rand(4, 3 * 784))
    x = torch.randn(30, 6, dtype=torch.float64)
    for wrong in ((x, 0), (x, 6), (x, 7), (x[:1], 2), (x[:3], 4)):
        with pytest.raises(CourseError, match="axes"):
            lesson.ppca(*wrong)
