"""Our CLIP against transformers' CLIPModel: both towers and the loss, forward and backward, equal shapes and weights. Reports, never fails a build.

Run with ``pytest tests/benchmarks/test_bench_clip.py``.
"""

import pytest
import torch
from lessons.test_clip import translate
from transformers import CLIPConfig, CLIPModel

from course_utils.lessons.clip import CLIP, ImageTransformer, TextTransformer, info_nce

WIDTH, LAYERS, HEADS, WORDS, CONTEXT = 128, 3, 4, 1000, 20


def pair():
    """Both models with the same weights."""
    tower = {"intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "hidden_act": "quick_gelu", "projection_dim": WIDTH, "hidden_size": WIDTH}
    tower |= {"num_attention_heads": HEADS}
    text = {"vocab_size": WORDS, "max_position_embeddings": CONTEXT, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(text_config={**tower, **text}, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=WIDTH)
    theirs = CLIPModel(config)
    image = ImageTransformer(32, 8, WIDTH, LAYERS, HEADS, WIDTH)
    ours = CLIP(image, TextTransformer(WORDS, CONTEXT, WIDTH, LAYERS, HEADS, WIDTH, end=3))
    ours.load_state_dict(translate(theirs.state_dict(), LAYERS))
    return {"ours": ours, "transformers": theirs}


NETS = pair()


@pytest.mark.benchmark(group="CLIP, 64 pairs, forward and backward")
@pytest.mark.parametrize("name", NETS)
def test_clip_forward_backward(benchmark, name):
    net, g = NETS[name], torch.Generator().manual_seed(0)
    x, ids = torch.rand(64, 3, 32, 32, generator=g), torch.randint(4, WORDS, (64, CONTEXT), generator=g)
    ids[:, 0], ids[:, -1] = 2, 3

    def step():
        net.zero_grad()
        if name == "ours":
            loss = info_nce(net.encode_image(x), net.encode_text(ids), net.scale)
        else:
            loss = net(input_ids=ids, pixel_values=x, return_loss=True).loss
        loss.backward()
        return loss.item()

    benchmark.pedantic(step, rounds=15, warmup_rounds=2)
