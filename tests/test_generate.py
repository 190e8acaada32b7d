"""Generation: kept keys give the logits of the whole forward pass; sampling; budgets; the command."""

from __future__ import annotations

import sys
from itertools import zip_longest

import pytest
import torch

from generate import main
from models.cache import Kernel, choose_kernel
from models.variants import VARIANTS
from optim.generation import Sampling, Session, generate
from optim.routers import share_of_macs, threshold_for
from tests.emulated_cuda import emulated_cuda
from tests.helpers import tiny_model, tokens
from tests.programs import folder, run, train

CPU = torch.device("cpu")
STEADY = [name for name in VARIANTS if name != "pondernet"]  # which draws its exits
PROMPTS = [[3, 14, 15, 9, 2], [6], [5, 35, 8]]


def whole(model, row):
    """Logits after the last token of a row, from one forward pass over all of it."""
    with torch.no_grad():
        return model(torch.tensor([row]), get_logits=True)["logits"][0, -1]


def threshold_model(name, thresholds=(0.5, 0.45), **settings):
    """Routed models by threshold, so that tokens of a row make different numbers of passes."""
    return tiny_model(
        name, sequence_length=24, routing="threshold", router_threshold=list(thresholds), **settings
    )


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", STEADY)
def test_kept_keys_give_the_logits_of_the_whole_forward_pass(name, window):
    model = threshold_model(name, attention_window_length=window)
    row = tokens(20).tolist()
    session = Session(model, 1, CPU)
    found = [session.extend([row[:6]])] + [session.extend([[token]]) for token in row[6:]]
    for end, logits in enumerate(found, start=6):
        assert torch.allclose(logits[0], whole(model, row[:end]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", STEADY)
def test_rows_of_a_batch_stand_at_their_own_positions(name, window):
    model, rows = threshold_model(name, attention_window_length=window), [list(prompt) for prompt in PROMPTS]
    session = Session(model, len(rows), CPU)
    new = rows
    for turn in range(12):
        logits = session.extend(new)
        for number, row in enumerate(rows):
            assert torch.allclose(logits[number], whole(model, row), atol=1e-5), (turn, number)
        new = [[(7 * turn + 11 * number) % 64] for number in range(len(rows))]
        rows = [[*row, *more] for row, more in zip(rows, new, strict=True)]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", STEADY)
def test_several_tokens_at_once_after_the_first(name, window):
    model, row = threshold_model(name, attention_window_length=window), tokens(15).tolist()
    session = Session(model, 1, CPU)
    session.extend([row[:4]])
    assert torch.allclose(session.extend([row[4:15]])[0], whole(model, row), atol=1e-5)


@pytest.mark.parametrize("name", STEADY)
def test_what_fills_up_a_batch_stays_finite(name):
    model, row = threshold_model(name, attention_window_length=4), tokens(12).tolist()
    session = Session(model, 2, CPU)
    session.extend([row[:10], row])
    assert session.extend([[1, 2], []]).isfinite().all()


@pytest.mark.parametrize("name", STEADY)
def test_half_precision_generates_as_the_whole_forward_pass_does(name):
    model, row = threshold_model(name), tokens(12).tolist()
    with torch.autocast("cpu", torch.bfloat16):
        session = Session(model, 1, CPU)
        session.extend([row[:6]])
        for end in range(7, 13):
            assert torch.allclose(
                session.extend([row[end - 1 : end]])[0], whole(model, row[:end]).float(), atol=0.02
            )


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", ["lncot", "adm"])
def test_reference_attention_generates_the_same(name, window):
    fast, plain = (
        threshold_model(name, attention=way, attention_window_length=window) for way in ("fast", "reference")
    )
    said = [
        list(generate(Session(model, 3, CPU), PROMPTS, 10, Sampling(0), 0, 64, lambda row, new: False))
        for model in (fast, plain)
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", STEADY)
def test_a_row_that_has_ended_leaves_the_others_as_they_are(name, window):
    model = threshold_model(name, attention_window_length=window)
    together = list(
        generate(
            Session(model, 3, CPU),
            PROMPTS,
            9,
            Sampling(0),
            0,
            64,
            lambda row, new: row == 1 and len(new) == 3,
        )
    )
    for row, prompt in enumerate(PROMPTS):
        alone = [
            token
            for _, token in generate(
                Session(model, 1, CPU),
                [prompt],
                3 if row == 1 else 9,
                Sampling(0),
                0,
                64,
                lambda row, new: False,
            )
        ]
        assert [token for number, token in together if number == row] == alone


def test_after_the_models_length_the_older_half_is_forgotten():
    model = threshold_model("lncot")
    row = tokens(24).tolist()
    session = Session(model, 1, CPU)
    session.extend([row])
    assert torch.allclose(session.extend([[7]])[0], whole(model, [*row, 7][-13:]), atol=1e-5)


def test_a_row_that_outgrows_the_model_leaves_the_others_as_they_are():
    model = threshold_model("lncot")
    long, short = tokens(24).tolist(), tokens(19, seed=1).tolist()
    session = Session(model, 2, CPU)
    session.extend([long, short])
    assert torch.allclose(session.extend([[7], [8]])[1], whole(model, [*short, 8]), atol=1e-5)


def test_pondernet_generates():
    assert (
        len(
            list(
                generate(
                    Session(tiny_model("pondernet", sequence_length=24), 2, CPU),
                    PROMPTS[:2],
                    30,
                    Sampling(),
                    0,
                    64,
                    lambda row, new: False,
                )
            )
        )
        == 60
    )


# sampling


def draws(sampling, n=400):
    logits, generator = torch.tensor([1.0, 3.0, 2.0, -1.0]), torch.Generator().manual_seed(1)
    return [sampling.choose(logits, generator) for _ in range(n)]


def test_temperature_zero_takes_the_likeliest():
    assert set(draws(Sampling(0))) == {1}


def test_top_k_leaves_the_likeliest_k():
    assert set(draws(Sampling(5.0, top_k=2))) == {1, 2}


def test_top_p_leaves_the_fewest_that_hold_it():
    assert set(draws(Sampling(1.0, top_p=0.7))) == {1, 2}  # 0.66 and 0.24


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_p=0.0), Sampling(1e-39), Sampling(1.0, top_k=1)])
def test_the_narrowest_choice_is_the_likeliest(sampling):
    assert set(draws(sampling, 20)) == {1}


