"""1.2 CLIP against transformers' CLIPModel, and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from course_utils import data, weights
from course_utils.lessons.clip import (
    CLIP,
    Attention,
    Batches,
    ImageTransformer,
    ResNet,
    TextTransformer,
    Tokenizer,
    attention,
    augment,
    class_vectors,
    describe,
    embed,
    info_nce,
    load_clip,
    patchify,
    random_caption,
    recall_at_k,
    train_bpe,
    words,
)  # fmt: skip

SIZE, PATCH, EMBED, VOCABULARY, CONTEXT, END = 16, 4, 20, 60, 12, 3


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    tower = {"intermediate_size": 96, "num_hidden_layers": 3, "hidden_act": "quick_gelu", "projection_dim": EMBED}
    config = CLIPConfig(
        text_config={**tower, "hidden_size": 24, "num_attention_heads": 3, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": END, "bos_token_id": 2, "pad_token_id": 0},
        vision_config={**tower, "hidden_size": 24, "num_attention_heads": 4, "image_size": SIZE, "patch_size": PATCH},
        projection_dim=EMBED,
    )  # fmt: skip
    model = CLIPModel(config).eval()
    for name, p in model.named_parameters():  # every parameter random: defaults such as zero biases hide mistakes
        p.data = 1 + 0.2 * torch.randn_like(p) if "norm" in name and name.endswith("weight") else 0.2 * torch.randn_like(p)
    return model


def block_names(theirs, ours, i):
    """Names of one block: theirs → ours (query, key and value are one matrix here)."""
    a, b = f"{theirs}.encoder.layers.{i}.", f"{ours}.blocks.{i}."
    for x, y in (("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("self_attn.out_proj", "attention.out"), ("mlp.fc1", "expand"), ("mlp.fc2", "shrink")):
        for kind in ("weight", "bias"):
            yield a + f"{x}.{kind}", b + f"{y}.{kind}"


def translate(state, layers=3):
    """The reference's state under our names. Every entry of theirs must be used."""
    state, out = dict(state), {}
    for theirs, ours in (("vision_model", "image"), ("text_model", "text")):
        for i in range(layers):
            for a, b in block_names(theirs, ours, i):
                out[b] = state.pop(a)
            for kind in ("weight", "bias"):
                qkv = [state.pop(f"{theirs}.encoder.layers.{i}.self_attn.{x}_proj.{kind}") for x in "qkv"]
                out[f"{ours}.blocks.{i}.attention.qkv.{kind}"] = torch.cat(qkv)
    out["image.to_token.weight"] = state.pop("vision_model.embeddings.patch_embedding.weight").flatten(1)
    pairs = {
        "vision_model.embeddings.class_embedding": "image.class_token", "vision_model.embeddings.position_embedding.weight": "image.position",
        "text_model.embeddings.token_embedding.weight": "text.token.weight", "text_model.embeddings.position_embedding.weight": "text.position",
        "visual_projection.weight": "image.project.weight", "text_projection.weight": "text.project.weight", "logit_scale": "log_scale",
    }  # fmt: skip
    for kind in ("weight", "bias"):
        pairs |= {
            f"vision_model.pre_layrnorm.{kind}": f"image.norm_in.{kind}",
            f"vision_model.post_layernorm.{kind}": f"image.norm_out.{kind}",
            f"text_model.final_layer_norm.{kind}": f"text.norm_out.{kind}",
        }
    out |= {b: state.pop(a) for a, b in pairs.items()}
    assert not [k for k in state if "position_ids" not in k], list(state)
    return out


def ours():
    image = ImageTransformer(SIZE, PATCH, width=24, layers=3, heads=4, embed=EMBED)
    return CLIP(image, TextTransformer(VOCABULARY, CONTEXT, width=24, layers=3, heads=3, embed=EMBED, end=END)).eval()


def captions(generator):
    ids = torch.randint(4, VOCABULARY, (5, CONTEXT), generator=generator)
    ids[:, 0] = 2
    for row, n in enumerate((3, 5, 7, 9, 11)):
        ids[row, n] = END
        ids[row, n + 1 :] = 0
    return ids


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_transformers(reference, dtype, tol):
    theirs, model = reference.to(dtype), ours().to(dtype)
    model.load_state_dict(translate(theirs.state_dict()))
    g = torch.Generator().manual_seed(1)
    x, ids = torch.randn(4, 3, SIZE, SIZE, generator=g, dtype=dtype), captions(g)
    with torch.no_grad():
        want = theirs(input_ids=ids, pixel_values=x)
        logits = model(x, ids)
    close = {"rtol": tol, "atol": tol}
    torch.testing.assert_close(model.encode_image(x), want.image_embeds, **close)
    torch.testing.assert_close(model.encode_text(ids), want.text_embeds, **close)
    torch.testing.assert_close(logits, want.logits_per_image, **close)


