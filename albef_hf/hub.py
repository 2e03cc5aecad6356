"""Pushing a training's folder to the Hub: checked before the training starts, and never the end of it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from .momentum import MOMENTUM_FILE

WAITS = (2.0, 8.0, 30.0)  # seconds between attempts
NOT_PUSHED = ["last/**", "predictions.jsonl", "*.unfinished"]


class HubPush:
    """Uploads a folder again and again, in the background; what goes wrong is said and the folder stays.

    Args:
        repo_id: Such as `you/albef`; a name alone is put into the namespace of the token.
        folder: What to upload.
        private: For a repository that does not exist yet.
        with_teacher: Push `momentum.safetensors` too, from which training can go on.
        say: Takes what there is to say.

    Raises:
        ValueError: If there is no token, it is wrong, or it may not write there.
    """

    def __init__(
        self,
        repo_id: str,
        folder: Path,
        private: bool = False,
        with_teacher: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.folder, self.say, self.api = folder, say, HfApi()
        self.left_out = [*NOT_PUSHED, *([] if with_teacher else [MOMENTUM_FILE])]
        self.uploading: threading.Thread | None = None
        self.error: str | None = None
        try:
            user = self.api.whoami()["name"]
            wanted = repo_id if "/" in repo_id else f"{user}/{repo_id}"
            self.repo_id = self.api.create_repo(wanted, private=private, exist_ok=True).repo_id
        except (OSError, ValueError) as error:  # the client's errors are of these two kinds
            raise ValueError(
                f"push_to_hub: {repo_id} cannot be written to ({error}). Log in with `hf auth login`, or set HF_TOKEN "
                "to a token that may write."
            ) from error

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
            self.say(f"push_to_hub: {self.repo_id} was not reached ({self.error}); {self.folder} has everything")

    def finish(self, message: str, tag: str | None = None) -> None:
        """Upload for the last time, and tag it."""
        self.start(message)
        self.wait()
        if self.error is None and tag:
            self.error = self._attempt(lambda: self.api.create_tag(self.repo_id, tag=tag, exist_ok=True))
            if self.error:
                self.say(f"push_to_hub: the tag {tag} was not set ({self.error})")
        if self.error is None:
            self.say(f"pushed to {self.api.endpoint}/{self.repo_id}{f', tagged {tag}' if tag else ''}")

    def _upload(self, message: str) -> None:
        self.error = self._attempt(
            lambda: self.api.upload_folder(
                repo_id=self.repo_id,
                folder_path=self.folder,
                commit_message=message,
                ignore_patterns=self.left_out,
            )
        )

    def _attempt(self, call: Callable[[], object]) -> str | None:
        """Call until it works, a few times; what went wrong at last, or None. What is there is not uploaded again."""
        for pause in (*WAITS, None):
            try:
                call()
                return None
            except Exception as error:  # whatever it is, training goes on
                hopeless = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404)
                if pause is None or hopeless:
                    return f"{type(error).__name__}: {error}".split("\n")[0]
            time.sleep(pause)
        return None
