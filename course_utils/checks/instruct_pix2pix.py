"""Checks of lesson 2.8 (InstructPix2Pix): each computes its own answer with plain numbers, one example at a time."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..exercises import Wrong, agree, right, same

HINTS = {
    "direction_similarity": [
        "How did the picture move, and how did the caption move? Both are arrows in CLIP's space.",
        "Two differences, after minus before; then the cosine of the angle between them, row by row. What is it when one of them has no length?",
        "F.cosine_similarity(..., ..., dim=-1) of the two differences; it gives 0 where a length is 0.",
    ],
    "widen": [
        "What must a layer hold so that the new channels change nothing at first? And what else does a convolution have besides its weights?",
        "Weights have shape (out, in, height, width): the new ones are zeros behind the old ones, along axis 1. A copy of the whole layer brings stride, padding, bias, dtype and device along.",
        "wide = copy.deepcopy(conv).requires_grad_(); add extra to wide.in_channels; wide.weight = nn.Parameter(F.pad(wide.weight.detach(), (0, 0, 0, 0, 0, extra))).",
    ],
    "drop_conditions": [
        "Two masks of shape (B,): in which examples does the instruction go, in which the picture?",
        "Draw the line from 0 to 1 with marks at p, 2p and 3p. The instruction goes on the first two stretches, the picture on the second and third. Which stretch does a mark itself belong to?",
        "no_words = u < 2 * p, no_picture = (u >= p) & (u < 3 * p); give the masks the shape of what they choose from, [:, None, None, None] and [:, None, None], and use torch.where twice.",
    ],
    "guide_both": [
        "Start at what is said without any condition, and add two differences.",
        "The first difference is what the picture adds to nothing; the second, what the instruction adds to the picture. Which scale belongs to which?",
        "none, plus s_I times (picture - none), plus s_T times (both - picture).",
    ],
    "sample_edit": [
        "What does `ddim_sample` want? A function model(z, t), and that function may ask the network as it likes.",
        "Three questions: (zeros, nothing), (picture, nothing), (picture, words). Which are needed depends on the scales alone, so find out before the first step. In model, "
        "repeat z and t once for each that is needed, ask once, and cut the answer with .chunk.",
        "asked = {'none': (torch.zeros_like(picture), none), 'picture': (picture, none), 'both': (picture, words)} with none = nothing.expand_as(words); needed = the keys whose weight is "
        "not 0; in model, found = dict(zip(needed, out.chunk(len(needed)))) and zeros for the rest go to guide_both; last, ddim_sample(model, start.shape, steps, schedule, clip=False, "
        "start=start, device=start.device).",
    ],
}


def direction_similarity(answer):
    def cosine(u, v):
        lengths = u.square().sum().sqrt() * v.square().sum().sqrt()
        return (u * v).sum() / lengths if lengths > 0 else 0 * (u * v).sum()

    def rows(move):
        return lambda a, b, s, t: torch.stack([cosine(*move(a[i], b[i], s[i], t[i])) for i in range(len(a))])

    def dots(a, b, s, t):
        return torch.stack([((b[i] - a[i]) * (t[i] - s[i])).sum() for i in range(len(a))])

    reference = rows(lambda a, b, s, t: (b - a, t - s))
    suspects = [
        ("one of the two directions points from after to before: both are after minus before.", rows(lambda a, b, s, t: (a - b, t - s))),
        ("this compares the edited picture with the edited caption, not how the two moved.", rows(lambda a, b, s, t: (b, t))),
        ("this is a dot product: the lengths of the two arrows still count.", dots),
    ]

    def case(n, d, dtype=torch.float64):
        def draw(g):
            values = torch.randn(4, n, d, generator=g, dtype=torch.float64).to(dtype) * torch.logspace(0, 2, n, dtype=dtype)[:, None]
            return dict(zip(("image_before", "image_after", "text_before", "text_after"), values))

        return draw

    names = ("image_before", "image_after", "text_before", "text_after")
    agree(answer, reference, [case(5, 7), case(3, 2), case(1, 4)], what="the direction similarity", grad=names, tol=2e-8, suspects=suspects)
    agree(answer, reference, case(4, 6, torch.float32), what="the direction similarity in single precision", tol=1e-5)

    def still(g):
        a, b, s, t = torch.randn(4, 3, 5, generator=g)
        b[1], t[2] = a[1], s[2]  # one picture that did not move, one caption
        return {"image_before": a, "image_after": b, "text_before": s, "text_after": t}

    agree(answer, reference, still, what="the direction similarity where a picture or a caption did not move (0 is wanted)")


def widen(answer):
    g = torch.Generator().manual_seed(2)
    cases = [
        (16, torch.float32, {"kernel_size": 3, "padding": 1}),
        (3, torch.float64, {"kernel_size": 1, "bias": False}),
        (4, torch.float32, {"kernel_size": (3, 2), "padding": (1, 0), "stride": (2, 1), "dilation": (1, 2)}),
        (1, torch.float64, {"kernel_size": 3, "padding": 2, "padding_mode": "circular"}),
    ]
    for number, (extra, dtype, how) in enumerate(cases):
        for _ in range(2):
            conv = nn.Conv2d(6, 5, **how, dtype=dtype)
            with torch.no_grad():
                for p in conv.parameters():
                    p.copy_(torch.randn(p.shape, generator=g))
            conv.requires_grad_(number % 2 == 1)  # a frozen layer, too
            _widened(answer, conv, extra, g)
    far = nn.Conv2d(3, 4, 3, device="meta")
    try:
        wide = answer(far, 2)
    except NotImplementedError as e:
        raise Wrong("a layer on another device than the CPU cannot be widened: make the new weights on the device of the old ones.") from e
    right(wide.weight.device == far.weight.device, "the new layer should be on the device of the old one.")


def _widened(answer, conv, extra, g):
    """One convolution against its widened copy."""
    n, dtype = conv.in_channels, conv.weight.dtype
    before = {k: v.detach().clone() for k, v in conv.state_dict().items()}
    learns = [p.requires_grad for p in conv.parameters()]
    wide = answer(conv, extra)
    right(isinstance(wide, nn.Conv2d), f"return an nn.Conv2d, not a {type(wide).__name__}.")
    right(wide is not conv and conv.in_channels == n, "the old layer itself was changed: return a new one.")
    shape = (conv.out_channels, n + extra, *conv.kernel_size)
    right(wide.weight.shape == shape, f"the weights should have shape {shape}, but they have {tuple(wide.weight.shape)}.")
    right(wide.in_channels == n + extra, f"the layer says that it has {wide.in_channels} input channels; it takes {n + extra}.")
    right(wide.weight.dtype == dtype, f"the weights should keep the dtype {dtype} of the old layer, but they are {wide.weight.dtype}.")
    for name in ("stride", "padding", "dilation", "padding_mode"):
        right(getattr(wide, name) == getattr(conv, name), f"{name} should be that of the old layer, {getattr(conv, name)}; it is {getattr(wide, name)}.")
    if conv.bias is None:
        right(wide.bias is None, "the old layer has no bias, and the new one has.")
    else:
        right(wide.bias is not None and torch.equal(wide.bias, before["bias"]), "the bias is not the old one.")
    behind, front = before["weight"], wide.weight.detach()
    right(
        extra == 0 or not torch.equal(front[:, extra:], behind) or torch.equal(front[:, :n], behind),
        "the new channels come first: they should follow the old ones.",
    )
    same(front[:, :n], behind, "the old channels' weights", tol=0.0)
    right(not front[:, n:].any(), "the new weights are not zero: an arbitrary picture would disturb the base model.")
    x, more = torch.randn(2, n, 8, 9, generator=g).to(dtype), torch.randn(2, extra, 8, 9, generator=g).to(dtype)
    with torch.no_grad():
        same(wide(torch.cat([x, more], 1)), conv(x), "what the wide layer gives")
    right(all(p.requires_grad and p.is_leaf for p in wide.parameters()), "some of the new layer's parameters could never learn: all should require a gradient.")
    wide(torch.cat([x, more], 1)).square().sum().backward()
    right(wide.weight.grad is not None and wide.weight.grad[:, n:].any(), "no gradient reaches the new weights.")
    right(wide.weight.grad[:, :n].any(), "no gradient reaches the old channels' weights: all parameters should learn.")
    with torch.no_grad():
        for p in wide.parameters():
            p.add_(1.0)
    unchanged = all(torch.equal(v, before[k]) for k, v in conv.state_dict().items())
    right(unchanged, "training the new layer changes the old one: the two share memory.")
    right([p.requires_grad for p in conv.parameters()] == learns, "the old layer's requires_grad was changed.")
    right(not answer(conv, extra).weight[:, n:].any(), "a second call gives the layer of the first, already changed: make a new one each time.")


def _left_out(picture, words, nothing, u, p=0.05, instruction=(0, 2), image=(1, 3), zero=False, closed=False):
    """Example by example: ``instruction`` and ``image`` say between which multiples of p each goes."""
    pictures, sentences = [], []
    for x, c, v in zip(picture, words, u.tolist()):
        inside = lambda lo, hi, v=v: (lo * p < v <= hi * p or (lo == 0 and v == 0)) if closed else lo * p <= v < hi * p
        pictures.append(0 * x if inside(*image) else x)
        sentences.append((0 * c if zero else nothing[0] + 0 * c) if inside(*instruction) else c)
    return torch.stack(pictures), torch.stack(sentences)


def drop_conditions(answer):
    def suspect(**how):
        return lambda *given: _left_out(*given, **how)

    suspects = [
        ("a value of u that is exactly p, 2p or 3p belongs to the stretch that begins there.", suspect(closed=True)),
        ("an instruction that is left out is the empty caption `nothing`, not zeros.", suspect(zero=True)),
        ("nothing was left out.", suspect(instruction=(0, 0), image=(0, 0))),
        ("picture and instruction have changed places.", suspect(instruction=(1, 3), image=(0, 2))),
        ("there is no example without both: between p and 2p picture and instruction go together.", suspect(instruction=(0, 1), image=(1, 2))),
        ("both always go together: one of them alone should go, too.", suspect(instruction=(0, 3), image=(0, 3))),
        ("p is an argument, and 0.05 only what it is where nobody says otherwise.", lambda *given: _left_out(*given[:4])),
    ]

    def case(p, picture, words, dtype=torch.float64):
        def draw(g):
            u = torch.tensor([0.0, 0.5 * p, p, 1.5 * p, 2 * p, 2.9 * p, 3 * p, 3.5 * p, 0.99], dtype=dtype)
            u = torch.cat([u, torch.rand(5, generator=g, dtype=dtype)])[torch.randperm(14, generator=g)]
            make = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64).to(dtype)
            return {"picture": make(14, *picture), "words": make(14, *words), "nothing": make(1, *words), "u": u, "p": p}

        return draw

    cases = [case(0.125, (2, 3, 4), (4, 5)), case(0.25, (1, 5, 2), (3, 2)), case(0.0, (2, 1, 3), (1, 4))]
    agree(answer, _left_out, cases, what="what you return", grad=("picture", "words", "nothing"), tol=1e-9, suspects=suspects)
    agree(answer, _left_out, case(0.0625, (3, 2, 2), (2, 3), torch.float32), what="what you return in single precision", suspects=suspects)

    def usual(g):
        u = torch.linspace(0, 0.99, 23, dtype=torch.float64)
        make = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
        return {"picture": make(23, 2, 2, 3), "words": make(23, 2, 4), "nothing": make(1, 2, 4), "u": u}

    agree(answer, _left_out, usual, what="what you return without p (it is 0.05 then)", tol=1e-9)


def guide_both(answer):
    def suspects():
        yield (
            "the two scales have changed places: s_I goes with what the picture adds, s_T with what the instruction adds.",
            lambda n, p, b, i, t: n + t * (p - n) + i * (b - p),
        )
        yield (
            "the second difference starts from nothing: it should be what the instruction adds to the picture.",
            lambda n, p, b, i, t: n + i * (p - n) + t * (b - n),
        )
        yield "there is one difference only: the picture and the instruction have each their own.", lambda n, p, b, i, t: n + t * (b - n)
        yield "the start is the picture's answer, not the answer without conditions.", lambda n, p, b, i, t: p + i * (p - n) + t * (b - p)

    def case(shape, s_I, s_T, dtype=torch.float64):
        def draw(g):
            values = torch.randn(3, *shape, generator=g, dtype=torch.float64).to(dtype)
            return {**dict(zip(("none", "picture", "both"), values)), "s_I": s_I, "s_T": s_T}

        return draw

    reference = lambda none, picture, both, s_I, s_T: (1 - s_I) * none + (s_I - s_T) * picture + s_T * both
    scales = [(1.5, 7.5), (0.3, 2.0), (1.0, 1.0), (0.0, 0.0), (1.2, 0.0), (0.0, 2.0), (2.5, 2.5), (1.1, -0.5)]
    shapes = [(2, 4, 3, 5), (3,), (1, 2, 6), (2, 1, 1, 3, 2), (5, 2), (6,), (), (4, 3, 2)]
    cases = [case(shape, *s) for shape, s in zip(shapes, scales)]
    agree(answer, reference, cases, what="the guided output", grad=("none", "picture", "both"), tol=1e-9, suspects=list(suspects()))
    agree(answer, reference, case((0, 4, 2), 1.5, 7.5), what="the guided output of no picture at all")
    agree(answer, reference, case((2, 3), 1.5, 7.5, torch.float32), what="the guided output in single precision", tol=1e-5)


def _edited(unet, picture, words, nothing, s_I, s_T, start, steps, schedule, swap=False, clip=False, still=False, zero=False, level=0):
    """Picture by picture, level by level, one question at a time; DDIM with the velocity written out."""
    marks = sorted({round(schedule.T * (1 - k / steps)) for k in range(steps + 1)}, reverse=True)
    if swap:
        s_I, s_T = s_T, s_I
    done = []
    for b in range(len(start)):
        z, look, say, quiet = start[b : b + 1], picture[b : b + 1], words[b : b + 1], nothing * (0 if zero else 1)
        for now, then in zip(marks, marks[1:]):
            ask = lambda x, c, z=z, now=now: unet(torch.cat([z, x], 1), torch.tensor([now - level]), c, torch.zeros(1, dtype=torch.long))
            none = ask(look if still else 0 * look, quiet)
            seen, both = ask(look, quiet), ask(look, say)
            v = none + s_I * (seen - none) + s_T * (both - seen)
            a, s, a2, s2 = (math.sqrt(x) for k in (now, then) for x in (schedule.abar[k].item(), 1 - schedule.abar[k].item()))
            clean = a * z - s * v
            clean = clean.clamp(-1, 1) if clip else clean
            z = a2 * clean + s2 * (z - a * clean) / s
        done.append(z)
    return torch.cat(done)


def sample_edit(answer):
    from ..lessons.ddpm import make_schedule

    schedule, asked = make_schedule(T=40), []

    def unet(x, t, words, style):
        """A small smooth function in the U-Net's place; it keeps count of what it is asked."""
        asked.append(len(x))
        rows, channels = len(x), x.shape[1] // 2
        right(
            x.ndim == 4 and x.shape[1] == 2 * sizes[0],
            f"the U-Net wants z and the picture side by side, {2 * sizes[0]} channels; it was given {tuple(x.shape)}.",
        )
        right(tuple(t.shape) == (rows,), f"the U-Net wants one level t for each of its {rows} rows, but t has shape {tuple(t.shape)}.")
        right(t.dtype == torch.long, f"the levels t are whole numbers (torch.long), as the sampler gives them; the U-Net was given {t.dtype}.")
        right(tuple(words.shape) == (rows, *sizes[1:]), f"the U-Net wants words of shape {(rows, *sizes[1:])}, but they have {tuple(words.shape)}.")
        right(tuple(style.shape) == (rows,), f"the U-Net wants one style for each of its {rows} rows, but style has shape {tuple(style.shape)}.")
        right(style.dtype == torch.long, f"styles are whole numbers (torch.long); the U-Net was given {style.dtype}.")
        z, picture = x[:, :channels], x[:, channels:]
        said = (words * torch.linspace(-1, 1, words.shape[-1]).to(words)).sum((1, 2))[:, None, None, None]
        level = (t / 40).to(x)[:, None, None, None]
        return 0.7 * z.sin() * level + (picture * (1 + 0.5 * said)).tanh() * 1.3 - 0.4 * said.cos() + 0.5 * style[:, None, None, None]

    def run(fn):
        return lambda *given: fn(unet, *given, schedule)

    def counted(picture, words, nothing, s_I, s_T, start, steps):
        asked.clear()
        sizes[:] = [picture.shape[1], *words.shape[1:]]
        out = answer(unet, picture, words, nothing, s_I, s_T, start, steps, schedule)
        calls, n = list(asked), len(start)
        right(
            len(calls) == min(steps, schedule.T),
            f"the network should be asked once at each of the {min(steps, schedule.T)} steps; it was asked {len(calls)} times.",
        )
        needed = (s_I != 1) + (s_I != s_T) + (s_T != 0)
        wanted = f"with s_I = {s_I:g} and s_T = {s_T:g}, {needed} of the three questions have a weight other than 0"
        right(set(calls) == {needed * n}, f"{wanted}, so {n} pictures make a batch of {needed * n}; the network was given {calls[0]}.")
        return out

    def reference(*given):
        sizes[:] = [given[0].shape[1], *given[1].shape[1:]]
        return run(_edited)(*given)

    def suspect(**how):
        return run(lambda *given: _edited(*given, **how))

    sizes = [4, 3, 5]
    suspects = [
        ("the two scales have changed places.", suspect(swap=True)),
        ("the guesses of the clean latent were clipped to -1 … 1; latents reach further: clip=False.", suspect(clip=True)),
        ("the answer without conditions still sees the picture: left out means zeros.", suspect(still=True)),
        ("an instruction that is left out is `nothing`, not zeros.", suspect(zero=True)),
    ]

    def case(n, shape, words, s_I, s_T, steps, dtype=torch.float64):
        def draw(g):
            make = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64).to(dtype)
            c = {"picture": 2 * make(n, *shape), "words": make(n, *words), "nothing": make(1, *words)}
            return {**c, "s_I": s_I, "s_T": s_T, "start": 1.5 * make(n, *shape), "steps": steps}

        return draw

    cases = [
        case(2, (4, 3, 2), (3, 5), 1.5, 3.0, 4),
        case(3, (2, 2, 3), (4, 2), 1.2, 0.4, 3),
        case(1, (3, 1, 2), (2, 3), 1.7, -0.5, 1),
        case(2, (3, 2, 2), (2, 4), 1.3, 2.0, 50),
    ]
    agree(counted, reference, cases, what="the edited latent", tol=1e-8, suspects=suspects)
    for s_I, s_T in ((1.0, 2.0), (1.5, 1.5), (1.4, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 1.5)):
        agree(counted, reference, case(2, (3, 2, 4), (3, 2), s_I, s_T, 3), what=f"the edited latent with s_I = {s_I:g}, s_T = {s_T:g}", tol=1e-8)
    agree(counted, reference, case(2, (4, 2, 3), (2, 5), 1.5, 2.0, 3, torch.float32), what="the edited latent in single precision", tol=1e-3)
