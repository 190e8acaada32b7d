"""The training loop: steps, evaluations, checkpoints, clean stops. It knows nothing of what is trained: that
is put together of a source of batches, an objective and evaluations (optim/progress.py, Parts).

What a step computes is a pure function of the state at its beginning and of (seed, data_seed, step): a source
gives the samples of a step by their numbers, and the generator that dropout and random draws use is seeded
anew for each micro-batch by its number in the step, whoever runs it. So a run that was stopped, killed or
moved to another number of processes does what the unbroken one does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from config.identity import fingerprint
from distributed.world import World
from errors import BadNumbers, UserError
from files import write_json
from optim.evaluation import Evaluation, Measured
from optim.experiment import UNKNOWN, Experiment
from optim.hooks import COMPLETE, Hook, Stop
from optim.names import ABANDONED, BEST, FINAL, SUMMARY
from optim.outcome import Ending, Kind, Outcome, ended, of_error
from optim.progress import Parts, Progress
from optim.reporting import Reporter, log
from optim.saving import Saver
from optim.setup import need_compiler
from optim.step import GradientMeter
from optim.stopping import Stopper
from optim.summary import summarise
from optim.watchdog import Watchdog
from processes import code_change, code_facts, torch_change

# largest gradient norm over the mean since the last evaluation, from which on it is called a spike
SPIKE = 5.0
STATUS_SECONDS = 5.0  # least time between two updates of status.json for progress alone


class Trainer:
    """Takes a training from where it stands (`progress`) to its end, or to a stop."""

    def __init__(
        self, args: Any, world: World, parts: Parts, folder: Path, ending: Ending | None = None
    ) -> None:
        """Raises UserError where a compiler is wanted and missing, or --track names nothing that is
        measured.
        """
        self.args, self.world, self.parts, self.folder = args, world, parts, folder
        self.ending = ending or Ending(folder, None)
        self.watchdog = Watchdog(
            args.watchdog_minutes,
            lambda: f"process {world.rank} of {world.size}, after step {self.progress.step},",
            self.ending.hung,
        )
        self.saver = Saver(folder, args.keep_checkpoints, args.keep_steps or (), self.watchdog.beat)
        self.progress = Progress(args, world, parts, folder, self.saver)
        if args.compile:
            world.on_all(lambda: need_compiler(world.device))
            parts.objective.network.compile_blocks()  # type: ignore[operator, union-attr]
        self.steps = self.progress.steps
        self.status_at = 0.0

    # saving

    def _save(self, name: str) -> None:
        """Start writing a checkpoint, once the one before it is written; every process must call this.

        Raises UserError where the weights are not finite: the last good checkpoint must not make way for
        such.
        """
        if not self.progress.is_finite():
            self._wait_for_last_save()
            raise BadNumbers(
                f"the weights of step {self.progress.step} are not finite; {self.saver.last_good()}"
            )
        state = self.progress.state()
        if state is not None:
            self.saver.start(name, state)
        self.world.broadcast(None)  # all have waited for the checkpoint before this one
        self.watchdog.beat()

    def _wait_for_last_save(self) -> None:
        """Before an error that all processes raise: the first to end has its launcher kill the others."""
        with suppress(UserError, OSError):  # the error that is about to be reported matters more
            self.saver.settle()
        self.world.broadcast(None)

    # steps

    def _train_step(self) -> Tensor:
        """One optimiser step; returns the mean loss of this process's micro-batches.

        Raises UserError where loss or gradient are such that the step must not be taken, unless it is to be
        skipped.
        """
        progress = self.progress
        try:
            loss, skipped = self.steps.take(progress.step)
        except BadNumbers as error:
            self._end_before(str(error))
        progress.schedule.step()
        progress.step += 1
        if skipped is not None:
            row = {"kind": "skipped", "step": progress.step, "reason": skipped}
            self.reporter.row(row, [f"warning: skipped {skipped}"])
        return loss

    def _end_before(self, wrong: str) -> NoReturn:
        """Raise BadNumbers for a step that must not be taken, with what came before it saved where that
        can be.
        """
        with suppress(UserError, OSError):  # the error that is about to be reported matters more
            self._save_progress()
        self._wait_for_last_save()
        if self.args.on_bad_step == "skip":
            more = f"{self.steps.skipped} steps before it were skipped"
        else:
            more = "--on_bad_step skip passes over such steps"
        raise BadNumbers(f"{wrong}; {self.saver.last_good()}; {more}")

    def _poll(self) -> bool:
        """Whether to stop; every process comes by here between steps and between batches of an evaluation."""
        self.watchdog.beat()
        self.ending.step = self.progress.step
        self.stopper.slowest_save = self.saver.slowest
        return self.stopper.poll()

    def _is_due(self, every: int | None) -> bool:
        return every is not None and every > 0 and self.progress.step % every == 0

    def _mean(self, loss: Tensor) -> float:
        """Of the processes' mean losses."""
        return float(self.world.sum(loss.double().cpu())) / self.world.size

    def _report_step(self, loss: Tensor, rate: float) -> None:
        mean = self._mean(loss)
        norm = None if self.steps.overflows else float(self.steps.meter.last)
        self.reporter.train_row(self.progress.step, {"loss": mean, "lr": rate, "grad_norm": norm})
        if self.experiment and time.monotonic() - self.status_at > STATUS_SECONDS:
            self.status_at = time.monotonic()
            self._record("running", loss=mean)

    def _ask(self, answers: Callable[[Any], Stop | None]) -> None:
        """Call every hook; the first of the main process that asks for an end is heard by all processes."""
        if not self.parts.hooks or self.progress.asked is not None:
            return
        asked = None
        for hook in self.parts.hooks:
            answer = answers(hook)
            if not isinstance(answer, Stop | None):
                raise TypeError(f"{type(hook).__name__} must return a Stop or None, not {answer!r}")
            asked = asked or answer
        self.progress.asked = self.world.broadcast(asked)

    # evaluations

    def _evaluate(self, whole: bool, resumed: bool = False) -> bool:
        """All evaluations; False where a stop cut one short.

        resumed: at the step that this run began at, where a stop may have cut them short before: those that
        metrics.jsonl has a row of are done.
        """
        for evaluation in self.parts.evaluations:
            row = self._row_of(evaluation) if resumed else None
            if row is not None:
                self._keep_best(evaluation, row)  # a kill may have come between the row and best.pt
                continue
            begin = time.monotonic()
            measured = evaluation.run(whole, self._poll, self._note_advance)
            if measured is None:
                return False
            self._report_evaluation(evaluation, measured, whole, time.monotonic() - begin)
        if not whole:
            self.steps.meter = GradientMeter.empty()
        return True

    @staticmethod
    def _kind(evaluation: Evaluation, whole: bool) -> str:
        """Of the metrics row of an evaluation."""
        kind = "final" if whole else "eval"
        return f"{kind}@{evaluation.name}" if evaluation.name else kind

    def _row_of(self, evaluation: Evaluation) -> dict[str, Any] | None:
        """That of metrics.jsonl for the present step, if there is one."""
        row = None
        if self.experiment is not None:
            row = self.experiment.metrics.row(self._kind(evaluation, False), self.progress.step)
        found: dict[str, Any] | None = self.world.broadcast(row)
        return found

    def _note_advance(self) -> None:
        """An evaluation that has been cut short before got further."""
        if self.experiment:
            self.experiment.note(evaluated=True)

    def _report_evaluation(
        self, evaluation: Evaluation, measured: Measured, whole: bool, seconds: float
    ) -> None:
        step = self.progress.step
        of = f" {evaluation.name}" if evaluation.name else ""
        what = f"final evaluation{of} on the whole split" if whole else f"evaluation{of}"
        lines = [f"{what} at step {step}: {measured.words}"]
        values = self.world.broadcast(measured.values)  # of which all processes must think alike
        row = {"kind": self._kind(evaluation, whole), "step": step, **values}
        if not whole and evaluation is self.parts.evaluations[0]:
            row |= self._gradients(lines)
        self.reporter.row({**row, "time": {"seconds": seconds}}, lines)
        if self.world.is_main:
            measured.recorded()
        if not whole:
            self._keep_best(evaluation, values)
            self._ask(lambda hook: hook.evaluated(step, evaluation.name, values))

    def _keep_best(self, evaluation: Evaluation, values: dict[str, Any]) -> None:
        """Write best.pt where what --track names is the best so far."""
        tracked, step = self.progress.tracked, self.progress.step
        if tracked is not None and tracked.improves(evaluation.name, values, step):
            log.info(f"the best {self.args.track} so far: {tracked.value:.6g}; {BEST} is of step {step}")
            self._save(BEST)

    def _gradients(self, lines: list[str]) -> dict[str, Any]:
        """Of a row, what the gradient norms were since the last evaluation; adds lines about them."""
        meter = self.steps.meter
        norms = meter.values()
        line = (
            f"gradient norm: now {norms['grad_norm']:.3g}, largest {norms['max_grad_norm']:.3g}, "
            f"mean {norms['mean_grad_norm']:.3g}"
        )
        if meter.overflows:
            line += f"; {meter.overflows} steps overflowed, and were skipped"
        lines.append(line)
        if norms["max_grad_norm"] > SPIKE * norms["mean_grad_norm"] > 0:
            times = norms["max_grad_norm"] / norms["mean_grad_norm"]
            lines.append(
                "warning: gradient spike: the largest norm since the last evaluation is "
                f"{times:.1f} times the mean"
            )
        overflows = {"overflows": meter.overflows} if self.steps.scaler.is_enabled() else {}
        return {**norms, **overflows}

    # the run

    def run(self, experiment: Experiment | None, stopper: Stopper) -> Outcome:
        """Train to the end or to a stop; `experiment` is None off the main process."""
        self.experiment, self.stopper = experiment, stopper
        self.reporter = Reporter(self.args, experiment, self.world.device, self.world.size, self.parts)
        self.world.on_main(lambda: self._open(experiment))
        with self.watchdog:
            return self._run_and_record()

    def _run_and_record(self) -> Outcome:
        try:
            self.reporter.begin(self.progress.step)
            outcome = self._run()
        except BaseException as error:
            self.ending.step = self.progress.step
            outcome = of_error(error, self.progress.step)
            with suppress(UserError, OSError):
                self.saver.settle()
            outcome = self.ending.earlier() or outcome
            raise
        finally:
            if self.experiment:
                with suppress(OSError):  # a full disk has been reported already
                    self._record(outcome.state, outcome.reason)
            self.reporter.close(1 if outcome.state == "failed" else 0)
            for hook in self.parts.hooks:
                self._tell_end(hook, outcome.reason)
        return outcome

    def _tell_end(self, hook: Hook, reason: str) -> None:
        """What goes wrong in a hook here is no longer of the training, and must not hide how it ended."""
        try:
            hook.ended(self.progress.step, reason)
        except Exception as error:
            log.warning(f"warning: {type(hook).__name__}.ended failed: {type(error).__name__}: {error}")

    def _record(self, state: str, reason: str = UNKNOWN, **more: float) -> None:
        """Tell segments.jsonl and status.json, on the main process, where the run is and how long its steps
        and saves take.
        """
        assert self.experiment is not None, "the main process has the experiment"
        self.experiment.record(
            state,
            self.progress.step,
            self.saver.saved_step,
            reason,
            slowest_step_seconds=round(self.stopper.slowest_step, 3),
            slowest_save_seconds=round(self.saver.slowest, 3),
            **more,
        )

    def _open(self, experiment: Experiment | None) -> None:
        """Begin this run's rows in the experiment's files, on the main process."""
        assert experiment is not None, "the main process has the experiment"
        progress = self.progress
        self.reporter.open()
        settings = fingerprint(vars(self.args), progress.data | progress.initial_part())
        before = experiment.last_row_with("settings").get("settings", settings)
        # rows of a run that left no checkpoint may be of other settings, which nothing else would show
        is_another = self.saver.resumed_from is None and before != settings
        at_most = progress.step if progress.is_rollback or is_another else None
        abandoned = experiment.metrics.go_on(progress.schedule.lineage(), at_most)
        if abandoned:
            log.info(
                f"{abandoned} rows of metrics.jsonl are of steps that are trained anew: set aside in"
                f" metrics.jsonl.{ABANDONED}"
            )
        code = code_facts()
        changed = code_change(experiment.last_row_with("revision"), code)
        version = str(torch.__version__)
        other_torch = torch_change(experiment.last_row_with("torch").get("torch", version), version)
        for warning in filter(None, (changed, other_torch)):
            log.info(f"warning: {warning}")
        facts = {"world_size": self.world.size, "settings": settings, "torch": version, **code}
        experiment.begin_segment(progress.step, self.saver.saved_step, **facts)

    def _run(self) -> Outcome:
        args, progress = self.args, self.progress
        progress.model.train()
        self._ask(lambda hook: hook.started(progress.step))
        if progress.step and self._is_due(args.eval_freq) and not self._evaluate(whole=False, resumed=True):
            return self._stop()
        while progress.step < args.iterations and progress.asked is None:
            if self._poll():
                return self._stop()
            begin = time.monotonic()
            rate = progress.schedule.get_last_lr()[0]
            loss = self._train_step()
            seconds = time.monotonic() - begin
            self.stopper.slowest_step = max(self.stopper.slowest_step, seconds)
            self.reporter.stepped(seconds)
            is_last = progress.step == args.iterations
            if not self.steps.skipped and (self._is_due(args.log_freq) or is_last):
                self._report_step(loss, rate)
            if self.parts.hooks:
                mean = self._mean(loss)
                self._ask(lambda hook, mean=mean: hook.stepped(progress.step, mean))  # type: ignore[misc]
            if self._is_due(args.eval_freq) and not self._evaluate(whole=False):
                # and not on to the final checkpoint, whose gradient meter would be another
                return self._stop()
            is_due = self._is_due(args.save_checkpoint_freq) or progress.step in self.saver.kept_steps
            if is_due and not is_last:
                self._save(f"ckpt_{progress.step}.pt")
            else:
                self.saver.settle_if_written()
        if progress.asked is not None and progress.asked.kind != COMPLETE:
            return self._pause(progress.asked.reason)
        if self.world.broadcast(self.saver.saved_step < progress.step or not (self.folder / FINAL).exists()):
            self._save(FINAL)
            self.saver.settle()
        return self._finish()

    def _save_progress(self) -> None:
        """Save what is not saved."""
        if self.world.broadcast(not self.saver.has(self.progress.step)):
            self._save(f"ckpt_{self.progress.step}.pt")

    def _stop(self) -> Outcome:
        """End with work left, as a signal, a stop file or the end of the time asks for."""
        self._save_progress()
        self.saver.settle()
        step, reason = self.progress.step, self.stopper.reason
        first = "".join(f"remove {path} and " for path in self.stopper.stop_files[:1] if path.exists())
        log.info(
            f"stopped at step {step}/{self.args.iterations}: {reason}; {first}run the same command again to"
            " go on"
        )
        return ended(Kind.STOPPED, reason, step, self.stopper.by_hand)

    def _pause(self, reason: str) -> Outcome:
        """End with work left, as a hook asks for."""
        self._save_progress()
        self.saver.settle()
        step = self.progress.step
        log.info(
            f"paused at step {step}/{self.args.iterations}: {reason}; run the same command again to go on"
        )
        return ended(Kind.PAUSED, reason, step, by_hand=True)

    def _finish(self) -> Outcome:
        """The last evaluation, on the whole split, and summary.json."""
        if not self._evaluate(whole=True):
            return self._stop()
        kind, reason = Kind.FINISHED, "all iterations done"
        if self.progress.asked is not None:
            kind, reason = Kind.COMPLETE, self.progress.asked.reason
            log.info(f"complete at step {self.progress.step}/{self.args.iterations}: {reason}")
        if self.experiment:
            write_json(self.folder / SUMMARY, summarise(self.progress, self.experiment, reason))
            if self.args.remove_intermediary_checkpoints_at_end:
                self.experiment.remove_numbered(self.saver.kept_steps)
        return ended(kind, reason, self.progress.step)
