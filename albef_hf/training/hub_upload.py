"""Upload a training's directory to the Hub.

Access is checked before the training starts; an upload that fails never stops it.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ..momentum import MOMENTUM_FILE

WAITS = (2.0, 8.0, 30.0)  # seconds between attempts
# Files that change during the upload, are useless to others or describe this machine; and pickles.
NOT_UPLOADED = [
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
    "*.pt",
    "*.pth",
    "*.bin",
    "*.pkl",
]


class HubUpload:
    """Upload a folder repeatedly, in the background; failures are reported and the folder stays.

    Args:
        repo_id: Such as `you/albef`; a name alone is put into the namespace of the token.
        folder: What to upload.
        private: Visibility of a repository that does not exist yet; False leaves it at the account's default.
        tag: Tag of the final upload.
        with_teacher: Upload `momentum.safetensors` too, which further training can start from.
        say: Prints a message.

    Raises:
        ValueError: If there is no token, it is wrong or lacks write access, the tag already exists, or the Hub cannot
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
        self.folder = folder
        self.tag = tag
        self.say = say
        self.api = HfApi()
        self.left_out = [*NOT_UPLOADED, *([] if with_teacher else [f"*{MOMENTUM_FILE}"])]
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.repo_id = repo_id
        error = _attempt(lambda: self._prepare(private))
        if isinstance(error, LocalTokenNotFoundError) or (error and _is_refused(error)):
            raise ValueError(
                f"push_to_hub: cannot write to {repo_id} ({_first_line(error)}). Log in with `hf auth login`, or set "
                "HF_TOKEN to a token with write access."
            ) from error
        if error:
            raise ValueError(
                f"push_to_hub: could not reach the Hub to check {repo_id} ({_first_line(error)}). Try again later, or "
                "remove push_to_hub: the directory can be pushed after the training."
            ) from error
        if tag and tag in [ref.name for ref in self.api.list_repo_refs(self.repo_id).tags]:
            raise ValueError(
                f"push_to_hub: {self.repo_id} already has a tag {tag}, which others may rely on; set another hub_tag."
            )

    def _prepare(self, private: bool) -> None:
        """Find or create the repository, and check that the token has write access."""
        user = self.api.whoami()["name"]
        full_name = self.repo_id if "/" in self.repo_id else f"{user}/{self.repo_id}"
        self.repo_id = self.api.create_repo(full_name, private=private or None, exist_ok=True).repo_id
        self.api.auth_check(self.repo_id, write=True)  # create_repo does not check an existing one

    def start(self, message: str) -> None:
        """Upload the present content; call `wait` before any of it changes."""
        self.wait()
        self.thread = threading.Thread(target=self._upload, args=(message,), daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Wait for the running upload, if any, and report its failure."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        if self.error:
            self.say(
                f"push_to_hub: the upload to {self.repo_id} failed ({_first_line(self.error)}); all files are in "
                f"{self.folder}"
            )

    def finish(self, message: str) -> None:
        """Upload for the last time, and set the tag."""
        self.start(message)
        self.wait()
        tag = self.tag
        if self.error is None and tag:
            self.error = _attempt(lambda: self.api.create_tag(self.repo_id, tag=tag))
            if self.error:
                self.say(f"push_to_hub: the tag {tag} was not set ({_first_line(self.error)})")
        if self.error is None:
            self.say(f"pushed to {self.api.endpoint}/{self.repo_id}{f', tagged {tag}' if tag else ''}")

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
    """Call a few times until it succeeds; return the last error, or None. Uploaded files are not sent again."""
    for pause in (*WAITS, None):
        try:
            call()
            return None
        except Exception as error:  # whatever it is, training continues
            if pause is None or isinstance(error, ValueError) or _is_refused(error):
                return error
        time.sleep(pause)
    return None


def _is_refused(error: Exception) -> bool:
    """Return True if the Hub rejected the request, so that a retry cannot help."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
