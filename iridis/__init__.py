"""The Python part of the jobs; the rest is shell.

preflight.py, check_flags.py    before a job is queued
targets.py                      which checkpoints an evaluation reads
chain.py                        after a job of a chain
cells.py, cells_here.py         cells of a sweep, before they are queued; run here
arrays.py                       sweeps in the queue
table.py, graph.py, stages.py    tables of jobs; their states, and queueing; running them here
notify.py                       messages to a webhook
"""

import errors  # noqa: F401  (it speaks where a program cannot start)
