"""Generated from notebooks/2_generative/07_prompt_to_prompt.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import difflib
import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from course_utils.errors import CourseError, as_list
from course_utils.lessons.clip import words
from course_utils.lessons.ddpm import at, ddim_step, q_sample, split
from course_utils.lessons.latent_diffusion import CrossAttention, guide, load_latent_diffusion


def background(before, after, tolerance=0.1):
    """Pixels where a real pair agrees and so do all within two pixels: (B, 3, H, W) twice -> bool (B, 1, H, W)."""
    differs = (before - after).abs().amax(1, keepdim=True) > tolerance
    return F.max_pool2d(differs.float(), 5, stride=1, padding=2) == 0


def background_error(a, b, mask):
    """Root mean square difference of two pictures over the mask: (B, 3, H, W) twice, (B, 1, H, W) -> (B,)."""
    square = ((a - b) ** 2).mean(1, keepdim=True) * mask
    return (square.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)).sqrt()


def attention_maps(q, k):
    """M of P2P, eq. 1: (B, heads, N, d), (B, heads, T, d) -> (B, heads, N, T). Every row sums to 1."""
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)


@contextmanager
def controlled(unet, controller):
    """While open, each attention layer uses ``controller(maps, to_words)`` for its maps; to_words: cross-attention (True) or self-attention (False)."""
    layers = {name: m for name, m in unet.named_modules() if isinstance(m, CrossAttention)}

    def attend(to_words):
        return lambda q, k, v: controller(attention_maps(q, k), to_words) @ v

    for name, layer in layers.items():
        layer.attend = attend(name.endswith("attn2"))
    try:
        yield controller
    finally:
        for layer in layers.values():
            del layer.attend


def spans(tokenizer, caption, context=20):
    """The words of a caption and the positions of their tokens: [("<start>", [0]), ("bear", [1]), ..., ("<end>", [n]), ("nothing", [n + 1, ...])]."""
    out, n = [("<start>", [0])], 1
    for word in words(caption):
        k = len(tokenizer.pieces(word))
        out.append((word, list(range(n, n + k))))
        n += k
    if n > context - 2 + 1:
        raise ValueError(f"{caption!r} has {n - 1} tokens; only {context - 2} fit: shorten the caption.")
    return [*out, ("<end>", [n]), ("nothing", list(range(n + 1, context)))]


def numbered(names):
    """Equal names told apart: ["red", "heart", "red", "nothing"] -> ["red", "heart", "red (2)", "nothing"]; the last keeps its name."""
    seen, out = Counter(names[-1:]), []
    for name in names[:-1]:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out + names[-1:]


@torch.no_grad()
def word_maps(ld, x, caption, style=1, levels=(100, 200, 300, 400, 500, 600, 700, 800), seed=0):
    """Where each word of the caption acts in a picture x (3, 64, 64) in [0, 1]: {word: (8, 8) map}; at every position the maps sum to 1.

    A word that occurs again has a map of its own, under "word (2)".
    """
    if x.shape != (3, 64, 64) or not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():
        raise CourseError(f"a picture is (3, 64, 64) from 0 to 1, and this is {(*x.shape,)} of {x.dtype}.")
    t = torch.tensor(levels, device=ld.device)
    z = ld.encode(x[None]).expand(len(t), -1, -1, -1)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).to(z)
    kept = []

    def keep(maps, to_words):
        if to_words and maps.shape[2] == 64:
            kept.append(maps.mean((0, 1)))  # (N, T)
        return maps

    with controlled(ld.unet, keep):
        ld.unet(q_sample(z, t, eps, ld.schedule), t, ld.words([caption] * len(t)), torch.full_like(t, style))
    average = torch.stack(kept).mean(0).unflatten(0, (8, 8))  # (8, 8, T)
    names, tokens = zip(*spans(ld.clip.tokenizer, caption))
    return {name: average[..., t].sum(-1).cpu() for name, t in zip(numbered([*names]), tokens)}


def inject(maps, source_maps, A, keep):
    """Source maps, mapped to the tokens of the edited caption, where keep is 1; own maps elsewhere (P2P, section 3.2). Returns (B, heads, N, T).

    maps, source_maps: (B, heads, N, T); A: (B, T, T), source tokens × edited tokens; keep: (B, T).
    """
    mapped = source_maps @ A[:, None]  # (B, heads, N, T) @ (B, 1, T, T)
    return torch.where(keep[:, None, None] > 0, mapped, maps)


def reweight(maps, scale):
    """Each token's map times its factor. maps: (B, heads, N, T); scale: (B, T). Returns (B, heads, N, T)."""
    return maps * scale[:, None, None]


