"""What the Hugging Face Hub is told and answers when something is published there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from data_prep.common.errors import UserError
from data_prep.common.faults import find_fault
from data_prep.common.messages import one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]
"""What a repository holds."""

COMMON_FILES = {".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}
"""Files of a repository that nothing has been published in yet."""


@dataclass(frozen=True, kw_only=True)
class RepoOptions:
    """Where on the Hub something is published, and for whom."""

    repo: str
    """Name on the Hub, as in clinic/thyroid; made if it is not there."""
    license: str
    """Licence, as the Hub names it, such as cc-by-4.0; `other` if it has no name."""
    private: bool = True
    """Whether only you or your organisation may see it; false publishes it to everyone."""
    replace: bool = False
    """Put it in the place of anything else that the name holds on the Hub; its history stays."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise UserError(f"repo: {self.repo!r} is not a name such as clinic/thyroid")
        if not re.fullmatch(r"[a-z0-9.-]+", self.license):
            raise UserError(f"license: {self.license!r} is not a name such as cc-by-4.0 or other")


def open_repository(hub: "HfApi", options: RepoOptions, kind: Kind) -> tuple[str, dict[str, str]]:
    """Make a repository, or find the one that is there.

    Returns:
        The address of its page; and of each file in it the SHA-256, or Git's identity of a small
        one.

    Raises:
        UserError: It shall be private, but is on the Hub and public.
    """
    from huggingface_hub.hf_api import RepoFile

    page = hub.create_repo(options.repo, repo_type=kind, private=options.private, exist_ok=True)
    if options.private and not hub.repo_info(options.repo, repo_type=kind).private:
        raise UserError(
            f"{options.repo}: is public; give --private false if everyone may see what is published"
        )
    entries = hub.list_repo_tree(options.repo, repo_type=kind, recursive=True)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return str(page), {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def check_replaced(options: RepoOptions, files: list[str]) -> None:
    """Refuse to replace what a name already holds, unless that was asked for.

    Args:
        files: Names of files on the Hub that are not of what shall be published.

    Raises:
        UserError: Names some of them.
    """
    if files and not options.replace:
        listed = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        raise UserError(
            f"{options.repo}: has other files on the Hub ({listed}); give another --repo, or"
            " --replace true to put this in their place"
        )


@contextmanager
def one_line_faults(url: str) -> Iterator[None]:
    """Whatever the Hub and the network answer while publishing, as one line.

    Args:
        url: Of the repository.

    Raises:
        UserError: What failed, and what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code == 403:
            said = one_line(response.headers.get("X-Error-Message") or "no reason is given")
            raise UserError(
                f"{url}: access denied (403, {said}): does somebody else have this name, or may"
                " your token only read? Give another --repo, or log in with `hf auth login` as"
                " someone with access"
            ) from error
        fault = find_fault(url, error, "published")
        again = "" if fault.lasts else "; started again, it sends what has not arrived"
        raise UserError(f"{url}: {fault.reason}{again}") from error
