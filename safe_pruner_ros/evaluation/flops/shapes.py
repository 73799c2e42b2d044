"""The five models as they run here: sizes, token counts, and what lies around the decoder.

Sizes are those of the published checkpoints (sources at each); the prompt lengths are means over
the 40 LIBERO tasks, so that token counts need not be whole in the papers' formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from safe_pruner_ros.evaluation.flops.work import (
    Operations,
    Stack,
    Work,
    linear,
    mlp,
    mlp_parameters,
    vision_tower,
)
from safe_pruner_ros.evaluation.macs import DecoderShape

# Llama-2 tokens of a LIBERO prompt, BOS and the closing 29871 included: mean of the ten tasks of
# spatial, object, goal and long.
LIBERO_PROMPTS = (32.2, 27.4, 23.7, 30.8)
LIBERO_PROMPT = sum(LIBERO_PROMPTS) / len(LIBERO_PROMPTS)

Head = Callable[[list[int]], Operations]


@dataclass(frozen=True)
class Tokens:
    """Decoder input: ``other`` are all non-visual tokens, ``text`` and ``action`` rows of which
    queries are taken. ``prompt``: rows of a 'prefill' query. ``views``: of equal size."""

    visual: int
    other: int
    text: int
    action: int
    prompt: int
    views: int = 1

    @property
    def by_view(self) -> list[int]:
        return [self.visual // self.views] * self.views

    @property
    def length(self) -> int:
        return self.visual + self.other

    def rows(self, queries: str) -> int:
        sizes = {'action': self.action, 'last': 1, 'text': self.text}
        return self.prompt if queries == 'prefill' else sizes[queries]


@dataclass(frozen=True)
class LateRows:
    """``passes`` of ``rows`` queries over the prefix and ``own_keys(pass)`` keys of their own.
    ``query_at_hand``: the layer hands its queries over, nothing is projected again."""

    passes: int
    rows: int
    own_keys: Callable[[int], int]
    query_at_hand: bool


@dataclass(frozen=True)
class Model:
    """``head`` gives the operations after the decoder from the key count of every layer.
    ``late`` are the rows that answer deep 'action' requests, where those come after the prefill.
    ``published_visual``, ``published_length``: the tokens that papers count.
    ``parameters``: of what a step reads and the tables it looks things up in.
    ``last_layer_stores_keys``: of the last layer only keys and values are computed.
    """

    name: str
    tokens: Tokens
    vision: Operations
    projector: Operations
    decoder: Stack
    head: Head
    parameters: int
    published_visual: float
    published_length: float
    late: LateRows | None = None
    last_layer_stores_keys: bool = False
    feature_width: int = 0

    @property
    def published(self) -> DecoderShape:
        """The decoder with the tokens that papers count."""
        decoder = self.decoder
        return DecoderShape(
            decoder.n_layers, self.published_length, decoder.width, decoder.mlp_width
        )

    @property
    def features(self) -> int:
        """Width of what tokens are matched by."""
        return self.feature_width or self.decoder.width


# -- parts ----------------------------------------------------------------------------------------

LLAMA_7B = Stack(32, 4096, 11008, 32, 32, 128)
LLAMA_VOCABULARY = 32064
# One block fewer than published: the last output is not read (policies/openvla/vision.py).
DINOV2_L = Stack(23, 1024, 4096, 16, 16, 64, gated=False)
SIGLIP_SO400M = Stack(26, 1152, 4304, 16, 16, 72, gated=False)
# pi0.5 reads the tower after its last block.
SIGLIP_WHOLE = replace(SIGLIP_SO400M, n_layers=27)
GEMMA_2B = Stack(18, 2048, 16384, 8, 1, 256)
GEMMA_300M = Stack(18, 1024, 4096, 8, 1, 256)
DIT_BASE = Stack(12, 768, 3072, 12, 12, 64, gated=False)
EMBEDDED_DECODER = Stack(12, 128, 352, 4, 4, 32)
EMBEDDED_WORDS = 9  # of an instruction; mean over the sentences of the shipped policy: 8.8


def two_towers(dino: Stack, siglip: Stack, images: int, patches: int) -> Operations:
    """DINOv2 (class and four register tokens) and SigLIP side by side, 14 px patches."""
    return [
        *vision_tower(dino, images, patches, 14, extra=5),
        *vision_tower(siglip, images, patches, 14, extra=0),
    ]


def two_towers_parameters(dino: Stack, siglip: Stack, patches: int) -> int:
    """LayerScale, class and register tokens in DINOv2 only; its class token has a position."""
    embed = sum(3 * 14**2 * t.width + t.width + patches * t.width for t in (dino, siglip))
    extra = (1 + 1 + 4) * dino.width + 2 * dino.n_layers * dino.width
    return dino.parameters + siglip.parameters + embed + extra


def llama_parameters(decoder: Stack, vocabulary: int, *, with_lm_head: bool) -> int:
    tables = (1 + with_lm_head) * vocabulary * decoder.width
    return decoder.parameters + decoder.width + tables


def prismatic_parameters(
    decoder: Stack,
    dino: Stack,
    siglip: Stack,
    patches: int,
    vocabulary: int,
    *,
    with_lm_head: bool,
) -> int:
    """Towers, projector, language model."""
    vision = dino.width + siglip.width
    return (
        two_towers_parameters(dino, siglip, patches)
        + mlp_parameters(vision, 4 * vision, decoder.width, decoder.width)
        + llama_parameters(decoder, vocabulary, with_lm_head=with_lm_head)
    )


def prismatic_projector(rows: int, vision_width: int, width: int) -> Operations:
    return mlp(rows, vision_width, 4 * vision_width, width, width)


# -- models ---------------------------------------------------------------------------------------


def openvla(
    n_text: int = round(LIBERO_PROMPT),
    decoder: Stack = LLAMA_7B,
    dino: Stack = DINOV2_L,
    siglip: Stack = SIGLIP_SO400M,
    patches: int = 256,
    vocabulary: int = LLAMA_VOCABULARY,
    n_actions: int = 7,
) -> Model:
    """One image; seven tokens, the first from the prefill (openvla c8f03f4)."""
    fed_back = n_actions - 1

    def head(keys: list[int]) -> Operations:
        work = [linear(1, decoder.width, vocabulary)] * n_actions
        for token in range(fed_back):
            for known in keys:
                work += decoder.layer(1, known + token + 1)
        return work

    return Model(
        'openvla',
        Tokens(patches, n_text, n_text - 1, 1, patches + n_text),
        two_towers(dino, siglip, 1, patches),
        prismatic_projector(patches, dino.width + siglip.width, decoder.width),
        decoder,
        head,
        prismatic_parameters(decoder, dino, siglip, patches, vocabulary, with_lm_head=True),
        published_visual=256,
        published_length=256 + LIBERO_PROMPT,
        late=LateRows(fed_back, 1, lambda token: token + 1, query_at_hand=False),
    )


def openvla_oft(
    n_text: int = round(LIBERO_PROMPT),
    decoder: Stack = LLAMA_7B,
    dino: Stack = DINOV2_L,
    siglip: Stack = SIGLIP_SO400M,
    patches: int = 256,
    images: int = 2,
    n_actions: int = 7,
    chunk_size: int = 8,
    n_proprio: int = 8,
    vocabulary: int = LLAMA_VOCABULARY,
) -> Model:
    """Two images, proprioception, 56 placeholders and `</s>` (openvla-oft 213c5ff)."""
    width, slots, visual = decoder.width, chunk_size * n_actions, images * patches
    proprio = mlp(1, n_proprio, width, width) if n_proprio else []
    n_other = n_text + bool(n_proprio) + slots + 1

    network = prismatic_parameters(decoder, dino, siglip, patches, vocabulary, with_lm_head=False)
    norms = 2 * width * n_actions + 3 * 2 * width
    parameters = network + norms + mlp_parameters(width * n_actions, *[width] * 3, n_actions)
    if n_proprio:
        parameters += mlp_parameters(n_proprio, width, width)

    def head(_: list[int]) -> Operations:
        return mlp(chunk_size, width * n_actions, width, width, width, n_actions)

    return Model(
        'openvla_oft',
        Tokens(visual, n_other, n_text - 1, slots, visual + n_other - slots - 1, images),
        two_towers(dino, siglip, images, patches),
        [*prismatic_projector(visual, dino.width + siglip.width, width), *proprio],
        decoder,
        head,
        parameters,
        published_visual=512,
        published_length=512 + 1 + LIBERO_PROMPT + 56 + 1,
    )


def cogact(
    n_text: int = 23,
    n_steps: int = 10,
    dit: Stack = DIT_BASE,
) -> Model:
    """One image, the cognition token `</s>` after the prompt, DiT-Base with ten DDIM steps and
    guidance, i.e. two rows of a batch (microsoft/CogACT b174a1b). ``n_text``: prompt and 29871,
    mean of SIMPLER's Google tasks; their 20 to 27 tokens count the cognition token."""
    decoder, action_dim, chunk = LLAMA_7B, 7, 16
    tokens, batch = chunk + 1, 2

    def head(_: list[int]) -> Operations:
        layer = [Work(batch * work.macs, work.weights) for work in dit.layer(tokens)]
        step = [
            linear(batch, decoder.width, dit.width),  # cognition feature
            *mlp(batch, 256, dit.width, dit.width),  # time
            linear(batch * chunk, action_dim, dit.width),
            *layer * dit.n_layers,
            linear(batch * tokens, dit.width, action_dim),
        ]
        return step * n_steps

    ends = mlp_parameters(256, dit.width, dit.width) + mlp_parameters(decoder.width, dit.width)
    ends += mlp_parameters(action_dim, dit.width) + mlp_parameters(dit.width, action_dim)
    ends += tokens * dit.width + decoder.width  # positions, the feature of "no condition"
    without_norms = dit.parameters - dit.n_layers * 4 * dit.width
    network = prismatic_parameters(
        decoder, DINOV2_L, SIGLIP_SO400M, 256, LLAMA_VOCABULARY, with_lm_head=False
    )
    n_other = n_text + 1
    return Model(
        'cogact',
        Tokens(256, n_other, n_text - 1, 1, 256 + n_other),
        two_towers(DINOV2_L, SIGLIP_SO400M, 1, 256),
        prismatic_projector(256, DINOV2_L.width + SIGLIP_SO400M.width, decoder.width),
        decoder,
        head,
        network + without_norms + ends,
        published_visual=256,
        published_length=256 + n_other,
    )


