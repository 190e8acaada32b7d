"""The parts of a fine-tuning on examples, by --objective: supervised (sft) or by preferences (dpo)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from config.checks import needs_reference
from config.groups.objective import DPO, EXAMPLES, GRPO, SFT
from data.bins import dataset_folder
from data.example_sources import PairSet, PairSource, PromptSet, PromptSource, SftSet, SftSource
from data.examples import ExampleSplits, open_examples
from distributed.world import World
from errors import UserError
from optim import initial
from optim.evaluation import Evaluation
from optim.first_lines import first_lines
from optim.hooks import Hook
from optim.objectives.dpo import REFERENCE, SIDES, Dpo
from optim.objectives.grpo import Grpo, GrpoSettings, RolloutRows, sampling_of
from optim.objectives.sft import Sft
from optim.objectives.teacher import Teacher, check_teacher, find_teacher, load_teacher
from optim.progress import Parts
from optim.reward_evaluation import HeldOutPrompts, try_reward
from optim.rewards import reward_of
from optim.rollouts import Rollouts
from optim.setup import autocaster
from optim.tuning_evaluations import HeldOutAnswers, HeldOutPairs


def open_examples_of(args: Namespace, world: World) -> ExampleSplits[Any]:
    """Those of --dataset, in the form that --objective is trained on. Raises UserError."""
    folder, form = dataset_folder(args.dataset, args.data_dir), EXAMPLES[args.objective]
    return world.on_all(lambda: open_examples(folder, form, args.vocab_size))


def open_reference(
    args: Namespace, world: World, examples: ExampleSplits[Any], network: Any, folder: Path
) -> Teacher:
    """The network that a policy is kept close to: of --reference, else of --init_from. folder: of the
    experiment. Raises UserError where it cannot be compared with the policy.
    """
    given, flag = args.reference, f"--{REFERENCE}"
    if given is None:
        given, flag = args.init_from, initial.FLAG
    path = world.on_main(lambda: find_teacher(given, folder, args.results_base_folder, REFERENCE, flag))
    reference = world.on_all(lambda: load_teacher(given, path, flag))
    world.on_all(lambda: _check_reference(reference, args, examples, network))
    if args.compile:
        reference.network.compile_blocks()
    return reference


def _check_reference(reference: Teacher, args: Namespace, examples: ExampleSplits[Any], network: Any) -> None:
    """Raises UserError."""
    check_teacher(reference, args, [(examples.folder, examples.meta)])
    mine, others = network.settings, reference.network.settings
    said = f"{reference.flag} {reference.file['given']}"
    if others.variant.exits_each_pass:
        raise UserError(
            f"{said}: a model that leaves at a pass of its own for each token scores none twice alike"
        )
    if mine.variant.routes and not (others.variant.routes and others.n_repeat == mine.n_repeat):
        raise UserError(
            f"{said}: policy and reference must let the same shares of tokens go on, so it must be a model"
            f" with routers and --n_repeat {mine.n_repeat}, as --model {args.model} is"
        )


class Tuning(NamedTuple):
    """What differs between objectives. sample: what a sample is, in the plural; sequences: of tokens that
    each has.
    """

    objective: Any
    source: Any
    evaluation: Evaluation
    sample: str
    sequences: int = 1
    hooks: Sequence[Hook] = ()


def fine_tuning(
    args: Namespace,
    world: World,
    examples: ExampleSplits[Any],
    network: Any,
    folder: Path,
    hooks: Sequence[Hook] = (),
) -> Parts:
    """Training of a network on examples by --objective, evaluated on the validation examples."""
    network = network.to(world.device)
    tuning = OF_OBJECTIVES[args.objective](args, world, examples, network, folder)
    samples = args.iterations * args.batch_size * args.acc_steps
    reads = f"{tuning.sample} of up to {args.sequence_length} tokens", ""
    return Parts(
        tuning.objective,
        tuning.source,
        evaluations=[tuning.evaluation],
        hooks=[*tuning.hooks, *hooks],
        items="tokens",
        items_per_sample=tuning.sequences * args.sequence_length,
        flops_per_item=tuning.objective.flops_per_token(),
        describe=lambda schedule: [
            *first_lines(args, world, network, folder, tuning.source.first_lines(samples), reads, schedule),
            *tuning.objective.describe(),
        ],
    )


def _sft(args: Namespace, world: World, examples: ExampleSplits[Any], network: Any, folder: Path) -> Tuning:
    length, stop = args.sequence_length, examples.stop
    source = world.on_all(lambda: SftSource(examples, length, args.data_seed))
    held_out = world.on_all(lambda: SftSet(examples.val, length, stop))
    identity = world.on_main(source.identity)
    evaluation = HeldOutAnswers(args, world, network, held_out, folder, identity)
    return Tuning(Sft(network), source, evaluation, "examples")


def _dpo(args: Namespace, world: World, examples: ExampleSplits[Any], network: Any, folder: Path) -> Tuning:
    length, stop = args.sequence_length, examples.stop
    source = world.on_all(lambda: PairSource(examples, length, args.data_seed))
    held_out = world.on_all(lambda: PairSet(examples.val, length, stop))
    reference = open_reference(args, world, examples, network, folder)
    objective = Dpo(network, reference.network, args.beta, reference.file)
    identity = world.on_main(source.identity)
    evaluation = HeldOutPairs(args, world, objective, held_out, folder, identity)
    return Tuning(objective, source, evaluation, "pairs", len(SIDES))


def _grpo(args: Namespace, world: World, examples: ExampleSplits[Any], network: Any, folder: Path) -> Tuning:
    length, most = args.sequence_length, args.completion_tokens
    source = world.on_all(lambda: PromptSource(examples, length, most, args.data_seed))
    held_out = world.on_all(lambda: PromptSet(examples.val, length, examples.stop, most))
    rollouts = world.on_all(lambda: rollouts_of(args, world, examples))
    settings = GrpoSettings(args.group_size, args.beta, args.clip)
    world.on_all(lambda: try_reward(rollouts.reward, source.set, held_out))
    known: dict[str, Any] = {}
    if needs_reference(args):
        reference = open_reference(args, world, examples, network, folder)
        known = {"reference": reference.network, "file": reference.file}
    objective = Grpo(network, source, rollouts.reward, settings=settings, sampling=rollouts.sampling, **known)
    identity = world.on_main(source.identity)
    evaluation = HeldOutPrompts(args, world, network, objective.rollouts, held_out, folder, identity)
    hooks = [RolloutRows(objective, args.log_freq)]
    return Tuning(objective, source, evaluation, "prompts", args.group_size, hooks)


def rollouts_of(args: Namespace, world: World, examples: ExampleSplits[Any]) -> Rollouts:
    """The completions and rewards that flags ask for. Raises UserError."""
    reward = reward_of(args.reward)
    sampling = replace(
        sampling_of(examples, args.completion_tokens),
        temperature=args.rollout_temperature,
        thresholds=tuple(args.router_threshold or [0.0]),
        autocast=autocaster(args.dtype, world.device),
        eager=args.compile,
    )
    return Rollouts(sampling, reward)


OF_OBJECTIVES = {SFT: _sft, DPO: _dpo, GRPO: _grpo}
