"""Checks of lesson 2.6 (LoRA): sums written out number by number, and matrices built in full."""

from __future__ import annotations

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..exercises import Wrong, agree, right, same

HINTS = {
    "low_rank": [
        "How many numbers lie between the two matrices? Send x through the thin one first.",
        "Two linear layers, one after the other: A takes m numbers to r, B takes r to n. Which axis of A says what r is?",
        "F.linear(x, A) has shape (..., r), F.linear(that, B) has shape (..., n); the factor is alpha divided by len(A).",
    ],
    "merged_weight": [
        "Which product of A and B has the shape of W?",
        "The same factor as in the side path, times the strength. Adding makes a new tensor; += would change the old one.",
        "B @ A is (n, m); scale it by strength * alpha / len(A) and add it to W.",
    ],
    "LoRALinear": [
        "Go through the cases on paper: off, beside, merged. What must the layer remember so that every one of them can follow every other?",
        "Begin `switch` by undoing an earlier merge, if there was one: after that the weight is the base's, and there are two cases left. The copy is a plain attribute, so it is not saved with the weights.",
        "Undo: if self.kept is not None, copy it into self.linear.weight and set it to None. Then either self.active = list(pairs), or: self.active = [], self.kept = a clone of the weight, and "
        "self.linear.weight.copy_(merged_weight(...)) for each pair. `forward` adds strength * update(x) for each pair in self.active.",
    ],
    "largest_rank": [
        "What does rank 1 cost, over all layers?",
        "Rank r costs r times that: divide and round down. Then: which rank can a layer of 4 rows use at most?",
        "The smaller of budget // (sum of n + m over the layers) and the smallest n or m that occurs in any layer.",
    ],
    "stack": [
        "A product of a wide and a tall matrix is a sum over the r paths between them: put the paths of all adapters side by side.",
        "The A's below each other, the B's beside each other. The whole will be scaled by alpha / r, an adapter alone by alpha / r_i: who makes up for the difference?",
        "A: torch.cat of the A_i along dimension 0. B: torch.cat along dimension 1 of the B_i, each times strength · r / r_i.",
    ],
}


class _Shapes(TorchFunctionMode):
    """Notes the shapes of all tensors that are computed while it is on; views of what is there already do not count."""

    VIEWS = {"__get__", "t", "transpose", "view", "permute", "expand", "movedim", "swapaxes", "unsqueeze", "squeeze"}

    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and func.__name__ not in self.VIEWS:
            self.made.add(tuple(out.shape))
        return out


def _by_hand(x, A, B, alpha):
    """(alpha / r) Σ_k B[:, k] (Σ_j A[k, j] x[j]) for every row of x, path by path."""
    out = torch.zeros(*x.shape[:-1], len(B), dtype=x.dtype)
    for k in range(len(A)):
        out = out + (x * A[k]).sum(-1, keepdim=True) * B[:, k]
    return out * (alpha / len(A))


def _case(alpha, r, *leading, dtype=torch.float64, m=7, n=5):
    def draw(g):
        shapes = {"x": (*leading, m), "A": (r, m), "B": (n, r)}
        return {k: torch.randn(s, generator=g, dtype=dtype) for k, s in shapes.items()} | {"alpha": alpha}

    return draw


def low_rank(answer):
    scaled = lambda f: lambda x, A, B, alpha: f(len(A), len(B), alpha) * _by_hand(x, A, B, 1.0) * len(A)
    suspects = [
        ("the scale is missing: the sum over the r paths is divided by r and multiplied by alpha.", scaled(lambda r, n, a: 1.0)),
        ("the result is scaled by alpha, but not divided by the rank.", scaled(lambda r, n, a: a)),
        ("the result is divided by the rank, but not multiplied by alpha.", scaled(lambda r, n, a: 1 / r)),
        ("you divided by the number of rows of B, which is n; the rank is the other side of B, and the number of rows of A.", scaled(lambda r, n, a: a / n)),
        ("the scale is upside down.", scaled(lambda r, n, a: r / a)),
    ]
    cases = [_case(8.0, 3, 2, 5), _case(3.0, 2, 6), _case(5.0, 1), _case(8.0, 3, 2, 5, dtype=torch.float32)]
    for case in cases:
        single = case(torch.Generator())["x"].dtype == torch.float32
        agree(answer, _by_hand, case, what="the update", grad=("x", "A", "B"), tol=1e-5 if single else 1e-10, suspects=suspects)
    inputs = _case(8.0, 2, 3, m=41, n=37, dtype=torch.float32)(torch.Generator().manual_seed(3))
    with _Shapes() as seen:
        answer(*inputs.values())
    right(
        not seen.made & {(37, 41), (41, 37)},
        "the values are right, but you built the whole n × m matrix: send x through A first, so that only r numbers pass between.",
    )


