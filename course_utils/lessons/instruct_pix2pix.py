"""Generated from notebooks/2_generative/08_instruct_pix2pix.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import copy
from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.errors import CourseError, as_list
from course_utils.lessons.clip import ResNet, augment, load_clip
from course_utils.lessons.ddpm import ddim_sample, denoising_loss
from course_utils.lessons.latent_diffusion import load_latent_diffusion
from course_utils.lessons.prompt_to_prompt import plan, sample_side_by_side


ATTRIBUTES = {
    "tone": ("", "light", "medium-light", "medium", "medium-dark", "dark"),
    "gender": ("", "man", "woman"),
    "facing": ("", "right"),
    "style": ("Noto", "Twemoji"),
}


@dataclass
class Edits:
    """E edits: kind of attribute, its value afterwards, and the positions of the two pictures; all (E,)."""

    kind: np.ndarray
    value: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def __len__(self):
        return len(self.kind)

    def __getitem__(self, rows):
        return Edits(self.kind[rows], self.value[rows], self.before[rows], self.after[rows])


def find_edits(pack):
    """All edits in an emoji pack of N rows and its twin in the other style (positions N and up), by ``pack.pairs``. Returns Edits."""
    n, found = len(pack), []
    for kind in ("tone", "gender", "facing"):
        family, label = defaultdict(list), getattr(pack, kind)
        for plain, other in pack.pairs(kind):
            if label[other] in ATTRIBUTES[kind]:
                family[plain].append(other)
        for plain, others in family.items():
            rows = [plain, *others]  # alike but for this attribute
            found += [(kind, label[b], s * n + a, s * n + b) for a in rows for b in rows if a != b for s in (0, 1)]
    found += [("style", "Twemoji", i, n + i) for i in range(n)] + [("style", "Noto", n + i, i) for i in range(n)]
    kind, value, before, after = zip(*found)
    return Edits(np.array(kind, dtype=object), np.array(value, dtype=object), np.array(before), np.array(after))


SAYS = {  # wordings, one after the other; the last of each is held out
    ("tone", "en"): (
        "make the skin {} | change the skin tone to {} | give it {} skin | {} skin | paint the skin {} | skin "
        "tone: {} | the skin should be {} | use {} skin | turn the skin {} | I want {} skin"
    ),
    ("tone", "ko"): (
        "피부를 {} 해 줘 | 피부색을 {} 바꿔 줘 | 피부를 {} 만들어 줘 | 피부색을 {} 해 줘 | "
        "살색을 {} 바꿔 줘 | 피부를 {} 칠해 줘"
    ),
    ("gender", "en"): (
        "change to a {} | make it a {} | turn the person into a {} | show a {} | draw a {} instead | this should "
        "be a {} | turn it into a {} | replace the person with a {}"
    ),
    ("gender", "ko"): "{}로 바꿔 줘 | {}로 만들어 줘 | {}로 해 줘 | 이 사람을 {}로 바꿔 줘 | {}로 그려 줘",
    ("facing", "en"): "turn it to the {} | make it look {} | rotate it to the {} | let it face {}",
    ("facing", "ko"): "{}을 보게 해 줘 | {}으로 돌려 줘 | {}을 향하게 해 줘",
    ("style", "en"): (
        "draw it as {} | change the style to {} | make it look like {} | in the style of {} | redraw it as {} | "
        "convert it to {} | repaint it as {}"
    ),
    ("style", "ko"): "{}로 그려 줘 | {} 스타일로 바꿔 줘 | {} 그림체로 바꿔 줘 | {}처럼 만들어 줘",
}


VALUES = {  # how a value is said, where it is not said as it is
    ("tone", "en"): {"": ["yellow"]},
    ("tone", "ko"): {
        "": ["노랗게"],
        "light": ["하얗게", "밝게"],
        "medium-light": ["연한 갈색으로", "약간 밝게"],
        "medium": ["갈색으로", "중간 색으로"],
        "medium-dark": ["진한 갈색으로", "약간 어둡게"],
        "dark": ["검게", "어둡게"],
    },
    ("gender", "en"): {"": ["person"]},
    ("gender", "ko"): {"": ["보통 사람으"], "man": ["남자"], "woman": ["여자"]},
    ("facing", "en"): {"": ["left"]},
    ("facing", "ko"): {"": ["왼쪽"], "right": ["오른쪽"]},
    ("style", "ko"): {"Noto": ["노토"], "Twemoji": ["트위모지"]},
}


def wordings(kind, value, language="en", held_out=False):
    """All instructions that ask for this value of this attribute: the trained ones, or those with the held-out wording. A list of strings."""
    if (kind, language) not in SAYS:
        raise CourseError(
            f"No wordings for {kind!r} in {language!r}: choose among {', '.join(ATTRIBUTES)}, in en or ko."
        )
    said, values = SAYS[kind, language].split(" | "), VALUES.get((kind, language), {}).get(value, [value])
    return [s.format(v) for s in (said[-1:] if held_out else said[:-1]) for v in values]


class Judge(nn.Module):
    """Pictures (B, 3, 64, 64) or (B, 3, 32, 32) in [0, 1] -> {attribute: logits (B, values)}."""

    def __init__(self, width=16):
        super().__init__()
        self.sizes = [len(v) for v in ATTRIBUTES.values()]
        self.net = ResNet(width, sum(self.sizes))

    def forward(self, x):
        x = F.avg_pool2d(x, 2) if x.shape[-1] == 64 else x
        return dict(zip(ATTRIBUTES, self.net(x).split(self.sizes, 1)))

    @torch.no_grad()
    def says(self, x, kinds):
        """The value that each picture shows of the attribute named beside it: (B, 3, S, S), B names -> B strings."""
        kinds, logits = as_list(kinds, "kinds"), self(x.to(self.net.project.weight.device))
        if len(kinds) != len(x) or not set(kinds) <= set(ATTRIBUTES):
            raise CourseError(f"The judge wants one of {', '.join(ATTRIBUTES)} for each of {len(x)} pictures.")
        named = [ATTRIBUTES[k][int(logits[k][i].argmax())] for i, k in enumerate(kinds)]
        return np.array(named, dtype=object)


def labels(edits, n):
    """{attribute: (n,) class of every picture that is the result of an edit of that kind, -1 elsewhere}."""
    out = {k: torch.full((n,), -1) for k in ATTRIBUTES}
    for kind, value, after in zip(edits.kind, edits.value, edits.after):
        out[kind][after] = ATTRIBUTES[kind].index(value)
    return out


def load_judge(device="cpu"):
    """The trained judge of attributes, in eval mode and frozen."""
    from course_utils import weights

    judge = Judge()
    weights.load("instruct_pix2pix", {"judge": judge})
    return judge.to(device).eval().requires_grad_(False)


def make_pairs(ld, before, after, share, noise, style=1, w=3.0, steps=12):
    """Picture pairs for B caption pairs by Prompt-to-Prompt (lesson 2.7): one noise (B, 4, 16, 16) for both pictures, maps shared for ``share`` (one number, or B) of the steps. Two (B, 3, 64, 64)."""
    n, captions = len(before), as_list(before, "before") + as_list(after, "after")
    if not 0 < n == len(after) == len(noise):
        raise CourseError(
            f"{n} captions before, {len(after)} after, {len(noise)} noises: one of each a pair is needed."
        )
    share = torch.cat([torch.zeros(n), torch.as_tensor(share, dtype=torch.float32).expand(n)])
    controller = plan(ld, captions, [*range(n)] * 2, words=share, itself=share / 2)
    z = sample_side_by_side(ld, noise.repeat(2, 1, 1, 1), captions, controller, style, w, steps)
    return ld.decode(z).cpu().chunk(2)


def direction_similarity(image_before, image_after, text_before, text_after):
    """Cosine between how the picture moved and how the caption moved (Gal et al. 2022). Four (B, D) -> (B,)."""
    return F.cosine_similarity(image_after - image_before, text_after - text_before, dim=-1)


@torch.no_grad()
def clip_scores(clip, before, after, captions_before, captions_after):
    """{direction, image, caption: (B,)}: direction similarity, similarity of the two pictures, and the lower fit of picture and caption. Pictures (B, 3, 64, 64)."""
    a, b = (clip.encode_image(F.avg_pool2d(x.to(clip.log_scale.device), 2)).cpu() for x in (before, after))
    s, t = (clip.encode_text(as_list(c)).cpu() for c in (captions_before, captions_after))
    if not len(a) == len(b) == len(s) == len(t):
        raise CourseError(
            f"{len(a)} and {len(b)} pictures, {len(s)} and {len(t)} captions: one of each a pair is needed."
        )
    fit = torch.minimum((a * s).sum(1), (b * t).sum(1))
    return {"direction": direction_similarity(a, b, s, t), "image": (a * b).sum(1), "caption": fit}


def widen(conv, extra):
    """A copy of an nn.Conv2d with ``extra`` further input channels, whose weights are zero (Brooks et al. 2023, section 3.2)."""
    wide = copy.deepcopy(conv).requires_grad_()
    wide.in_channels += extra
    wide.weight = nn.Parameter(F.pad(wide.weight.detach(), (0, 0, 0, 0, 0, extra)))  # zeros behind, along axis 1
    return wide


TRAINED = ("conv_in", "down.0", "up.3", "up.4", "norm_out", "conv_out")  # the 8x8 level, whole


def is_trained(name):
    """Does lesson 2.8 train this parameter of the U-Net? The 8x8 level and, everywhere, the cross-attention to the words."""
    return name.startswith(TRAINED) or ".attn2." in name


def make_editor(base):
    """A copy of the text-to-image U-Net that takes (z_t, picture), 8 channels; at first it gives what the base gives. Only ``is_trained`` parameters will learn."""
    unet = copy.deepcopy(base)
    unet.conv_in = widen(base.conv_in, base.conv_in.in_channels)
    for name, p in unet.named_parameters():
        p.requires_grad_(is_trained(name))
    return unet


def drop_conditions(picture, words, nothing, u, p=0.05):
    """Leave out conditions (Brooks et al. 2023, section 3.2.1). picture: (B, C, H, W); words: (B, T, E); nothing: (1, T, E); u: (B,) in [0, 1). Returns picture, words."""
    no_words = u < 2 * p
    no_picture = (u >= p) & (u < 3 * p)
    picture = torch.where(no_picture[:, None, None, None], torch.zeros_like(picture), picture)
    return picture, torch.where(no_words[:, None, None], nothing, words)


def guide_both(none, picture, both, s_I, s_T):
    """Guidance with two conditions (Brooks et al. 2023, eq. 3). All (B, ...)."""
    return none + s_I * (picture - none) + s_T * (both - picture)


def sample_edit(unet, picture, words, nothing, s_I, s_T, start, steps, schedule):
    """Latents of the edited pictures, (B, C, H, W), by equation 3. picture, start (z_T): (B, C, H, W); words: (B, T, E); nothing: (1, T, E)."""
    none = nothing.expand_as(words)
    asked = {"none": (torch.zeros_like(picture), none), "picture": (picture, none), "both": (picture, words)}
    needed = [k for k, there in zip(asked, (s_I != 1, s_I != s_T, s_T != 0)) if there]

    def model(z, t):
        n = len(needed)
        pair = torch.cat([torch.cat([z, asked[k][0]], 1) for k in needed])
        out = unet(pair, t.repeat(n), torch.cat([asked[k][1] for k in needed]), torch.zeros_like(t).repeat(n))
        found = dict(zip(needed, out.chunk(n)))
        return guide_both(*(found.get(k, torch.zeros_like(z)) for k in asked), s_I, s_T)

    return ddim_sample(model, start.shape, steps, schedule, clip=False, start=start, device=start.device)


def readable(x):
    """Pictures that the networks can read, as single precision: (B, 3, H, W), B >= 1, sides multiples of 16, values in [0, 1]."""
    x = torch.as_tensor(x)
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape or x.shape[2] % 16 or x.shape[3] % 16:
        raise CourseError(f"Pictures are wanted as (B, 3, H, W), both sides multiples of 16, not as {tuple(x.shape)}.")
    if not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():
        raise CourseError("Pictures are wanted with values between 0 and 1: divide bytes by 255, and replace NaN.")
    return x.float()


@torch.no_grad()
def edit(ld, unet, pictures, instructions, s_I=1.2, s_T=2.0, steps=20, seed=0):
    """Pictures (B, 3, 64, 64) in [0, 1] and B instructions -> edited pictures (B, 3, 64, 64), on the CPU."""
    instructions, pictures = as_list(instructions, "instructions"), readable(pictures)
    if steps < 1:
        raise CourseError(f"edit needs at least one step, not {steps}.")
    if len(instructions) != len(pictures):
        raise CourseError(f"edit wants one instruction a picture, not {len(instructions)} for {len(pictures)}.")
    z, noise = ld.encode(pictures), torch.Generator().manual_seed(seed)
    start = torch.randn(z.shape, generator=noise).to(ld.device)
    return ld.decode(
        sample_edit(unet, z, ld.words(instructions), ld.words([""]), s_I, s_T, start, steps, ld.schedule)
    ).cpu()


def draw_chances(edits, concept, shares=(("tone", 0.4), ("gender", 0.2), ("style", 0.35), ("facing", 0.05))):
    """Chance of each edit (E,), summing to 1: a share per kind; within it a concept with n edits counts as the square root of n. concept: one per picture position."""
    chance = np.zeros(len(edits))
    for kind, share in shares:
        rows = np.flatnonzero(edits.kind == kind)
        _, which, count = np.unique(concept[edits.before[rows]].astype(str), return_inverse=True, return_counts=True)
        chance[rows] = count[which] ** -0.5
        chance[rows] *= share / max(chance[rows].sum(), 1e-9)
    return chance / max(chance.sum(), 1e-9)


def noise_levels(count, generator, T=1000, power=0.5):
    """Levels t (count,) in 1..T, spread evenly and pushed towards noise: there the picture and the words tell most."""
    u = (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1
    return 1 + (T * u**power).long().clamp(max=T - 1)


class Changed:
    """The part of a U-Net that was trained, as weights.save and weights.load want it; the rest stays the base's."""

    def __init__(self, unet):
        self.unet = unet

    def state_dict(self):
        return {k: v for k, v in self.unet.state_dict().items() if is_trained(k)}

    def load_state_dict(self, values):
        if values.keys() != self.state_dict().keys():
            raise RuntimeError("Error(s):\n other parameters than this lesson trains")
        self.unet.load_state_dict(values, strict=False)

    def eval(self):
        self.unet.eval()


def load_editor(device="cpu"):
    """(LatentDiffusion, trained editing U-Net), frozen and in eval mode: what ``edit`` takes."""
    from course_utils import weights

    ld = load_latent_diffusion(device)
    unet = make_editor(ld.unet)
    weights.load("instruct_pix2pix", {"unet": Changed(unet)})
    return ld, unet.eval().requires_grad_(False)
