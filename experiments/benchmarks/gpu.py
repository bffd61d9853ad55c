"""What one GPU makes of a training: its ceilings, the RLDTF update, decoding, arms, torch beside
it, precision.

python -m experiments.benchmarks.gpu                          all parts, the figures in gpu.json
python -m experiments.benchmarks.gpu --only ceilings update   some
python -m experiments.benchmarks.gpu --smoke                  tiny shapes, on a CPU too

Random weights and made-up rollouts, on which a run's time does not depend. Parts run in processes
of their own, which are stopped at their limits, so that the command ends by itself; each figure is
printed and written as soon as it is there. The programs of a model are compiled side by side,
before any is timed. A time is the median of several runs after one that is left out.

Operations (`update_flops`) are those that the mathematics needs: nothing recomputed, attention
under the causal mask only, logits of response positions only. MFU is their rate over the data
sheet's 989 TFLOP/s of an H100 or H200 (bfloat16, dense). Bytes of a decoding step (`decode_bytes`):
every weight once, and the keys and values of the tokens that are visible.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.files import whole
from rldtf_jax import optim
from rldtf_jax.config import RLDTFConfig, SampleConfig
from rldtf_jax.logprob import token_stats
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.sample import row_keys, sample
from rldtf_jax.sft import Sequences, SFTState, response_states, response_tokens, sft_update
from rldtf_jax.update import Frozen, Hyper, Learner, Rollouts, Static, old_states, update

SHEET_TFLOPS = 989
NO_EOS = -1
COMPILE_S = 100  # what takes longer to compile is left out
# remat: products with weights are kept, attention is computed anew
MATMULS = "dots_with_no_batch_dims_saveable"
# The parts of each process and the seconds that it may take.
PROCESSES = (
    (("ceilings", "update"), 240),
    (("decode",), 150),
    (("numerics", "arms"), 180),
    (("torch",), 240),
)


class UpdateCase(NamedTuple):
    preset: str
    attention: str
    remat: bool | str
    microbatches: int
    logit_chunk: int | None = None
    unrolled: bool = False

    @property
    def name(self) -> str:
        chunk = "" if self.logit_chunk is None else f", logits in chunks of {self.logit_chunk}"
        remat = {
            False: "nothing recomputed",
            True: "layers recomputed",
            MATMULS: "attention recomputed",
        }[self.remat]
        loop = ", layers unrolled" if self.unrolled else ""
        batches = f"{self.microbatches} micro-batches"
        return f"{self.preset}, {self.attention}, {batches}, {remat}{chunk}{loop}"


class Scale(NamedTuple):
    """How much is measured."""

    matmul: int
    copy_mb: int
    rows: int
    prompt: int
    response: int
    # a group is one model; its programs are compiled side by side
    updates: tuple[tuple[UpdateCase, ...], ...]
    decodes: tuple[tuple[tuple[str, int], ...], ...]  # (preset, rows)
    fused: str  # the attention of what is measured with one only
    torch_preset: str  # what torch runs too
    next_token_rows: int
    arms: int
    arm_rows: int
    arm_response: int
    rounds: int


FULL = Scale(
    8192,
    4096,
    64,
    256,
    256,
    updates=(
        (
            UpdateCase("qwen2.5-0.5b", "dot", MATMULS, 4),
            UpdateCase("qwen2.5-0.5b", "cudnn", MATMULS, 4),
            UpdateCase("qwen2.5-0.5b", "cudnn", MATMULS, 4, None, True),
            UpdateCase("qwen2.5-0.5b", "cudnn", False, 4, None, True),
        ),
        (
            UpdateCase("qwen2.5-1.5b", "cudnn", MATMULS, 4),
            UpdateCase("qwen2.5-1.5b", "cudnn", MATMULS, 4, None, True),
            UpdateCase("qwen2.5-1.5b", "dot", MATMULS, 8),
            UpdateCase("qwen2.5-1.5b", "cudnn", True, 8, 64),
        ),
        (
            UpdateCase("smollm2-135m", "cudnn", MATMULS, 4),
            UpdateCase("smollm2-135m", "dot", MATMULS, 4),
        ),
    ),
    decodes=(
        (("qwen2.5-0.5b", 64), ("qwen2.5-1.5b", 64), ("qwen2.5-7b", 64)),
        (("qwen2.5-0.5b", 8), ("qwen2.5-7b", 1)),
    ),
    fused="cudnn",
    torch_preset="qwen2.5-0.5b",
    next_token_rows=16,
    arms=32,
    arm_rows=64,
    arm_response=56,
    rounds=5,
)
SMOKE = Scale(
    64,
    1,
    4,
    8,
    8,
    updates=(
        (UpdateCase("tiny", "dot", MATMULS, 2), UpdateCase("tiny", "xla", False, 1, 4, True)),
    ),
    decodes=((("tiny", 4),),),
    fused="xla",
    torch_preset="tiny",
    next_token_rows=4,
    arms=2,
    arm_rows=4,
    arm_response=8,
    rounds=1,
)


class Report:
    """The figures, part by part, in a file that is whole after each."""

    def __init__(self, path: str):
        self.path, self.figures = path, {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.figures = json.load(file)

    def add(self, part: str, name: str, figure: Any) -> None:
        print(f"{part} | {name} | {json.dumps(figure, default=float)}", flush=True)
        self.figures.setdefault(part, {})[name] = figure
        with whole(self.path) as file:
            json.dump(self.figures, file, indent=1, default=float)

    def attempt(self, part: str, name: str, measure: Callable[[], Any]) -> None:
        """Adds what `measure` returns, or why it returned nothing."""
        try:
            self.add(part, name, measure())
        except Exception as error:  # the other figures do not depend on this one
            self.failed(part, name, error)

    def failed(self, part: str, name: str, error: Exception) -> None:
        traceback.print_exception(error)
        self.add(part, name, {"failed": f"{type(error).__name__}: {str(error).strip()[:300]}"})

    def ceiling(self, name: str) -> float | None:
        figures = self.figures.get("ceilings", {}).items()
        return next((figure.get("value") for key, figure in figures if key.startswith(name)), None)


def seconds(run: Callable[[], Any], rounds: int) -> list[float]:
    """Of each of `rounds` runs, after one that is left out; a run ends when what it returns is
    there.
    """
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times[1:]


def compile_all(lower: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """What gives each program, or raises what kept it from being one; compiled side by side."""
    start, pool = time.perf_counter(), ThreadPoolExecutor()
    futures = {name: pool.submit(one) for name, one in lower.items()}
    done, _ = wait(futures.values(), COMPILE_S)
    pool.shutdown(wait=False)
    print(
        f"{len(done)} of {len(futures)} programs compiled in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return {name: functools.partial(future.result, 0) for name, future in futures.items()}


def program_gb(program) -> float:
    """What a compiled program takes on the device: arguments, results and temporaries."""
    m = program.memory_analysis()
    sizes = (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        - m.alias_size_in_bytes
        + m.temp_size_in_bytes
    )
    return sizes / 1e9


def refuse_if_too_large(program) -> None:
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", np.inf) / 1e9
    if program_gb(program) > limit:
        raise MemoryError(
            f"the program takes {program_gb(program):.1f} GB, the device lends {limit:.1f} GB"
        )


def layer_weights(c: Qwen2Config) -> int:
    """In the matrices of one layer."""
    heads = 2 * c.head_dim * (c.num_attention_heads + c.num_key_value_heads)
    return c.hidden_size * (heads + 3 * c.intermediate_size)


def forward_flops(c: Qwen2Config, rows: int, length: int) -> float:
    """Of the layers over whole rows; a query sees the keys up to its own."""
    attention = c.num_attention_heads * c.head_dim * (length + 1)
    return 2 * rows * length * c.num_hidden_layers * (layer_weights(c) + attention)


def update_flops(c: Qwen2Config, rows: int, prompt: int, response: int) -> float:
    """Policy and critic forward and backward, the policy's logits likewise, the anchor's logits
    forward.
    """
    logits = 2 * rows * response * c.hidden_size * c.vocab_size
    return 2 * 3 * forward_flops(c, rows, prompt + response) + (3 + 1) * logits


def decode_bytes(c: Qwen2Config, rows: int, visible: float) -> float:
    """A step's weights and its visible keys and values, in the dtype of the computation."""
    weights = c.num_hidden_layers * layer_weights(c) + c.vocab_size * c.hidden_size
    cache = 2 * c.num_hidden_layers * rows * visible * c.num_key_value_heads * c.head_dim
    return jnp.dtype(c.dtype).itemsize * (weights + cache)