@dataclass
class Controller:
    """Prompt-to-Prompt, Algorithm 1, for B rows with T tokens each. A row that names itself as its source is left as it is.

    source: (B,) row whose maps are taken; A: (B, T, T) and keep: (B, T) as in ``inject``; scale: (B, T) as in ``reweight``; words, itself: (B,) share of the
    steps with injected word maps and self-attention maps.
    """

    source: torch.Tensor
    A: torch.Tensor
    keep: torch.Tensor
    scale: torch.Tensor
    words: torch.Tensor
    itself: torch.Tensor
    done: float = 0.0  # share of the steps already made; the sampler sets it

    def __call__(self, maps, to_words):
        """Maps (B or 2B, heads, N, T or N) -> maps of the same shape. to_words: cross-attention (True) or self-attention (False)."""
        own, empty = maps[: len(self.source)], maps[len(self.source) :]  # (B, heads, N, T or N)
        theirs = own[self.source]
        if to_words:
            on = (self.done < self.words)[:, None, None, None]
            own = torch.where(on, inject(own, theirs, self.A, self.keep), own)
            own = reweight(own, self.scale)
        else:
            on = (self.done < self.itself)[:, None, None, None]
            own = torch.where(on, theirs, own)
        return torch.cat([own, empty])


def align(source, target):
    """Which tokens correspond: spans of two captions -> [(source tokens, edited tokens)]; words without a partner are in no pair.

    A caption that fills the context has no "nothing": then there is no such pair, and no attention is lost by it, as the value of "nothing" is 0.
    """
    names = [[word for word, _ in s] for s in (source, target)]
    join = lambda s: [t for _, tokens in s for t in tokens]
    pairs = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *names, autojunk=False).get_opcodes():
        if kind == "equal":
            pairs += [(s[1], t[1]) for s, t in zip(source[a:b], target[c:d])]
        elif kind == "replace":
            pairs.append((join(source[a:b]), join(target[c:d])))
    return [(s, t) for s, t in pairs if s and t]


def mapper(pairs, context=20):
    """A (context, context), source tokens × edited tokens, and keep (context,), from pairs (source tokens, edited tokens) (P2P, section 3.2)."""
    A, keep = torch.zeros(context, context), torch.zeros(context)
    for source, target in pairs:
        if len(source) == len(target):
            A[source, target] = 1
        else:
            for s in source:
                A[s, target] = 1 / len(target)
        keep[target] = 1
    return A, keep


def plan(ld, captions, source, words=0.8, itself=0.4, emphasis=None):
    """A Controller for B captions; source: B row numbers; words, itself: a number or B of them; emphasis: {word: factor} in the edited rows."""
    captions, T, factors = as_list(captions), 20, emphasis or {}
    if len(captions) != len(source):
        raise ValueError(
            f"{len(captions)} captions and {len(source)} sources: every caption needs the number of its source row."
        )
    if not all(0 <= s < len(captions) for s in source):
        raise CourseError(f"source rows are numbers from 0 to {len(captions) - 1}, not {[*map(int, source)]}.")
    B, cut = len(captions), [spans(ld.clip.tokenizer, c) for c in captions]
    A, keep, scale = torch.zeros(B, T, T), torch.zeros(B, T), torch.ones(B, T)
    for row, s in enumerate(source):
        A[row], keep[row] = mapper(align(cut[s], cut[row]), T)
        for word, tokens in cut[row]:
            if row != s:
                scale[row, tokens] = factors.get(word, 1.0)
    found = {word for row, s in enumerate(source) if row != s for word, _ in cut[row]}
    if missing := set(factors) - found:
        raise ValueError(
            f"no edited caption holds the word {missing.pop()!r}: emphasis takes single words, in small letters."
        )
    share = [torch.as_tensor(v, dtype=torch.float32).expand(B) for v in (words, itself)]
    return Controller(*(p.to(ld.device) for p in (torch.as_tensor(source), A, keep, scale, *share)))


