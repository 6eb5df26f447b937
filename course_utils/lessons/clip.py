"""Generated from notebooks/1_multimodal/02_clip.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math
import re
import unicodedata
from collections import Counter, defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from course_utils.errors import CourseError, as_list


def words(text: str) -> list[str]:
    """Lower-case words, numbers and single signs: "Keycap: 3" → ["keycap", ":", "3"]. Decomposed Hangul is put together first (NFC)."""
    return re.findall(r"[a-z0-9]+|[가-힣]+|[^\s]", unicodedata.normalize("NFC", text).lower())


def spelling(word: str) -> list[str]:
    """The letters of a word, the last one marked: "cat" → ["c", "a", "t_"]."""
    return [*word[:-1], word[-1] + "_"]


def merge(symbols: list[str], pair: tuple[str, str]) -> None:
    """Join every occurrence of ``pair`` in place."""
    k = 0
    while k < len(symbols) - 1:
        if (symbols[k], symbols[k + 1]) == pair:
            symbols[k : k + 2] = [symbols[k] + symbols[k + 1]]
        k += 1


def train_bpe(texts: list[str], n_merges: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Byte-pair encoding (Sennrich et al. 2016) on characters: the merges in order, and the letters to start from."""
    corpus = [(spelling(w), n) for w, n in Counter(w for t in texts for w in words(t)).items()]
    letters = sorted({s for symbols, _ in corpus for s in symbols})
    counts, where = (Counter(), defaultdict(dict))  # pair → how often, pair → in which words (a dict keeps the order)
    for i, (symbols, n) in enumerate(corpus):
        for pair in zip(symbols, symbols[1:]):
            counts[pair] += n
            where[pair][i] = True
    merges = []
    for _ in range(n_merges):
        best = max(counts, key=counts.get)
        merges.append(best)
        for i in list(where[best]):
            symbols, n = corpus[i]
            for pair in zip(symbols, symbols[1:]):
                counts[pair] -= n
                where[pair].pop(i, None)
            merge(symbols, best)
            for pair in zip(symbols, symbols[1:]):
                counts[pair] += n
                where[pair][i] = True
        counts.pop(best, None)
    return merges, letters


class Tokenizer:
    """Captions → token ids (B, T), padded with 0; every row is <start> ... <end>."""

    PAD, UNKNOWN, START, END = range(4)

    def __init__(self, merges, letters, context: int = 20):
        self.merges, self.letters, self.context = [tuple(m) for m in merges], list(letters), context
        self.rank = {pair: i for i, pair in enumerate(self.merges)}
        self.vocabulary = ["<pad>", "<unknown>", "<start>", "<end>", *self.letters, *(a + b for a, b in self.merges)]
        self.id = {token: i for i, token in enumerate(self.vocabulary)}
        self.known: dict[str, list[str]] = {}  # words already cut

    def pieces(self, word: str) -> list[str]:
        """A word as tokens, by the merges in the order in which they were learnt."""
        if word not in self.known:
            symbols = spelling(word)
            while pairs := [p for p in zip(symbols, symbols[1:]) if p in self.rank]:
                merge(symbols, min(pairs, key=self.rank.get))
            self.known[word] = symbols
        return self.known[word]

    def __call__(self, captions: list[str]) -> torch.Tensor:
        captions = as_list(captions, "captions")
        ids = [[self.id.get(p, self.UNKNOWN) for w in words(c) for p in self.pieces(w)] for c in captions]
        ids = [[self.START, *row[: self.context - 2], self.END] for row in ids]
        width = max(map(len, ids), default=2)
        return torch.tensor([row + [self.PAD] * (width - len(row)) for row in ids]).long().reshape(-1, width)


