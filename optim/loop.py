"""The training loop: steps, evaluations, checkpoints, clean stops; and where a run takes up what an earlier
one left.

What a step computes is a pure function of the state at its beginning and of (seed, data_seed, step): samples
come from data/order.py, and the generator that dropout and depth draws use is seeded anew for each
micro-batch by its number in the step, whoever runs it. So a run that was stopped, killed or moved to another
number of processes does what the unbroken one does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from config.identity import fingerprint
from data import Splits
from data.bins import identity_of
from data.vocabulary import described, other_tokens
from distributed.world import World
from errors import BadNumbers, UserError
from files import write_json
from models.macs import training_flops_per_token
from models.transformer import Transformer
from models.weights import load_weights
from optim import checkpoint, history, initial
from optim.evaluate import EvaluationPlan, evaluate
from optim.experiment import UNKNOWN, Experiment
from optim.names import ABANDONED, FINAL, OF_TRAINING, SUMMARY
from optim.optimizers import load_optimizer_state, make_optimizer
from optim.outcome import Ending, Kind, Outcome, ended, of_error
from optim.partial import PartialSums, facts_of
from optim.reporting import Reporter, log
from optim.resumable import FORMAT, check_resumable
from optim.saving import Saver
from optim.schedules import make_scheduler
from optim.setup import autocast_dtype, is_own, named_file, need_compiler
from optim.step import GradientMeter, OptimizerStep
from optim.stopping import Stopper
from optim.watchdog import Watchdog
from processes import code_change, code_facts

# largest gradient norm over the mean since the last evaluation, from which on it is called a spike
SPIKE = 5.0
STATUS_SECONDS = 5.0  # least time between two updates of status.json for progress alone


class Trainer:
    """A model, its optimiser and its place in the run."""

    def __init__(
        self,
        args: Any,
        world: World,
        splits: Splits,
        model: Transformer,
        folder: Path,
        ending: Ending | None = None,
    ) -> None:
        self.args, self.world, self.splits, self.folder = args, world, splits, folder
        self.ending = ending or Ending(folder, None)
        self.raw_model = model.to(world.device)
        self.model = world.wrap(self.raw_model, may_leave_unused=model.settings.row.adaptive)
        if args.compile:
            world.from_each(lambda: need_compiler(world.device))
            self.raw_model.compile_blocks()
        self.optimizer = make_optimizer(model, args)
        self.schedule = make_scheduler(self.optimizer, args)
        self.steps = OptimizerStep(args, world, self.model, self.optimizer, splits.train)
        self.data = world.from_main(lambda: identity_of(splits.folder)) or {}
        self.step = 0
        self.evaluation = EvaluationPlan(args.batch_size, args.eval_batches)
        self.initial: dict[str, str] | None = None  # the weights that --init_from gave
        self.rollbacks: list[int] = []  # steps to which a person has taken this training back
        self.is_rollback = False  # whether this run does so
        self.watchdog = Watchdog(
            args.watchdog_minutes,
            lambda: f"process {world.rank} of {world.size}, after step {self.step},",
            self.ending.hung,
        )
        self.saver = Saver(folder, args.keep_checkpoints, args.keep_steps or (), self.watchdog.beat)
        self.status_at = 0.0

    # state

    @property
    def _precision(self) -> str:
        """What --dtype means on this device."""
        return str(autocast_dtype(self.args.dtype, self.world.device)).removeprefix("torch.")

    def _state(self) -> dict[str, Any] | None:
        """The whole state, on the main process; every process must call this."""
        ranks = self.world.gather(checkpoint.random_states(self.world.device))
        if not self.world.is_main:
            return None
        return {
            "format": FORMAT,
            "itr": self.step,
            "args": vars(self.args),
            "world_size": self.world.size,
            "model": self.raw_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "rng": ranks,
            **self.steps.state_dict(),
            "data": {
                "data_seed": self.args.data_seed,
                "next_sample": self.step * self.args.batch_size * self.args.acc_steps,
                "train_tokens": int(self.splits.train.tokens.size),
                **self.data,
            },
            "vocabulary": asdict(described(self.splits.meta)),
            "precision": self._precision,
            "evaluation": asdict(self.evaluation),
            "rollbacks": list(self.rollbacks),
            **self._initial(),
        }

    def _initial(self) -> dict[str, Any]:
        """Of a state, a summary and a fingerprint: the weights that the run began with, where --init_from
        gave them.
        """
        return {"initial": self.initial} if self.initial else {}

    def begin_with(self, path: Path) -> None:
        """Take the weights of another training, and nothing else of it.

        Raises UserError where they do not fit.
        """
        self.initial = self.world.from_main(lambda: initial.describe(path, self.args.init_from))
        state = self.world.from_each(lambda: initial.load(self.raw_model, path))
        log.info(f"began with the weights of {path}")
        differ = other_tokens(state, self.splits.meta, self.splits.folder)
        if differ:
            log.warning(f"warning: {differ}: its embeddings begin as those of other tokens")

    def load(self, path: Path) -> None:
        """Take up a checkpoint of this training loop.

        Raises UserError where it is of another run, or damaged.
        """
        extended = self.world.from_each(lambda: self._take_up(path))
        log.info(f"resumed from {path} at step {self.step}")
        if is_own(self.folder, path):
            self.saver.saved_step, self.saver.resumed_from = self.step, self.folder / path.name
            wanted = named_file(self.folder, self.args.use_pretrained)
            if wanted is not None and wanted.resolve() == path.resolve():
                self._roll_back()
        if extended:
            log.info(extended)
            own = self.saver.resumed_from
            if own is not None:  # another experiment's files are not ours to rename
                self.saver.resumed_from = self.world.from_main(lambda: history.keep_final(own))

    def _roll_back(self) -> None:
        """A person takes the training back to the checkpoint that has been loaded: what came after it is
        set aside.
        """
        self.is_rollback = True
        if self.rollbacks[-1:] != [self.step]:
            self.rollbacks.append(self.step)
        gone = self.world.from_main(lambda: history.roll_back(self.folder, self.step))
        if gone:
            log.info(
                f"rolled back to step {self.step}: {', '.join(gone)} set aside under names that end in"
                f" .{ABANDONED}"
            )

    def _take_up(self, path: Path) -> str | None:
        """What `load` does on each process; returns what the schedule says of an extension."""
        state = checkpoint.load_checkpoint(path)
        check_resumable(path, state, self.args, self.data)
        try:
            load_weights(self.raw_model, state["model"])
            load_optimizer_state(self.optimizer, state["optimizer"])
        except UserError as error:
            raise UserError(f"cannot resume {path}: {error}") from None
        extended = self.schedule.load_state_dict(state["scheduler"], self.args.extend)
        self.steps.load_state_dict(state)
        self.step = state["itr"]
        self._keep_steps(state["args"].get("keep_steps") or [])
        self.rollbacks, self.initial = list(state.get("rollbacks", [])), state.get("initial")
        self._keep_evaluation(
            EvaluationPlan(**state["evaluation"])
            if "evaluation" in state
            else EvaluationPlan(state["args"]["batch_size"], state["args"]["eval_batches"])
        )
        if self.world.rank < len(state["rng"]):
            checkpoint.restore_random_states(state["rng"][self.world.rank], self.world.device)
        if state.get("precision", self._precision) != self._precision:
            log.info(
                f"note: the training so far computed in {state['precision']}, and goes on in"
                f" {self._precision}, which is what --dtype {self.args.dtype} means on this device; --dtype"
                f" {state['precision']} keeps to the former"
            )
        if state["world_size"] != self.world.size:
            log.info(
                f"the checkpoint was written by {state['world_size']} processes, now there are"
                f" {self.world.size}: same samples and effective batch, sums in another order"
            )
        return extended

    def _keep_evaluation(self, plan: EvaluationPlan) -> None:
        """Go on evaluating as the run began to, so that its curve is of one and the same windows."""
        if self.args.eval_batches != plan.batches:
            log.info(
                f"note: --eval_batches {self.args.eval_batches} is not taken up: this run began to evaluate"
                f" on {plan.batches} batches of {plan.batch_size} sequences, and goes on with these"
            )
        self.evaluation = plan

    def _keep_steps(self, before: Sequence[int]) -> None:
        """Steps whose checkpoints an earlier run was told to keep are kept for good: what is kept cannot
        be told from a run's own flags.
        """
        passed = [
            step
            for step in sorted(self.saver.kept_steps)
            if step < self.step and not (self.folder / f"ckpt_{step}.pt").exists()
        ]
        if passed:
            log.info(
                f"note: --keep_steps {' '.join(map(str, passed))}: passed already, and there is no checkpoint"
                f" of {'that step' if len(passed) == 1 else 'these steps'}"
            )
        self.saver.kept_steps |= set(before)
        self.args.keep_steps = sorted(self.saver.kept_steps) or None  # for the runs after this one

    def _save(self, name: str) -> None:
        """Start writing a checkpoint, once the one before it is written; every process must call this.

        Raises UserError where the weights are not finite: the last good checkpoint must not make way for
        such.
        """
        if not all(bool(torch.isfinite(p).all()) for p in self.raw_model.parameters()):
            self._wait_for_last_save()
            raise BadNumbers(f"the weights of step {self.step} are not finite; {self.saver.last_good()}")
        state = self._state()
        if state is not None:
            self.saver.start(name, state)
        self.world.tell(None)  # all have waited for the checkpoint before this one
        self.watchdog.beat()

    def _wait_for_last_save(self) -> None:
        """Before an error that all processes raise: the first to end has its launcher kill the others."""
        with suppress(UserError, OSError):  # the error that is about to be told matters more
            self.saver.settle()
        self.world.tell(None)

    # steps

    def _train_step(self) -> Tensor:
        """One optimiser step; returns the mean loss of this process's micro-batches.

        Raises UserError where loss or gradient are such that the step must not be taken, unless it is to be
        skipped.
        """
        try:
            loss, skipped = self.steps.take(self.step)
        except BadNumbers as error:
            self._end_before(str(error))
        self.schedule.step()
        self.step += 1
        if skipped is not None:
            self.reporter.row(
                {"kind": "skipped", "step": self.step, "reason": skipped}, [f"warning: skipped {skipped}"]
            )
        return loss

    def _end_before(self, wrong: str) -> NoReturn:
        """Raise BadNumbers for a step that must not be taken, with what came before it saved where that
        can be.
        """
        with suppress(UserError, OSError):  # the error that is about to be told matters more
            self._save_progress()
        self._wait_for_last_save()
        again = self.args.on_bad_step == "skip"
        raise BadNumbers(
            f"{wrong}; {self.saver.last_good()}; "
            + (
                f"{self.steps.skipped} steps before it were skipped"
                if again
                else "--on_bad_step skip passes over such steps"
            )
        )

    def _poll(self) -> bool:
        """Whether to stop; every process comes by here between steps and between batches of an evaluation."""
        self.watchdog.beat()
        self.ending.step = self.step
        self.stopper.slowest_save = self.saver.slowest
        return self.stopper.poll()

    def _is_due(self, every: int | None) -> bool:
        return every is not None and every > 0 and self.step % every == 0

    def _report_step(self, loss: Tensor, rate: float) -> None:
        mean = float(self.world.sum(loss.double().cpu())) / self.world.size
        norm = None if self.steps.overflows else float(self.steps.meter.last)
        self.reporter.train_row(self.step, {"loss": mean, "lr": rate, "grad_norm": norm})
        if self.experiment and time.monotonic() - self.status_at > STATUS_SECONDS:
            self.status_at = time.monotonic()
            self._record("running", loss=mean)

    def _evaluate(self, whole: bool) -> bool:
        """Evaluate and report; False where a stop cut it short."""
        begin = time.monotonic()
        kept = self._partial_sums()
        result = evaluate(
            self.raw_model,
            self.splits.val,
            self.evaluation.batch_size,
            self.world,
            self.steps.autocast,
            0 if whole else self.evaluation.batches,
            self._poll,
            kept=kept,
        )
        if result is None:
            return False
        gradients = self.steps.meter.values()
        overflows = {"overflows": self.steps.meter.overflows} if self.steps.scaler.is_enabled() else {}
        for name in ("window_losses", "window_accuracies", "val_loss_batch_mean", "val_acc_batch_mean"):
            del result[name]
        row = {
            "kind": "final" if whole else "eval",
            "step": self.step,
            **result,
            **({} if whole else gradients | overflows),
            "time": {"seconds": time.monotonic() - begin},
        }
        lines = [
            f"{'final evaluation on the whole split' if whole else 'evaluation'} at step {self.step}: loss"
            f" {result['val_loss']:.4f}  perplexity {result['val_pp']:.2f}  accuracy {result['val_acc']:.4f} "
            f" average depth {result['average_depth']:.2f}"
        ]
        if not whole:
            lines.append(
                f"gradient norm: now {gradients['grad_norm']:.3g}, largest {gradients['max_grad_norm']:.3g}, "
                f"mean {gradients['mean_grad_norm']:.3g}"
                + (
                    f"; {self.steps.meter.overflows} steps overflowed, and were skipped"
                    if self.steps.meter.overflows
                    else ""
                )
            )
            if gradients["max_grad_norm"] > SPIKE * gradients["mean_grad_norm"] > 0:
                lines.append(
                    "warning: gradient spike: the largest norm since the last evaluation is "
                    f"{gradients['max_grad_norm'] / gradients['mean_grad_norm']:.1f} times the mean"
                )
            self.steps.meter = GradientMeter.on(self.world.device)
        self.reporter.row(row, lines)
        if self.world.is_main:
            kept.remove()
        return True

    def _partial_sums(self) -> PartialSums:
        def advanced() -> None:
            assert self.experiment is not None, "the main process has the experiment"
            self.experiment.note(evaluated=True)

        facts = facts_of(self.args, self.evaluation.batch_size, self.data, self.world.device)
        return PartialSums(self.folder, OF_TRAINING, self.raw_model, facts, log.info, advanced)

    # the run

    def run(self, experiment: Experiment | None, stopper: Stopper) -> Outcome:
        """Train to the end or to a stop; `experiment` is None off the main process."""
        self.experiment, self.stopper = experiment, stopper
        self.reporter = Reporter(
            self.args,
            experiment,
            self.world.device,
            self.world.size,
            training_flops_per_token(self.raw_model.settings),
        )
        self.world.from_main(lambda: self._open(experiment))
        with self.watchdog:
            return self._run_and_record()

    def _run_and_record(self) -> Outcome:
        try:
            self.reporter.begin(self.step)
            outcome = self._run()
        except BaseException as error:
            self.ending.step = self.step
            with suppress(UserError, OSError):
                self.saver.settle()
            outcome = self.ending.told() or of_error(error, self.step)
            raise
        finally:
            if self.experiment:
                with suppress(OSError):  # a full disk has been told already
                    self._record(outcome.state, outcome.reason)
            self.reporter.close(1 if outcome.state == "failed" else 0)
        return outcome

    def _record(self, state: str, reason: str = UNKNOWN, **more: float) -> None:
        """Tell the ledger and status.json, on the main process, where the run is and how long its steps
        and saves take.
        """
        assert self.experiment is not None, "the main process has the experiment"
        self.experiment.record(
            state,
            self.step,
            self.saver.saved_step,
            reason,
            slowest_step_seconds=round(self.stopper.slowest_step, 3),
            slowest_save_seconds=round(self.saver.slowest, 3),
            **more,
        )

    def _open(self, experiment: Experiment | None) -> None:
        assert experiment is not None, "the main process has the experiment"
        self.reporter.open()
        settings = fingerprint(vars(self.args), self.data | self._initial())
        before = next(
            (row["settings"] for row in reversed(experiment.segments) if "settings" in row), settings
        )
        # rows of a run that left no checkpoint may be of other settings, which nothing else would tell
        is_another = self.saver.resumed_from is None and before != settings
        abandoned = experiment.metrics.go_on(
            self.schedule.lineage(), self.step if self.is_rollback or is_another else None
        )
        if abandoned:
            log.info(
                f"{abandoned} rows of metrics.jsonl are of steps that are trained anew: set aside in"
                f" metrics.jsonl.{ABANDONED}"
            )
        code = code_facts()
        changed = code_change(
            next((row for row in reversed(experiment.segments) if "revision" in row), {}), code
        )
        if changed:
            log.info(f"warning: {changed}")
        experiment.begin_segment(
            self.step, self.saver.saved_step, world_size=self.world.size, settings=settings, **code
        )

    def _run(self) -> Outcome:
        args = self.args
        self.model.train()
        if self.step and self._is_due(args.eval_freq):
            if self.world.tell(
                self.experiment is not None and self.experiment.metrics.has("eval", self.step)
            ):
                self.steps.meter = GradientMeter.on(self.world.device)
            elif not self._evaluate(whole=False):  # which a stop cut short, and now again
                return self._stop()
        while self.step < args.iterations:
            if self._poll():
                return self._stop()
            begin = time.monotonic()
            rate = self.schedule.get_last_lr()[0]
            loss = self._train_step()
            seconds = time.monotonic() - begin
            self.stopper.slowest_step = max(self.stopper.slowest_step, seconds)
            self.reporter.stepped(seconds)
            if not self.steps.skipped and (self._is_due(args.log_freq) or self.step == args.iterations):
                self._report_step(loss, rate)
            if self._is_due(args.eval_freq) and not self._evaluate(whole=False):
                # and not on to the final checkpoint, whose gradient meter would be another
                return self._stop()
            if (
                self._is_due(args.save_checkpoint_freq) or self.step in self.saver.kept_steps
            ) and self.step < args.iterations:
                self._save(f"ckpt_{self.step}.pt")
            else:
                self.saver.settle_if_written()
        if self.world.tell(self.saver.saved_step < self.step or not (self.folder / FINAL).exists()):
            self._save(FINAL)
            self.saver.settle()
        return self._finish()

    def _save_progress(self) -> None:
        """Save what is not saved."""
        if self.world.tell(not self.saver.has(self.step)):
            self._save(f"ckpt_{self.step}.pt")

    def _stop(self) -> Outcome:
        self._save_progress()
        self.saver.settle()
        first = "".join(f"remove {path} and " for path in self.stopper.stop_files[:1] if path.exists())
        log.info(
            f"stopped at step {self.step}/{self.args.iterations}: {self.stopper.reason}; {first}run the same"
            " command again to go on"
        )
        return ended(Kind.STOPPED, self.stopper.reason, self.step, self.stopper.by_hand)

    def _finish(self) -> Outcome:
        """The last evaluation, on the whole split, and summary.json."""
        if not self._evaluate(whole=True):
            return self._stop()
        if self.experiment:
            write_json(self.folder / SUMMARY, self._summary(self.experiment))
            if self.args.remove_intermediary_checkpoints_at_end:
                self.experiment.remove_numbered(self.saver.kept_steps)
        return ended(Kind.FINISHED, "all iterations done", self.step)

    def _summary(self, experiment: Experiment) -> dict[str, Any]:
        rows = experiment.metrics.rows()
        final = next(row for row in reversed(rows) if row["kind"] == "final" and row["step"] == self.step)
        curves = {
            "train_loss": ("train", "loss"),
            "val_loss": ("eval", "val_loss"),
            "val_pp": ("eval", "val_pp"),
            "val_acc": ("eval", "val_acc"),
        }
        return {
            "args": vars(self.args),
            "itr": self.step,
            **{
                name: [row[key] for row in rows if row["kind"] == kind]
                for name, (kind, key) in curves.items()
            },
            "steps": {
                kind: [row["step"] for row in rows if row["kind"] == kind] for kind in ("train", "eval")
            },
            **{
                f"final_{key}": final[key]
                for key in ("val_loss", "val_pp", "val_acc", "average_depth", "n_tokens")
            },
            "parameters": sum(p.numel() for p in self.raw_model.parameters()),
            "world_size": self.world.size,
            **self._what_happened(experiment),
        }

    def _what_happened(self, experiment: Experiment) -> dict[str, Any]:
        """Of a summary: what the flags of the last command do not tell."""
        facts = ("job_id", "restart", "start_step", "end_step", "reason", "world_size", "revision")
        segments = [{name: row.get(name) for name in facts} for row in experiment.segments]
        segments[-1] |= {"end_step": self.step, "reason": "all iterations done"}
        n_windows, plan = self.splits.val.n_windows, self.evaluation
        return {
            "schedule": self.schedule.plan(),
            "skipped_steps": [row["step"] for row in experiment.metrics.rows() if row["kind"] == "skipped"],
            "segments": segments,
            "rollbacks": self.rollbacks,
            "data": self.data,
            **self._initial(),
            "evaluation": {
                "batch_size": plan.batch_size,
                "final_windows": n_windows,
                "windows": min(n_windows, plan.batches * plan.batch_size) if plan.batches else n_windows,
            },
        }
