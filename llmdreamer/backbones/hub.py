"""One quick check that the Hugging Face hub is reachable. Its own client retries for half a minute."""

from __future__ import annotations

import ssl
import urllib.request
from functools import cache
from urllib.error import HTTPError, URLError

from huggingface_hub import constants

HUB_TIMEOUT_SECONDS = 5.0
"""Time that the hub has to send its first response."""


@cache
def is_reachable() -> bool:
    """Check once for each process. If False, callers read the local cache and nothing else.

    The hub's client tries six times, with growing pauses, for every file. So an unreachable hub also
    sets the client offline: transformers makes requests beyond those for the given files.
    """
    if not constants.is_offline_mode() and not _responds():
        constants.HF_HUB_OFFLINE = True
    return not constants.is_offline_mode()


def _responds() -> bool:
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310  (http or https)
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS).close()  # noqa: S310
    except HTTPError:
        return True  # it refuses this request, but it is there
    except URLError as error:
        # The hub's client may be configured to accept a certificate that urllib rejects.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
