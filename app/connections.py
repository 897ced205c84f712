"""How long an idle HTTP connection is kept.

A client must be the first to close it: else it could send a request as the server closes. Others' clients keep theirs
for 5 seconds (httpx) to a minute (proxies).
"""

from __future__ import annotations

from typing import Final

SERVERS_KEEP_SECONDS: Final = 75
CLIENTS_KEEP_SECONDS: Final = 15
