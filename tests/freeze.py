"""Imported last in a process that is to be forked: a fork that collects garbage would look through all of
torch, and copy it.
"""

import gc

gc.freeze()
