"""Why a file behind a URL cannot be had: one line with what to do, and whether it may pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from data_prep.common.messages import one_line

NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}
"""Errors of botocore."""
NOT_ACCEPTED = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
"""Codes of S3 for credentials that are wrong rather than not allowed to read."""
OTHER_REGION = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
"""Codes of S3."""
HIDDEN = {"RepositoryNotFoundError", "GatedRepoError"}
"""Errors of huggingface_hub for what is missing or private, which the Hub does not tell apart."""
NOT_CACHED = {"LocalEntryNotFoundError", "IncompleteSnapshotError"}
"""Errors of huggingface_hub for a Hub that does not answer; their cause says why."""

MISSING = "does not exist"
"""Reason where the storage has no such file."""
PASSING = {408, 425, 429}
"""Answers of 400 to 499 that are no refusal but ask for patience."""

CREDENTIALS = "AWS_PROFILE, `aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
"""Where S3's credentials come from."""
REACH = {
    "s3": "; check the network, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION",
    "hf": "; check the network and HF_ENDPOINT",
}
"""What to look at if nothing answers, by scheme."""


@dataclass(frozen=True)
class Fault:
    """Why a file cannot be had."""

    reason: str
    """To follow the URL and a colon."""
    lasts: bool
    """Whether trying again will fail the same way."""


def find_fault(url: str, error: Exception, done: str = "fetched") -> Fault:
    """What an error of a file system of fsspec, or of huggingface_hub, means.

    Args:
        url: Of the file.
        error: What was raised for it; causes are looked at, as each file system wraps the
            errors of its own library.
        done: What was to be done with the file.
    """
    if type(error).__name__ in NOT_CACHED:
        error = cast(Exception, error.__cause__ or error)
    scheme, _, rest = url.partition("://")
    scheme = "s3" if scheme == "s3a" else scheme
    chain = list(_causes(error))
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    status, code = _answer(chain)
    if isinstance(error, ImportError) and scheme == "s3":
        return Fault("needs s3fs; install it with `pip install 'samaritan[s3]'`", True)
    if names & NO_CREDENTIALS:
        return Fault(
            f"no credentials ({one_line(error)}); {CREDENTIALS} give them, and FSSPEC_S3_ANON=true"
            " reads a public bucket without",
            True,
        )
    if code == "NoSuchBucket":
        bucket = rest.partition("/")[0]
        return Fault(f"does not exist, nor does the bucket {bucket}; check its name", True)
    if code in NOT_ACCEPTED:
        return Fault(f"the credentials are not accepted ({code}); {CREDENTIALS} give others", True)
    if code in OTHER_REGION:
        return Fault(
            f"its bucket is in another region ({code}); set AWS_DEFAULT_REGION to that", True
        )
    if names & HIDDEN:
        return Fault(
            "does not exist on the Hub, or is private; check its name, or log in with"
            " `hf auth login` as someone with access",
            True,
        )
    if status in (401, 403):
        return Fault(f"access denied ({status}){_allowed(scheme)}", True)
    if "RevisionNotFoundError" in names:
        return Fault("has no such revision", True)
    if isinstance(error, FileNotFoundError) or status == 404:
        return Fault(MISSING, True)
    lasts = isinstance(error, ImportError | ValueError | PermissionError) or (
        status is not None and 400 <= status < 500 and status not in PASSING
    )
    hint = "" if lasts or status is not None else REACH.get(scheme, "")
    return Fault(f"cannot be {done} ({type(error).__name__}: {one_line(error)}){hint}", lasts)


def _allowed(scheme: str) -> str:
    """What access is needed."""
    if scheme == "s3":
        return (
            "; it needs s3:GetObject, and s3:ListBucket to tell what is missing;"
            f" {CREDENTIALS} give other credentials"
        )
    if scheme == "hf":
        return "; log in with `hf auth login` as someone with access"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answer(chain: list[BaseException]) -> tuple[int | None, str]:
    """HTTP status of the answer that an error is about, None without one; and S3's error code."""
    for error in chain:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
        status = getattr(response, "status_code", None) or getattr(error, "status", None)
        if isinstance(status, int):  # huggingface_hub, aiohttp
            return status, ""
    return None, ""
