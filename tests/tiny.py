"""Tiny models' sizes, and tiny data sets that tests make on the spot."""

import io

import numpy as np
import soundfile
import torch
import yaml

PITCH = {"a": 300, "b": 700, "c": 1500, " ": 0}
TINY_AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 16, 16, 16, 16, 16],
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 2,
}
STILL_AUDIO = {  # nothing random in training
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}
TINY_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "type_vocab_size": 1,
}
TINY_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 4,
    "drop_path_rate": 0.0,
    "out_indices": [2, 3, 4, 5],
    "auxiliary_channels": 16,
}


def tones(text: str, seed: int = 0) -> np.ndarray:
    """A tenth of a second for each letter, each at its own pitch: (S,) at 16 kHz."""
    time = np.arange(1600) / 16_000
    noise = np.random.default_rng(seed).normal(size=1600 * len(text))
    sound = np.concatenate([0.3 * np.sin(2 * np.pi * PITCH[letter] * time) for letter in text])
    return (sound + 0.01 * noise).astype(np.float32)


def padded(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch (B, S) and its attention mask."""
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return batch, (torch.arange(batch.shape[1]) < torch.tensor([[len(clip)] for clip in clips])).long()


def flac(samples: np.ndarray, rate: int = 16_000) -> bytes:
    """The bytes of a FLAC file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC")
    return file.getvalue()


def texts(count: int, seed: int) -> list[str]:
    """Seeded transcripts of two short words."""
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list("abc"), random.integers(2, 5))) + " ab" for _ in range(count)]


def sentences(count: int, seed: int) -> list[str]:
    """Seeded sentences of a small grammar, such as "the red cat sees the old dog"."""
    random = np.random.default_rng(seed)
    words = [["the"], ["red", "blue", "small", "old"], ["cat", "dog", "bird"], ["sees", "hears", "likes"]]
    return [" ".join(str(random.choice(words[i])) for i in (0, 1, 2, 3, 0, 1, 2)) for _ in range(count)]


def speech(folder, **splits):
    """A folder of parquet files, `<split>.parquet`, with `id`, `audio` and `text`.

    Args:
        folder: to write into.
        **splits: number of rows, or a list of (sound bytes, text).
    """
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, rows) in enumerate(splits.items()):
        if isinstance(rows, int):
            rows = [(flac(tones(text, i)), text) for i, text in enumerate(texts(rows, seed))]
        table = {
            "id": [f"{split}-{i}" for i in range(len(rows))],
            "audio": [{"bytes": sound, "path": None} for sound, _ in rows],
            "text": [text for _, text in rows],
        }
        datasets.Dataset.from_dict(table).to_parquet(folder / f"{split}.parquet")
    return folder


def name_splits(folder, splits, form="{}.parquet", name="default"):
    """Write the card that tells `datasets` which split each file is, also where it would not guess it."""
    files = [{"split": split, "path": form.format(split)} for split in splits]
    front = yaml.safe_dump({"configs": [{"config_name": name, "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{front}---\n", "utf-8")


def arpa(path, words: dict[str, float], pairs: dict[str, float]) -> str:
    """Write a bigram language model as ARPA text; returns its path.

    Args:
        path: to write to.
        words: log10 probabilities; with `</s>`, and `<unk>` for unknown words.
        pairs: log10 probabilities of a word after another, "<s> word" after none. Others count as the word.
    """
    single = ["-99\t<s>\t0", *(f"{value}\t{word}\t0" for word, value in words.items())]
    double = [f"{value}\t{pair}" for pair, value in pairs.items()]
    counts = f"\\data\\\nngram 1={len(single)}\nngram 2={len(double)}\n"
    sections = ["\\1-grams:", *single, "", "\\2-grams:", *double, "", "\\end\\", ""]
    path.write_text("\n".join([counts, *sections]), "utf-8")
    return str(path)