def ladder(schedule, steps):
    """The levels that a sampler visits, evenly spaced from T down to 0: (steps + 1,)."""
    if not 1 <= steps <= schedule.T:
        raise ValueError(f"{steps} steps: between level 0 and level T there are from 1 to {schedule.T}.")
    return torch.linspace(schedule.T, 0, steps + 1).round().long()


@torch.no_grad()
def sample_side_by_side(ld, z, captions, controller, style=1, w=3.0, steps=20, heat=None, threshold=0.4, empty=None):
    """DDIM from z_T (B, 4, 16, 16) with all rows in one batch, their maps in the controller's hands. Returns z_0.

    heat: None, or (B, h, w) for ``local_blend`` with the source row; threshold: a number or (B, 1, 1, 1); empty: None, or (steps, B, 20, 128), what stands for the
    empty caption at each step.
    """
    c, none, B = ld.words(captions), ld.words([""] * len(captions)), len(captions)
    s = torch.full((2 * B,), style, device=ld.device)
    times = ladder(ld.schedule, steps)
    if not len(z) == B == len(controller.source):
        raise CourseError(f"{len(z)} latents, {B} captions and a plan for {len(controller.source)}: one of each a row.")
    if empty is not None and len(empty) != steps:
        raise CourseError(f"{len(empty)} empty captions for {steps} steps: each step has its own.")
    z = z.to(ld.device)
    with controlled(ld.unet, controller):
        for i, (now, then) in enumerate(zip(times[:-1], times[1:])):
            controller.done = i / steps
            t, u = now.expand(B).to(ld.device), then.expand(B).to(ld.device)
            both = ld.unet(torch.cat([z, z]), torch.cat([t, t]), torch.cat([c, none if empty is None else empty[i]]), s)
            z = ddim_step(z, *split(guide(*both.chunk(2), w), z, t, ld.schedule), t, u, ld.schedule)
            if heat is not None:
                z = local_blend(z, z[controller.source], heat, threshold)
    return z


@torch.no_grad()
def caption_difference(ld, z0, source, target, style=1, levels=(400, 600, 800), seed=0):
    """Where two captions disagree about a picture: mean difference of the U-Net's answers over noise levels (DiffEdit, Couairon et al. 2023). Returns (B, 16, 16).

    z0: clean latents (B, 4, 16, 16); source, target: lists of B captions.
    """
    if not len(z0) == len(as_list(source)) == len(as_list(target)) or not len(levels):
        raise CourseError(
            f"{len(z0)} latents, {len(source)} and {len(target)} captions: one of each a row, and a level."
        )
    a, b, g = ld.words(source), ld.words(target), torch.Generator().manual_seed(seed)
    s, heat = torch.full((len(z0),), style, device=z0.device), 0.0
    for level in levels:
        t = torch.full((len(z0),), level, device=z0.device)
        z = q_sample(z0, t, torch.randn(z0.shape, generator=g).to(z0), ld.schedule)
        heat = heat + (ld.unet(z, t, a, s) - ld.unet(z, t, b, s)).abs().mean(1, keepdim=True)
    return F.avg_pool2d(heat, 3, stride=1, padding=1, count_include_pad=False)[:, 0] / len(levels)