def merged_weight(answer):
    def draw(g, r=2):
        shapes = {"W": (5, 7), "A": (r, 7), "B": (5, r)}
        return {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in shapes.items()}

    def brute(W, A, B, alpha, strength):
        """What the layer computes on the unit vectors: column by column."""
        return W + strength * _by_hand(torch.eye(7, dtype=W.dtype), A, B, alpha).T

    for alpha, strength, r in ((8.0, 1.0, 2), (8.0, 0.3, 3), (3.0, -0.5, 2), (3.0, 0.0, 1), (5.0, 2.5, 3), (5.0, -4.0, 4)):
        suspects = [
            ("this is the update alone: W is missing.", lambda W, A, B, *_: brute(0 * W, A, B, alpha, strength)),
            ("the strength makes no difference.", lambda W, A, B, *_: brute(W, A, B, alpha, 1.0)),
            ("the scale of the side path is missing: merged and side path must compute the same.", lambda W, A, B, *_: brute(W, A, B, len(A), strength)),
            ("the update is subtracted.", lambda W, A, B, *_: brute(W, A, B, alpha, -strength)),
        ]
        case = lambda g: draw(g, r) | {"alpha": alpha, "strength": strength}
        agree(answer, brute, case, what="the merged weight", grad=("W", "A", "B"), tol=1e-10, suspects=suspects)
    agree(answer, lambda W, A, B, alpha: brute(W, A, B, alpha, 1.0), lambda g: draw(g) | {"alpha": 8.0}, what="the merged weight without a strength", tol=1e-10)
    single = {k: v.float() for k, v in draw(torch.Generator().manual_seed(1)).items()}
    same(answer(*single.values(), 8.0, 0.5), brute(*single.values(), 8.0, 0.5), "the merged weight in single precision")


class _Update(nn.Module):
    """An update of a layer (7 → 5) as the lesson has it: A, B, alpha; counts its calls."""

    def __init__(self, rank, g):
        super().__init__()
        self.A, self.B = (nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in ((rank, 7), (5, rank)))
        self.alpha, self.calls = 3.0 + rank, 0

    def forward(self, x):
        self.calls += 1
        return _by_hand(x, self.A, self.B, self.alpha)


def LoRALinear(answer):
    g = torch.Generator().manual_seed(6)
    base = [nn.Linear(7, 5, bias=bias, dtype=torch.float64) for bias in (True, False)]
    for linear in base:
        for p in linear.parameters():
            p.data.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    one, two, three = (_Update(r, g) for r in (2, 3, 1))
    for linear in base:
        _use_a_layer(answer, linear, one, two, three, g)
    first, second = (answer(nn.Linear(7, 5, dtype=torch.float64)) for _ in range(2))
    kept = second.linear.weight.clone()
    first.switch([(one, 1.0)], merged=True)
    second.switch([])
    right(torch.equal(second.linear.weight, kept), "merging one layer changed another one: what a layer remembers belongs to self, not to the class.")


