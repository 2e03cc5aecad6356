"""Pushing a training's folder to the Hub: checked before the training starts, and never the end of it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ..momentum import MOMENTUM_FILE

WAITS = (2.0, 8.0, 30.0)  # seconds between attempts
# What changes while it is uploaded, what is of no use to others or tells of this machine, and pickles.
NOT_PUSHED = [
    "last/**",
    "checkpoints/**",
    "tensorboard/**",
    "wandb/**",
    "run_id",
    "predictions.jsonl",
    "card.json",
    "*.unfinished",
    "*.unfinished/*",
    "*.lock",
]
NOT_PUSHED += ["*.pt", "*.pth", "*.bin", "*.pkl"]


class HubPush:
    """Uploads a folder again and again, in the background; what goes wrong is said and the folder stays.

    Args:
        repo_id: Such as `you/albef`; a name alone is put into the namespace of the token.
        folder: What to upload.
        private: For a repository that does not exist yet; otherwise it is what is usual where it is made.
        tag: Of what is pushed at the end.
        with_teacher: Push `momentum.safetensors` too, from which training can go on.
        say: Takes what there is to say.

    Raises:
        ValueError: If there is no token, it is wrong or may not write there, the tag exists already, or the Hub cannot
            be reached.
    """

    def __init__(
        self,
        repo_id: str,
        folder: Path,
        private: bool = False,
        tag: str | None = None,
        with_teacher: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.folder, self.tag, self.say, self.api = folder, tag, say, HfApi()
        self.left_out = [*NOT_PUSHED, *([] if with_teacher else [f"*{MOMENTUM_FILE}"])]
        self.uploading: threading.Thread | None = None
        self.error: Exception | None = None
        self.repo_id = repo_id
        error = _attempt(lambda: self._prepare(private))
        if isinstance(error, LocalTokenNotFoundError) or (error and _is_refused(error)):
            raise ValueError(
                f"push_to_hub: {repo_id} cannot be written to ({_line(error)}). Log in with `hf auth login`, or set "
                "HF_TOKEN to a token that may write."
            ) from error
        if error:
            raise ValueError(
                f"push_to_hub: the Hub cannot be asked about {repo_id} ({_line(error)}). Try again later, or leave "
                "push_to_hub out: the folder can be pushed when training has ended."
            ) from error
        if tag and tag in [ref.name for ref in self.api.list_repo_refs(self.repo_id).tags]:
            raise ValueError(
                f"push_to_hub: {self.repo_id} has a tag {tag} already, which people may have pinned: set another "
                "hub_tag."
            )

    def _prepare(self, private: bool) -> None:
        """Find the repository, or make it, and see whether the token may write there."""
        user = self.api.whoami()["name"]
        wanted = self.repo_id if "/" in self.repo_id else f"{user}/{self.repo_id}"
        self.repo_id = self.api.create_repo(wanted, private=private or None, exist_ok=True).repo_id
        self.api.auth_check(self.repo_id, write=True)  # of one that exists, create_repo does not say

    def start(self, message: str) -> None:
        """Upload what is in the folder now; call `wait` before anything in it changes."""
        self.wait()
        self.uploading = threading.Thread(target=self._upload, args=(message,), daemon=True)
        self.uploading.start()

    def wait(self) -> None:
        """Wait for the upload that is under way, if one is, and say how it ended."""
        if self.uploading is None:
            return
        self.uploading.join()
        self.uploading = None
        if self.error:
            self.say(
                f"push_to_hub: {self.repo_id} was not reached ({_line(self.error)}); {self.folder} has everything"
            )

    def finish(self, message: str) -> None:
        """Upload for the last time, and tag it."""
        self.start(message)
        self.wait()
        if self.error is None and self.tag:
            self.error = _attempt(lambda: self.api.create_tag(self.repo_id, tag=self.tag))
            if self.error:
                self.say(f"push_to_hub: the tag {self.tag} was not set ({_line(self.error)})")
        if self.error is None:
            self.say(f"pushed to {self.api.endpoint}/{self.repo_id}{f', tagged {self.tag}' if self.tag else ''}")

    def _upload(self, message: str) -> None:
        self.error = _attempt(
            lambda: self.api.upload_folder(
                repo_id=self.repo_id,
                folder_path=self.folder,
                commit_message=message,
                ignore_patterns=self.left_out,
            )
        )


def _attempt(call: Callable[[], object]) -> Exception | None:
    """Call until it works, a few times; what went wrong at last, or None. What is there is not uploaded again."""
    for pause in (*WAITS, None):
        try:
            call()
            return None
        except Exception as error:  # whatever it is, training goes on
            if pause is None or isinstance(error, ValueError) or _is_refused(error):
                return error
        time.sleep(pause)
    return None


def _is_refused(error: Exception) -> bool:
    """Whether the Hub has answered, and will not change its mind."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
