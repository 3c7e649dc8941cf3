"""ArmoRM: scores of nineteen objectives, weighed by a gate that reads the prompt (arXiv 2406.12845, section 3).

A Llama reads the conversation. A linear layer makes the objectives' scores of the last token's state; a matrix takes
from each what verbosity explains of it; the gate, three hidden layers and a softmax, makes the weights of the state
where the prompt ends. The score is the weighted sum. The model's own code on the hub asks transformers for names that
version 5 no longer has, and would be code from elsewhere; its weights fit the names below.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel

from sao_lib.engines.chat import Chat
from sao_lib.errors import SaoError
from sao_lib.machine import has_gpu
from sao_lib.progress import quiet

ARCHITECTURE = "LlamaForRewardModelWithGating"
PROMPT_ENDS = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>"  # in Llama-3's template; its first is read
TOKENS_AT_ONCE = 16384  # of a batch with its padding: 8 answers of 2,048


def is_armorm(folder: Path) -> bool:
    """Whether the model in `folder` is one of this structure."""
    return ARCHITECTURE in json.loads((folder / "config.json").read_text()).get("architectures", [])


class Gate(nn.Module):
    """States [rows, width] -> weights of the objectives [rows, objectives], which sum to `logit_scale`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.temperature = float(getattr(config, "gating_temperature", 10))
        hidden, count = getattr(config, "gating_hidden_dim", 1024), getattr(config, "gating_n_hidden", 3)
        widths = [config.hidden_size, *[hidden] * count, config.num_objectives]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.logit_scale = nn.Parameter(torch.ones(1))

    def forward(self, states: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            states = torch.relu(layer(states))
        return torch.softmax(last(states) / self.temperature, dim=-1) * self.logit_scale


class GatedReward(LlamaPreTrainedModel):
    """The model; its attributes are named as its weights are."""

    def __init__(self, config: LlamaConfig) -> None:
        config.num_objectives = getattr(config, "num_objectives", 19)
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.zeros(config.num_objectives, config.num_objectives))
        self.gating = Gate(config)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt_ends: Tensor) -> Tensor:
        """Scores [rows]; `input_ids` [rows, tokens] are padded on the right, `prompt_ends` [rows] are positions."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(states), device=states.device)
        last = attention_mask.sum(dim=1) - 1
        objectives = self.regression_layer(states[rows, last]) @ self.reward_transform_matrix
        return (self.gating(states[rows, prompt_ends]) * objectives).sum(dim=-1)


class ArmoRM:
    """The reward model in `folder`; raises SaoError where its weights do not fit this structure."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.chat = Chat(folder)
        self.pattern = self.chat.text_ids(PROMPT_ENDS)
        device = "cuda" if has_gpu() else "cpu"
        with quiet(log):
            loaded: Any = GatedReward.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
        model, found = loaded
        if wrong := sorted({*found["missing_keys"], *found["unexpected_keys"]}):
            raise SaoError(f"The weights in {folder} are not ArmoRM's: {', '.join(map(str, wrong[:5]))} do not fit.")
        self.model: GatedReward = model.to(device).eval()

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One score per (prompt, response), the longest first, in batches of about as many tokens."""
        rows = [self._ids(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        found: dict[int, float] = {}
        for batch in self._batches([len(ids) for ids in rows]):
            found |= dict(zip(batch, self._scored([rows[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(rows))]

    def _ids(self, prompt: str, response: str) -> list[int]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        clean = [{**turn, "content": self.chat.neutral(turn["content"])} for turn in turns]
        return self.chat.text_ids(self.chat.tokenizer.apply_chat_template(clean, tokenize=False))

    @staticmethod
    def _batches(lengths: Sequence[int]) -> list[list[int]]:
        """Places of `lengths`, the longest first; a batch has its longest row's length times its rows."""
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= TOKENS_AT_ONCE:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _scored(self, rows: list[list[int]]) -> list[float]:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        ends = torch.tensor([self._prompt_end(row) for row in rows])
        with torch.no_grad():
            given = (part.to(self.model.device) for part in (ids, mask, ends))
            return [float(score) for score in self.model(*given)]

    def _prompt_end(self, ids: list[int]) -> int:
        """Where the prompt's end-of-turn stands; of several the last, as a prompt cannot hold a special token."""
        size = len(self.pattern)
        for at in range(len(ids) - size, -1, -1):
            if ids[at : at + size] == self.pattern:
                return at
        raise SaoError("ArmoRM's chat template does not end a prompt as Llama-3's does; check the tokenizer's files.")
