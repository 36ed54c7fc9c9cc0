"""The trained weights of a run to the Hugging Face Hub, with all that rebuilds its model."""

import shutil
from importlib.metadata import version
from pathlib import Path

import yaml

from data_prep.common.cli import write_resolved_config
from data_prep.common.files import use_umask, write_json, write_text
from finetune.inference.loading import DATA, SOURCES
from finetune.inference.published import SEGMENTER
from finetune.model.kept import FOLDER
from finetune.publish.card import model_card
from finetune.publish.config import PublishOptions
from finetune.publish.facts import RunFacts, read_run, results_text
from pretrain.encoder.weights import HUB
from pretrain.publish.hub import Published, write_or_upload


def publish(config: PublishOptions, resolved: str) -> None:
    """Upload the trained weights of a run to the Hub, or write what would be uploaded."""
    results = results_text(config.results) if config.results is not None else []
    facts = read_run(config.run, config.checkpoint == "last")
    message = f"Segmenter after step {facts.step}, made by samaritan"
    page = write_or_upload(
        config,
        lambda folder: write_folder(folder, config, facts, results),
        Published(SEGMENTER, facts.identity, message, (f"{FOLDER}/",)),
    )
    if page is not None:
        print(f"use it with --run {HUB}{config.repo}")


def write_folder(folder: Path, config: PublishOptions, facts: RunFacts, results: list[str]) -> None:
    """Everything that is published of a run: a checkpoint that loads as a run does, and a card."""
    weights = facts.checkpoint.weights_file(SEGMENTER)
    sources = {**facts.texts, **(facts.files if config.with_sources else {})}
    files = {f"{FOLDER}/{role}{path.suffix}": path for role, path in sources.items()}
    files[weights.name] = weights
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        use_umask(folder / name)
    document = {
        "run": facts.identity,
        "step": facts.step,
        "encoder_size": facts.size,
        "image_size": facts.segmenter.image_size,
        "needs": [need.document() for need in facts.needs],
        "samaritan": version("samaritan"),
    }
    write_json(folder / f"{SEGMENTER}.json", document)
    write_json(folder / f"{DATA}.json", facts.data)
    write_json(folder / f"{SOURCES}.json", facts.sources)
    write_resolved_config(folder, yaml.safe_dump(facts.public_config(), sort_keys=False))
    write_text(folder / "README.md", model_card(config, facts, results))