def local_blend(z, z_source, heat, threshold=0.4):
    """Edited latents inside the mask, the source's outside. z, z_source: (B, C, H, W); heat: (B, h, w), not negative. Returns (B, C, H, W)."""
    m = F.interpolate(heat[:, None], size=z.shape[-2:], mode="bilinear")  # (B, 1, H, W)
    inside = m > threshold * m.amax((2, 3), keepdim=True)
    return torch.where(inside, z, z_source)


def inversion_step(zt, eps, t, s, schedule):
    """DDIM from level t up to level s > t with the noise eps (Song et al. 2021, eq. 13, reversed). zt, eps: (B, ...); t, s: (B,). Returns z_s."""
    now, then = at(schedule.abar, t, zt), at(schedule.abar, s, zt)
    clean = (zt - (1 - now).sqrt() * eps) / now.sqrt()
    return then.sqrt() * clean + (1 - then).sqrt() * eps


@torch.no_grad()
def invert(model, z0, steps, schedule, target="v", rounds=1):
    """DDIM inversion: z_0 (B, ...) -> the path [z_0, ..., z_T], steps + 1 latents. model(z, t) as for ``ddim_sample``; rounds: fixed-point iterations a step."""
    if rounds < 1:
        raise CourseError(f"each step of the inversion needs at least one round, not {rounds}")
    times = ladder(schedule, steps).flip(0)
    path = [z0]
    for now, then in zip(times[:-1], times[1:]):
        t, s = now.expand(len(z0)).to(z0.device), then.expand(len(z0)).to(z0.device)
        z = path[-1]
        for _ in range(rounds):
            eps = split(model(z, s), z, s, schedule, target)[1]
            z = inversion_step(path[-1], eps, t, s, schedule)
        path.append(z)
    return path


def null_text_step(ld, z, t, u, words, empty, style, w, goal, rounds, lr):
    """Fit the empty caption's embedding (B, 20, 128) so that one guided step from level t to u lands on goal. Returns it, the latent reached, the losses."""
    with torch.no_grad():
        with_words = ld.unet(z, t, words, style)
    empty = empty.detach().clone().requires_grad_()
    optimiser, losses = torch.optim.Adam([empty], lr=lr), []
    for k in range(rounds + 1):
        v = guide(with_words, ld.unet(z, t, empty, style), w)
        reached = ddim_step(z, *split(v, z, t, ld.schedule), t, u, ld.schedule)
        loss = (reached - goal).square().mean((1, 2, 3))  # each picture has its own
        losses.append(loss.mean().item())
        if k < rounds:
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
    return empty.detach(), reached.detach(), losses


@torch.no_grad()
def clip_direction(clip, before, after, source, target):
    """Cosine between the change of the picture and the change of the caption, (B,). Pictures (B, 3, 64, 64) in [0, 1]; captions: lists of B strings."""
    if not len(before) == len(after) == len(as_list(source)) == len(as_list(target)):
        raise CourseError("every row has a picture and a caption before and after, and the counts differ.")
    see = lambda x: clip.encode_image(F.avg_pool2d(x.to(clip.log_scale.device), 2))
    return F.cosine_similarity(see(after) - see(before), clip.encode_text(target) - clip.encode_text(source)).cpu()


def error_at(strength, errors, directions, fine=200):
    """Least error on a piecewise linear curve (errors, directions: lists over a knob) where direction >= strength; inf if it never gets there."""
    if len(errors) != len(directions):
        raise CourseError(f"{len(errors)} errors and {len(directions)} directions: one of each a setting of the knob.")
    best = min((e for e, d in zip(errors, directions) if d >= strength), default=math.inf)
    for (e0, e1), (d0, d1) in zip(zip(errors, errors[1:]), zip(directions, directions[1:])):
        for k in range(fine + 1):
            if d0 + (d1 - d0) * k / fine >= strength:
                best = min(best, e0 + (e1 - e0) * k / fine)
    return best
