"""Checks of 1.2 CLIP. Each compares with a computation of its own on random input."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..exercises import AnswerStopped, Wrong, agree, right, same, same_learning

HINTS = {
    "patchify": [
        "Where does pixel (row, column) go? Patch number (row // P, column // P), place inside it (row % P, column % P).",
        "einops can split an axis in its pattern: (h p) is an axis of length h · p. Which letters stand for the patch's number, which for the place inside it?",
        'From "b c (h p) (w q)" to "b (h w) (c p q)", with p = q = patch.',
    ],
    "attention": [
        "Three steps: scores of every query with every key, softmax over the keys, weighted sum of the values.",
        "The scores are q @ k.transpose(-2, -1) divided by the square root of the length of a query. Where must the mask go in so that forbidden pairs get the weight 0 and the rest still sums to 1?",
        "scores.masked_fill(~mask, -torch.inf), then softmax(-1), then @ v.",
    ],
    "TextTransformer": [
        "Follow one caption: numbers, vectors, blocks, one vector. Which position has seen the whole caption, and what stands behind it?",
        "Each block gets the causal mask, (T, T), True on and below the diagonal. (ids == self.end) is True at every <end>; the place of the first one is an argmax.",
        "z = self.token(ids) + self.position[:T]; run the blocks with torch.ones(T, T, dtype=torch.bool).tril(); end = (ids == self.end).int().argmax(1); self.project(self.norm_out(z)[torch.arange(B), end]).",
    ],
    "info_nce": [
        "Make both embeddings unit vectors first. Then one matrix holds all similarities: which index is the picture, which the caption?",
        "Row i is a classification problem with B classes whose right answer is i. The columns are the same problem for the captions.",
        "logits = scale * z_image @ z_text.T; the mean of F.cross_entropy(logits, own) and F.cross_entropy(logits.T, own), where own counts 0 … B−1.",
    ],
    "recall_at_k": [
        "For each row, how many other entries are at least as large as the one on the diagonal?",
        "similarity.diagonal()[:, None] can be compared with the whole matrix; the comparison with itself counts one too many.",
        "rivals = (similarity >= own).sum(1) - 1; the share of rows with rivals < k, as a Python float.",
    ],
    "class_vectors": [
        "For each class: embed all its prompts in one call, average over the prompts.",
        "How long is the mean of unit vectors? A class whose prompts differ must not be at a disadvantage.",
        "For each class F.normalize(encode_text(p).mean(0), dim=-1), stacked.",
    ],
}


def patchify(answer):
    def brute(x, P, columns=False, inside=lambda t: t):
        B, C, H, W = x.shape
        places = [(r, c) for r in range(0, H, P) for c in range(0, W, P)]
        places = [(r, c) for c in range(0, W, P) for r in range(0, H, P)] if columns else places
        return torch.stack([inside(x[:, :, r : r + P, c : c + P]).reshape(B, -1) for r, c in places], 1)

    suspects = [
        ("the patches come column by column: they should come row by row from the top left.", lambda x, P: brute(x, P, columns=True)),
        ("inside a token the colours come last: the order is colour, row, column.", lambda x, P: brute(x, P, inside=lambda t: t.permute(0, 2, 3, 1))),
        ("inside a token rows and columns are exchanged.", lambda x, P: brute(x, P, inside=lambda t: t.transpose(2, 3))),
        (
            "the pixels of a token do not come from one square patch: the axes were reshaped without being moved.",
            lambda x, P: x.reshape(len(x), -1, x.shape[1] * P * P),
        ),
    ]
    case = lambda B, C, H, W, P, dtype=torch.float32: lambda g: {"x": torch.rand(B, C, H, W, generator=g, dtype=dtype), "patch": P}
    cases = [case(2, 3, 8, 12, 4), case(1, 3, 4, 12, 2), case(3, 2, 6, 9, 3), case(2, 1, 5, 5, 5), case(2, 4, 4, 6, 1), case(1, 3, 4, 2, 2, torch.float64)]
    agree(answer, brute, cases, what="the tokens", grad=("x",), suspects=suspects)


def _attend(q, k, v, mask=None, root=True, over=-1, after=False, flip=False):
    """Attention one query at a time, over whatever leading axes there are."""
    out = []
    for i in range(q.shape[-2]):
        e = (q[..., i : i + 1, :] * k).sum(-1) / (math.sqrt(q.shape[-1]) if root else 1)  # (..., T)
        if mask is not None and not after:
            e = e.masked_fill(mask[i] if flip else ~mask[i], -torch.inf)
        e = torch.exp(e - e.detach().amax(-1, keepdim=True))
        share = e / e.sum(-1, keepdim=True)
        share = share * mask[i] if mask is not None and after else share
        out.append((share[..., None] * v).sum(-2))
    return torch.stack(out, -2)


def attention(answer):
    suspects = [
        ("the scores are not divided by √d: with wide tokens the softmax would become a hard maximum.", lambda *a: _attend(*a, root=False)),
        ("the mask changes nothing.", lambda q, k, v, mask=None: _attend(q, k, v)),
        ("the mask came after the softmax: what is left no longer sums to 1.", lambda *a: _attend(*a, after=True)),
        ("the mask is upside down: True means may look.", lambda q, k, v, mask=None: _attend(q, k, v, mask, flip=True)),
        ("the mask is transposed: row i says where token i may look.", lambda q, k, v, mask=None: _attend(q, k, v, None if mask is None else mask.T)),
        ("queries and keys are exchanged.", lambda q, k, v, mask=None: _attend(k, q, v, mask)),
    ]

    def case(T, d, *leading, mask=None, dtype=torch.float64):
        def draw(g):
            qkv = {n: torch.randn(*leading, T, d, generator=g, dtype=dtype) for n in "qkv"}
            return qkv | ({} if mask is None else {"mask": mask})

        return draw

    odd = torch.rand(6, 6, generator=torch.Generator().manual_seed(4)) > 0.4
    odd.fill_diagonal_(True)
    cases = [case(5, 4, 2, 3), case(6, 3), case(6, 3, 2, mask=torch.ones(6, 6, dtype=torch.bool).tril()), case(6, 5, 2, 3, mask=odd), case(1, 4, 2)]
    agree(answer, _attend, cases, what="attention", grad=("q", "k", "v"), tol=1e-9, suspects=suspects)
    agree(answer, _attend, case(5, 4, 2, 3, dtype=torch.float32), what="attention in single precision", tol=1e-5)
    large = lambda g: {"q": 300 * torch.randn(4, 3, generator=g), "k": torch.randn(4, 3, generator=g), "v": torch.randn(4, 3, generator=g)}

    def masked(g):
        given = large(g) | {"mask": torch.ones(4, 4, dtype=torch.bool).tril()}
        given["q"][0] = -1000 * given["k"][0]  # the only pair that row 0 has is one that fits very badly
        return given

    agree(answer, _attend, large, what="attention with large scores", tol=1e-4)
    agree(
        answer,
        _attend,
        masked,
        what="attention with large scores and a mask",
        tol=1e-4,
        suspects=[("a forbidden pair gets some weight where the scores are large.", _leak)],
    )


def _leak(q, k, v, mask, low=-100.0):
    """Attention whose mask is a low score instead of none."""
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, low).softmax(-1) @ v


def _read_text(net, ids, causal=True, place=True, first=True, norm=True, project=True):
    """The text Transformer, caption by caption and without its padding; the switches build the usual mistakes."""
    out = []
    for row in ids:
        ends = (row == net.end).nonzero().flatten()
        end = int(ends[0] if first else ends[-1])
        z = net.token.weight[row] + (net.position[: len(row)] if place else 0)
        T = len(row)
        mask = torch.ones(T, T, dtype=torch.bool).tril() if causal else torch.ones(T, T, dtype=torch.bool)
        z = z[None]
        for block in net.blocks:
            z = block(z, mask)
        z = net.norm_out(z) if norm else z
        out.append(z[0, end] @ net.project.weight.T if project else z[0, end])
    return torch.stack(out)


def TextTransformer(answer):
    suspects = [
        ("a token sees what stands to its right: the causal mask is missing.", dict(causal=False)),
        ("the positions are not added: the order of the words would not matter.", dict(place=False)),
        ("the last <end> was read: the sentence stands at the first one.", dict(first=False)),
        ("norm_out is missing before the projection.", dict(norm=False)),
    ]
    g = torch.Generator().manual_seed(3)
    for dtype, tol, end_is in ((torch.float64, 1e-9, 3), (torch.float64, 1e-9, 5), (torch.float32, 1e-4, 3)):
        net = answer(11, context=9, width=8, layers=2, heads=2, embed=5, end=end_is).to(dtype)
        right(isinstance(net, nn.Module), "TextTransformer should stay an nn.Module.")
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.5)
        for T in (9, 6, 3):  # the longest that fits, a shorter one, <start> word <end>
            ids = torch.full((4, T), 0)
            for b, row in enumerate(ids):
                end = max(2, T - 1 - b)
                row[0], row[1:end], row[end] = 2, torch.randint(6, 11, (end - 1,), generator=g), end_is
                if b == 2 and end + 1 < T:
                    row[end + 1] = end_is  # a second <end> in the padding
                if b == 0 and T > 3:
                    row[2] = 8 - end_is  # 5 where <end> is 3, and 3 where it is 5: an ordinary word
            weight = net.token.weight.detach().clone()

            def run(fn):
                def with_weight(w):
                    return torch.func.functional_call(net, {"token.weight": w}, (ids,)) if fn is None else fn(_With(net, w), ids)

                return with_weight

            case = lambda g: {"token": weight + 0.1 * torch.randn(weight.shape, generator=g, dtype=dtype)}
            bound = [(m, run(lambda n, i, how=how: _read_text(n, i, **how))) for m, how in suspects] if T > 3 else []
            what = f"the embedding of captions of {T} tokens"
            agree(run(None), run(_read_text), case, what=what, grad=("token",), tol=tol, suspects=bound)
            given = ids.clone()
            same_learning(net, net(ids), _read_text(net, given), what, tol=10 * tol)
            right(torch.equal(ids, given), "the caption's numbers were changed in place: work on a copy.")
            same(net(ids[:1]), _read_text(net, given[:1]), f"the embedding of one caption of {T} tokens", tol=tol)
    _new_tensors(net, ids)


def _new_tensors(net, ids):
    """Where no device is given, tensors are made on one that holds no numbers; so forward has to name the device of ids."""
    try:
        with torch.device("meta"):
            out = net(ids)
    except (AnswerStopped, RuntimeError):
        out = None
    right(out is not None and out.device == ids.device, "a new tensor is not made on the device of ids (device=ids.device).")


class _With:
    """A network seen with other word vectors."""

    def __init__(self, net, weight):
        self.token = type("Token", (), {"weight": weight})
        self.position, self.blocks, self.norm_out, self.project, self.end = net.position, net.blocks, net.norm_out, net.project, net.end


def info_nce(answer):
    def brute(a, b, s, rows=0.5, columns=0.5, unit=True, reduce=torch.mean):
        x = torch.stack([torch.stack([(p @ q) / (p.norm() * q.norm() if unit else 1) * s for q in b]) for p in a])
        own = x.diagonal()
        return reduce(rows * (x.logsumexp(1) - own) + columns * (x.logsumexp(0) - own))

    suspects = [
        ("only the rows are counted: each picture picks a caption, and each caption should pick a picture, too.", lambda *a: brute(*a, rows=1.0, columns=0.0)),
        (
            "only the columns are counted: each caption picks a picture, and each picture should pick a caption, too.",
            lambda *a: brute(*a, rows=0.0, columns=1.0),
        ),
        ("that is the sum of the two directions; the loss is their mean.", lambda *a: brute(*a, rows=1.0, columns=1.0)),
        ("the batch was summed: its mean is wanted.", lambda *a: brute(*a, reduce=torch.sum)),
        ("the embeddings are not scaled to length one, so the loss could fall by making vectors longer.", lambda *a: brute(*a, unit=False)),
        ("scale is 1/τ already, but it was used as τ.", lambda a, b, s: brute(a, b, 1 / s)),
        ("scale is not used.", lambda a, b, s: brute(a, b, 1.0)),
    ]

    def case(B, E, dtype=torch.float64):
        def draw(g):
            shapes = torch.randn(2, B, E, generator=g, dtype=dtype) * torch.linspace(0.3, 3, B, dtype=dtype)[:, None]
            return {"z_image": shapes[0], "z_text": shapes[1], "scale": 4 + 6 * torch.rand((), generator=g, dtype=dtype)}

        return draw

    cases = [case(6, 5), case(4, 9), case(1, 3)]
    agree(answer, brute, cases, what="the loss", grad=("z_image", "z_text", "scale"), tol=1e-9, suspects=suspects)
    agree(answer, brute, case(6, 5, torch.float32), what="the loss in single precision", tol=1e-5)
    sharp = lambda dtype: lambda g: case(6, 5, dtype)(g) | {"scale": torch.tensor(150.0, dtype=dtype)}
    what = "the loss with a scale of 150"
    agree(answer, brute, sharp(torch.float64), what=what, grad=("z_image", "z_text", "scale"), tol=1e-9)
    agree(answer, brute, sharp(torch.float32), what=f"{what} in single precision (the exponential of that is inf)", tol=1e-5)
    plain = lambda g: case(6, 5)(g) | {"scale": 7.0}
    agree(answer, brute, plain, what="the loss with a plain number as scale", tol=1e-9)


def recall_at_k(answer):
    N = 40

    def brute(s, k, columns=False, own=False, ties=True):
        s = s.T if columns else s
        rivals = [sum(float(s[i, j] >= s[i, i] if ties else s[i, j] > s[i, i]) for j in range(len(s)) if own or j != i) for i in range(len(s))]
        return sum(r < k for r in rivals) / len(s)

    suspects = [
        ("that is the recall of the columns: each row is a query.", lambda s, k: brute(s, k, columns=True)),
        ("the own entry was counted among its rivals.", lambda s, k: brute(s, k, own=True)),
        ("that is a count: a share between 0 and 1 is wanted.", lambda s, k: brute(s, k) * len(s)),
        ("k is not used: that is R@1.", lambda s, k: brute(s, 1)),
        ("that is R@(k+1): one rival too many is allowed.", lambda s, k: brute(s, k + 1)),
        ("a tie counts as a win: against a model that says nothing, every row would be right.", lambda s, k: brute(s, k, ties=False)),
    ]
    case = lambda n, k, noise: lambda g: {"similarity": noise * torch.randn(n, n, generator=g) + torch.eye(n), "k": k}
    rounded = lambda n, k: lambda g: {"similarity": torch.randint(0, 4, (n, n), generator=g).float(), "k": k}
    close = lambda g: {"similarity": 1 + 1e-5 * torch.randn(9, 9, generator=g), "k": 4}
    cases = [case(N, k, 0.7) for k in (1, 3, 10)] + [rounded(N, 1), rounded(N, 20), case(7, 7, 0.7), case(1, 1, 0.7), close]
    agree(answer, brute, cases, what="R@k of a random matrix", tol=1e-6, suspects=suspects)
    right(answer(torch.zeros(8, 8), 1) == 0.0, "a matrix of zeros says nothing, yet it scores above 0: a tie must count as a loss.")


def class_vectors(answer):
    words = "abcdefgh"

    def encoder(table):
        def encode_text(captions):
            if isinstance(captions, str) or not isinstance(captions, (list, tuple)):
                raise Wrong(f"encode_text takes a list of strings; it was given a {type(captions).__name__}.")
            return torch.stack([table[words.index(c)] for c in captions])

        return encode_text

    def brute(table, prompts, unit=True, axis=-1, first=False):
        means = torch.stack([sum(table[words.index(w)] for w in (p[:1] if first else p)) / len(p[:1] if first else p) for p in prompts])
        return means / means.norm(dim=axis, keepdim=True) if unit else means

    suspects = [
        ("the means are not scaled back to length one: classes with varied prompts would be at a disadvantage.", lambda t, p: brute(t, p, unit=False)),
        ("the lengths were taken over the classes: each class vector has length one by itself.", lambda t, p: brute(t, p, axis=0)),
        ("only the first prompt of each class was used.", lambda t, p: brute(t, p, first=True)),
    ]

    def case(prompts, dtype=torch.float64):
        def draw(g):
            table = torch.randn(len(words), 6, generator=g, dtype=dtype)
            return {"table": table / table.norm(dim=-1, keepdim=True), "prompts": prompts}

        return draw

    work = lambda table, prompts: answer(encoder(table), prompts)
    cases = [case([["a", "b", "c"], ["d"], ["e", "f"], ["a", "g", "h", "b", "c"], ["a", "h", "h"]]), case([["b"], ["a"]], torch.float32)]
    agree(work, brute, cases, what="the class vectors", grad=("table",), tol=1e-6, suspects=suspects)
    only = case([["a", "b"]])(torch.Generator().manual_seed(0))
    same(work(**only), brute(**only), "the vector of a single class", tol=1e-6)
