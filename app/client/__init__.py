"""The Python client: HTTP, and nothing of ours beneath it."""

from app.client.client import BitmillClient, RequestFailed

__all__ = ["BitmillClient", "RequestFailed"]
