"""Lesson 2.6 against peft (layers, the course's U-Net, merging) and against what must hold."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from course_utils.errors import CourseError
from course_utils.lessons import lora
from course_utils.lessons.latent_diffusion import TextUNet

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


def randomise(model, seed=0):
    """Every parameter random; norm weights around 1, so that signals keep their size."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            norm = isinstance(module, (nn.GroupNorm, nn.LayerNorm))
            for name, p in module.named_parameters(recurse=False):
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.1 + (1 if norm and name == "weight" else 0))
    return model.eval()


def small_unet(dtype):
    return randomise(TextUNet(channels=4, widths=(16, 32), context_width=24, groups=4, head_dim=8).to(dtype))


def inputs(dtype, seed=1):
    g = torch.Generator().manual_seed(seed)
    z, c = torch.randn(2, 4, 16, 16, generator=g, dtype=dtype), torch.randn(2, 5, 24, generator=g, dtype=dtype)
    return z, torch.tensor([3, 900]), c, torch.tensor([0, 2])


def pairs(model, adapter, name="default"):
    """(peft's layer, our part of the adapter) for every layer of peft's ``model`` that has an adapter ``name``."""
    for place, module in model.named_modules():
        if hasattr(module, "lora_A") and name in module.lora_A:
            yield module, adapter[place.removeprefix("base_model.model.").replace(".", "/")]


@torch.no_grad()
def copy_into(model, adapter, name="default"):
    """peft's adapter ``name`` of ``model`` gets the weights of ours; returns how many layers it has."""
    found = list(pairs(model, adapter, name))
    for module, part in found:
        module.lora_A[name].weight.copy_(part.A)
        module.lora_B[name].weight.copy_(part.B)
    return len(found)


def twins(dtype, rank=3, alpha=5.0):
    """The same random U-Net with the same random adapter, peft's and ours."""
    base = small_unet(dtype)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(lora.TARGETS), lora_dropout=0.0, init_lora_weights=False)
    theirs = get_peft_model(copy.deepcopy(base), settings).to(dtype).eval()
    ours = lora.wrap(copy.deepcopy(base))
    adapter = randomise(lora.new_adapter(ours, rank, alpha), seed=2)
    assert copy_into(theirs, adapter) == len(adapter) == 70  # 7 transformers: 8 attention and 2 MLP layers each
    return base, theirs, ours, adapter


# Against peft


@pytest.mark.parametrize("dtype, tol", PRECISIONS)
def test_adapted_unet_equals_peft(dtype, tol):
    base, theirs, ours, adapter = twins(dtype)
    with torch.no_grad():
        plain, want, got = base(*inputs(dtype)), theirs(*inputs(dtype)), lora.use(ours, (adapter, 1.0))(*inputs(dtype))
    assert (want - plain).abs().max() > 1e-2  # the adapter does something
    torch.testing.assert_close(got, want, rtol=tol, atol=tol * want.abs().max().item())


@pytest.mark.parametrize("dtype, tol", PRECISIONS)
def test_merged_unet_equals_peft(dtype, tol):
    _, theirs, ours, adapter = twins(dtype)
    lora.use(ours, (adapter, 1.0), merged=True)
    merged = theirs.merge_and_unload()
    weights = dict(merged.named_parameters())
    for name, layer in lora.wrapped(ours).items():
        torch.testing.assert_close(layer.linear.weight, weights[name.replace("/", ".") + ".weight"], rtol=tol, atol=tol)
    with torch.no_grad():
        want, got = merged(*inputs(dtype)), ours(*inputs(dtype))
    torch.testing.assert_close(got, want, rtol=tol, atol=tol * want.abs().max().item())