def test_loss_equals_transformers(reference):
    theirs = reference.double()
    g = torch.Generator().manual_seed(2)
    x, ids = torch.randn(5, 3, SIZE, SIZE, generator=g, dtype=torch.float64), captions(g)
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=x, return_loss=True)
    got = info_nce(out.image_embeds * 3, out.text_embeds * 0.1, theirs.logit_scale.exp())
    torch.testing.assert_close(got.detach(), out.loss, rtol=1e-10, atol=1e-10)


def test_attention_equals_torch():
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, 7, 8, generator=g, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    for m in (None, mask):
        torch.testing.assert_close(attention(q, k, v, m), F.scaled_dot_product_attention(q, k, v, attn_mask=m), rtol=1e-12, atol=1e-12)


def test_multi_head_equals_torch():
    torch.manual_seed(4)
    ours, theirs = Attention(12, 3).double(), torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.out.weight.data, ours.out.bias.data
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-12, atol=1e-12)


def test_patchify_is_a_convolution():
    x, conv = torch.randn(2, 3, 12, 12), torch.nn.Conv2d(3, 7, 4, 4, bias=False)
    torch.testing.assert_close(patchify(x, 4) @ conv.weight.flatten(1).T, conv(x).flatten(2).transpose(1, 2))


def test_info_nce_closed_forms():
    B = 16
    torch.testing.assert_close(info_nce(torch.ones(B, 4), torch.ones(B, 4), 5.0), torch.tensor(math.log(B)))
    want = -math.log(math.e**5 / (math.e**5 + B - 1))  # orthonormal pairs at 1/τ = 5
    torch.testing.assert_close(info_nce(torch.eye(B), torch.eye(B), 5.0), torch.tensor(want))


def test_causal_text():
    torch.manual_seed(5)
    text = TextTransformer(50, end=3)
    a = torch.tensor([[2, 7, 8, 3, 0, 0]])
    b = torch.tensor([[2, 7, 8, 3, 9, 3]])  # what follows the first end does not matter
    torch.testing.assert_close(text(a), text(b))


def test_bpe_merges_the_most_frequent_pair():
    merges, letters = train_bpe(["ab ab ab abc"], 2)
    assert letters == ["a", "b", "b_", "c_"] and merges[0] == ("a", "b_")
    tokenizer = Tokenizer(merges, letters)
    assert tokenizer.pieces("ab") == ["ab_"] and tokenizer(["ab"]).tolist() == [[2, tokenizer.id["ab_"], 3]]
    assert tokenizer(["z"]).tolist() == [[2, Tokenizer.UNKNOWN, 3]]
    assert tokenizer(["ab " * 99]).shape == (1, 20) and tokenizer(["ab " * 99])[0, -1] == Tokenizer.END
    assert tokenizer([""]).tolist() == [[2, 3]]


def test_words():
    assert words("Keycap: 3") == ["keycap", ":", "3"] and words("정비공: 검은색 피부") == ["정비공", ":", "검은색", "피부"]