def pi05(
    n_text: int = 20,
    prefix: Stack = GEMMA_2B,
    expert: Stack = GEMMA_300M,
    vision: Stack = SIGLIP_WHOLE,
    patches: int = 256,
    views: int = 2,
    action_dim: int = 32,
    horizon: int = 10,
    n_steps: int = 10,
    vocabulary: int = 257152,
) -> Model:
    """Two cameras and an unpadded prompt; the paper counts a blank third camera and 200 prompt
    tokens besides (openpi 15a9616 masks them)."""
    visual = views * patches

    def head(keys: list[int]) -> Operations:
        layers = [work for known in keys for work in expert.layer(horizon, known + horizon)]
        ends = [
            linear(horizon, action_dim, expert.width),
            linear(horizon, expert.width, action_dim),
        ]
        return [*layers, *ends] * n_steps

    embed = (3 * 14**2 + 1 + patches) * vision.width
    towers = vision.parameters + embed + 2 * vision.width
    towers += mlp_parameters(vision.width, prefix.width)
    language = prefix.parameters + prefix.width + vocabulary * prefix.width
    # Adaptive norms have a map from the time in place of weights.
    adaptive = (2 * expert.n_layers + 1) * mlp_parameters(expert.width, 3 * expert.width)
    experts = expert.parameters - 2 * expert.n_layers * expert.width + adaptive
    experts += mlp_parameters(action_dim, expert.width) + mlp_parameters(expert.width, action_dim)
    experts += mlp_parameters(*[expert.width] * 3)
    return Model(
        'pi05',
        Tokens(visual, n_text, n_text, 1, visual + n_text, views),
        vision_tower(vision, views, patches, 14, extra=0),
        [linear(visual, vision.width, prefix.width)],
        prefix,
        head,
        towers + language + experts,
        published_visual=3 * 256,
        published_length=3 * 256 + 200,
        late=LateRows(n_steps, horizon, lambda _: horizon, query_at_hand=True),
        last_layer_stores_keys=True,
    )


