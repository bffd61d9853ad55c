"""f(a) by the policy itself (III.B, the `model` translator): called once more, it turns its
orchestration into the twin's code.

`orchestration.translate`, the grammar translator, is its teacher: see `lessons`. Each distinct
orchestration of a batch, perturbed ones included, costs a response of the policy, so a step takes
many times as long as with the grammar.
"""

import contextlib
from typing import Iterable, Iterator, Sequence

import jax

from experiments.world.orchestration import answer, describe_workflow, read_program, translate
from rldtf_jax.judge import Policy
from rldtf_jax.sample import bucket, sample_batches
from rldtf_jax.tokenizer import Tokenizer
from twin import Workflow, WorkflowError

REQUEST = "Write the program: "
LONGEST = Workflow(
    num_prb=273,
    scs_khz=120,
    bits_per_symbol=8,
    estimator="ls-nearest",
    detector="lmmse",
    precoder="svd",
    decoder_iterations=20,
    num_transmissions=4,
)
BATCH = 64


def lessons(responses: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(request, program) to learn translation from, of every response that the grammar can read."""
    for response in responses:
        with contextlib.suppress(WorkflowError):
            yield REQUEST + answer(response), translate(response)


class ModelTranslator:
    """Reads responses by asking the policy that wrote them, greedily, once per distinct
    orchestration.
    """

    def __init__(self, tokenizer: Tokenizer, max_response_tokens: int):
        """max_response_tokens: of an orchestration; a request that holds more is not read."""
        self.tokenizer = tokenizer
        self.width = bucket(len(tokenizer.apply_chat(REQUEST)) + max_response_tokens)
        self.max_new_tokens = (
            len(tokenizer.encode(translate(describe_workflow(LONGEST)), special=False)) + 8
        )

    def read(
        self, texts: Sequence[str], policy: Policy
    ) -> list[tuple[Workflow | None, str | None]]:
        """(workflow, None), or (None, the word for what is wrong), of every text."""
        answers: dict[str, tuple[Workflow | None, str | None]] = {}
        asked: dict[str, list[int]] = {}
        for text in texts:
            try:
                prompt = self.tokenizer.apply_chat(REQUEST + answer(text))
            except WorkflowError as error:
                answers[text] = None, str(error).partition(":")[0]
                continue
            if len(prompt) > self.width:
                answers[text] = None, "long"
            else:
                asked[text] = prompt
        distinct = list(dict.fromkeys(map(tuple, asked.values())))
        programs = dict(zip(distinct, self._programs(distinct, policy)))
        for text, prompt in asked.items():
            program = programs[tuple(prompt)]
            answers[text] = read_program(program) if program is not None else (None, "translation")
        return [answers[text] for text in texts]

    def _programs(self, prompts: Sequence[Sequence[int]], policy: Policy) -> Iterator[str | None]:
        """What the policy answers to each prompt; None where it comes to no end."""
        for ids, ended in sample_batches(
            *policy,
            prompts,
            jax.random.key(0),
            batch_size=BATCH,
            width=self.width,
            max_new_tokens=self.max_new_tokens,
            eos_id=self.tokenizer.eos_id,
            temperature=0.0,
        ):
            yield self.tokenizer.decode(ids[:-1]) if ended else None
