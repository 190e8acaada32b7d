"""The jobs' Python: preflight.py and check_flags.py (before a job is queued), chain.py (after a job of a
chain ended), graph.py (tables of jobs), notify.py (messages to a webhook); the rest is shell.
"""

from errors import report_missing_package

report_missing_package()
