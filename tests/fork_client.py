"""python -IS fork_client.py PYTHON SOCKET WORDS...: `PYTHON WORDS...` in a fork of tests/forks.py, or from
nothing.
"""

import json
import os
import resource
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LAUNCHERS = ("distributed.torchrun", "torch.distributed.run")

python, server, *words = sys.argv[1:]


def can_fork():
    """Whether the server may be asked at all."""
    is_module = len(words) > 1 and words[0] == "-m" and words[1] not in LAUNCHERS
    is_program = is_module or (bool(words) and words[0].endswith(".py"))
    is_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return is_program and not is_limited and "REAL_START" not in os.environ


def fork():
    """The exit code of the fork, less than 0 for a signal; None where it must be a start."""
    request = {
        "words": words,
        "folder": os.getcwd(),
        "env": dict(os.environ),
        "ignored": [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(server)
        for number in PASSED_ON:
            signal.signal(number, lambda got, _: connection.send(bytes([got])))
        socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
        answer = connection.recv(64)
    if not answer:
        sys.exit("the server of forks is gone")
    for number in PASSED_ON:
        ignored = number in request["ignored"]
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    return None if answer == b"start" else int(answer)


code = fork() if can_fork() else None
if code is None:
    os.execv(python, [python, *words])
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
