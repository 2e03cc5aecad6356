"""Jobs of visitors, each with a time limit."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

JOB_SECONDS = 120
MAX_OVERDUE_JOBS = 4


class JobRunner:
    """Run each job in a thread of its own, so that one that hangs does not block the next visitor.

    A thread cannot be stopped: an overdue job keeps running. While too many of them do, no other is started.

    Args:
        seconds: Time limit of a job.
        max_overdue: Overdue jobs at which new ones are refused.
    """

    def __init__(self, seconds: float = JOB_SECONDS, max_overdue: int = MAX_OVERDUE_JOBS):
        self.seconds = seconds
        self.max_overdue = max_overdue
        self.overdue: list[threading.Thread] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function and return its result.

        Raises:
            TimeoutError: If it takes too long, or too many overdue jobs are still running.
        """
        self.overdue = [thread for thread in self.overdue if thread.is_alive()]
        if len(self.overdue) >= self.max_overdue:
            raise TimeoutError("The page is busy. Please try again in a few minutes.")
        future: Future[Any] = Future()
        context = contextvars.copy_context()  # in it, Gradio finds the visitor to whom a warning is shown

        def work() -> None:
            try:
                future.set_result(context.run(function, *arguments))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.seconds)
        if thread.is_alive():
            self.overdue.append(thread)
            raise TimeoutError(f"This took more than {self.seconds} seconds. Please try less at once.")
        return future.result()
