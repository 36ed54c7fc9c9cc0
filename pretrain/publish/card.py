"""The model card of a pretrained encoder: what it is, what made it, how it is loaded."""

from typing import Any

from huggingface_hub import ModelCardData

from data_prep.common.results import markdown_table, table_cell
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.weights import HUB
from pretrain.publish.config import PublishOptions
from pretrain.publish.export import TIMM_NAMES, TO_TRANSFORMERS
from pretrain.publish.facts import RunFacts, SetFacts
from pretrain.sizes import NATIVE_GRID, PATCH

CURVES = "losses.png"
WITHOUT_IMAGES = (CURVES, "rates.png", "mix_similarity.png", "probe_bars.png")
"""Figures of a run that never show an image."""
PROBE_FIGURE = "probes.png"
"""The figure of `pretrain probe`."""
NATIVE = NATIVE_GRID * PATCH
"""Side in pixels of SAM's own images."""


def model_card(
    config: PublishOptions,
    facts: RunFacts,
    encoder: SamEncoder,
    figures: list[str],
    probe: list[str],
) -> str:
    """Markdown of a model's page.

    Args:
        figures: Paths of pictures in the repository.
        probe: Lines of Markdown of `--probe`.
    """
    base = facts.started_from and facts.started_from.removeprefix(HUB).partition("@")[0]
    data = ModelCardData(
        license=config.license,
        library_name="samaritan",
        pipeline_tag="image-feature-extraction",
        tags=["medical", "segment-anything", "self-supervised", "vision"],
        base_model=base or None,
    )
    parameters = sum(p.numel() for p in encoder.parameters()) / 1e6
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {config.repo.partition('/')[2]}",
        f"The image encoder of Segment Anything ({facts.name}, {parameters:.1f} M parameters),"
        " pretrained without labels on medical images by samaritan. It gives features of an image;"
        " it does not segment by itself.",
        "## How to load it",
        *_loading(config.repo, facts, encoder),
        "## What it was trained on",
        *(set_table(f"set {n}", each) for n, each in enumerate(facts.sets, start=1)),
        "## How it was trained",
        *_training(facts),
        *(f"![{path}]({path})" for path in figures if path.endswith(CURVES)),
        "## How good its features are",
        *_results(facts, probe),
        *(f"![{path}]({path})" for path in figures if not path.endswith(CURVES)),
        "## Intended use and limits",
        _neck(facts),
        "Research on medical images: features for classification and retrieval, and the start of a"
        " segmentation model. **It is not a medical device** and was not validated for diagnosis,"
        " treatment or any other clinical use.",
        "It has seen only the images described above. On other organs, modalities, machines,"
        " populations or image qualities its features may be worse, and it may have learnt what"
        " distinguishes hospitals or scanners. Test it on data of your own before you rely on it.",
        f"Licence: {config.license}. What may be done with the encoder may also depend on the terms"
        " of the images, and of the weights that training started from.",
    ]
    return "\n\n".join(parts) + "\n"