def test_draws_follow_the_odds():
    found = draws(Sampling(1.0), 4000)
    odds = torch.tensor([1.0, 3.0, 2.0, -1.0]).softmax(0)
    assert all(abs(found.count(token) / len(found) - odds[token]) < 0.03 for token in range(4))


def test_a_seed_gives_the_same_text_whatever_stands_beside_it():
    model = threshold_model("lncot")
    alone = list(generate(Session(model, 1, CPU), PROMPTS[:1], 8, Sampling(), 3, 64, lambda row, new: False))
    beside = list(generate(Session(model, 3, CPU), PROMPTS, 8, Sampling(), 3, 64, lambda row, new: False))
    assert [pair for pair in beside if pair[0] == 0] == alone


# budgets


def test_a_threshold_spends_the_budget_it_was_measured_for():
    model = tiny_model("adm", sequence_length=64)
    scores = torch.rand(20000, 2, generator=torch.Generator().manual_seed(0)).cummin(1).values
    lone = share_of_macs(model.settings, [0.0, 0.0])
    for budget in (lone + 0.1, 0.75, 0.95):
        threshold = threshold_for(budget, model.settings, scores)
        shares = (scores > threshold).double().mean(0).tolist()
        assert share_of_macs(model.settings, shares) == pytest.approx(budget, abs=0.02)


@pytest.mark.parametrize("name", ["adm", "but_mod"])
def test_shares_are_of_the_tokens_that_really_went_on(name):
    model, rows = threshold_model(name), [tokens(20).tolist(), tokens(4, seed=1).tolist()]
    session = Session(model, 2, CPU)
    for turn in range(17):
        session.extend([rows[0][turn : turn + 1 if turn < 16 else 20], rows[1] if turn == 16 else []])
    with torch.no_grad():
        active = [model(torch.tensor([row]))["active"] for row in rows]
    assert session.shares() == pytest.approx(
        [sum(counts) / 24 for counts in zip_longest(*active, fillvalue=0.0)][1:]
    )


# the command


def generated(*words):
    return run([sys.executable, "generate.py", *map(str, words)])