def embedded(
    max_words: int = 12,
    decoder: Stack = EMBEDDED_DECODER,
    views: int = 3,
    n_joints: int = 16,
    chunk_size: int = 8,
    vocabulary: int = 23,
    n_words: int = EMBEDDED_WORDS,
) -> Model:
    """The policy that ships with this package (policies/embedded_model.py), 256 px views. Only
    the ``n_words`` of the ``max_words`` are asked; the rest is padding."""
    width, visual = decoder.width, views * 64
    n_other = 1 + 1 + max_words + chunk_size + 1
    projector = mlp(visual, 128, width, width)
    learnt_rows = visual + vocabulary + chunk_size + 2  # positions, words, slots, bos and end
    parameters = _grid_tower_parameters() + mlp_parameters(128, width, width)
    parameters += mlp_parameters(n_joints, width, width) + learnt_rows * width
    parameters += decoder.parameters + width + mlp_parameters(width, 2 * width, n_joints)

    def head(_: list[int]) -> Operations:
        return mlp(chunk_size, width, 2 * width, n_joints)

    return Model(
        'embedded',
        Tokens(visual, n_other, n_words, chunk_size, visual + n_other - chunk_size - 1, views),
        [Work(views * work.macs, work.weights) for work in _grid_tower()],
        # Once into the decoder, once as features of the matching.
        [*projector, *mlp(1, n_joints, width, width), *projector],
        decoder,
        head,
        parameters,
        published_visual=visual,
        published_length=visual + n_other,
    )


