"""Training: training.py (the loop), progress.py (its state), step.py (one optimiser step), saving.py
(checkpoints while it goes on), language_model.py (the parts of a training on tokens), objectives/,
evaluation.py, hooks.py, fit.py (use from Python), experiment.py (its folder), checkpoint.py, schedules.py,
optimizers.py, evaluate.py, partial.py (an evaluation that is cut short goes on), summary.py, stopping.py
(when to stop cleanly), reporting.py (what is printed and written), outcome.py (how a run ended),
history.py (extensions and rollbacks: what is kept, what is set aside), initial.py (to begin with another
training's weights).
Without torch: intervals.py and window_losses.py (errors of means over windows that depend on each other),
reader.py (what a folder says, for all who decide by it), done.py (finished as asked for?), names.py (file
names), peek.py (a checkpoint's numbers).
"""