def _use_a_layer(answer, linear, one, two, three, g):
    """One layer through every change of state: off, beside, merged, merged anew, beside, off."""
    weight = linear.weight.detach().clone()
    layer = answer(linear)
    parameter, keys = layer.linear.weight, set(layer.state_dict())
    delta = lambda pairs: sum((w * _by_hand(torch.eye(7, dtype=torch.float64), u.A, u.B, u.alpha).T for u, w in pairs), torch.zeros(5, 7, dtype=torch.float64))
    both, other = [(one, 0.7), (two, -0.4)], [(three, 1.5)]
    xs = [torch.randn(*s, 7, generator=g, dtype=torch.float64) for s in ((), (3,), (2, 3))]
    plan = [
        ("with no update", [], False),
        ("with two updates beside the weight", both, False),
        ("with two merged updates", both, True),
        ("with another update merged after those two", other, True),
        ("with an update beside the weight after a merge", other, False),
        ("with two merged updates again", both, True),
        ("switched off after a merge", [], False),
        ("with nothing to merge", [], True),
        ("with one update at strength 0 beside the weight", [(one, 0.0)], False),
    ]
    for state, pairs, merged in plan:
        if state != "with no update":
            layer.switch(list(pairs), merged) if merged else layer.switch(list(pairs))
        where = f"the output {state}"
        want_weight = (weight + delta(pairs)).detach() if merged else weight
        right(
            isinstance(layer.linear.weight, nn.Parameter) and layer.linear.weight.is_leaf,
            "the weight should stay a parameter: change its numbers under no_grad, as with copy_.",
        )
        right(layer.linear.weight is parameter, f"{state}, the weight is a new parameter: it should stay the same one, with other numbers in it (copy_).")
        if not merged:
            right(layer.kept is None, f"{state}, nothing is merged, but `kept` is not None.")
        if not merged or not pairs:
            right(
                torch.equal(layer.linear.weight, weight),
                f"{state}, the weight should be the base's, bit for bit; it is off by {(layer.linear.weight - weight).abs().max().item():.1g}.",
            )
        same(layer.linear.weight.detach(), want_weight, f"the weight {state}", tol=1e-10)
        right(
            set(layer.state_dict()) == keys,
            f"{state}, the layer would save {', '.join(sorted(set(layer.state_dict()) ^ keys))} with its weights: keep the copy as a plain attribute.",
        )
        before = [u.calls for u, _ in pairs]
        for x in xs:
            same(layer(x), nn.functional.linear(x, want_weight, linear.bias) + (0 if merged else x @ delta(pairs).T), where, tol=1e-9)
        if merged:
            right(before == [u.calls for u, _ in pairs], "a merged layer still computes its side paths: they are in the weight already.")
        else:
            _gradients(layer, pairs, xs[1], weight, where)
    with torch.no_grad():
        parameter += 1  # as when other weights are loaded
    anew = parameter.detach().clone()
    layer.switch(list(both), True)
    same(layer.linear.weight.detach(), anew + delta(both).detach(), "the merged weight after other numbers were loaded into the base", tol=1e-10)
    layer.switch([])
    right(
        torch.equal(layer.linear.weight, anew),
        "after other numbers were loaded into the base, undoing a merge brings an older weight back: copy it at each merge.",
    )
    with torch.no_grad():
        parameter.copy_(weight)


def _gradients(layer, pairs, x, weight, where):
    """With the updates beside the weight, gradients reach x, and A and B of each update with the right values; none reaches the frozen weight."""
    x = x.clone().requires_grad_()
    leaves = [x, *(p for u, w in pairs for p in (u.A, u.B) if w)]
    out = layer(x)
    want = nn.functional.linear(x, weight, layer.linear.bias) + sum(w * _by_hand(x, u.A, u.B, u.alpha) for u, w in pairs)
    v = torch.arange(1.0, out.numel() + 1, dtype=out.dtype).view(out.shape).cos()
    wanted = torch.autograd.grad((want * v).sum(), leaves)
    right(out.requires_grad, f"{where} is right, but no gradient flows through it.")
    found = torch.autograd.grad((out * v).sum(), leaves, allow_unused=True)
    for name, a, b in zip(["x", *("A", "B") * len(pairs)], found, wanted):
        if a is None:
            raise Wrong(f"{where} is right, but no gradient reaches {name}.")
        same(a, b, f"the gradient of {where} with respect to {name}", tol=1e-9)
    right(layer.linear.weight.grad is None and not layer.linear.weight.requires_grad, "the wrapped weight should stay frozen.")


