"""The hooks that flags ask for, those of the user's own (--hook MODULE:CLASS) among them."""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace

from config.hook_checks import patience_and_delta
from config.values import nearest
from errors import UserError
from optim.early_stopping import EarlyStopping
from optim.exports import MetricsCsv, TensorBoard
from optim.health import Health
from optim.hooks import Hook
from optim.layer_norms import LayerNorms
from optim.monitors import FLOPCounter
from optim.tracked import main_quantity


def hook_of(name: str) -> Hook:
    """An object of MODULE:CLASS, a subclass of Hook that is made without arguments, whose module is on
    Python's path or in the working folder. Raises UserError with one line.
    """
    module_name, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"--hook {name}: there is no module {error.name}") from None
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise _failed(name, f"importing {module_name}", error) from None
    found = getattr(module, class_name, None)
    if found is None:
        classes = [word for word, value in vars(module).items() if isinstance(value, type)]
        raise UserError(
            f"--hook {name}: {module_name} has no {class_name}{nearest(class_name, classes)}"
        ) from None
    if not isinstance(found, type) or not issubclass(found, Hook):
        raise UserError(f"--hook {name}: {class_name} is no subclass of optim.hooks.Hook")
    try:
        return found()
    except UserError:
        raise
    except Exception as error:
        raise _failed(name, f"{class_name}()", error) from None


def _failed(name: str, what: str, error: BaseException) -> UserError:
    lines = str(error).splitlines() or [""]
    return UserError(f"--hook {name}: {what} fails: {type(error).__name__}: {lines[0]}")


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