def patchify(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Pictures (B, C, H, W) → tokens (B, N, C·P·P), row by row from the top left; inside a token the order is C, P, P.

    Dosovitskiy et al. 2021, section 3.1.
    """
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """q, k, v (..., T, d) → (..., T, d). ``mask`` (T, T) is True where row i may look at column j."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, T)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head self-attention, (B, T, D) → (B, T, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, mask=None):
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        return self.out(rearrange(attention(q, k, v, mask), "b h t d -> b t (h d)"))


class Block(nn.Module):
    """Pre-norm Transformer block with CLIP's quick-GELU, (B, T, D) → (B, T, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.expand, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask=None):
        x = x + self.attention(self.norm1(x), mask)
        h = self.expand(self.norm2(x))
        return x + self.shrink(h * torch.sigmoid(1.702 * h))


class ImageTransformer(nn.Module):
    """CLIP's vision Transformer: pictures (B, 3, S, S) → embeddings (B, E), not yet of length one."""

    def __init__(
        self, size: int = 32, patch: int = 8, width: int = 128, layers: int = 4, heads: int = 4, embed: int = 128
    ):
        super().__init__()
        self.patch = patch
        self.to_token = nn.Linear(3 * patch**2, width, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width) * width**-0.5)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.project = nn.Linear(width, embed, bias=False)

    def forward(self, x):
        z = self.to_token(patchify(x, self.patch))  # (B, N, D)
        z = torch.cat([self.class_token.expand(len(z), 1, -1), z], 1) + self.position  # (B, 1 + N, D)
        z = self.norm_in(z)
        for block in self.blocks:
            z = block(z)
        return self.project(self.norm_out(z[:, 0]))


class TextTransformer(nn.Module):
    """CLIP's causal text Transformer: ids (B, T) → embeddings (B, E), read at the first ``end`` token."""

    def __init__(
        self,
        vocabulary: int,
        context: int = 20,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        embed: int = 128,
        end: int = 3,
    ):
        super().__init__()
        self.end = end
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(context, width) * 0.01)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed, bias=False)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, ids):
        B, T = ids.shape
        causal = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
        z = self.token(ids) + self.position[:T]  # (B, T, D)
        for block in self.blocks:
            z = block(z, causal)
        end = (ids == self.end).int().argmax(1)  # (B,): the first <end> of each caption
        z = self.norm_out(z)[torch.arange(B, device=ids.device), end]  # (B, D)
        return self.project(z)


class Residual(nn.Module):
    """Two 3×3 convolutions around a short cut (He et al. 2016), (B, C, H, W) → (B, C', H/s, W/s)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)
        same = c_in == c_out and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x):
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.short(x))


class ResNet(nn.Module):
    """A small residual network: pictures (B, 3, S, S) → embeddings (B, E), not yet of length one."""

    def __init__(self, width: int = 32, embed: int = 128):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            Residual(width, width), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.project = nn.Linear(4 * width, embed, bias=False)

    def forward(self, x):
        return self.project(self.stages(self.stem(x)).mean((2, 3)))


def info_nce(z_image: torch.Tensor, z_text: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Symmetric InfoNCE of B pairs (B, E), which need not have length one; ``scale`` is 1/τ. Returns a number."""
    z_image, z_text = F.normalize(z_image, dim=-1), F.normalize(z_text, dim=-1)
    logits = scale * z_image @ z_text.T  # (B, B): picture i against caption j
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class CLIP(nn.Module):
    """Two encoders and a temperature (Radford et al. 2021, section 2.3)."""

    def __init__(self, image: nn.Module, text: nn.Module, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.image, self.text, self.tokenizer = image, text, tokenizer
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self):
        """1/τ."""
        return self.log_scale.exp()

    @torch.no_grad()
    def limit_scale(self, most=100.0):
        """Bring 1/τ down to ``most`` where it is above; called after each training step (Radford et al. 2021, section 2.5)."""
        self.log_scale.clamp_(max=math.log(most))

    def encode_image(self, x):
        """Pictures (B, 3, S, S) in [0, 1] → unit vectors (B, E)."""
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise CourseError(f"{x.dtype} of shape {tuple(x.shape)}: pictures are floats in [0, 1], (B, 3, S, S).")
        return F.normalize(self.image(x), dim=-1)

    def encode_text(self, captions):
        """A list of B strings, or ids (B, T), → unit vectors (B, E)."""
        ids = captions if isinstance(captions, torch.Tensor) else self.tokenizer(captions)
        return F.normalize(self.text(ids.to(self.log_scale.device)), dim=-1)

    def forward(self, x, captions):
        """Similarities divided by τ: (B, B'), row = picture, column = caption."""
        return self.scale * self.encode_image(x) @ self.encode_text(captions).T