def test_gradients_equal_peft():
    _, theirs, ours, adapter = twins(torch.float64)
    lora.use(ours, (adapter, 1.0))(*inputs(torch.float64)).square().mean().backward()
    theirs(*inputs(torch.float64)).square().mean().backward()
    for module, part in pairs(theirs, adapter):
        torch.testing.assert_close(part.A.grad, module.lora_A["default"].weight.grad, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(part.B.grad, module.lora_B["default"].weight.grad, rtol=1e-8, atol=1e-12)
    assert all(layer.linear.weight.grad is None for layer in lora.wrapped(ours).values())


def test_two_stacked_adapters_equal_peft_cat():
    """peft's combination "cat" of adapters of ranks 3 and 2, against ours side by side and against ``stack``."""
    _, theirs, ours, first = twins(torch.float64, rank=3, alpha=5.0)
    second = randomise(lora.new_adapter(ours, 2, 5.0), seed=3)
    theirs.add_adapter("second", LoraConfig(r=2, lora_alpha=5.0, target_modules=list(lora.TARGETS), init_lora_weights=False))
    copy_into(theirs, second, "second")
    theirs.add_weighted_adapter(["default", "second"], [0.7, 0.4], "both", combination_type="cat")
    theirs.set_adapter("both")
    theirs.to(torch.float64)
    with torch.no_grad():
        want = theirs(*inputs(torch.float64))
        side = lora.use(ours, (first, 0.7), (second, 0.4))(*inputs(torch.float64))
        one = lora.new_adapter(ours, 5, 5.0)
        for name, part in one.items():
            A, B = lora.stack([(first[name].A, first[name].B), (second[name].A, second[name].B)], [0.7, 0.4])
            part.A.copy_(A)
            part.B.copy_(B)
        stacked = lora.use(ours, (one, 1.0))(*inputs(torch.float64))
    torch.testing.assert_close(side, want, rtol=1e-10, atol=1e-10 * want.abs().max().item())
    torch.testing.assert_close(stacked, want, rtol=1e-10, atol=1e-10 * want.abs().max().item())


# What must hold


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fresh_adapter_changes_nothing(dtype):
    base = small_unet(dtype)
    ours = lora.wrap(copy.deepcopy(base))
    with torch.no_grad():
        want = base(*inputs(dtype))
        assert torch.equal(ours(*inputs(dtype)), want)
        assert torch.equal(lora.use(ours, (lora.new_adapter(ours, 4), 1.0))(*inputs(dtype)), want)


@pytest.mark.parametrize("dtype, tol", PRECISIONS)
def test_merged_equals_unmerged_and_comes_back_to_the_bit(dtype, tol):
    ours = lora.wrap(small_unet(dtype))
    adapters = [randomise(lora.new_adapter(ours, r), seed=r) for r in (4, 2)]
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with torch.no_grad():
        plain = ours(*inputs(dtype))
        apart = lora.use(ours, (adapters[0], 0.8), (adapters[1], -0.5))(*inputs(dtype))
        merged = lora.use(ours, (adapters[0], 0.8), (adapters[1], -0.5), merged=True)(*inputs(dtype))
    torch.testing.assert_close(merged, apart, rtol=tol, atol=tol * apart.abs().max().item())
    assert (merged - plain).abs().max() > 1e-2
    assert ours.state_dict().keys() == before.keys()  # the copies are not saved with the model
    lora.use(ours)
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    with torch.no_grad():
        assert torch.equal(ours(*inputs(dtype)), plain)


def test_wrapping_keeps_the_base_and_is_idempotent():
    base = small_unet(torch.float32)
    ours = lora.wrap(lora.wrap(copy.deepcopy(base)))
    assert len(lora.wrapped(ours)) == 70
    state = {k.replace(".linear.", "."): v for k, v in ours.state_dict().items()}
    assert state.keys() == base.state_dict().keys() and all(torch.equal(v, state[k]) for k, v in base.state_dict().items())
    lora.use(ours, (lora.new_adapter(ours, 2), 1.0))
    assert len(ours.state_dict()) == len(base.state_dict())  # an adapter is never part of the base


def test_training_moves_the_adapter_alone():
    ours = lora.wrap(small_unet(torch.float32)).requires_grad_(False)
    adapter, before = lora.new_adapter(ours, 2), {k: v.clone() for k, v in ours.state_dict().items()}
    optimiser = torch.optim.AdamW(adapter.parameters(), 1e-2)
    for _ in range(2):
        lora.use(ours, (adapter, 1.0))(*inputs(torch.float32)).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    assert all(part.B.abs().max() > 0 for part in adapter.values())


def test_size_and_rank():
    shapes = [(96, 96), (96, 128), (128, 128)]
    for budget in (0, 671, 672, 6720, 10**7):
        r = lora.largest_rank(shapes, budget)
        assert r * 672 <= budget or r == 0
        assert r == 96 or (r + 1) * 672 > budget
    unet = lora.wrap(TextUNet())
    share = sum(p.numel() for p in lora.new_adapter(unet, 8).parameters()) / sum(p.numel() for p in unet.parameters())
    assert share < 0.05  # what the lesson promises of rank 8


def test_the_update_has_the_rank_it_claims():
    part = randomise(lora.LowRank(20, 30, 4), seed=7)
    delta = part(torch.eye(20)).T.detach()
    assert delta.shape == (30, 20) and torch.linalg.matrix_rank(delta) == 4
    torch.testing.assert_close(delta, lora.merged_weight(torch.zeros(30, 20), part.A, part.B, part.alpha))


def test_pencil_is_grey_and_keeps_white():
    x = torch.ones(1, 3, 8, 8)
    assert torch.equal(lora.pencil(x), x)
    x[:, 0, 2:5] = 0.2
    y = lora.pencil(x)
    assert y.shape == x.shape and torch.equal(y[:, 0], y[:, 1]) and 0.1 <= y.min() < 0.5


def test_the_judge_takes_pictures_of_any_number():
    net = lora.style_net(4).eval()
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 64, 64, generator=g)
    assert net(x).shape == (3, 4)
    assert lora.soften(x, g).shape == x.shape