def largest_rank(answer):
    square, mixed = [(128, 128)] * 4, [(96, 128), (128, 128), (96, 96)]
    cases = [
        (square, 1024),
        (square, 8 * 1024 + 1023),
        (square, 8 * 1024 - 1),
        (mixed, 672 * 5),
        (mixed, 672 * 5 - 1),
        (square, 1023),
        ([(8, 3)], 22),
        (mixed, 0),
    ]
    cases += [([(128, 128), (4, 64)], 10**6), ([(128, 128), (64, 5)], 10**6), ([(3, 9), (9, 3)], 10**4)]
    for shapes, budget in cases:
        got, per_rank = answer(list(shapes), budget), sum(n for n, _ in shapes) + sum(m for _, m in shapes)
        right(got is not None, "the result is None: does your function end in `return ...`?")
        right(isinstance(got, int) and not isinstance(got, bool), f"the rank should be a whole number (int), but it is a {type(got).__name__}.")
        cap = min(min(s) for s in shapes)
        want = max(r for r in range(cap + 1) if r * per_rank <= budget)
        right(got == want or got != budget // sum(n * m for n, m in shapes), "you counted n · m numbers a layer: that is the full matrix.")
        asked = f"for layers {shapes if len(shapes) < 4 else f'{shapes[0]}, {len(shapes)} of them'} and a budget of {budget}"
        right(got * per_rank <= budget, f"{asked} you chose rank {got}, which costs {got * per_rank} numbers: too many.")
        right(got <= cap, f"{asked} you chose rank {got}, but a matrix with a side of {cap} has no rank above {cap}.")
        right(got == want, f"{asked} you chose rank {got}, but rank {want} fits into {want * per_rank} numbers.")


def stack(answer):
    for ranks, strengths in (((2, 2), (1.0, 1.0)), ((3, 1), (0.7, -0.4)), ((1, 2, 4), (0.5, 1.0, 2.0)), ((3,), (0.25,)), ((2, 3), (0.0, 1.0))):
        r, n = sum(ranks), len(ranks)

        def case(g, ranks=ranks):
            made = [(torch.randn(k, 6, generator=g, dtype=torch.float64), torch.randn(5, k, generator=g, dtype=torch.float64)) for k in ranks]
            return {f"{'AB'[j]}_{i + 1}": pair[j] for i, pair in enumerate(made) for j in (0, 1)}

        def parts(flat):
            return list(zip(flat[::2], flat[1::2]))

        def product(*flat, ranks=ranks, strengths=strengths, r=r):
            got = answer(parts(flat), list(strengths))
            if not (isinstance(got, (tuple, list)) and len(got) == 2 and all(isinstance(v, torch.Tensor) for v in got)):
                raise Wrong("return two tensors: A and B.")
            A, B = got
            if len(ranks) > 1 and A.shape == flat[0].shape and len(set(ranks)) == 1:
                raise Wrong(f"A has {len(A)} rows: did you add? Sums give cross terms such as B_1 A_2. Here A should have {r} rows in all.")
            right(A.shape == (r, 6), f"A should have shape {(r, 6)} for ranks {ranks}, but it has {tuple(A.shape)}.")
            right(B.shape == (5, r), f"B should have shape {(5, r)} for ranks {ranks}, but it has {tuple(B.shape)}.")
            return sum(B[:, k, None] * A[None, k] for k in range(r)) * (8.0 / r)

        def total(weight, power=1):
            return lambda *flat: sum(weight(len(a)) * w**power * 8.0 * b @ a for (a, b), w in zip(parts(flat), strengths))

        suspects = [
            ("the strengths are not used.", total(lambda k: 1 / k, 0)),
            ("the strength stands in A and in B, so it acts squared: put it into one of the two.", total(lambda k: 1 / k, 2)),
            (
                "each adapter alone was scaled by alpha / r_i, the stacked one is scaled by alpha / r: nothing makes up for the difference.",
                total(lambda k: 1 / r),
            ),
            ("the factor that makes up for the ranks is upside down.", total(lambda k: k / r**2)),
        ]
        names = tuple(f"{'AB'[j]}_{i + 1}" for i in range(n) for j in (0, 1))
        agree(product, total(lambda k: 1 / k), case, what="(alpha / r) B A", grad=names, tol=1e-10, suspects=suspects)
