"""The paper's numbers beside ours: the fidelity report (python -m report), two models in pairs (pairs.py),
and what its figures share.
"""

import errors  # noqa: F401  (it speaks where a program cannot start)