def of_shape(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def abstract(config: Qwen2Config, head: str = "lm"):
    """(graphdef, params as shapes)."""
    return nnx.split(nnx.eval_shape(lambda: Qwen2(config, rngs=nnx.Rngs(0), head=head)))


def ceilings(report: Report, scale: Scale) -> None:
    n, rounds, in_a_row = scale.matmul, scale.rounds, 20

    def matmul():
        a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
        product = jax.jit(jnp.matmul)
        times = seconds(lambda: [product(a, b) for _ in range(in_a_row)][-1], rounds)
        return {
            "value": 2 * n**3 * in_a_row / np.median(times) / 1e12,
            "unit": "TFLOP/s",
            "seconds": times,
        }

    def copy():
        x = jax.random.normal(jax.random.key(0), (scale.copy_mb * 2**18,), jnp.float32)
        more = jax.jit(lambda x: x + 1)
        times = seconds(lambda: [more(x) for _ in range(4)][-1], rounds)
        return {
            "value": 4 * 2 * x.nbytes / np.median(times) / 1e9,
            "unit": "GB/s",
            "seconds": times,
        }

    report.attempt("ceilings", f"bfloat16 matmul {n}^3", matmul)
    report.attempt("ceilings", "read and write", copy)


def made_up_rollouts(c: Qwen2Config, rows: int, prompt: int, response: int) -> Rollouts:
    draw = np.random.default_rng(0)
    normal = lambda mean=0.0: jnp.asarray(
        mean + 0.1 * draw.normal(size=(rows, response)), jnp.float32
    )
    hidden_BxTxD = jnp.asarray(
        draw.normal(size=(rows, response, c.hidden_size)), jnp.dtype(c.dtype)
    )
    tokens_BxS = jnp.asarray(draw.integers(0, c.num_tokens, (rows, prompt + response)), jnp.int32)
    lengths = (jnp.full(rows, length, jnp.int32) for length in (prompt, prompt + response))
    return Rollouts(  # type: ignore[call-arg]
        tokens_BxS,
        *lengths,
        normal(-np.log(c.num_tokens)),
        hidden_BxTxD,
        normal(),
        normal(),
        normal(1.0),
        normal(),
    )


def train_hyper() -> Hyper:
    adam = optim.Hyper(*jnp.float32([1e-5, 0.9, 0.95, 0.0, 1.0]))
    return Hyper(*jnp.float32([0.2, 0.01, 0.05, 0.5, 1.0, 1.0]), adam, adam)  # type: ignore[call-arg]


def with_rate(times: list[float], flops: float, tokens: int, report: Report, program) -> dict:
    """The figure of a program that takes these times."""
    rate = flops / np.median(times) / 1e12
    matmul = report.ceiling("bfloat16 matmul")
    return {
        "tokens_per_s": tokens / np.median(times),
        "tflops_per_s": rate,
        "mfu": rate / SHEET_TFLOPS,
        "of_measured_matmul": matmul and rate / matmul,
        "tflop": flops / 1e12,
        "program_gb": program_gb(program),
        "seconds": times,
    }


def measure_update(report: Report, scale: Scale) -> None:
    for group in scale.updates:
        update_of_a_size(report, scale, group)


def update_of_a_size(report: Report, scale: Scale, group: tuple[UpdateCase, ...]) -> None:
    """The update in all cases of one model, its old states, and a next-token step where that is
    asked for.
    """
    B, P, T = scale.rows, scale.prompt, scale.response
    preset, fused = group[0].preset, scale.fused
    made = functools.partial(
        Qwen2Config.preset, preset, dtype="bfloat16", param_dtype="float32", unroll=1
    )
    layers = made().num_hidden_layers
    rows, hyper = made_up_rollouts(made(), B, P, T), train_hyper()

    def start():
        policy, critic = (
            nnx.split(Qwen2(made(), rngs=nnx.Rngs(i), head=h))[1]
            for i, h in enumerate(("lm", "value"))
        )
        learner = Learner(
            policy, critic, optim.init(policy), optim.init(critic), *jnp.zeros(2, jnp.int32)
        )
        return learner, nnx.split(Qwen2(made(), rngs=nnx.Rngs(2)))[1]

    shapes, anchor_shape = jax.eval_shape(start)

    def static(microbatches=1, logit_chunk=None, **options) -> Static:
        heads = (abstract(made(**options), head)[0] for head in ("lm", "value"))
        return Static(*heads, "token-mean", microbatches, logit_chunk)  # type: ignore[call-arg]

    programs: dict[str, Callable[[], Any]] = {"start": lambda: jax.jit(start).lower().compile()}
    for case in group:
        programs[case.name] = functools.partial(
            lambda case: update.lower(
                static(
                    case.microbatches,
                    case.logit_chunk,
                    attention=case.attention,
                    remat=case.remat,
                    unroll=layers if case.unrolled else 1,
                ),
                shapes,
                anchor_shape,
                of_shape(rows),
                of_shape(hyper),
                Frozen(),
            ).compile(),
            case,
        )
    whole_rows = rows.tokens_BxS, rows.prompt_lengths_B, rows.lengths_B
    programs["old states"] = lambda: old_states.lower(
        static(attention=fused), shapes.critic, anchor_shape, *of_shape(whole_rows), T
    ).compile()
    few = scale.next_token_rows
    batch = Sequences(rows.tokens_BxS[:few], jnp.ones(few, jnp.int32), rows.lengths_B[:few])
    if next_token := preset == scale.torch_preset:
        programs["next token"] = lambda: sft_update.lower(
            abstract(made(attention=fused, remat=MATMULS))[0],
            P + T - 1,
            SFTState(shapes.policy, shapes.opt_policy, shapes.skipped),
            of_shape(batch),
            of_shape(hyper.policy),
        ).compile()
    programs = compile_all(programs)

    def measure(name: str):
        program = programs[name]()
        refuse_if_too_large(program)
        learner, anchor = programs["start"]()()

        def run():
            nonlocal learner
            learner, metrics = program(learner, anchor, rows, hyper, Frozen())
            return learner, metrics

        times, flops = seconds(run, min(scale.rounds, 3)), update_flops(made(), B, P, T)
        figure = with_rate(times, flops, B * (P + T), report, program)
        return figure | {
            "rows": B,
            "prompt": P,
            "response": T,
            "updates_left_out": int(learner.skipped),
        }

    def measure_old_states():
        program = programs["old states"]()
        learner, anchor = programs["start"]()()
        times = seconds(lambda: program(learner.critic, anchor, *whole_rows), scale.rounds)
        return with_rate(times, 2 * forward_flops(made(), B, P + T), B * (P + T), report, program)

    def measure_next_token():
        program = programs["next token"]()
        learner, _ = programs["start"]()()
        state = SFTState(learner.policy, learner.opt_policy, learner.skipped)

        def run():
            nonlocal state
            state, metrics = program(state, batch, hyper.policy)
            return state, metrics

        logits = 2 * few * (P + T - 1) * made().hidden_size * made().vocab_size
        flops = 3 * (forward_flops(made(), few, P + T) + logits)
        return with_rate(seconds(run, scale.rounds), flops, few * (P + T), report, program) | {
            "rows": few
        }

    for case in group:
        report.attempt("update", case.name, functools.partial(measure, case.name))
    report.attempt(
        "update", f"{preset}, {fused}, old values and reference states", measure_old_states
    )
    if next_token:
        report.attempt(
            "update", f"{preset}, {fused}, next-token AdamW step, {few} rows", measure_next_token
        )


def measure_decode(report: Report, scale: Scale) -> None:
    P, T = scale.prompt, scale.response
    made = functools.partial(Qwen2Config.preset, dtype="bfloat16", param_dtype="bfloat16")
    eos = jax.ShapeDtypeStruct((), jnp.int32)
    for group in scale.decodes:
        programs = {}
        for preset, B in group:

            def start(c=made(preset)):
                params = nnx.split(Qwen2(c, rngs=nnx.Rngs(0)))[1]
                # logits of a few nats, as a trained model has
                return jax.tree_util.tree_map_with_path(
                    lambda path, x: (
                        5 * x if jax.tree_util.keystr(path).startswith("['norm']") else x
                    ),
                    params,
                )

            def lower(start=start, c=made(preset), B=B):
                prompts, lengths, keys = inputs(c, B, P)
                return sample.lower(
                    abstract(c)[0],
                    jax.eval_shape(start),
                    prompts,
                    lengths,
                    keys,
                    max_new_tokens=T,
                    eos_id=eos,
                    temperature=jax.ShapeDtypeStruct((), jnp.float32),
                ).compile()

            programs[preset, B, "start"] = lambda start=start: jax.jit(start).lower().compile()
            programs[preset, B] = lower
            if (preset, B) == scale.decodes[0][0]:
                for name, options in trainers(scale).items():
                    programs[name] = functools.partial(
                        lower_trainer, made(preset, **options), start, B, P, T
                    )
        programs = compile_all(programs)
        for preset, B in group:
            report.attempt(
                "decode",
                f"{preset}, {B} rows",
                functools.partial(
                    decode_of_a_size,
                    report,
                    scale,
                    made(preset),
                    B,
                    programs[preset, B],
                    programs[preset, B, "start"],
                ),
            )
            if (preset, B) == scale.decodes[0][0]:
                for name in trainers(scale):
                    report.attempt(
                        "numerics",
                        f"{preset}, log-probabilities, bfloat16 sampler and {name} trainer",
                        functools.partial(
                            sampler_and_trainer,
                            scale,
                            made(preset),
                            B,
                            programs[preset, B],
                            programs[preset, B, "start"],
                            programs[name],
                        ),
                    )


def inputs(c: Qwen2Config, B: int, P: int):
    """(prompts_BxP, lengths_B, keys_B), random."""
    prompts_BxP = jnp.asarray(np.random.default_rng(1).integers(0, c.num_tokens, (B, P)), jnp.int32)
    return prompts_BxP, jnp.full(B, P, jnp.int32), row_keys(jax.random.key(0), jnp.arange(B))


def decode_of_a_size(report: Report, scale: Scale, c: Qwen2Config, B: int, program, start) -> dict:
    """Times a whole call, and one that ends after a token: the difference is that of the other
    steps.
    """
    P, T = scale.prompt, scale.response
    program = program()
    params = start()()
    prompts_BxP, lengths_B, keys_B = inputs(c, B, P)
    call = lambda prompts_BxP, eos, temperature: program(
        params,
        prompts_BxP,
        lengths_B,
        keys_B,
        eos_id=jnp.int32(eos),
        temperature=jnp.float32(temperature),
    )
    times = seconds(lambda: call(prompts_BxP, NO_EOS, 1.0), min(scale.rounds, 3))
    same_BxP = jnp.tile(prompts_BxP[:1], (B, 1))  # every row's first token is then the same
    first = int(call(same_BxP, NO_EOS, 0.0).tokens_BxR[0, 0])
    steps = int(call(same_BxP, first, 0.0).lengths_B.max())
    short = seconds(lambda: call(same_BxP, first, 0.0), min(scale.rounds, 3))
    figure = {
        "tokens_per_s": B * T / np.median(times),
        "seconds": times,
        "first_steps": steps,
        "first_seconds": short,
        "program_gb": program_gb(program),
    }
    if steps < T:
        step = (np.median(times) - np.median(short)) / (T - steps)
        visible, copy = decode_bytes(c, B, P + (T + 1) / 2), report.ceiling("read and write")
        figure |= {
            "step_ms": 1e3 * step,
            "step_gb": visible / 1e9,
            "gb_per_s": visible / 1e9 / step,
            "of_measured_copy": copy and visible / 1e9 / step / copy,
            "of_measured_copy_by_all_slots": copy and decode_bytes(c, B, P + T) / 1e9 / step / copy,
            "prompts_and_first_token_s": np.median(short),
        }
    return figure


def trainers(scale: Scale) -> dict[str, dict]:
    """How the update may compute the log-probabilities of what was sampled."""
    return {
        f"bfloat16, {attention}": {"attention": attention} for attention in ("dot", scale.fused)
    } | {"float32": {"dtype": "float32"}}


def lower_trainer(c: Qwen2Config, start, B: int, P: int, T: int):
    graphdef = abstract(c)[0]

    def log_probs(params, tokens_BxS, prompt_lengths_B, lengths_B):
        model = nnx.merge(graphdef, params)
        states = response_states(model.hidden(tokens_BxS, lengths_B), prompt_lengths_B, T)
        tokens_BxT, _ = response_tokens(tokens_BxS, prompt_lengths_B, lengths_B, T)
        return token_stats(model.unembed, states, tokens_BxT, chunk=64).logp

    number = jax.ShapeDtypeStruct((B,), jnp.int32)
    with jax.default_matmul_precision("highest" if c.dtype == "float32" else "default"):
        return (
            jax.jit(log_probs)
            .lower(
                jax.eval_shape(start), jax.ShapeDtypeStruct((B, P + T), jnp.int32), number, number
            )
            .compile()
        )


def sampler_and_trainer(scale: Scale, c: Qwen2Config, B: int, program, start, trainer) -> dict:
    params = start()()
    prompts_BxP, lengths_B, keys_B = inputs(c, B, scale.prompt)
    samples = program()(
        params,
        prompts_BxP,
        lengths_B,
        keys_B,
        eos_id=jnp.int32(NO_EOS),
        temperature=jnp.float32(1.0),
    )
    tokens_BxS = jnp.concatenate([prompts_BxP, samples.tokens_BxR], axis=1)
    logp_BxT = trainer()(params, tokens_BxS, lengths_B, lengths_B + scale.response)
    return differences(samples.logp_BxR, logp_BxT) | {"mean_logp": float(samples.logp_BxR.mean())}


def differences(a, b) -> dict:
    apart = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return {
        "max": apart.max(),
        "mean": apart.mean(),
        "p99": np.percentile(apart, 99),
        "numbers": apart.size,
    }


def measure_numerics(report: Report, scale: Scale) -> None:
    """Log-probabilities of the tiny preset in float32: this device against the CPU."""
    c = Qwen2Config.preset("tiny")
    graphdef, params = nnx.split(Qwen2(c, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: 3 * x, params)  # as far from uniform as a trained model
    tokens_BxS = jnp.asarray(
        np.random.default_rng(0).integers(0, c.num_tokens, (16, 128)), jnp.int32
    )

    @jax.jit
    def log_probs(params, tokens_BxS):
        return jax.nn.log_softmax(nnx.merge(graphdef, params)(tokens_BxS))

    def on_cpu():
        cpu = jax.devices("cpu")[0]
        return np.asarray(log_probs(*jax.device_put((params, tokens_BxS), cpu)))

    for precision in ("default", "highest"):

        def measure():
            with jax.default_matmul_precision(precision):  # noqa: B023
                here = np.asarray(log_probs(params, tokens_BxS))
            return differences(here, on_cpu())

        report.attempt(
            "numerics", f"tiny, float32, matmul precision {precision}, against the CPU", measure
        )


def measure_arms(report: Report, scale: Scale) -> None:
    """The device's part of a step of the tiny preset (sampling, old states, update): arms in a
    program and in turn.
    """
    from rldtf_jax import arms, rldtf  # they need more of the environment than the other parts

    A, B, P = scale.arms, scale.arm_rows, 96
    config = RLDTFConfig(prompts_per_step=B, sample=SampleConfig(max_new_tokens=scale.arm_response))
    T = config.sample.max_new_tokens
    c = Qwen2Config.preset("tiny")
    policy, critic = (
        Qwen2(c, rngs=nnx.Rngs(i), head=head) for i, head in enumerate(("lm", "value"))
    )
    rows = made_up_rollouts(c, B, P, T)
    prompts_BxP, lengths_B, keys_B = inputs(c, B, P)

    def groups_of(width: int, num_arms: int):
        many = [arms.Arm(config, seed, None) for seed in range(num_arms)]
        (static, frozen, *_), groups = arms.initial(policy, critic, many, width)
        if width == 1:
            groups = jax.tree.map(lambda x: x[None], groups)
        over = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * width), tree)
        hyper = jax.tree.map(jnp.asarray, rldtf.hyper_at(config, 0))
        given = over((prompts_BxP, lengths_B, keys_B, jnp.float32(1.0), rows, hyper))
        state = {"learners": [group.learner for group in groups]}

        def step():
            prompts, lengths, keys, temperature, made, hyper = given
            for i, group in enumerate(groups):
                learner = state["learners"][i]
                s = arms.sample_arms(
                    static,
                    frozen,
                    learner,
                    prompts,
                    lengths,
                    keys,
                    temperature,
                    max_new_tokens=T,
                    eos_id=NO_EOS,
                    mesh=None,
                )
                tokens = jnp.concatenate([prompts, s.tokens_BxR], axis=2)
                values, hidden = arms.old_states_arms(
                    static,
                    frozen,
                    learner.critic,
                    group.reference,
                    tokens,
                    lengths,
                    lengths + T,
                    num_tokens=T,
                    mesh=None,
                )
                part = made._replace(
                    tokens_BxS=tokens,
                    old_logp_BxT=s.logp_BxR,
                    anchor_hidden_BxTxD=hidden,
                    old_value_BxT=values,
                )
                state["learners"][i], _ = arms.update_arms(
                    static,
                    frozen,
                    learner,
                    group.reference,
                    part,
                    hyper,
                    jnp.ones(width, bool),
                    mesh=None,
                )
            return state["learners"]

        return step

    def measure(width: int, num_arms: int):
        times = seconds(groups_of(width, num_arms), scale.rounds)
        return {
            "step_s": np.median(times),
            "tokens_per_s": num_arms * B * (P + T) / np.median(times),
            "seconds": times,
            "rows": B,
            "prompt": P,
            "response": T,
        }

    for name, width, num_arms in (
        ("one arm", 1, 1),
        (f"{A} arms in turn", 1, A),
        (f"{A} arms in one program", A, A),
    ):
        report.attempt("arms", name, functools.partial(measure, width, num_arms))


