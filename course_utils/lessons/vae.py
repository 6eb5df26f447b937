"""Generated from notebooks/2_generative/02_vae.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.errors import CourseError


def bernoulli_log_prob(x, logits):
    """log p(x) of independent pixels, summed over the last axis. x: (B, D) in [0, 1], logits: (..., B, D). Returns (..., B)."""
    return (x * logits - F.softplus(logits)).sum(-1)


def mlp(*sizes):
    """Linear layers of the given sizes, with a GELU between them."""
    layers = []
    for a, b in zip(sizes[:-1], sizes[1:]):
        layers += [nn.Linear(a, b), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """x (B, pixels) -> code (B, latent) -> logits (B, pixels)."""

    def __init__(self, latent=20, hidden=384, pixels=784):
        super().__init__()
        self.encoder = mlp(pixels, hidden, latent)
        self.decoder = mlp(latent, hidden, hidden, pixels)

    def forward(self, x):
        return self.decoder(self.encoder(x))


@torch.no_grad()
def decode_grid(decoder, u, pixels=28):
    """What a decoder of 2 numbers draws at all pairs of positions u (S,): one picture (S·pixels, S·pixels), z_1 to the right, z_2 upwards."""
    z = torch.stack(torch.meshgrid(u, u, indexing="xy"), -1).flip(0).reshape(-1, 2)
    x = decoder(z).sigmoid().reshape(len(u), len(u), pixels, pixels)
    return x.transpose(1, 2).reshape(len(u) * pixels, len(u) * pixels)


class Judge(nn.Module):
    """A small digit classifier. Pictures (B, 784) in [0, 1] -> logits (B, 10); ``features`` gives (B, 64)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.GELU(),
        )
        self.head = nn.Linear(64, 10)

    def features(self, x):
        """(B, 784) -> (B, 64)."""
        if x.ndim > 1 and x.shape[1:].numel() != 784:
            raise CourseError(f"Pictures of shape {tuple(x.shape)}: the judge reads grey ones of 784 pixels, (B, 784).")
        return self.body(x.reshape(-1, 1, 28, 28))

    def forward(self, x):
        return self.head(self.features(x))


def coverage(real, drawn, k=5):
    """Share of real points whose k-nearest-neighbour ball holds a drawn one (Naeem et al. 2020, eq. 9). (N, D), (M, D) -> float."""
    if not 0 < k < len(real) or not len(drawn) or not (real.isfinite().all() and drawn.isfinite().all()):
        raise CourseError(f"Coverage needs finite points, more than k = {k} real ones (> 0), and at least one drawn.")
    radius = torch.cdist(real, real).topk(k + 1, largest=False).values[:, -1]  # the nearest is the point itself
    return (torch.cdist(drawn, real) <= radius).any(0).double().mean().item()


def reparameterise(mu, logvar, eps):
    """A draw from N(mu, exp(logvar)), made of standard normal eps (Kingma & Welling 2014, section 2.4). mu, logvar: (B, D); eps: (..., B, D)."""
    return mu + (0.5 * logvar).exp() * eps


