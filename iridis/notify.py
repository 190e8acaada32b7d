"""Tell a web address how a chain ended.

    python -m iridis.notify SUBJECT <BODY          # to the address in NOTIFY_URL

An address of Slack (or of a service with Slack's form, with NOTIFY_FORM=slack) gets JSON with "text"; any
other one, such as that of an ntfy topic, the body with the subject as its title. The address is a secret, as
anyone who has it can write there: it appears in no command line and in no message.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.request
from urllib.parse import urlsplit

SECONDS = 15  # patience with the server


def request(url: str, form: str, subject: str, body: str) -> urllib.request.Request:
    """What is sent. Raises ValueError for what is no address."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError("it must begin with https:// and name a server")
    if form == "slack" or (not form and str(urlsplit(url).hostname).endswith("slack.com")):
        return urllib.request.Request(
            url, json.dumps({"text": f"{subject}\n{body}"}).encode(), {"Content-Type": "application/json"}
        )
    title = subject.encode("ascii", "replace").decode()  # a header
    return urllib.request.Request(
        url, body.encode(), {"Title": title, "Content-Type": "text/plain; charset=utf-8"}
    )


def main(subject: str, body: str) -> int:
    """The exit code: 1, with a warning, where nothing could be sent."""
    try:
        with urllib.request.urlopen(
            request(os.environ["NOTIFY_URL"], os.environ.get("NOTIFY_FORM", ""), subject, body),
            timeout=SECONDS,
        ):
            return 0
    except (OSError, ValueError, http.client.HTTPException) as error:
        # the text may hold the address
        reason = getattr(error, "code", None) or type(getattr(error, "reason", error)).__name__
        print(f"warning: NOTIFY_URL could not be reached ({reason})", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.stdin.read().strip()))
