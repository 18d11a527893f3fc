"""AdamW as our PyTorch recipes use it: layer-wise learning rates, and weight decay of what has it there."""

import re

import keras
from keras import ops


@keras.saving.register_keras_serializable("d2v")
class AdamW(keras.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) with layer-wise learning rates, as PyTorch computes it.

    Epsilon is added to the root of the corrected second moment, as in PyTorch: Keras's AdamW adds it before the
    correction, which in the first updates makes it up to 30 times as large.

    Args:
        learning_rate: of the head, a number or a schedule.
        depth: number of the model's blocks.
        layer_decay: block i of L learns `layer_decay ** (L - i)` times as fast as the head and what lies before the
            first `layer_decay ** (L + 1)` times, as in BEiT; 1 for the same rate everywhere.
        weight_decay: of weights with more than one dimension but the class token and positions.
        beta_1, beta_2, epsilon: of the moments.
        **options: of `keras.Optimizer`, such as `clipnorm`.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        depth=0,
        layer_decay=1.0,
        weight_decay=0.0,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        **options,
    ):
        options = {"name": "adamw"} | options
        super().__init__(learning_rate=learning_rate, **options)
        self.depth, self.layer_decay, self.decay = depth, layer_decay, weight_decay
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def build(self, variables):
        """Make the moments, and note how fast each weight learns: TensorFlow's updates do not see its name."""
        if not self.built:
            super().build(variables)
            self.first, self.second = self.add_optimizer_variables(variables, ["momentum", "velocity"])
            layers = (layer_of(variable.path, self.depth) for variable in variables)
            self.scales = tuple(self.layer_decay ** (self.depth + 1 - layer) for layer in layers)
            self.decays = tuple(self.decay if has_decay(variable) else 0.0 for variable in variables)

    def update_step(self, gradient, variable, learning_rate):
        """Move one weight."""
        index = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self.scales[index]
        gradient, step = ops.cast(gradient, variable.dtype), ops.cast(self.iterations + 1, variable.dtype)
        first, second = self.first[index], self.second[index]
        self.assign(first, first * self.beta_1 + gradient * (1 - self.beta_1))
        self.assign(second, second * self.beta_2 + ops.square(gradient) * (1 - self.beta_2))
        correction = 1 - ops.power(ops.cast(self.beta_2, variable.dtype), step)
        moved = first / (ops.sqrt(second / correction) + self.epsilon)
        moved = moved / (1 - ops.power(ops.cast(self.beta_1, variable.dtype), step))
        self.assign(variable, variable * (1 - rate * self.decays[index]) - rate * moved)

    def get_config(self):
        """What a `.keras` file says of it."""
        own = {"depth": self.depth, "layer_decay": self.layer_decay, "weight_decay": self.decay}
        own |= {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return super().get_config() | own


def has_decay(variable) -> bool:
    """Whether a weight has weight decay, as in `d2v.training.optim.param_groups`."""
    return len(variable.shape) > 1 and not variable.path.endswith(("/cls_token", "/position_embeddings"))


def layer_of(path: str, depth: int) -> int:
    """0 for what lies before the first block, i + 1 for block i, depth + 1 for the head and what lies behind them."""
    if match := re.search(r"/encoder/layer-(\d+)/", path):
        return int(match[1]) + 1
    return 0 if "/data2vec_vision/embeddings/" in path else depth + 1


def build_optimizer(model, learning_rate, *, layer_decay: float = 1.0, weight_decay: float = 0.0, **options) -> AdamW:
    """AdamW for a model as `d2v.training.optim.build_optimizer` makes it for PyTorch; options as of `AdamW`."""
    depth = model.config.num_hidden_layers
    return AdamW(learning_rate, depth, layer_decay, weight_decay, **options)
