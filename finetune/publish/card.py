"""The model card of an adapted model: what it segments, what it needs, what made it."""

import shlex
from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData

from data_prep.common.files import sha256
from data_prep.common.results import markdown_table, table_cell
from finetune.inference.published import Need
from finetune.publish.config import PublishOptions
from finetune.publish.facts import OFFICIAL, RunFacts
from pretrain.encoder.weights import HUB
from pretrain.publish.card import code_block, set_table

SAM_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"


def model_card(config: PublishOptions, facts: RunFacts, results: Sequence[str]) -> str:
    """Markdown of a model's page.

    Args:
        results: Lines of Markdown of `--results`.
    """
    bases = [need.source.removeprefix(HUB).partition("@")[0] for need in facts.needs]
    data = ModelCardData(
        license=config.license,
        library_name="samaritan",
        pipeline_tag="image-segmentation",
        tags=["medical", "segment-anything", "vision"],
        base_model=[base for base in bases if "/" in base] or None,
    )
    size = sum(p.numel() for p in facts.segmenter.parameters()) / 1e6
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {config.repo.partition('/')[2]}",
        f"Segment Anything ({facts.size}, {size:.1f} M parameters), adapted to medical images by"
        f" samaritan. It segments {_listed(list(facts.data.get('targets', {})))} in images of"
        f" {facts.segmenter.image_size} pixels a side, to which others are resized.",
        "## How to use it",
        *_use(config, facts),
        "## What it needs",
        *_needs(config, facts),
        "## What it was trained on",
        set_table("labelled images", facts.shards),
        f"Intensities were windowed by: {_window(facts.data.get('window', 'auto'))}. `predict` does"
        " the same.",
        "## How it was trained",
        *_training(facts),
        "## How good it is",
        *(["\n".join(results)] if results else ["No evaluation was published with it."]),
        "## Intended use and limits",
        "Research on medical images. **It is not a medical device** and was not validated for"
        " diagnosis, treatment or any other clinical use.",
        "It has learned the targets above on the images described above. On other organs,"
        " modalities, machines, populations or image qualities its masks may be worse, and a mask"
        " looks as sure when it is wrong. Test it on data of your own before you rely on it.",
        f"Licence: {config.license}. What may be done with the model may also depend on the terms"
        " of the images, and of the weights that it was built on.",
    ]
    return "\n\n".join(parts) + "\n"


def _use(config: PublishOptions, facts: RunFacts) -> list[str]:
    """The command and the code that load it."""
    files = [] if config.with_sources else [need for need in facts.needs if not _is_on_hub(need)]
    named = "".join(f" --{need.role} {need.source or f'{need.role}.safetensors'}" for need in files)
    name = f"{HUB}{config.repo}"
    target = next(iter(facts.data.get("targets", {})), "lesion")
    shape = "(1, H, W)"
    if not facts.segmenter.decoder.takes_prompts:
        prompt, call, shape = "", "", f"({len(facts.segmenter.targets)}, H, W)"
    elif facts.segmenter.text_encoder is not None:
        prompt, call = f" --text {shlex.quote(target)}", f"text={target!r}"
    else:
        prompt, call = ' --clicks "120,88,1"', "clicks=[[120, 88, 1]]"
    given = "".join(
        f', {need.role}="{need.source or f"{need.role}.safetensors"}"' for need in files
    )
    return [
        "\n".join(
            [
                "```sh",
                f"python -m finetune predict --run {name}{named} \\",
                f"    --input image.png{prompt} --output mask.png",
                "```",
            ]
        ),
        code_block(
            "from finetune import Predictor",
            "",
            f'predictor = Predictor("{name}"{given})',
            'predictor.set_image("image.png")  # or an array, (H, W) or (H, W, 3)',
            f"masks, scores, logits = predictor.predict({call})  # masks: {shape} bool",
        ),
        *_values(facts),
    ]


def _values(facts: RunFacts) -> list[str]:
    """What a mask of a model without prompts holds."""
    if facts.segmenter.decoder.takes_prompts:
        return []
    values = [f"{n} {name}" for n, name in enumerate(facts.segmenter.targets, start=1)]
    return [f"It needs no prompts. The values in a mask are {_listed(values)}."]


def _needs(config: PublishOptions, facts: RunFacts) -> list[str]:
    """The files that it was built on, and how to get them."""
    if not facts.needs:
        return ["Nothing but this repository: all of its weights are in it."]
    here = "in the folder `sources` of this repository"
    rows = [(role, f"`{sha256(path)}`", here) for role, path in facts.texts.items()]
    for need in facts.needs:
        if config.with_sources:
            how = here
        elif _is_on_hub(need):
            how = f"is fetched from `{need.source}` by itself"
        elif need.source in OFFICIAL.values():
            how = f"SAM's own [{need.source}]({SAM_PAGE}); give it as `--{need.role}`"
        else:
            how = f"not published: ask who made this model, and give it as `--{need.role}`"
        rows.append((need.role, f"`{need.sha256}`", how))
    return [
        "`segmenter.safetensors` holds what was trained. The frozen weights are those of",
        "\n".join(markdown_table(("file", "SHA-256", "where it is"), rows)),
        "A file with another SHA-256 is refused.",
    ]


def _training(facts: RunFacts) -> list[str]:
    hours = "not recorded" if facts.hours is None else f"{facts.hours:.2f} on {facts.device}"
    versions = ", ".join(f"{name} {version}" for name, version in facts.packages.items())
    parts = [
        (part.name, f"{part.parameters / 1e6:.2f} M", part.state)
        for part in facts.segmenter.describe()
    ]
    rows: list[tuple[str, Any]] = [
        ("steps", f"{facts.step} of {facts.steps}" if facts.steps else facts.step),
        ("hours in training steps", hours),
        ("software", versions),
        *((f"`{name}`", value) for name, value in facts.recipe.items()),
    ]
    if facts.score is not None:
        rows.insert(1, ("mean Dice on groups kept from training", f"{facts.score:.4f}"))
    cells = [(name, table_cell(str(value))) for name, value in rows]
    return [
        "\n".join(markdown_table(("part", "parameters", "in training"), parts)),
        "\n".join(markdown_table(("", "value"), cells)),
    ]


def _is_on_hub(need: Need) -> bool:
    return need.source.startswith(HUB)


def _window(window: Any) -> str:
    return f"{window[0]} to {window[1]}" if isinstance(window, list | tuple) else str(window)


def _listed(names: Sequence[str]) -> str:
    """Names as words of a sentence."""
    if not names:
        return "what it is prompted for"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
