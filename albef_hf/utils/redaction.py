"""Remove passwords and tokens from addresses before they are printed, logged or saved."""

import re
from typing import Any

SECRET_NAMES = "token|key|apikey|secret|sig|signature|password|auth|credential"
SECRETS = (  # of addresses, also where a library has normalized them to one slash
    (re.compile(r"(\w{2,}:/+)(?:[^/\s'\"]+|[^/:\s'\"]+:(?!\d+/)[^\s'\"?#]+)@"), r"\1***@"),  # but no host:80/path@x
    (re.compile(rf"([?&;#](?:[^=&;#\s]*[-_.])?(?:{SECRET_NAMES})(?:[-_.][^=&;#\s]*)?=)[^&;#\s'\")]+", re.I), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{30,}"), "hf_***"),
)


def redact(value: Any) -> Any:
    """Return a text, or everything in lists and dictionaries, without passwords and tokens of addresses."""
    if isinstance(value, str):
        for pattern, replacement in SECRETS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {name: redact(part) for name, part in value.items()}
    if isinstance(value, list):
        return [redact(part) for part in value]
    return value