def _grid_tower(width: int = 128) -> Operations:
    """Convolutions of policies/vision_tower.py on one 256 px image."""

    def conv(cells: int, n_in: int, n_out: int, kernel: int) -> Work:
        return linear(cells, n_in * kernel**2, n_out)

    def mixer(cells: int, channels: int, kernel: int) -> Operations:
        depthwise = Work(cells * channels * kernel**2, channels * kernel**2)
        return [depthwise, *mlp(cells, channels, 2 * channels, channels)]

    return [
        conv(64**2, 3, 48, 7),
        conv(32**2, 48, 64, 3),
        *mixer(32**2, 64, 5),
        conv(16**2, 64, 96, 3),
        *mixer(16**2, 96, 5),
        conv(8**2, 96, width, 3),
        *mixer(8**2, width, 7),
        *mixer(8**2, width, 7),
    ]


def _grid_tower_parameters(width: int = 128) -> int:
    """Weights, batch norms of every convolution that has one, biases of the channel mixers."""
    mixers = (64, 96, width, width)
    norms = 2 * (48 + 64 + 96 + width + sum(mixers)) + 2 * width
    return sum(work.weights for work in _grid_tower(width)) + norms + 3 * sum(mixers)


MODELS: dict[str, Callable[[], Model]] = {
    'openvla': openvla,
    'openvla_oft': openvla_oft,
    'cogact': cogact,
    'pi05': pi05,
    'embedded': embedded,
}
