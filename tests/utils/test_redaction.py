"""Passwords and tokens of addresses are hidden."""

import pytest

from albef_hf.utils.redaction import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("me/hf_photographs2", "me/hf_photographs2"),
        ("https://h/a?monkey=1&keywords=cat", "https://h/a?monkey=1&keywords=cat"),
        ("https://h:80/a@b", "https://h:80/a@b"),
        ("https://u:p/w@h/x", "https://***@h/x"),
        ("https://h/x?access_token=abc&x=1", "https://h/x?access_token=***&x=1"),
        (f"hf_{'a' * 34}", "hf_***"),
    ],
)
def test_only_secrets_are_hidden(text, shown):
    assert redact(text) == shown