TEMPLATES = {
    "en": ["{}", "{} emoji", "a picture of {}", "a small drawing of {}", "an icon that shows {}"],
    "ko": ["{}", "{} 이모지", "{} 그림", "작은 {} 그림", "{} 아이콘"],
}


def describe(name: str, keywords: list[str], group: str) -> str:
    """All that Unicode says of an emoji in one caption: name, group, and its first keywords."""
    return " ".join([name, group, *keywords[:6]])


def random_caption(name: str, keywords: list[str], group: str, language: str, rng: np.random.Generator) -> str:
    """The name, or the name with some further words, or these words alone; now and then inside a template."""
    some = [group] * (rng.random() < 0.5) + list(rng.permutation(keywords)[: rng.integers(1, 7)])
    kind = rng.random()
    text = name if kind < 0.5 else " ".join([name, *some]) if kind < 0.75 else " ".join(some)
    return str(rng.choice(TEMPLATES[language])).format(text) if rng.random() < 0.3 else text


def augment(x: torch.Tensor, generator: torch.Generator | None = None, strength: float = 0.8) -> torch.Tensor:
    """Random shift, turn, scale, saturation, contrast, tint, blur or sharpening of pictures (B, 3, S, S) in [0, 1] on white."""
    B, s = len(x), strength

    def uniform(*shape):  # in (-1, 1)
        return (torch.rand(*shape, generator=generator) * 2 - 1).to(x.device)

    angle, zoom = 0.2 * s * uniform(B), torch.exp(0.18 * s * uniform(B, 2))
    turn = torch.stack([angle.cos() * zoom[:, 0], -angle.sin(), angle.sin(), angle.cos() * zoom[:, 1]], 1).view(B, 2, 2)
    affine = torch.cat([turn, 0.16 * s * uniform(B, 2, 1)], 2)  # (B, 2, 3)
    x = 1 - F.grid_sample(
        1 - x, F.affine_grid(affine, x.shape, align_corners=False), align_corners=False
    )  # white outside
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + 0.2 * s * uniform(B, 1, 1, 1))
    x = (
        0.5
        + (x - 0.5) * (1 + 0.125 * s * uniform(B, 1, 1, 1) + 0.04 * s * uniform(B, 3, 1, 1))
        + 0.04 * s * uniform(B, 1, 1, 1)
    )
    kernel = torch.tensor([1.0, 2.0, 1.0], device=x.device)
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return (x + s * uniform(B, 1, 1, 1) * (blurred - x)).clamp(0, 1)


class Batches:
    """Endless random batches of (augmented pictures, captions) from emoji in one or several styles; the first style must hold them all."""

    def __init__(self, styles: list, batch: int, seed: int = 0, device="cpu"):
        self.rng, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.styles, self.batch, self.queue = styles, batch, []
        self.pictures = [s.tensor(device) for s in styles]
        self.groups = {"en": styles[0].groups_en, "ko": styles[0].groups_ko}
        self.row = [
            {int(i): n for n, i in enumerate(s.index)} for s in styles
        ]  # row of the pack → position in the style
        variants = Counter(styles[0].concept)
        weight = np.array([variants[c] ** -0.5 for c in styles[0].concept])
        self.even = weight / weight.sum()

    def picture(self, i: int) -> torch.Tensor:
        k = self.rng.choice([k for k, row in enumerate(self.row) if i in row])
        return self.pictures[k][self.row[k][i]]

    def caption(self, i: int) -> str:
        pack, n = self.styles[0], self.row[0][i]
        if self.rng.random() < 0.4:
            return random_caption(pack.names_ko[n], pack.keywords_ko[n], self.groups["ko"][n], "ko", self.rng)
        return random_caption(pack.names_en[n], pack.keywords_en[n], self.groups["en"][n], "en", self.rng)

    def __call__(self, even: bool = False) -> tuple[torch.Tensor, list[str]]:
        """B pictures (B, 3, S, S) and B captions. ``even`` draws concepts with many variants more rarely."""
        index = self.styles[0].index
        if len(self.queue) < self.batch:
            self.queue = list(self.rng.permutation(index))
        if even:
            rows = self.rng.choice(index, self.batch, replace=False, p=self.even)
        else:
            rows, self.queue = self.queue[: self.batch], self.queue[self.batch :]
        x = torch.stack([self.picture(int(i)) for i in rows])
        return augment(x, self.generator), [self.caption(int(i)) for i in rows]


