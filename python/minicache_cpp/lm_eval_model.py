"""`--model minicache` for EleutherAI's lm-evaluation-harness.

    python -m minicache_cpp.lm_eval_model --model minicache \\
        --model_args pretrained=model.gguf,config=slerp:start=0.5,type=q4_0,ctx=4096 --tasks piqa

This runs the harness's own command, which knows this model besides its own ones. From Python, importing this module is
enough: `lm_eval.simple_evaluate(model="minicache", model_args=…)`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    raise ImportError(
        f"{error}; this needs the evaluation harness: pip install 'minicache-cpp[lm-eval]'"
    ) from None

from .cache.settings import CacheSpec
from .errors import MiniCacheError
from .models.store import file_of
from .reading.text_model import TextModel

MOST_TOKENS = 256  # of an answer, where the task sets no limit
log = logging.getLogger(__name__)


@register_model("minicache")
class MiniCacheLM(TemplateLM):
    """A GGUF model whose KV cache is stored as `config` says.

    pretrained: the GGUF file, or the name of a model that `minicache models get` has fetched.
    config: a SPEC. The harness splits its arguments at commas, so the further settings of a SPEC arrive as separate
        arguments and are joined again: config=slerp:start=0.5,t=0.6,type=q4_0 works as written.
    ctx: tokens of context (default: what the model was trained for).
    ubatch: tokens read at a time. threads, gpu_layers: as in `minicache evaluate`.
    """

    def __init__(
        self,
        pretrained: str,
        config: str = "f16",
        ctx: int = 0,
        ubatch: int = 64,
        threads: int | None = None,
        gpu_layers: int = 0,
        # the harness passes these three; one sequence is read at a time, on the CPU
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
        **settings: object,
    ) -> None:
        super().__init__()
        spec = ",".join([config, *(f"{name}={value}" for name, value in settings.items())])
        self.model = TextModel(file_of(pretrained), CacheSpec.parse(spec), ctx, ubatch, threads, gpu_layers)
        self.vocabulary = self.model.vocabulary
        self.name = Path(pretrained).name
        report = self.model.report()
        log.info(
            "KV cache: %d bytes, ratio %.2f, total ratio %.2f", report.bytes, report.ratio, report.total_ratio
        )

    @property
    def eot_token_id(self) -> int:
        return self.vocabulary.eos

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that nothing precedes."""
        return self.vocabulary.bos if self.vocabulary.bos >= 0 else self.vocabulary.eos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        tokens = self.vocabulary.tokenize(string)
        return tokens if add_special_tokens is False else self.vocabulary.begun(tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        results = []
        for key, before, tokens in tqdm(requests, desc="log-likelihoods", disable=disable_tqdm):
            results.append(self.model.score(before, tokens))
            self.cache_hook.add_partial("loglikelihood", key, results[-1])
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        results = []
        for request in tqdm(requests, desc="whole texts", disable=disable_tqdm):
            (text,) = request.args
            windows = utils.get_rolling_token_windows(
                self.vocabulary.tokenize(text), self.prefix_token_id, self.model.n_ctx - 1, 1
            )
            total = sum(self.model.score(*utils.make_disjoint_window(window))[0] for window in windows)
            results.append(float(total))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), results[-1])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        results = []
        for request in tqdm(requests, desc="answers", disable=disable_tqdm):
            prompt, options = request.args
            if options.get("do_sample") or (options.get("temperature") or 0) > 0:
                raise MiniCacheError(
                    "this task asks for sampled answers, but decoding here is greedy; "
                    "add --gen_kwargs do_sample=False,temperature=0"
                )
            until = options.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            most = int(options.get("max_gen_toks") or options.get("max_new_tokens") or MOST_TOKENS)
            results.append(self.model.generate(self.tok_encode(prompt), most, stops))
            self.cache_hook.add_partial("generate_until", request.args, results[-1])
        return results

    # for --apply_chat_template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.model.template.render(chat_history, ask=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "" if self.model.template.is_plain else f"the template in {self.name}"

    @property
    def tokenizer_name(self) -> str:
        return self.name


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