def measure_torch(report: Report, scale: Scale) -> None:
    """The same shapes in transformers + torch: generate with a static cache, a mixed-precision
    AdamW step.
    """
    import torch
    import transformers

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    report.add(
        "torch",
        "versions",
        {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "card": torch.cuda.get_device_name() if cuda else "none",
        },
    )
    c = Qwen2Config.preset(scale.torch_preset)
    names = {field.name for field in dataclasses.fields(c)} - {
        "num_tokens",
        "dtype",
        "param_dtype",
        "remat",
        "unroll",
        "attention",
        "attention_bias",
    }
    shape = transformers.Qwen2Config(  # type: ignore[call-arg]
        **{name: getattr(c, name) for name in names},
        use_sliding_window=False,
        attn_implementation="sdpa",
        **dict.fromkeys(("pad_token_id", "eos_token_id")),
    )
    draw = np.random.default_rng(1)
    few, B, P, T = scale.next_token_rows, scale.rows, scale.prompt, scale.response
    tokens = torch.tensor(draw.integers(0, c.num_tokens, (few, P + T)), device=device)

    def timed(run, rounds: int) -> list[float]:
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return times[1:]

    def train(compiled: bool):
        with torch.device(device):
            model = transformers.Qwen2ForCausalLM(shape).float().train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=cuda)

        def loss(tokens):
            with torch.autocast(device, torch.bfloat16):
                logits = model(tokens[:, :-1], use_cache=False).logits
            return torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), tokens[:, 1:].flatten()
            )

        loss = torch.compile(loss) if compiled else loss

        def run():
            optimiser.zero_grad()
            loss(tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

        run()  # the first step also makes the moments
        times = timed(run, scale.rounds)
        peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
        return {
            "tokens_per_s": few * (P + T) / np.median(times),
            "seconds": times,
            "rows": few,
            "peak_gb": peak,
        }

    def generate(compiled: bool):
        with torch.device(device):
            model = transformers.Qwen2ForCausalLM(shape).bfloat16().eval()
        prompts = torch.tensor(draw.integers(0, c.num_tokens, (B, P)), device=device)
        options = dict(
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            max_new_tokens=T,
            cache_implementation="static",
            disable_compile=not compiled,
        )

        def run():
            with torch.no_grad():
                assert model.generate(prompts, **options).shape[1] == P + T

        times = timed(run, 2)
        return {"tokens_per_s": B * T / np.median(times), "seconds": times, "rows": B}

    name = scale.torch_preset
    step, sampling = f"next-token AdamW step, {few} rows", f"generate, static cache, {B} rows"
    if cuda:
        report.attempt("torch", f"{name}, {sampling}, compiled", functools.partial(generate, True))
    report.attempt("torch", f"{name}, {step}, eager", functools.partial(train, False))
    if cuda:
        report.attempt("torch", f"{name}, {step}, compiled", functools.partial(train, True))
    report.attempt("torch", f"{name}, {sampling}, eager", functools.partial(generate, False))


PARTS = {
    "ceilings": ceilings,
    "update": measure_update,
    "decode": measure_decode,
    "arms": measure_arms,
    "numerics": measure_numerics,
    "torch": measure_torch,
}


def measure_here(parts: list[str], report: Report, scale: Scale) -> None:
    if parts != ["torch"]:
        device = jax.devices()[0]
        report.add(
            "machine",
            "jax",
            {
                "card": device.device_kind,
                "platform": device.platform,
                "jax": jax.__version__,
                "flax": flax.__version__,
                "python": platform.python_version(),
                "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            },
        )
    for part in parts:
        try:
            PARTS[part](report, scale)
        except Exception as error:  # the other parts do not depend on this one
            report.failed(part, "part", error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="gpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--smoke", action="store_true", help="tiny shapes")
    parser.add_argument("--presets", nargs="+", help="of update and decode, these only")
    parser.add_argument("--seconds", type=float, default=900, help="after which the command ends")
    parser.add_argument("--here", action="store_true", help="in this process")
    arguments = parser.parse_args()
    scale = SMOKE if arguments.smoke else FULL
    if arguments.presets:
        updates = (
            tuple(case for case in group if case.preset in arguments.presets)
            for group in scale.updates
        )
        decodes = (
            tuple(case for case in group if case[0] in arguments.presets) for group in scale.decodes
        )
        scale = scale._replace(
            updates=tuple(filter(None, updates)), decodes=tuple(filter(None, decodes))
        )
    report = Report(arguments.out)
    if arguments.here:
        return measure_here(arguments.only, report, scale)

    end = time.monotonic() + arguments.seconds
    command = " ".join(["python -m experiments.benchmarks.gpu", *sys.argv[1:]])
    report.add("machine", "command", command)
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.93"} | os.environ
    for parts, limit in PROCESSES:
        if not (parts := [part for part in parts if part in arguments.only]):
            continue
        limit, begun = max(1.0, min(limit, end - time.monotonic())), time.monotonic()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "experiments.benchmarks.gpu",
                *sys.argv[1:],
                "--here",
                "--only",
                *parts,
            ],
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            ended = f"exit status {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it started
            process.wait()
            ended = f"stopped at its limit of {limit:.0f} s"
        Report(arguments.out).add(
            "machine", " and ".join(parts), f"{ended} after {time.monotonic() - begun:.0f} s"
        )


if __name__ == "__main__":
    main()
