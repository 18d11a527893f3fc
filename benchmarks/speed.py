"""Speed and memory beside transformers, on equal terms and in one run: `python -m benchmarks.speed asr_ctc`.

Three implementations with the same random weights take turns (A B C A B C ...), so that whatever else the machine does
falls on all alike; ratios are taken within a round. First they must agree on the loss, hence no dropout, LayerDrop or
masking. Attention dropout, the one that decides which kernels can be used, is 0 in fairseq's fine-tuning too
(`Wav2Vec2AsrConfig.attention_dropout`, which `config/finetuning/base_*.yaml` leave alone).

To add a task, write a function like `asr_ctc` and let `build` call it. Shapes: B batch, S samples, L labels.
"""

import argparse
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.pretrained import rename
from d2v.processors.audio import AudioFeatureExtractor

IMPLEMENTATIONS = EAGER, SDPA, OURS = "transformers-eager", "transformers-sdpa", "ours"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROW = "{:<10} {:<10} {:<10} {:<20} {:>10} {:>10} {:>8} {:>10}"
NOISE = "hidden_dropout activation_dropout attention_dropout feat_proj_dropout final_dropout layerdrop"
NO_NOISE = dict.fromkeys((*NOISE.split(), "mask_time_prob", "mask_feature_prob"), 0.0)
TINY = {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64, "conv_dim": (16,) * 7}
Batch = dict[str, Tensor]


def librispeech_lengths(clips: int) -> list[float]:
    """Lengths in seconds that stand for LibriSpeech's training clips: the middle of each of `clips` equal shares.

    Not drawn, since so few may happen to be all padding, or none. Quantiles: train-clean-100 with speed perturbation of
    10 % (icefall, `egs/librispeech/ASR/local/display_manifest_statistics.py`). Clipped to 1.5 to 16 s: mean 12.5 s.
    """
    shares, quantiles = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999), (1.3, 4.2, 6.4, 11.4, 13.8, 15.3, 16.7, 18.8)
    return np.interp((np.arange(clips) + 0.5) / clips, shares, quantiles).clip(1.5, 16).round(1).tolist()


def asr_ctc(implementation: str, args: argparse.Namespace) -> tuple[nn.Module, Batch, Batch]:
    """Speech recognition with CTC, on noise and random labels, since the content does not change the time.

    Returns:
        The model, a batch (`input_values` and `attention_mask` (B, S), `labels` (B, L)) and its first clip alone.
    """
    sizes, attention = NO_NOISE | (TINY if args.size == "tiny" else {}), "eager" if implementation == EAGER else "sdpa"
    torch.manual_seed(0)
    model = transformers.Data2VecAudioForCTC(transformers.Data2VecAudioConfig(**sizes, attn_implementation=attention))
    if implementation == OURS:
        ours, weights = Data2VecAudioForCTC(Data2VecAudioConfig(**sizes)), model.state_dict().items()
        ours.load_state_dict({rename(key, ours.renames, to_ours=True): value for key, value in weights})
        model = ours
    if args.freeze_feature_encoder:
        model.freeze_feature_encoder()
    rng, extract = np.random.default_rng(0), AudioFeatureExtractor()
    clips = [rng.standard_normal(round(16_000 * length), np.float32) for length in args.lengths]
    # 14 characters a second: LibriSpeech's readers say 2.7 words (9.4 million in 960 h), of five with the space.
    texts = [torch.from_numpy(rng.integers(1, 32, max(1, round(14 * length)))) for length in args.lengths]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True, padding_value=-100)
    return model, extract(clips) | {"labels": pad(texts)}, extract(clips[:1]) | {"labels": pad(texts[:1])}


def build(implementation: str, args: argparse.Namespace) -> tuple[nn.Module, Batch, Batch]:
    """The model, batch and single item of a task, on the device."""
    model, *batches = asr_ctc(implementation, args)
    return model.to(DEVICE), *({key: value.to(DEVICE) for key, value in batch.items()} for batch in batches)


def check_losses(models: dict[str, nn.Module], single: Batch) -> None:
    """Exit unless all give one loss in fp32; unpadded, as padding changes transformers' (its issue #25621)."""
    with torch.inference_mode():
        losses = {name: model.eval()(**single).loss.item() for name, model in models.items()}
    print("loss of one unpadded item:", ", ".join(f"{name} {loss:.6g}" for name, loss in losses.items()))
    if not all(abs(loss / losses[SDPA] - 1) <= 1e-4 for loss in losses.values()):  # so written, NaN is caught too
        sys.exit("the losses differ by more than 1e-4 relative: nothing is timed, as the models do not do the same")