# What a user may hand over


@pytest.mark.parametrize("rank", [0, -1])
def test_an_update_without_a_path_gets_one_sentence(rank):
    ours = lora.wrap(small_unet(torch.float32))
    with pytest.raises(ValueError, match="at least rank 1"):
        lora.new_adapter(ours, rank)


def test_a_model_that_was_never_wrapped_gets_one_sentence():
    base = small_unet(torch.float32)
    adapter = lora.new_adapter(lora.wrap(copy.deepcopy(base)), 2)
    with pytest.raises(ValueError, match="wrap"):
        lora.use(base, (adapter, 1.0))
    assert lora.use(base) is base


def test_switching_while_merged_never_adds_up():
    ours = lora.wrap(small_unet(torch.float64))
    first, second = (randomise(lora.new_adapter(ours, r), seed=r) for r in (4, 2))
    with torch.no_grad():
        plain, want = ours(*inputs(torch.float64)), lora.use(ours, (second, 1.0))(*inputs(torch.float64))
        lora.use(ours, (first, 1.0), merged=True)
        lora.use(ours, (second, 1.0), merged=True)
        torch.testing.assert_close(ours(*inputs(torch.float64)), want, rtol=1e-9, atol=1e-9)
        assert torch.equal(lora.use(ours)(*inputs(torch.float64)), plain)


def test_helpful_refusals():
    base = small_unet(torch.float32)
    with pytest.raises(CourseError, match="nothing was wrapped"):
        lora.wrap(base, ("query",))
    with pytest.raises(CourseError, match="call wrap"):
        lora.new_adapter(base, 2)
    few = lora.wrap(copy.deepcopy(base), "to_q")  # one name, not its letters
    assert {name.split("/")[-1] for name in lora.wrapped(few)} == {"to_q"}
    with pytest.raises(CourseError, match="other layers"):
        lora.use(lora.wrap(base), (lora.new_adapter(few, 2), 1.0))
    part = (torch.zeros(2, 4), torch.zeros(3, 2))
    for parts, strengths in (([part, part], [1.0]), ([], [])):
        with pytest.raises(CourseError, match="one strength an update"):
            lora.stack(parts, strengths)


@pytest.mark.parametrize("shape, value", [((1, 3, 8, 8), 200.0), ((1, 3, 8, 8), torch.nan), ((1, 4, 8, 8), 0.5), ((1, 1, 8, 8), 0.5), ((3, 8, 8), 0.5)])
def test_pictures_of_another_kind_are_not_drawn_in_pencil(shape, value):
    with pytest.raises(CourseError, match="from 0 to 1"):
        lora.pencil(torch.full(shape, value))
