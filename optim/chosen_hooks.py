"""The hooks that flags ask for, those of the user's own (--hook MODULE:CLASS) among them."""

from __future__ import annotations

from argparse import Namespace

from config.hook_checks import patience_and_delta
from errors import UserError
from optim.early_stopping import EarlyStopping
from optim.exports import MetricsCsv, TensorBoard
from optim.health import Health
from optim.hooks import Hook
from optim.layer_norms import LayerNorms
from optim.monitors import FLOPCounter
from optim.tracked import main_quantity
from optim.user_code import failed, named_object


def hook_of(name: str) -> Hook:
    """An object of MODULE:CLASS, a subclass of Hook that is made without arguments, whose module is on
    Python's path or in the working folder. Raises UserError with one line.
    """
    found = named_object("--hook", name, type)
    class_name = name.partition(":")[2]
    if not isinstance(found, type) or not issubclass(found, Hook):
        raise UserError(f"--hook {name}: {class_name} is no subclass of optim.hooks.Hook")
    try:
        return found()
    except UserError:
        raise
    except Exception as error:
        raise failed("--hook", name, f"{class_name}()", error) from None


def hooks_of(args: Namespace) -> list[Hook]:
    """Exports come last: they show what the others have written. Raises UserError."""
    hooks: list[Hook] = []
    if args.early_stop is not None:
        tracked = args.track or main_quantity(args.objective)
        hooks.append(EarlyStopping(*patience_and_delta(args.early_stop), tracked))
    if args.flop_budget is not None:
        hooks.append(FLOPCounter(log_interval=args.log_freq or args.iterations, flop_budget=args.flop_budget))
    if getattr(args, "layer_norms", 0):  # of the text networks
        hooks.append(LayerNorms(args.layer_norms))
    if args.health:
        hooks.append(Health(args.health * args.log_freq))
    hooks += [hook_of(name) for name in args.hook or ()]
    if args.csv:
        hooks.append(MetricsCsv())
    if args.tensorboard:
        hooks.append(TensorBoard())
    return hooks
