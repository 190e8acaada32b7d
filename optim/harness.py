"""Our models as EleutherAI's lm-evaluation-harness sees one (the only file that needs lm_eval to be
imported).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from data.tokenizer import Tokenizer, text_of
from errors import UserError
from optim.scoring import Scorer

MOST_NEW_TOKENS = 256  # of tasks that state none, as the harness's own models have it


class CheckpointLM(TemplateLM):
    """The harness's interface around a Scorer and a tokenizer that has an end-of-text token. Text is never
    read as a special token.
    """

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer) -> None:
        super().__init__()
        assert tokenizer.known.end_of_text is not None, "an empty context would have no tokens"
        self.scorer, self.tokenizer, self.end = scorer, tokenizer, tokenizer.known.end_of_text

    @property
    def eot_token_id(self) -> int:
        return self.end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokenizer.encode(string)

    def _score(
        self, requests: Sequence[tuple[list[int], list[int]]], quiet: bool
    ) -> list[tuple[float, bool]]:
        # None: no bar where there is no terminal
        with tqdm(total=len(requests), desc="scoring", disable=quiet or None) as bar:
            return self.scorer.loglikelihoods(requests, progress=bar.update)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(context, continuation) for _, context, continuation in requests], disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each begun by the end of a document."""
        encoded = [([self.end], self.tok_encode(request.args[0])) for request in requests]
        return [total for total, _ in self._score(encoded, disable_tqdm)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before the first of the task's stop strings.

        Raises UserError for a task that samples.
        """
        prompts, stops = [], []
        for request in requests:
            context, options = request.args
            if options.get("do_sample") and options.get("temperature", 1.0) > 0:
                raise UserError(
                    f"task {request.task_name} asks for sampled text; only greedy decoding is supported"
                )
            until = options.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
            prompts.append(
                (self.tok_encode(context) or [self.end], int(options.get("max_gen_toks", MOST_NEW_TOKENS)))
            )

        def finished(index: int, tokens: list[int]) -> bool:
            return tokens[-1] == self.end or any(stop in self._text(tokens) for stop in stops[index])

        new = self.scorer.greedy(prompts, finished, vocabulary=self.tokenizer.size)
        return [self._before(self._text(tokens), stops[index]) for index, tokens in enumerate(new)]

    def _text(self, tokens: list[int]) -> str:
        return text_of(self.tokenizer, [token for token in tokens if token != self.end])

    @staticmethod
    def _before(text: str, stops: Sequence[str]) -> str:
        return min((text.split(stop)[0] for stop in stops if stop), key=len, default=text)