def kl_divergence(mu, logvar):
    """KL from N(mu, diag exp(logvar)) to N(0, I), in nats (Kingma & Welling 2014, appendix B). mu, logvar: (B, ...). Returns (B,)."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def log_normal(x, mu=0.0, logvar=0.0):
    """log N(x; mu, diag exp(logvar)), summed over the last axis; the arguments broadcast."""
    logvar = torch.as_tensor(logvar, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mu) ** 2 * (-logvar).exp() + logvar + math.log(2 * math.pi)).sum(-1)


class VAE(nn.Module):
    """q(z|x) Gaussian, p(x|z) Bernoulli, both with hidden layers. x: (B, pixels), z: (..., B, latent)."""

    def __init__(self, latent=20, hidden=384, pixels=784):
        super().__init__()
        self.latent = latent
        self.encoder = mlp(pixels, hidden, 2 * latent)
        self.decoder = mlp(latent, hidden, hidden, pixels)

    def encode(self, x):
        """mu and logvar of q(z|x), each (B, latent)."""
        return self.encoder(x).chunk(2, -1)

    def log_px(self, x, z):
        """log p(x|z), (..., B)."""
        return bernoulli_log_prob(x, self.decoder(z))


def elbo(model, x, eps, beta=1.0):
    """One-draw estimate of the ELBO (Kingma & Welling 2014, eq. 7). x: (B, ...), eps: (..., B, D).

    Returns (bound, log p(x|z), KL), in nats for each picture: log p(x|z) - beta KL is (..., B), KL is (B,).
    """
    mu, logvar = model.encode(x)
    log_px = model.log_px(x, reparameterise(mu, logvar, eps))
    kl = kl_divergence(mu, logvar)
    return log_px - beta * kl, log_px, kl


class LinearVAE(nn.Module):
    """p(x|z) = N(Wz + b, sigma² I), q(z|x) = N(V(x - b), diag exp(logvar)), in float64. x: (B, pixels), z: (..., B, latent)."""

    def __init__(self, pixels, latent):
        super().__init__()
        small = lambda *size: nn.Parameter(0.1 * torch.randn(*size, dtype=torch.float64))
        self.W, self.b, self.V, self.logvar = (
            small(pixels, latent),
            small(pixels),
            small(latent, pixels),
            small(latent),
        )
        self.log_sigma = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def encode(self, x):
        """mu and logvar of q(z|x), each (B, latent)."""
        mu = (x - self.b) @ self.V.T
        return mu, self.logvar.expand_as(mu)

    def log_px(self, x, z):
        """log p(x|z), (..., B)."""
        return log_normal(x, z @ self.W.T + self.b, 2 * self.log_sigma)

    def exact(self, x):
        """log p(x) itself, (B,)."""
        cov = self.W @ self.W.T + (2 * self.log_sigma).exp() * torch.eye(len(self.b), dtype=x.dtype)
        return torch.distributions.MultivariateNormal(self.b, cov).log_prob(x)


@torch.no_grad()
def ppca(x, latent):
    """The LinearVAE of greatest likelihood for x (N, pixels), with q equal to its posterior (Tipping & Bishop 1999, eq. 6-8)."""
    if not 0 < latent < min(len(x) - 1, x.shape[1]):
        raise CourseError(
            f"{latent} axes of {tuple(x.shape)} numbers: keep at least 1, and fewer than pictures - 1 and pixels."
        )
    model = LinearVAE(x.shape[1], latent)
    value, axis = torch.linalg.eigh(torch.cov(x.T, correction=0))  # rising
    var = value[:-latent].mean()  # sigma²: what the discarded axes hold, on average
    model.W.copy_(axis[:, -latent:] * (value[-latent:] - var).sqrt())
    model.b.copy_(x.mean(0))
    model.log_sigma.copy_(0.5 * var.log())
    M = model.W.T @ model.W + var * torch.eye(latent, dtype=x.dtype)  # diagonal
    model.V.copy_(torch.linalg.solve(M, model.W.T))
    model.logvar.copy_((var / M.diagonal()).log())
    return model


def iwae_bound(model, x, eps):
    """Importance-weighted bound on log p(x) (Burda et al. 2016, eq. 8). x: (B, ...), eps: (K, B, D). Returns (B,)."""
    mu, logvar = model.encode(x)
    z = reparameterise(mu, logvar, eps)  # (K, B, D)
    log_w = model.log_px(x, z) + log_normal(z) - log_normal(z, mu, logvar)  # (K, B)
    return torch.logsumexp(log_w, 0) - math.log(len(eps))


class ConvVAE(nn.Module):
    """A VAE for pictures (B, 3, 32, 32) in [0, 1], with a Gaussian p(x|z) of one learned width. z: (B, latent)."""

    def __init__(self, latent=64, widths=(24, 48, 64)):
        super().__init__()
        a, b, c = widths
        self.latent, self.log_sigma = latent, nn.Parameter(torch.tensor(-1.0))
        down = lambda i, o: nn.Conv2d(i, o, 4, stride=2, padding=1)
        up = lambda i, o: nn.ConvTranspose2d(i, o, 4, stride=2, padding=1)
        self.encoder = nn.Sequential(
            down(3, a),
            nn.GELU(),
            down(a, b),
            nn.GroupNorm(8, b),
            nn.GELU(),
            down(b, c),
            nn.GroupNorm(8, c),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(16 * c, 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, 16 * c),
            nn.Unflatten(1, (c, 4, 4)),
            nn.GELU(),
            up(c, b),
            nn.GroupNorm(8, b),
            nn.GELU(),
            up(b, a),
            nn.GroupNorm(8, a),
            nn.GELU(),
            up(a, 3),
        )

    def encode(self, x):
        """mu and logvar of q(z|x), each (B, latent)."""
        return self.encoder(x).chunk(2, -1)

    def log_px(self, x, z):
        """log density of x given z, (B,)."""
        return log_normal(x.flatten(1), self.decoder(z).flatten(1), 2 * self.log_sigma)


def train_step(model, optimiser, x, generator, beta=1.0):
    """One step of the optimiser on a batch x (B, pixels). Returns {"minus_elbo": nats, "rebuild": nats, "price": nats}, means over the batch."""
    eps = torch.randn(len(x), model.latent, generator=generator).to(x.device)
    bound, log_px, kl = elbo(model, x, eps, beta)
    loss = -bound.mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    rebuild, price = -log_px.mean().item(), kl.mean().item()
    return {"minus_elbo": rebuild + price, "rebuild": rebuild, "price": price}
