"""Whether the Hugging Face hub answers, found out before its client tries for half a minute."""

from __future__ import annotations

import ssl
import urllib.request
from functools import cache
from urllib.error import HTTPError, URLError

from huggingface_hub import constants

WITHIN = 5.0  # seconds that the hub may take for a first word


@cache
def is_reachable() -> bool:
    """Ask once in a process; whoever gets False reads what is in the cache and nothing else.

    The hub's own client asks six times with longer and longer pauses, for every file. It is told, because
    transformers asks it for more than what it was asked for itself.
    """
    if not constants.is_offline_mode() and not _answers():
        constants.HF_HUB_OFFLINE = True
    return not constants.is_offline_mode()


def _answers() -> bool:
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310  (http or https)
    try:
        urllib.request.urlopen(request, timeout=WITHIN).close()  # noqa: S310
    except HTTPError:
        return True  # it does not like the question, but it is there
    except URLError as error:
        # A certificate that only the client's own settings know is for the client to judge.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
