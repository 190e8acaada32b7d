"""`main.py --selftest_resume` with two processes alone: what one does is a part of its own.

python -m bench.gpu.pair --device cuda --acc_steps 2 ...
"""

from __future__ import annotations

import sys

import config
from optim.selftest import selftest

if __name__ == "__main__":
    args = config.parse_args()
    sys.exit(config.guarded("bench.gpu.pair", lambda: selftest(args, (2,))))