def recall_at_k(similarity: torch.Tensor, k: int) -> float:
    """Share of rows of a square (N, N) matrix whose diagonal entry is among the k largest of its row; a tie counts as a loss."""
    own = similarity.diagonal()[:, None]
    rivals = (~(similarity < own)).sum(1) - 1  # others at least as similar; nan is never a hit
    return (rivals < k).float().mean().item()


@torch.no_grad()
def embed(
    model: "CLIP", pictures: torch.Tensor | None = None, captions: list[str] | None = None, batch: int = 500
) -> torch.Tensor:
    """Unit vectors (N, E) of pictures (N, 3, S, S) or of captions, in batches, in eval mode; the model's mode is put back."""
    if (pictures is None) == (captions is None):
        raise CourseError("embed takes pictures or captions, one of the two: embed(clip, captions=[...]) for captions.")
    mode, device = model.training, model.log_scale.device
    model.eval()
    try:
        if captions is None:
            out = [model.encode_image(x.to(device)) for x in pictures.split(batch)]
        else:
            out = [model.encode_text(captions[i : i + batch]) for i in range(0, max(len(captions), 1), batch)]
    finally:
        model.train(mode)
    return torch.cat(out)


class Together(nn.Module):
    """Several image encoders as one: the sum of their unit vectors, (B, 3, S, S) → (B, E)."""

    def __init__(self, *encoders: nn.Module):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, x):
        return sum(F.normalize(encoder(x), dim=-1) for encoder in self.encoders)


def parts_of(vit: CLIP, resnet: CLIP) -> dict[str, nn.Module]:
    """What the weights file holds: both image encoders, the text encoder that they share, and the two temperatures."""
    return {
        "vit": vit.image,
        "resnet": resnet.image,
        "text": vit.text,
        "scale": nn.ParameterDict({"vit": vit.log_scale, "resnet": resnet.log_scale}),
    }


def load_clip(device="cpu", image: str = "resnet") -> CLIP:
    """The course's trained CLIP for later lessons, in eval mode, with its tokenizer; ``image`` is "resnet", "vit" or "both".

    ``encode_image`` takes pictures (B, 3, 32, 32) in [0, 1] on white (average larger ones down first), ``encode_text`` a list of strings; both give
    unit vectors (B, 128). Gradients flow; wrap calls in ``torch.no_grad()`` or use :func:`embed` where you need none.
    """
    from course_utils import weights

    told = weights.metadata("clip")
    tokenizer = Tokenizer(told["merges"], told["letters"])
    text = TextTransformer(len(tokenizer.vocabulary))
    models = {"vit": CLIP(ImageTransformer(), text, tokenizer), "resnet": CLIP(ResNet(), text, tokenizer)}
    weights.load("clip", parts_of(**models))
    models["both"] = CLIP(Together(models["vit"].image, models["resnet"].image), text, tokenizer)
    if image not in models:
        raise CourseError(f"There is no image encoder {image!r}: choose one of {', '.join(models)}.")
    return models[image].to(device).eval().requires_grad_(False)


def class_vectors(encode_text, prompts: list[list[str]]) -> torch.Tensor:
    """One unit vector per class, (C, E): the mean of the unit vectors of that class's prompts. ``encode_text``: list of strings → unit vectors."""
    return torch.stack([F.normalize(encode_text(p).mean(0), dim=-1) for p in prompts])