def step(model: nn.Module, batch: Batch, precision: str, optimizer: torch.optim.Optimizer | None) -> float:
    """Seconds that one training step takes, or a forward pass if there is no optimizer; leaves no gradients behind."""
    start = time.perf_counter()
    with torch.inference_mode(optimizer is None), torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
        loss = model(**batch).loss
    if optimizer is not None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_rounds(mode: str, models: dict[str, nn.Module], batch: Batch, precision: str, rounds: int) -> list[dict]:
    """Each round's seconds by implementation; a first round, in which memory is allocated, does not count."""
    batch = {key: value for key, value in batch.items() if mode == "train" or key != "labels"}
    turn = {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0) if mode == "train" else None  # 0: the weights stay
        turn[name] = partial(step, model.train(mode == "train"), batch, precision, optimizer)
    return [{name: run() for name, run in turn.items()} for _ in range(1 + rounds)][1:]


def peak_memory(implementation: str, args: argparse.Namespace) -> int:
    """MiB at the worst moment of training: this process's resident memory, or what PyTorch allocated on the GPU."""
    model, batch, _ = build(implementation, args)
    time_rounds("train", {implementation: model}, batch, args.precision, 1)  # two steps: AdamW allocates in the first
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)  # B or KiB


def peak_memory_of(implementation: str, precision: str, argv: list[str]) -> int:
    """`peak_memory` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.speed", *argv, "--precision", precision, "--memory-of", implementation]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
    return int(result.stdout.split()[-1])


def parse(argv: list[str]) -> argparse.Namespace:
    def comma_separated_seconds(text: str) -> list[float]:
        return [float(length) for length in text.split(",")]

    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=["asr_ctc"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("both", "fp32", "bf16"), default="both", help="bf16 is torch.autocast")
    parser.add_argument("--lengths", type=comma_separated_seconds, default=librispeech_lengths(4), help="10,7,5,3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", choices=("base", "tiny"), default="base")
    parser.add_argument("--freeze-feature-encoder", action="store_true", help="as fine-tuning recipes do")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure memory")
    parser.add_argument("--memory-of", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if min(args.rounds, args.threads) < 1 or not all(0.1 <= length <= 60 for length in args.lengths):
        parser.error("--rounds and --threads must be 1 or more, --lengths 0.1 to 60 seconds each")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(peak_memory(args.memory_of, args))
        return
    precisions = ("fp32", "bf16") if args.precision == "both" else (args.precision,)
    print(
        f"{args.size} size, {torch.cuda.get_device_name() if DEVICE == 'cuda' else 'cpu'}, {args.threads} threads,",
        f"torch {torch.__version__}, transformers {transformers.__version__}, lengths {args.lengths} s, waveform",
        f"front end {'frozen' if args.freeze_feature_encoder else 'trained'}, dropout, LayerDrop and masking off",
    )
    # Before anything big is in this process: on Linux a child's ru_maxrss starts at its parent's.
    pairs = [] if args.no_memory else [(name, precision) for precision in precisions for name in IMPLEMENTATIONS]
    memory = {("train", *pair): peak_memory_of(*pair, argv) for pair in pairs}
    models = {}
    for name in IMPLEMENTATIONS:
        models[name], batch, single = build(name, args)
    check_losses(models, single)
    print(ROW.format("task", "mode", "precision", "implementation", "s/step", "clips/s", "x sdpa", "peak MiB"))
    for precision, mode in [(precision, mode) for precision in precisions for mode in ("train", "inference")]:
        rounds = time_rounds(mode, models, batch, precision, args.rounds)
        for name in IMPLEMENTATIONS:
            seconds, ratio = median(t[name] for t in rounds), median(t[SDPA] / t[name] for t in rounds)
            figures = f"{seconds:.4g}", f"{len(batch['labels']) / seconds:.4g}", f"{ratio:.2f}"
            peak = memory.get((mode, name, precision), "-")
            print(ROW.format(args.task, mode, precision, name, *figures, peak), flush=True)
    print("s/step: median. x sdpa: median over the rounds of transformers-sdpa's seconds / its own; above 1 is faster.")


if __name__ == "__main__":
    main(sys.argv[1:])
