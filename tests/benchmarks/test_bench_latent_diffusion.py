"""Our attention, U-Net, autoencoder and guided sampling against diffusers', equal shapes and weights. Reports, never fails a build.

Run with ``pytest tests/benchmarks/test_bench_latent_diffusion.py``.
"""

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention
from lessons.test_latent_diffusion import autoencoders, noise, unets

from course_utils.lessons import latent_diffusion as ld
from course_utils.lessons.ddpm import ddim_sample, make_schedule

NAMES = ("ours", "diffusers")
UNETS = dict(zip(NAMES, unets(16, (96, 128), 1, (True, True), words=128, head_dim=32)))
AUTOENCODERS = dict(zip(NAMES, autoencoders(12, 4, (40, 80), 1)))
Z, WORDS = noise(16, 16, 8, 8), noise(16, 20, 128, seed=1)
T, STYLE = torch.arange(1, 17) * 60, torch.ones(16, dtype=torch.long)


def cross_attention():
    """Both modules with the same weights."""
    ours, theirs = ld.CrossAttention(128, 128, head_dim=32), Attention(128, 128, heads=4, dim_head=32)
    theirs.load_state_dict({k.replace("to_out.", "to_out.0."): v for k, v in ours.state_dict().items()})
    return {"ours": ours, "diffusers": theirs}


ATTENTIONS = cross_attention()


@pytest.mark.benchmark(group="cross-attention, 16 x 256 positions to 20 words, forward and backward")
@pytest.mark.parametrize("name", NAMES)
def test_cross_attention(benchmark, name):
    x = noise(16, 256, 128, seed=2).requires_grad_()
    benchmark.pedantic(lambda: ATTENTIONS[name](x, WORDS).square().mean().backward(), rounds=30, warmup_rounds=3)


@pytest.mark.benchmark(group="text U-Net, 16 latents, forward and backward")
@pytest.mark.parametrize("name", NAMES)
def test_unet_step(benchmark, name):
    net = UNETS[name]

    def step():
        net.zero_grad()
        out = net(Z, T, WORDS, STYLE) if name == "ours" else net(Z, T, WORDS, class_labels=STYLE).sample
        out.square().mean().backward()

    benchmark.pedantic(step, rounds=15, warmup_rounds=2)


@pytest.mark.benchmark(group="autoencoder, 8 pictures there and back, forward and backward")
@pytest.mark.parametrize("name", NAMES)
def test_autoencoder_step(benchmark, name):
    net, x = AUTOENCODERS[name], noise(8, 12, 16, 16, seed=3)

    def step():
        net.zero_grad()
        y = net.decode(net.moments(x)[0]) if name == "ours" else net.decode(net.encode(x).latent_dist.mean).sample
        y.square().mean().backward()

    benchmark.pedantic(step, rounds=15, warmup_rounds=2)


@pytest.mark.benchmark(group="20 guided DDIM steps, 4 latents")
@pytest.mark.parametrize("name", NAMES)
def test_guided_sampling(benchmark, name):
    net, z0, c, none, style, schedule = UNETS[name], Z[:4], WORDS[:4], WORDS[4:8], STYLE[:4], make_schedule("cosine")
    scheduler = DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(20)

    @torch.no_grad()
    def sample():
        if name == "ours":
            return ddim_sample(ld.guided(net, c, none, style, 3.0), z0.shape, 20, schedule, clip=False, start=z0)
        z = z0
        for t in scheduler.timesteps:
            both = net(torch.cat([z, z]), t + 1, torch.cat([none, c]), class_labels=torch.cat([style, style])).sample
            without, with_text = both.chunk(2)
            z = scheduler.step(without + 3.0 * (with_text - without), t, z).prev_sample
        return z

    benchmark.pedantic(sample, rounds=8, warmup_rounds=1)
