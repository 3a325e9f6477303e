"""Addresses without their password, as they may be recorded and printed."""

import re


def without_password(text: str) -> str:
    """Text with the password of each URI in it left out: `postgresql://user:***@host/mlflow`, `…?password=***`."""
    text = re.sub(r"(://[^\s:/@]*):[^\s/]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^\s&#]*", r"\1***", text)
