"""The encoder of a run to the Hugging Face Hub: weights, encoder.json, a model card and figures."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from data_prep.common.files import new_folder, use_umask, write_json, write_text
from data_prep.common.hub import (
    COMMON_FILES,
    RepoOptions,
    check_replaced,
    one_line_faults,
    open_repository,
)
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.weights import ENCODER, HUB
from pretrain.publish.card import PROBE_FIGURE, WITHOUT_IMAGES, model_card
from pretrain.publish.config import PublishOptions, RunRepoOptions
from pretrain.publish.facts import RunFacts, probe_text, read_run

FIGURES = "figures"
"""Folder of pictures in a repository."""


def publish(config: PublishOptions, resolved: str) -> None:
    """Upload the encoder of a run to the Hugging Face Hub, or write what would be uploaded."""
    facts = read_run(config.run)
    if facts.step < facts.steps:
        print(f"note: {config.run} has done {facts.step} of {facts.steps} steps")
    message = f"Encoder after step {facts.step}, made by samaritan"
    page = write_or_upload(
        config,
        lambda folder: write_folder(folder, config, facts),
        Published(ENCODER, facts.identity, message, (f"{FIGURES}/",)),
    )
    if page is not None:
        print(f"load it with SamEncoder.from_pretrained({HUB + config.repo!r})")


def write_folder(folder: Path, config: PublishOptions, facts: RunFacts) -> None:
    """Everything that is published of a run.

    Raises:
        UserError: The weights do not fit, or `--probe` is not a probe's folder.
    """
    weights = facts.checkpoint.weights_file(ENCODER)
    encoder = SamEncoder.from_pretrained(weights)
    probe = probe_text(config.probe) if config.probe else []
    shutil.copyfile(weights, folder / weights.name)
    use_umask(folder / weights.name)
    write_json(folder / f"{ENCODER}.json", encoder_document(encoder, facts))
    figures = _copy_figures(folder, config)
    write_text(folder / "README.md", model_card(config, facts, encoder, figures, probe))


def encoder_document(encoder: SamEncoder, facts: RunFacts) -> dict[str, Any]:
    """`encoder.json` of a published encoder."""
    return {
        "name": facts.name,
        "image_size": facts.image_size,
        "width": encoder.size.width,
        "depth": encoder.size.depth,
        "heads": encoder.size.heads,
        "global_blocks": list(encoder.size.global_blocks),
        "pixel_mean": list(encoder.pixel_mean),
        "pixel_std": list(encoder.pixel_std),
        "step": facts.step,
        "run": facts.identity,
        "samaritan": version("samaritan"),
    }


def _copy_figures(folder: Path, config: PublishOptions) -> list[str]:
    """Copy the figures that may be seen; gives their paths in the repository."""
    of_run = sorted((config.run / FIGURES).glob("*.png"))
    shown = [path for path in of_run if config.pictures or path.name in WITHOUT_IMAGES]
    if len(shown) < len(of_run):
        left_out = ", ".join(path.name for path in of_run if path not in shown)
        print(f"left out, as they may show patients' images: {left_out} (--pictures true)")
    chosen = {path.name: path for path in shown}
    if config.probe:
        chosen |= {PROBE_FIGURE: config.probe / PROBE_FIGURE}
    chosen = {name: path for name, path in chosen.items() if path.is_file()}
    for name, path in chosen.items():
        (folder / FIGURES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / FIGURES / name)
    return [f"{FIGURES}/{name}" for name in chosen]


@dataclass(frozen=True)
class Published:
    """What a repository holds of a run."""

    document: str
    """Name of the JSON document that says of which run it is, as `run`."""
    identity: str
    """The same for all states of one run."""
    message: str
    """Of the commit."""
    folders: tuple[str, ...]
    """Beginnings of the names of files that are taken back when they are not published again."""


def write_or_upload(
    options: RunRepoOptions, write: Callable[[Path], None], published: Published
) -> str | None:
    """Upload what `write` writes to a folder, or with `dry_run` only write it.

    Returns:
        The address of the repository's page; None after a dry run.

    Raises:
        UserError: See `upload`; or what the Hub and the network answer.
    """
    if options.dry_run:
        run = options.run.resolve()
        output = options.output or run.with_name(f"publish-{run.name}")
        with new_folder(output) as folder:
            write(folder)
        print(f"written: {output}; nothing was uploaded. Read its README.md before you publish it")
        return None
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
        with one_line_faults(f"hf://{options.repo}"):
            page = upload(Path(temporary), options, published)
    print(f"published: {page}")
    return page


def upload(folder: Path, options: RepoOptions, published: Published) -> str:
    """Send a folder in one commit, so that readers see all of it or none; gives its page.

    Raises:
        UserError: It shall be private, but is on the Hub and public; or the name holds another
            model.
    """
    hub = HfApi()
    page, there = open_repository(hub, options, "model")
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    others = [path for path in there if path not in COMMON_FILES]
    document = f"{published.document}.json"
    same_run = document in there and _run_of(hub, options.repo, document) == published.identity
    if not same_run:
        check_replaced(options, others)
    stale = [
        path
        for path in others
        if path not in files and (options.replace or path.startswith(published.folders))
    ]
    hub.create_commit(
        options.repo,
        [
            *(CommitOperationDelete(path) for path in stale),
            *(CommitOperationAdd(path, str(file)) for path, file in sorted(files.items())),
        ],
        commit_message=published.message,
    )
    return page


def _run_of(hub: HfApi, repo: str, document: str) -> str | None:
    """Identity of the run of which something is on the Hub."""
    path = Path(hub.hf_hub_download(repo, document))
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return told.get("run") if isinstance(told, dict) else None
