"""From outputs to answers: what a model's logits say of each example, one file a task."""