def test_recall_and_class_vectors():
    s = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    assert [round(recall_at_k(s, k), 3) for k in (1, 2, 3)] == [0.333, 0.667, 1.0]
    table = {"a": torch.tensor([1.0, 0]), "b": torch.tensor([0.0, 1])}
    got = class_vectors(lambda c: torch.stack([table[x] for x in c]), [["a", "b"], ["b"]])
    torch.testing.assert_close(got, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_augment_keeps_white_and_range():
    x = augment(torch.rand(6, 3, 32, 32), torch.Generator().manual_seed(0))
    assert x.shape == (6, 3, 32, 32) and x.min() >= 0 and x.max() <= 1
    same = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(augment(same, strength=0.0), same, rtol=0, atol=1e-5)
    a, b = (augment(same, torch.Generator().manual_seed(7)) for _ in range(2))
    torch.testing.assert_close(a, b)


def test_batches_are_seeded_and_from_train_only():
    styles = [data.emoji(s, split="train") for s in ("google", "fluent")]
    (x, c), (y, d) = (Batches(styles, 8, seed=3)() for _ in range(2))
    assert c == d and torch.equal(x, y) and x.shape == (8, 3, 32, 32)
    rng = np.random.default_rng(0)
    caption = random_caption("cat", ["pet", "animal"], "animal mammal", "en", rng)
    assert isinstance(caption, str) and caption and describe("cat", ["pet"], "animal mammal") == "cat animal mammal pet"


def test_even_batches_favour_rare_concepts():
    noto = data.emoji(split="train")
    batches = Batches([noto], 200)
    people = [int(noto.base[noto.index == i][0]) for i in np.random.default_rng(0).choice(noto.index, 200, p=batches.even)]
    assert len(set(people)) > 120 and abs(batches.even.sum() - 1) < 1e-9


def test_resnet_shape():
    assert ResNet(8, 20)(torch.rand(2, 3, 32, 32)).shape == (2, 20)


@pytest.fixture(scope="module")
def trained():
    return {image: load_clip(image=image) for image in ("resnet", "vit")}


def test_weights_say_how_they_were_made():
    told = weights.metadata("clip")
    assert told["lesson"] == "clip" and told["profile"] == "full" and told["steps"] > 0 and "date" in told
    assert weights.file("clip").stat().st_size < 6e6


@pytest.mark.parametrize("image", ["resnet", "vit"])
def test_trained_model_finds_held_out_combinations(trained, image):
    model, p = trained[image], data.emoji(split="compositions")
    assert not model.training and not any(q.requires_grad for q in model.parameters())
    z, t = embed(model, p.tensor()), embed(model, captions=list(p.names_en))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(300))
    assert recall_at_k(z @ t.T, 1) > (0.85 if image == "resnet" else 0.6)


def test_gradient_reaches_the_picture(trained):
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    (trained["resnet"].encode_image(x) @ trained["resnet"].encode_text(["red apple"]).T).sum().backward()
    assert x.grad.abs().max() > 0


# What a user may hand over


def test_a_string_where_a_list_is_wanted_gets_one_sentence():
    from course_utils import CourseError

    model = load_clip()
    for call in (model.encode_text, model.tokenizer):
        with pytest.raises(CourseError, match="captions"):
            call("cat")
    assert model.tokenizer([]).shape[0] == 0 and model.encode_text([""]).shape == (1, 128)


def test_decomposed_hangul_is_read_like_composed():
    import unicodedata

    model = load_clip()
    apart = unicodedata.normalize("NFD", "사과")
    assert apart != "사과" and torch.equal(model.tokenizer([apart]), model.tokenizer(["사과"]))


def test_a_temperature_that_overshot_comes_back():
    model = CLIP(torch.nn.Identity(), torch.nn.Identity())
    model.log_scale.data.fill_(6.0)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    info_nce(x, x.flip(0), model.scale).backward()
    assert model.log_scale.grad > 0  # pairs that do not fit want a smaller 1/τ
    model.limit_scale()
    assert model.scale.item() == pytest.approx(100)
    model.log_scale.data.fill_(1.0)
    model.limit_scale()
    assert model.log_scale.item() == 1.0


def test_what_does_not_fit_gets_a_sentence():
    from course_utils.errors import CourseError

    clip = load_clip().train()
    for wrong in (torch.zeros(2, 1, 32, 32), torch.zeros(2, 4, 32, 32), torch.zeros(3, 32, 32), torch.zeros(2, 3, 32, 32).byte()):
        with pytest.raises(CourseError, match="floats in"):
            embed(clip, wrong)
    with pytest.raises(CourseError, match="one of the two"):
        embed(clip)
    with pytest.raises(CourseError, match="one of the two"):
        embed(clip, torch.zeros(1, 3, 32, 32), ["cat"])
    with pytest.raises(CourseError, match="None"):
        embed(clip, captions=["cat", None])
    assert clip.training  # the mode is put back after an error too
    assert embed(clip, captions=[]).shape == (0, 128)
    with pytest.raises(CourseError, match="no image encoder 'ViT'"):
        load_clip(image="ViT")
    assert recall_at_k(torch.full((4, 4), torch.nan), 1) == 0