def _loading(repo: str, facts: RunFacts, encoder: SamEncoder) -> list[str]:
    """Code for samaritan, and for each library without it."""
    size, pixels = encoder.size, facts.image_size
    grid = pixels // PATCH
    sizes = f"{size.width}, {size.depth}, {size.heads}, {list(size.global_blocks)}"
    if facts.name in TIMM_NAMES:  # the sizes that the other libraries have too
        sam_import = "from segment_anything import sam_model_registry"
        sam = f'sam_model_registry["{facts.name}"]()'
        timm_name, timm_sizes = TIMM_NAMES[facts.name], ""
    else:
        sam_import = "from segment_anything.build_sam import _build_sam"
        sam = f"_build_sam({sizes})"
        timm_name = TIMM_NAMES["vit_b"]
        timm_sizes = (
            f"embed_dim={size.width}, depth={size.depth}, num_heads={size.heads},"
            f" global_attn_indexes={list(size.global_blocks)},\n    "
        )
    return [
        code_block(
            "import torch",
            "from pretrain.encoder import SamEncoder",
            "",
            f'encoder = SamEncoder.from_pretrained("{HUB}{repo}")',
            "with torch.no_grad():",
            f'    pixels = encoder.preprocess("image.png")  # (1, 3, {pixels}, {pixels})',
            "    tokens = encoder.forward_tokens(pixels)"
            f"  # (1, {grid * grid}, {size.width}), before the neck",
            f"    embedding = encoder(pixels)  # (1, 256, {grid}, {grid})",
        ),
        "Without samaritan, `encoder.safetensors` is the `image_encoder` part of a SAM state dict:",
        code_block(
            "from huggingface_hub import hf_hub_download",
            "from safetensors.torch import load_file",
            "",
            f'weights = load_file(hf_hub_download("{repo}", "encoder.safetensors"))',
        ),
        f"In segment_anything (images of {NATIVE} pixels; load SAM's checkpoint first to have its"
        " prompt encoder and mask decoder):",
        code_block(sam_import, "", f"sam = {sam}", "sam.image_encoder.load_state_dict(weights)"),
        "In timm (any size; `forward_features` gives the embedding):",
        code_block(
            "from functools import partial",
            "",
            "import timm",
            "import torch",
            "",
            "model = timm.create_model(",
            f'    "{timm_name}", num_classes=0,',
            f"    {timm_sizes}norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),",
            ")",
            "names = {name: name.replace('.mlp.lin', '.mlp.fc') for name in weights}",
            "model.load_state_dict({names[name]: tensor for name, tensor in weights.items()})",
        ),
        f"In transformers (images of {NATIVE} pixels; `python -m pretrain export` of samaritan"
        " writes models of other sizes):",
        code_block(
            "import re",
            "",
            "from transformers import SamVisionConfig, SamVisionModel",
            "",
            "config = SamVisionConfig(",
            f"    hidden_size={size.width}, num_hidden_layers={size.depth},"
            f" num_attention_heads={size.heads},",
            f"    global_attn_indexes={list(size.global_blocks)},",
            ")",
            "vision = SamVisionModel(config)",
            "renamed = {name: name for name in weights}",
            "for pattern, new in [",
            *(f'    (r"{pattern}", r"{new}"),' for pattern, new in TO_TRANSFORMERS),
            "]:",
            "    renamed = {name: re.sub(pattern, new, to) for name, to in renamed.items()}",
            "vision.load_state_dict({renamed[name]: tensor for name, tensor in weights.items()})",
        ),
        f"Images are RGB with the mean {_listed(encoder.pixel_mean)} subtracted and divided by"
        f" {_listed(encoder.pixel_std)} (pixels on 0 to 255).",
    ]


def set_table(name: str, facts: SetFacts) -> str:
    """A table of what is known of a shard set."""
    rows = [("fingerprint", facts.fingerprint), *facts.figures]
    if not facts.figures:
        rows.append(("figures", "the set was not at hand when this card was written"))
    cells = [(table_cell(name), table_cell(text)) for name, text in rows]
    return "\n".join(markdown_table((name, ""), cells))


def _training(facts: RunFacts) -> list[str]:
    start = {None: "new weights", "": "other weights"}.get(facts.started_from)
    hours = "not recorded" if facts.hours is None else f"{facts.hours:.2f} on {facts.device}"
    versions = ", ".join(f"{name} {version}" for name, version in facts.packages.items())
    rows: list[tuple[str, Any]] = [
        ("started from", start or facts.started_from),
        ("steps", f"{facts.step} of {facts.steps}"),
        ("images seen", facts.samples),
        ("hours in training steps", hours),
        ("software", versions),
        *((f"`{name}`", value) for name, value in facts.recipe.items()),
    ]
    cells = [(name, table_cell(str(value))) for name, value in rows]
    return ["\n".join(markdown_table(("", "value"), cells))]


def _results(facts: RunFacts, probe: list[str]) -> list[str]:
    parts = ["\n".join(probe)] if probe else []
    if facts.results:
        rows = [(table_cell(n), f"{value:.4f}", step) for n, value, step in facts.results]
        parts.append("\n".join(markdown_table(("while training", "value", "step"), rows)))
    return parts or ["No probe was run on it."]


def _neck(facts: RunFacts) -> str:
    """Pretraining does not train the neck."""
    if facts.started_from is None:
        origin = "it is as it was initialised, so use the tokens before it, or train it"
    else:
        origin = "it is that of the weights that training started from"
    return f"The neck, which maps tokens to 256 channels, was not trained here: {origin}."


def code_block(*lines: str) -> str:
    """Lines of Python as Markdown."""
    return "\n".join(["```python", *lines, "```"])


def _listed(values: tuple[float, ...]) -> str:
    return f"({', '.join(map(str, values))})"