@pytest.mark.slow
def test_the_command_wants_a_checkpoint():
    outcome = generated("--prompt", "x")
    assert (
        outcome.returncode == 2
        and "--checkpoint is needed" in outcome.stderr
        and outcome.stderr.count("\n") == 1
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a small adaptive model of characters, whose training evaluated by threshold."""
    place = tmp_path_factory.mktemp("characters")
    (place / "verse.txt").write_text("to be or not to be,\nthat is the question: " * 200)
    made = run(
        [
            sys.executable,
            "-m",
            "data.tokenize",
            "--name",
            "verse-char",
            "--data-dir",
            str(place),
            "--input",
            str(place / "verse.txt"),
        ]
    )
    assert made.returncode == 0, made.stderr
    done = train(
        place / "exps",
        dataset="verse-char",
        data_dir=place,
        vocab_size=32,
        n_layer=3,
        n_embd=32,
        sequence_length=24,
        acc_steps=1,
        iterations=40,
        eval_freq=0,
        save_checkpoint_freq=None,
        dropout=0.0,
        routing="threshold",
        router_threshold=0.3,
    )
    assert done.returncode == 0, done.stderr
    return folder(place / "exps")


@pytest.mark.slow
def test_a_prompt_with_line_breaks_is_printed_with_what_follows(trained):
    outcome = generated(
        "--checkpoint", trained, "--prompt", "be,\nth", "--max_new_tokens", "12", "--temperature", "0"
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith("be,\nth") and len(outcome.stdout) == len("be,\nth") + 12 + 1


@pytest.mark.slow
def test_characters_travel_with_the_checkpoint(trained, tmp_path):
    outcome = generated(
        "--checkpoint",
        trained,
        "--prompt",
        "be, th",
        "--max_new_tokens",
        "5",
        "--temperature",
        "0",
        "--data_dir",
        tmp_path,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith("be, th")


@pytest.mark.slow
def test_a_model_of_unknown_tokens_writes_no_text(trained, tmp_path):
    state = torch.load(trained / "ckpt.pt", weights_only=True)
    del state["vocabulary"]
    torch.save(state, tmp_path / "ckpt.pt")
    outcome = generated("--checkpoint", tmp_path / "ckpt.pt", "--prompt", "be", "--data_dir", tmp_path)
    assert (
        outcome.returncode == 2
        and "nobody says what the 32 tokens" in outcome.stderr
        and outcome.stderr.count("\n") == 1
    )


@pytest.mark.slow
def test_a_text_ends_with_what_stops_it(trained):
    outcome = generated(
        "--checkpoint", trained, "--prompt", "to be", "--max_new_tokens", "200", "--stop", "o", "t"
    )
    assert outcome.stdout.strip()[-1] in "ot" and not set("ot") & set(outcome.stdout.strip()[5:-1])


@pytest.mark.slow
def test_a_budget_is_told_and_about_kept(trained):
    outcome = generated(
        "--checkpoint", trained, "--prompt", "to be", "or not", "--max_new_tokens", "30", "--budget", "0.75"
    )
    assert outcome.returncode == 0, outcome.stderr
    spent = float(outcome.stderr.split("; ")[-1].split()[0])
    assert "=== 2\nor not" in outcome.stdout and spent == pytest.approx(0.75, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--budget", "0.5", "--router_threshold", "0.5"], "give one of them"),
        (["--stop", ""], "must not be empty"),
        (["--budget", "0.1"], "one pass alone costs"),
        (["--prompt", "XYZ"], "have no 'X'"),
        (["--prompt", ""], "must not be empty"),
        (["--top_p", "2"], "at most 1"),
    ],
)
def test_bad_wishes_are_told_in_one_line(trained, words, fault):
    outcome = generated(
        "--checkpoint", trained, *(words if "--prompt" in words else [*words, "--prompt", "be"])
    )
    assert (
        (outcome.returncode, outcome.stdout) == (2, "")
        and fault in outcome.stderr
        and "Traceback" not in outcome.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_rounded_weights_write_text_that_begins_with_the_prompt(trained, kind):
    words = "--prompt", "to be", "--max_new_tokens", "12", "--temperature", "0", "--weights", kind
    outcome = generated("--checkpoint", trained, *words)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith("to be") and len(outcome.stdout) == len("to be") + 12 + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--weights", "int4"], "must be one of float32, bfloat16, int8, not 'int4'"),
        (["--weights", "int8", "--device", "cuda"], "--device c"),  # whether there is one or not
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_one_line(trained, words, fault):
    outcome = generated("--checkpoint", trained, "--prompt", "be", *words)
    assert (outcome.returncode, outcome.stdout) == (2, "") and fault in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.slow
def test_rounded_weights_are_refused_on_gpus_in_one_line(trained, capsys):
    words = ["--checkpoint", str(trained), "--prompt", "be", "--weights", "int8", "--device", "cuda"]
    with emulated_cuda(), pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "") and said.err.count("\n") == 1
    assert "weights in int8 are for CPUs, and this model is on cuda; leave --weights out" in said.err


@pytest.mark.parametrize(
    ("fast", "one_query", "dtype", "flash_works", "kernel"),
    [
        (True, True, torch.float32, True, Kernel.ONE_QUERY),
        (True, True, torch.float32, False, Kernel.ONE_QUERY),
        (True, True, torch.bfloat16, True, Kernel.TILES),
        (True, False, torch.float32, True, Kernel.TILES),
        (True, False, torch.float32, False, Kernel.MASK),
        (False, True, torch.float32, False, Kernel.MASK),
    ],
)
def test_the_kernel_of_a_call_follows_from_its_shape_and_dtype(fast, one_query, dtype, flash_works, kernel):
    assert choose_kernel(fast, one_query, dtype, flash_works) is kernel
