"""Requests to the Hub: waits where it is busy, and every refusal in one sentence with a way out.

Usage: ``with hub_client("user/name", "try again", tell) as hub: me = hub.ask(lambda api: api.whoami())``
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    # The base of everything that the Hub's own client for the wire raises, whichever client that is.
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import HFValidationError, parse_ratelimit_headers, validate_repo_id

from qlmm.compat.hub_private import without_xet
from qlmm.core.errors import QlmmError, RunError, UsageError
from qlmm.core.version import __version__

__all__ = ["LOG_IN", "TIMEOUT_S", "Hub", "checked_name", "hub_client"]

TIMEOUT_S = 120.0
LONGEST_WAIT_S = 300.0  # in all; the Hub counts requests in windows of five minutes
FIRST_WAIT_S = 5.0
MOST_TRIES = 4
TOO_MANY = 429
BUSY = frozenset({TOO_MANY, 500, 502, 503, 504})
CHECKS_CARD = "/api/validate-yaml"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN; tokens are made at https://huggingface.co/settings/tokens"
Answer = TypeVar("Answer")


class Hub:
    """The Hub's client; waits and asks again where the Hub is busy, within limits, and tells about every wait."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.api = HfApi(library_name="qlmm", library_version=__version__)
        self._tell = tell
        self._waited = 0.0

    def ask(self, call: Callable[[HfApi], Answer]) -> Answer:
        """The answer to one request, which must be one that can be repeated."""
        tries = 0
        while True:
            tries += 1
            try:
                return call(self.api)
            except (HTTPError, OSError, RuntimeError) as error:
                found = _cause(error)
                if not isinstance(found, HfHubHTTPError) or found.response.status_code not in BUSY:
                    raise
                seconds = _asked_to_wait(found.response) or FIRST_WAIT_S
                if tries == MOST_TRIES or self._waited + seconds > LONGEST_WAIT_S:
                    raise
                self._waited += seconds
                self._tell(f"the Hub is busy ({found.response.status_code}): asking again in {seconds:.0f} s")
                time.sleep(seconds)


@contextmanager
def hub_client(repo: str, again: str, tell: Callable[[str], None]) -> Iterator[Hub]:
    """A client whose errors are those of qlmm, with ``again`` for what to do once the trouble is over.

    Raises:
        UsageError: H001 to H003, H009, H016, H020 for what the user can put right.
        RunError: H007, H008, H014, H023 for what time or somebody else has to.
    """
    wire = get_session()
    hooks, timeout = wire.event_hooks, wire.timeout
    wire.timeout = TIMEOUT_S
    wire.event_hooks = {**hooks, "response": [*hooks["response"], _refuse_to_sleep]}
    try:
        # Adapters are small, and LFS goes on after a break as well.
        with without_xet():
            yield Hub(tell)
    except QlmmError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _explained(_cause(error), repo, again) from error
    finally:
        wire.event_hooks, wire.timeout = hooks, timeout


def checked_name(repo: str) -> str:
    """A repository's id; H004 when it cannot be one."""
    help = "write user/name or organisation/name: letters, digits, `-`, `_` and `.`, at most 96 of them"
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError.one("H004", f"`{repo}` cannot be the name of a repository of the Hub", help=help) from error
    if "/" not in repo:
        raise UsageError.one("H004", f"`{repo}` lacks its owner's name", help=help)
    return repo


def _refuse_to_sleep(response: Any) -> None:
    """The Hub's client would sleep for as long as a server asks for, were it a day."""
    if response.status_code == TOO_MANY and (_asked_to_wait(response) or 0) > LONGEST_WAIT_S:
        raise HfHubHTTPError("asked to wait for too long", response=response)


def _asked_to_wait(response: Any) -> float | None:
    """Seconds that a busy server asks for; None where it does not."""
    after = response.headers.get("retry-after", "")
    if after.isdigit():
        return float(after)
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None else None


def _cause(error: BaseException) -> BaseException:
    """What the Hub or the network did: the first such error in a chain, or the error itself."""
    one: BaseException | None = error
    while one is not None and not isinstance(one, (OfflineModeIsEnabled, HTTPError)):
        one = one.__cause__ or one.__context__
    return error if one is None else one


def _explained(error: BaseException, repo: str, again: str) -> QlmmError:
    if isinstance(error, OfflineModeIsEnabled):
        help = "unset HF_HUB_OFFLINE; only what is in the cache already can be had without the Hub"
        return UsageError.one("H009", "the Hub is needed, and HF_HUB_OFFLINE keeps it out", help=help)
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo, again)
    if isinstance(error, OSError) and error.strerror is not None:
        return RunError.one("H023", f"{error.filename or 'the disk'}: {error.strerror}", help=again)
    reason = " ".join(str(error).split()) or type(error).__name__
    return RunError.one("H008", f"the Hub cannot be reached, or the connection broke: {reason}", help=again)


def _refusal(error: HfHubHTTPError, repo: str, again: str) -> QlmmError:
    """What the Hub's answer means for the user."""
    status = error.response.status_code
    words = error.server_message or error.response.headers.get("x-error-message") or f"status {status}"
    lines = words.strip().splitlines()
    reason = lines[0].rstrip(".")
    if isinstance(error, BadRequestError) and error.response.url.path.endswith(CHECKS_CARD):
        message = f"the Hub refuses the metadata of the card: {'; '.join(lines)}"
        help = "mend the lines between the two `---` on top of README.md, then run the same command again"
        return UsageError.one("H016", message, help=help)
    if isinstance(error, GatedRepoError):
        help = "accept its terms on its page, then run the same command again"
        return UsageError.one("H003", f"{repo} is gated: its terms have to be accepted first", help=help)
    if isinstance(error, RevisionNotFoundError):
        return UsageError.one("H020", f"{repo} has no such revision", help="its page lists branches and commits")
    seconds = _asked_to_wait(error.response)
    when = f"in {seconds:.0f} s" if seconds is not None else "later"
    another = f"use a token that may write to {repo}, or push to a name of your own"
    no_right = (UsageError, "H003", f"your token has no right to do this with {repo}: {reason}", another)
    elsewhere = (RunError, "H014", f"somebody else pushed to {repo} at the same time: {reason}", again)
    unseen = f"the Hub has no model repository {repo} that you may see"
    known: dict[int, tuple[type[QlmmError], str, str, str]] = {
        401: (UsageError, "H002", f"the Hub does not accept your token: {reason}", f"{LOG_IN}; HF_TOKEN goes first"),
        402: no_right,
        403: no_right,
        404: (UsageError, "H020", unseen, f"check the spelling; for a private one {LOG_IN}"),
        409: elsewhere,
        412: elsewhere,
        TOO_MANY: (RunError, "H007", f"the Hub limits how often it is asked; it will answer {when}", again),
    }
    failed = (RunError, "H008", f"the Hub failed or refused ({status}): {reason}", again)
    # For its own reasons the Hub calls a repository that may not be seen unauthorised.
    kind, code, message, help = known.get(404 if isinstance(error, RepositoryNotFoundError) else status, failed)
    return kind.one(code, message, help=help)
