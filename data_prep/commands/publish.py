"""A shard set to the Hugging Face Hub: shards, indexes, dataset.json and a card."""

import glob
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, HfApi

from data_prep.commands.info import fingerprint
from data_prep.commands.verify import find_problems
from data_prep.common.errors import UserError
from data_prep.common.hub import COMMON_FILES, check_replaced, one_line_faults, open_repository
from data_prep.common.results import markdown_table, table_cell
from data_prep.format.index import index_path, read_json
from data_prep.options import PublishOptions
from data_prep.shards.manifest import PLAN
from data_prep.shards.private import EARLIER_SALT, read_salt


def publish(config: PublishOptions, resolved: str) -> None:
    """Upload a shard set to the Hugging Face Hub, with a card made of its figures."""
    if not (config.shards / "dataset.json").is_file():
        raise UserError(f"{config.shards}: no whole shard set (dataset.json is missing)")
    document = read_json(config.shards / "dataset.json")
    if problems := find_problems(config.shards):
        raise UserError(
            f"{problems[0]} (and {len(problems) - 1} more problems); nothing was uploaded; shard"
            " again to fix them"
        )
    salt = read_salt(config.shards)
    if salt == EARLIER_SALT or (salt is None and not (config.shards / PLAN).is_file()):
        raise UserError(
            f"{config.shards}: its patients are hashed with the salt of earlier versions, which"
            " everybody knows; shard again into another --output"
        )
    shards = _shards(config.shards, document)
    url = f"hf://datasets/{config.repo}"
    with one_line_faults(url):
        page = upload(config, document, shards)
    print(f"published: {page}\nread it as {url}")


def upload(config: PublishOptions, document: dict[str, Any], shards: list[Path]) -> str:
    """Send a set that has been verified; gives the address of its page.

    Args:
        document: Its `dataset.json`.
        shards: Its tars and indexes.

    Raises:
        UserError: It shall be private, but is on the Hub and public; or the name holds another set.
    """
    hub = HfApi()
    page, there = open_repository(hub, config, "dataset")
    names = {"dataset.json", *(path.name for path in shards)}
    check_replaced(config, _of_others(there, document, names))
    stale = [name for name in there if name not in names | COMMON_FILES]
    if not config.replace:  # what this set had, and whatever else is of the owner of the name
        stale = [name for name in stale if name.endswith((".tar", ".index.json"))]
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / "README.md"
        card.write_text(dataset_card(config, document), encoding="utf-8")
        # The card is checked by the Hub before images leave, and readers begin with dataset.json.
        _send(hub, config.repo, [card])
        _send(hub, config.repo, shards)
        _send(hub, config.repo, [config.shards / "dataset.json"], stale)
    return page


def _of_others(there: dict[str, str], document: dict[str, Any], names: set[str]) -> list[str]:
    """Files on the Hub that are of something else than this set.

    They are of this set, perhaps of an earlier state of it, if a shard is; and if they have the
    names of its files and no shard has arrived.
    """
    tars = {path: digest for path, digest in there.items() if path.endswith(".tar")}
    shards = [shard for split in document["splits"].values() for shard in split["shards"]]
    if any(tars.get(shard["name"]) == shard["sha256"] for shard in shards):
        return []
    return [path for path in there if path in tars or path not in names | COMMON_FILES]


def _shards(root: Path, document: dict[str, Any]) -> list[Path]:
    """The tars and indexes that `dataset.json` lists.

    Raises:
        UserError: It lists one that is elsewhere.
    """
    names = [shard["name"] for split in document["splits"].values() for shard in split["shards"]]
    if unsafe := [name for name in names if Path(name).name != name]:
        raise UserError(f"{root / 'dataset.json'}: the shard {unsafe[0]!r} is not a file's name")
    return [path for name in names for path in (root / name, index_path(root / name))]


def _send(hub: HfApi, repo: str, files: Iterable[Path], removed: Sequence[str] = ()) -> None:
    """Upload files as one folder that holds nothing else, so that nothing else can leave.

    Args:
        removed: Files that are removed from the repository.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            (Path(folder) / path.name).symlink_to(path.resolve())
        hub.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Shard set made by samaritan",
            delete_patterns=[glob.escape(path) for path in removed] or None,
        )


def dataset_card(config: PublishOptions, document: dict[str, Any]) -> str:
    """Markdown of a set's page: its licence, figures and targets, and how to read it."""
    splits = [{"split": name, "path": f"{name}-*.tar"} for name in document["splits"]]
    data = DatasetCardData(
        license=config.license,
        tags=["medical", "webdataset"],
        configs=[{"config_name": "default", "data_files": splits}],
    )
    figures = [(name.strip(), text) for name, text in fingerprint(document)]
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {config.repo.partition('/')[2]}",
        "",
        f"{document['records']} medical images for"
        f" {'training with masks' if 'labels' in document else 'self-supervised pretraining'},"
        " as WebDataset shards made by samaritan.",
        "",
        *markdown_table(("figure", "value"), [map(table_cell, row) for row in figures]),
    ]
    if "labels" in document:
        targets = [
            (table_cell(name), ", ".join(map(str, values)))
            for name, values in document["labels"].items()
        ]
        lines += ["", *markdown_table(("target", "values in masks"), targets)]
    split = next(iter(document["splits"]))
    lines += [
        "",
        "```python",
        "from data_prep.loader import ShardDataset",
        "",
        f'dataset = ShardDataset("hf://datasets/{config.repo}", "{split}")',
        "record = dataset.record(0)",
        "```",
        "",
    ]
    return "\n".join(lines)
