"""Training, evaluation and generation.

    training.py, progress.py, step.py             the loop, its state, one optimiser step
    language_model.py, fit.py, hooks.py           the parts of a training on tokens; from Python; callbacks
    objectives/, optimizers.py, schedules.py      what is minimised, and how
    evaluation.py, evaluate.py, partial.py        evaluations, and those that are interrupted
    tracked.py                                    which checkpoint is the best one
    dataset.py                                    the splits of a dataset, opened by all processes
    checkpoint.py, saving.py, history.py          checkpoints; what is kept, what is set aside
    foreign.py, byte_file.py                      checkpoints of other training loops
    setup.py, restore.py, initial.py              where a run starts: afresh, from a checkpoint, from weights
    experiment.py, lock.py, summary.py            the experiment's folder, who has it, its summary.json
    stopping.py, watchdog.py, outcome.py          why a run stops, hangs, how it ended
    reporting.py                                  what is printed and logged
    early_stopping.py, monitors.py, layer_norms.py  hooks that stop and measure
    exports.py, health.py, chosen_hooks.py        rows in other forms; the machine; hooks that flags ask for
    generation.py, routers.py, cascade.py         text; scores of routers
    scoring.py, harness.py, card.py               downstream tasks; the card of an exported model
    selftest.py                                   --selftest_resume

Without torch:

    reader.py, names.py, peek.py                  what a folder and a checkpoint say
    done.py, resumable.py                         finished, resumable as asked for?
    intervals.py, window_losses.py                errors of means over windows that depend on each other
"""

import errors  # noqa: F401  (it speaks where a program cannot start)
