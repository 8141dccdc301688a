"""The speculative decoder: models, text and sessions behind `generate` and `stream`.

Knows how a prompt becomes an output; not how a configuration was found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.costs import CostCurve, costs_of
from autospec.engine.drafters import ChecksConfig, CombinedDrafter, Drafter
from autospec.engine.loading import LoadContext, load_drafter, load_text
from autospec.engine.model import CausalLM, PreTrainedModel, load_model
from autospec.engine.options import Chooser, Chunk, GenerationOptions
from autospec.engine.running import Crew, Ending, run_alone, run_together, stream_alone
from autospec.engine.sampling import Use, to_probs, uniform
from autospec.engine.session import Job
from autospec.engine.text import PreTrainedTokenizerBase, TextCodec
from autospec.errors import ConfigError, ModelError
from autospec.records import Generation, Prompt
from autospec.rules import ACCEPT_RULES


class SpeculativeDecoder:
    """Generates with a target and any of its named drafters.

    Args:
        target: The model whose output is wanted.
        drafters: Name to drafter; a `SpecConfig` refers to these names.
        text: Tokenizer; None restricts prompts to token ids.
        costs: Name of a drafter to what its steps cost and its tokens are worth, for the cost-aware stopping rule;
            those that are not named take what is usual.

    Raises:
        ConfigError: A name holds a +, which stands between names.
    """

    def __init__(
        self,
        target: CausalLM,
        drafters: Mapping[str, Drafter] | None = None,
        text: TextCodec | None = None,
        costs: Mapping[str, CostCurve] | None = None,
    ) -> None:
        self.target, self.drafters, self.text = target, dict(drafters or {}), text
        self.costs = dict(costs or {})
        if joined := [name for name in self.drafters if "+" in name]:
            raise ConfigError(f"names of drafters must be without +, but got {joined}")

    @classmethod
    def from_pretrained(  # noqa: PLR0913  (the public contract)
        cls,
        target: str | Path | PreTrainedModel,
        drafters: Mapping[str, str | Path | PreTrainedModel | Drafter] | None = None,
        *,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        compile: bool = False,
        allow_import: Collection[str] = (),
    ) -> Self:
        """Load models by id or path, or take loaded ones.

        Args:
            target: Id, path, or a loaded model.
            drafters: Name to a built-in kind (`autospec.rules.DRAFTER_KINDS`), `kind:path`, an id, a path, a loaded
                model, or any object that satisfies `Drafter`.
            tokenizer: Where it is not the target's own. A loaded target's own is looked for in the local folder it was
                loaded from, never on a hub.
            device: `auto` takes CUDA where there is one.
            dtype: `auto` is float32 on a CPU, the checkpoint's own on CUDA.
            revision: Of the target, when it is a hub id.
            trust_remote_code: Run Python code that comes with checkpoints; off unless asked for.
            compile: Run the models by what torch's compiler makes of them, where that is worth it for the target; see
                `load_model`.
            allow_import: Modules, by their full names, from which sources `import:MODULE:FACTORY` may run code.

        Raises:
            ModelError: A model cannot be found, loaded or used; an object or what a factory made is no `Drafter`.
            ConfigError: A drafter is to be imported from a module that is not allowed.
        """
        target = str(target) if isinstance(target, Path) else target
        model = load_model(
            target,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            compile=compile,
        )
        text = load_text(target, tokenizer, revision, trust_remote_code)
        context = LoadContext(model, text, device, dtype, trust_remote_code, model.compiles, allow_import)
        loaded = {
            name: load_drafter(name, str(source) if isinstance(source, Path) else source, context)
            for name, source in (drafters or {}).items()
        }
        return cls(model, loaded, text)

    def check(self, config: SpecConfig) -> None:
        """Refuse a configuration that this decoder cannot run.

        Raises:
            ConfigError: A drafter is not loaded, cannot draft the shape, or has not the draft probabilities that
                the stopping rule or the acceptance rule needs.
        """
        drafter = self._drafter(config)
        if drafter is None:
            return
        if config.stop_rule not in ("static", "heuristic") and not drafter.has_probs:
            raise ConfigError(
                f"stop_rule {config.stop_rule!r} needs draft probabilities, but drafter {config.drafter!r} has none"
            )
        if ACCEPT_RULES[config.accept_rule].needs_logits and not drafter.has_probs:
            raise ConfigError(
                f"accept_rule {config.accept_rule!r} needs draft probabilities, "
                f"but drafter {config.drafter!r} has none"
            )
        if config.tree_shape not in drafter.shapes:
            raise ConfigError(
                f"drafter {config.drafter!r} drafts the shapes {list(drafter.shapes)}, but got {config.tree_shape!r}"
            )
        highest = max((rank for path in config.tree_paths for rank in path), default=0)
        if highest >= self.target.vocab_size:
            raise ConfigError(f"ranks must be below {self.target.vocab_size}, the vocabulary, but got {highest}")
        if isinstance(drafter, ChecksConfig):
            drafter.check(config)

    def _drafter(self, config: SpecConfig) -> Drafter | None:
        """Return the drafter of a configuration, made of several where it names several."""
        if unknown := [name for name in config.drafter_names if name not in self.drafters]:
            raise ConfigError(f"`drafter` must be one of {sorted(self.drafters)}, but got {unknown[0]!r}")
        parts = {name: self.drafters[name] for name in config.drafter_names}
        if len(parts) > 1:
            return CombinedDrafter(parts, config.combine)
        return next(iter(parts.values()), None)

    def render(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a workload's prompt, through the chat template where there is one."""
        return self._codec().render(prompt)

    def generate(  # noqa: PLR0913  (the public contract)
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        config: SpecConfig | Chooser | None = None,
        sampling: SamplingParams | None = None,
        max_new_tokens: int = 128,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        category: str | Sequence[str] | None = None,
        batch_size: int = 1,
    ) -> list[Generation]:
        """Generate for every prompt.

        Args:
            prompts: Text, texts, or lists of token ids.
            config: A configuration, a policy, or None for plain decoding.
            sampling: Greedy by default; prompt number i uses `sampling.seed + i`.
            max_new_tokens: Most tokens for each prompt.
            stop: Strings that end an output; its text is cut before them.
            ignore_eos: Go on behind an end-of-text token.
            category: For the policy: one name, or one for each prompt.
            batch_size: Prompts decoded side by side; what each of them gets does not depend on the others.

        Raises:
            ConfigError: A setting or combination that cannot work.
            ModelError: Prompt and new tokens do not fit the context, or a drafter proposes what cannot be verified.
        """
        if not isinstance(prompts, (str, Sequence)):
            raise ConfigError(f"`prompts` must be text or a list of prompts, but got {prompts!r}")
        rows: list[str | Sequence[int]] = [prompts] if isinstance(prompts, str) else list(prompts)
        if category is not None and not isinstance(category, str) and len(category) != len(rows):
            raise ConfigError(f"`category` must name one for each prompt, but got {len(category)} for {len(rows)}")
        options = GenerationOptions.of(config, sampling, max_new_tokens, stop, ignore_eos, batch_size)
        owns = [category] * len(rows) if category is None or isinstance(category, str) else list(category)
        jobs = [self._job(prompt, row, options, own) for row, (prompt, own) in enumerate(zip(rows, owns, strict=True))]
        if batch_size == 1 or len(jobs) < 2:
            return [run_alone(self.target, self._drafter(job.config), job, self._ending(options)) for job in jobs]
        crew = Crew({job.config: self._drafter(job.config) for job in jobs}, min(batch_size, len(jobs)))
        return run_together(self.target, crew, jobs, self._ending(options))

    def stream(  # noqa: PLR0913  (the public contract)
        self,
        prompt: str | Sequence[int],
        *,
        config: SpecConfig | Chooser | None = None,
        sampling: SamplingParams | None = None,
        max_new_tokens: int = 128,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        category: str | None = None,
    ) -> Iterator[Chunk]:
        """Generate for one prompt and yield after every step; arguments and errors as for `generate`."""
        options = GenerationOptions.of(config, sampling, max_new_tokens, stop, ignore_eos)
        job = self._job(prompt, 0, options, category)
        return stream_alone(self.target, self._drafter(job.config), job, self._ending(options))

    def tie_gap(
        self, prompt_ids: Sequence[int], token_ids: Sequence[int], index: int, sampling: SamplingParams
    ) -> float:
        """Return how close plain decoding was to another token than `token_ids[index]`.

        Greedy: the gap of the two highest logits. Sampling: the distance of the random number from the nearer edge of
        the token's step in the cumulative distribution. Forwards of different shape differ by about 1e-5, so a first
        difference is excused where this is below 1e-4.

        Args:
            prompt_ids: The rendered prompt.
            token_ids: The output of plain decoding.
            index: Which of its tokens.
            sampling: As it was generated, with the seed of this prompt.
        """
        context = [*prompt_ids, *token_ids[:index]]
        logits = self.target.forward(torch.tensor([context]), KVCache(len(context)), num_logits=1)[0, -1].float()
        if sampling.is_greedy:
            top = logits.topk(2).values
            return float(top[0] - top[1])
        cumulative = to_probs(logits, sampling).double().cumsum(dim=-1)
        number = uniform(sampling.seed, len(context), Use.TARGET) * float(cumulative[-1])
        token = token_ids[index]
        below = float(cumulative[token - 1]) if token > 0 else 0.0
        return min(abs(number - below), abs(float(cumulative[token]) - number))

    def _codec(self) -> TextCodec:
        if self.text is None:
            raise ModelError("text needs a tokenizer, but this decoder was made without one")
        return self.text

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, (str, Sequence)):
            raise ConfigError(f"a prompt must be text or a list of token ids, but got {prompt!r}")
        prompt_ids = self._codec().encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not prompt_ids:
            raise ConfigError("a prompt must hold at least one token, but got none")
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self.target.vocab_size:
            raise ConfigError(
                f"token ids of a prompt must lie in 0 .. {self.target.vocab_size - 1}, "
                f"but they reach from {min(prompt_ids)} to {max(prompt_ids)}"
            )
        return prompt_ids

    def _job(self, prompt: str | Sequence[int], row: int, options: GenerationOptions, category: str | None) -> Job:
        prompt_ids, chosen = self._prompt_ids(prompt), options.config
        if options.stop:
            self._codec()
        if not isinstance(chosen, SpecConfig):
            chosen = chosen.choose(batch_size=options.batch_size, context_length=len(prompt_ids), category=category)
        self.check(chosen)
        seed, costs = options.sampling.seed + row, costs_of(self.costs, chosen.drafter)
        sampling = replace(options.sampling, seed=seed)
        return Job(tuple(prompt_ids), chosen, sampling, seed, options.max_new_tokens, costs)

    def _ending(self, options: GenerationOptions) -> Ending:
        eos = frozenset() if options.ignore_eos else self.target.eos_token_ids
        return Ending(self.text, options.stop, eos)
