"""Every flag of the default recipe, once: name, type, default, help. Nothing heavy is imported here, so
`--help` is instant.
"""

from __future__ import annotations

from config.groups.data import DATA
from config.groups.evaluation import EVALUATIONS
from config.groups.jobs import CHECKPOINTS, DISTRIBUTED, FAULTS
from config.groups.model import MODEL, RECURRENT_DEPTH
from config.groups.objective import OBJECTIVE
from config.groups.optimiser import OPTIMISER
from config.groups.run import RUN
from config.old_flags import OLD_FLAGS
from config.schema import Flag

GROUPS: dict[str, tuple[Flag, ...]] = {
    "run": RUN,
    "optimiser": OPTIMISER,
    "data": DATA,
    "model": MODEL,
    "recurrent depth": RECURRENT_DEPTH,
    "objective": OBJECTIVE,
    "evaluation": EVALUATIONS,
    "checkpoints": CHECKPOINTS,
    "when things go wrong": FAULTS,
    "distributed": DISTRIBUTED,
}

FLAGS: dict[str, Flag] = {flag.name: flag for group in (*GROUPS.values(), OLD_FLAGS) for flag in group}
