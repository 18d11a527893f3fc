r"""A whole recipe with transformers' model in it: the same data, batches, tokenizer, optimiser and first weights.

    python -m benchmarks.agreement masked_lm --config recipes/configs/masked_lm/shakespeare.yaml \
        --data.path DIR --run.max_steps 200 --run.out OUT

Everything behind the recipe's name goes to the recipe, with either model and each of `--seeds`, three unless said. The
figures should differ no more than the seeds make them: their means by at most two pooled standard deviations.
"""

import argparse
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor, nn

from benchmarks.recipe import load_recipe
from d2v.cli import parse
from d2v.hub import rename

MODELS = {
    "text_classification": "Data2VecTextForSequenceClassification",
    "token_classification": "Data2VecTextForTokenClassification",
    "question_answering": "Data2VecTextForQuestionAnswering",
    "multiple_choice": "Data2VecTextForMultipleChoice",
    "masked_lm": "Data2VecTextForMaskedLM",
}
METRICS = ("matthews_correlation", "accuracy", "f1", "loss")
"""What is compared of that which a recipe reports."""


def stand_in(ours: type[nn.Module]) -> type[nn.Module]:
    """A class that a recipe can use as ours, but that computes with transformers' model."""
    kind = ours.config_class.__name__

    class StandIn(nn.Module):
        base_model_prefix, config_class = ours.base_model_prefix, ours.config_class

        def __init__(self, config):
            super().__init__()
            first, self.config = ours(config), config
            self.theirs = getattr(transformers, ours.__name__)(getattr(transformers, kind)(**config.to_dict()))
            weights = {rename(key, ours.renames): value for key, value in first.state_dict().items()}
            missing = self.theirs.load_state_dict(weights, strict=False).missing_keys
            assert not set(missing) & {name for name, _ in self.theirs.named_parameters()}, missing

        @property
        def base_model(self):
            """As much of it as the optimiser looks at."""
            return SimpleNamespace(encoder=SimpleNamespace(layers=self.theirs.base_model.encoder.layer))

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_at=None, **options):
            output = self.theirs(input_ids=input_ids, attention_mask=attention_mask, **options)
            if logits_at is not None:
                output.logits = output.logits[logits_at]
            return output

        def gradient_checkpointing_enable(self, enable: bool) -> None:
            assert not enable

        def freeze_encoder(self, frozen: bool) -> None:
            assert not frozen

        def save_pretrained(self, folder) -> None:
            self.theirs.save_pretrained(folder)

        @classmethod
        def from_pretrained(cls, folder, **options):
            model = cls(ours.config_class.from_pretrained(folder))
            model.theirs = type(model.theirs).from_pretrained(folder)
            return model

    return StandIn


def command_line() -> argparse.ArgumentParser:
    """What the command takes; options that it does not know are the recipe's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", choices=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    return parser


def main() -> None:
    """Run the recipe with both models, and print the metrics of each seed."""
    options, args = command_line().parse_known_args()
    recipe, model = load_recipe(options.recipe), MODELS[options.recipe]
    config, ours = parse(recipe.Config, args), getattr(recipe, model)
    found: dict[str, list[dict[str, float]]] = {"d2v": [], "transformers": []}
    minutes = dict.fromkeys(found, 0.0)
    for seed in range(options.seeds):
        for who, cls in (("d2v", ours), ("transformers", stand_in(ours))):
            setattr(recipe, model, cls)
            begun = time.monotonic()
            own = replace(config, run=replace(config.run, seed=seed, out=f"{config.run.out}/{who}{seed}"))
            found[who].append(recipe.main(own))
            minutes[who] += (time.monotonic() - begun) / 60
    for metric in METRICS:
        if metric not in found["d2v"][0]:
            continue
        print(f"\n{metric}, {torch.get_num_threads()} threads")
        values = {who: [results[metric] for results in runs] for who, runs in found.items()}
        means = {who: statistics.mean(figures) for who, figures in values.items()}
        for who in found:
            figures = "".join(f"{value:9.4f}" for value in values[who])
            print(f"{who:<14}{figures}   mean {means[who]:.4f}, {minutes[who]:.1f} minutes")
        if options.seeds > 1:
            pooled = statistics.mean(map(statistics.variance, values.values())) ** 0.5
            print(f"apart {abs(means['d2v'] - means['transformers']):.4f}; two pooled deviations {2 * pooled:.4f}")


if __name__ == "__main__":
    main()
