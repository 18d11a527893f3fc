"""Texts to tokens of byte-level BPE and back, with the tokenizer of data2vec-text, which is RoBERTa's.

Shapes: B batch, T tokens.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from tokenizers import AddedToken, Encoding, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from d2v.errors import InputError
from d2v.hub import fetch_file, read_json, write_json

# What Hugging Face's tokenizer assumes where the files are silent; in its order, in which missing ones are added.
DEFAULT_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>"}
DEFAULT_TOKENS |= {"pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
# The first tokens of a new vocabulary; 0 to 3 as RoBERTa's, by fairseq's Dictionary (fairseq/data/dictionary.py).
FIRST_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
TRUNCATIONS = ("longest_first", "only_first", "only_second")
NO_LIMIT = 10**20  # a model_max_length above it is Hugging Face's way to say that there is none (LARGE_INTEGER)


class Tokenizer:
    """Byte-level BPE in Hugging Face's files; `from_pretrained` and `train` make one.

    A batch is encoded by a thread for each core; in a forked process, such as a worker of a loader, by one. Versions of
    `tokenizers` that announce this on stderr are silent if TOKENIZERS_PARALLELISM is set in the environment.

    Attributes:
        backend: the `tokenizers.Tokenizer` that does the work; between calls it neither truncates nor pads.
        special_tokens: the seven of `DEFAULT_TOKENS`, by name. `<name>_id` are attributes too, but for sep and cls.
        add_prefix_space: the first word of a text, or each word if they are split, is encoded as one after a space.
        model_max_length: most tokens that the model was made for; None if the files do not say.
    """

    def __init__(
        self,
        model: BPE,
        special_tokens: dict[str, AddedToken],
        added_tokens: Sequence[AddedToken] = (),
        *,
        add_prefix_space: bool = False,
        model_max_length: int | None = None,
    ):
        special = {name: AddedToken(token, special=True) for name, token in DEFAULT_TOKENS.items()} | special_tokens
        tokens = {token.content: token for token in added_tokens}
        for token in special.values():
            tokens.setdefault(token.content, token).special = True
        self.backend = tokenizers.Tokenizer(model)
        self.backend.add_tokens(list(tokens.values()))
        vocab = self.backend.get_vocab()
        ids = {name: vocab[token.content] for name, token in special.items()}
        self.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        self.backend.decoder = decoders.ByteLevel()
        sep, cls = ((special[name].content, ids[name]) for name in ("sep_token", "cls_token"))
        # Offsets are trimmed: they leave out the space that belongs to a word's token.
        self.backend.post_processor = processors.RobertaProcessing(sep, cls, True, add_prefix_space)
        self.special_tokens = {name: token.content for name, token in special.items()}
        self.bos_token_id, self.eos_token_id = ids["bos_token"], ids["eos_token"]
        self.pad_token_id, self.unk_token_id, self.mask_token_id = ids["pad_token"], ids["unk_token"], ids["mask_token"]
        self.add_prefix_space, self.model_max_length = add_prefix_space, model_max_length

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self.backend.get_vocab()

    def __call__(
        self,
        texts: Iterable[str] | Iterable[Sequence[str]],
        pairs: Iterable[str] | Iterable[Sequence[str]] | None = None,
        *,
        is_split_into_words: bool = False,
        max_length: int | None = None,
        truncation: str = "longest_first",
        stride: int = 0,
        side: Literal["right", "left"] = "right",
    ) -> list[Encoding]:
        """Encode texts as `<s> A </s>`, pairs of texts as `<s> A </s></s> B </s>`, without padding.

        Args:
            texts: strings; lists of words if `is_split_into_words`.
            pairs: the second text of each row.
            is_split_into_words: needs `add_prefix_space`.
            max_length: most tokens of an encoding, special tokens included; None to keep all.
            truncation: what to cut: "only_first", "only_second", or whichever is longer, "longest_first".
            stride: number of tokens that a window of a cut text shares with the one before it.
            side: that is cut.

        Returns:
            One encoding a row, with `ids`, `offsets` (from and to which character of the text, or of the word if it was
            split), `word_ids`, `sequence_ids` and `special_tokens_mask`. The windows after the first are in
            `overflowing`.

        Raises:
            InputError: a row is not a text, or `max_length` leaves no room for it.
        """
        if is_split_into_words and not self.add_prefix_space:
            raise InputError("is_split_into_words: needs a tokenizer with add_prefix_space=True, or words run together")
        check = _check_words if is_split_into_words else _check_text
        sides = {"text": texts} if pairs is None else {"text": texts, "pair": pairs}
        checked: list[list[Any]] = []
        for name, given in sides.items():
            if isinstance(given, str):
                raise InputError(f"{name}: should be a list with a row for each text, not one string")
            checked.append([check(row, f"{name} {i}") for i, row in enumerate(given)])
        if truncation not in TRUNCATIONS[: len(sides) + 1]:
            raise InputError(f"truncation is {truncation!r}; must be {', '.join(TRUNCATIONS)} (only for pairs)")
        options = {"is_pretokenized": is_split_into_words}
        rows = checked[0] if pairs is None else list(zip(*checked, strict=True))
        if max_length is None:
            return self.backend.encode_batch(rows, **options)
        special = self.backend.num_special_tokens_to_add(pairs is not None)
        room = max_length - special
        if not 0 <= stride < room:
            raise InputError(f"max_length is {max_length}; must be above {special} special tokens + stride {stride}")
        if pairs is not None:
            self._check_room(rows, room, truncation, stride, **options)
        self.backend.enable_truncation(max_length, stride=stride, strategy=truncation, direction=side)
        try:
            return self.backend.encode_batch(rows, **options)
        finally:  # pickles are the same after a call as before it, by which `datasets` finds what it has in its cache
            self.backend.no_truncation()

    def _check_room(self, rows: list[tuple], room: int, truncation: str, stride: int, **options) -> None:
        """Refuse pairs of which the text that must stay leaves no room; the backend would break off the program."""
        if truncation == "longest_first":
            if stride:
                raise InputError(f"stride is {stride}; windows of pairs need truncation 'only_first' or 'only_second'")
            return
        cut = TRUNCATIONS.index(truncation) - 1
        kept = self.backend.encode_batch([row[1 - cut] for row in rows], add_special_tokens=False, **options)
        for i, (row, encoding) in enumerate(zip(rows, kept, strict=True)):
            left = room - len(encoding)
            if left <= stride and len(self.backend.encode(row[cut], add_special_tokens=False, **options)) > left:
                raise InputError(
                    f"row {i}: the text that truncation {truncation!r} keeps has {len(encoding)} tokens, which leaves "
                    f"room for {max(left, 0)} of the other within max_length; must be more than stride {stride}"
                )

    def add_tokens(self, tokens: Sequence[str]) -> None:
        """Tokens that stand whole wherever a text has them, with the ids after the last."""
        if wrong := [token for token in tokens if not token.strip()]:
            raise InputError(f"add_tokens: {wrong[0]!r} should not be blank")
        self.backend.add_tokens([AddedToken(token, normalized=False) for token in tokens])

    def decode(self, ids: Sequence[int] | Tensor, skip_special_tokens: bool = True) -> str:
        """The text of tokens, no space before punctuation removed; bytes that are not UTF-8 become U+FFFD."""
        ids, last = torch.as_tensor(ids).tolist(), len(self) - 1
        for i in ids:
            if not 0 <= i <= last:
                raise InputError(f"token {i} is not in the vocabulary, which has 0 to {last}")
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def pad(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """`input_ids` (B, T) int64, padded to the longest row; `attention_mask` (B, T) int64, 1 where they are not."""
        ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)  # (B, T)
        return {"input_ids": pad_sequence(ids, True, self.pad_token_id), "attention_mask": mask}

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, *, add_prefix_space: bool = False, min_frequency: int = 2
    ) -> "Tokenizer":
        """Learn a vocabulary; the same texts, in any order, give the same one.

        Args:
            texts: the corpus.
            vocab_size: most tokens: five special ones, 256 bytes, and the merges.
            add_prefix_space: as the attribute.
            min_frequency: how often a pair of tokens must occur to be merged.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < (least := len(FIRST_TOKENS) + len(alphabet)):
            raise InputError(f"vocab_size is {vocab_size}; must be {least} or more: the bytes and the special tokens")
        backend = tokenizers.Tokenizer(BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=FIRST_TOKENS,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator((_check_text(text, f"text {i}") for i, text in enumerate(texts)), trainer)
        mask = AddedToken("<mask>", lstrip=True, special=True)  # takes the space before it, as RoBERTa's
        return cls(backend.model, {"mask_token": mask}, add_prefix_space=add_prefix_space)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, add_prefix_space: bool | None = None) -> "Tokenizer":
        """From `tokenizer.json`, or `vocab.json` and `merges.txt`, of a folder or hub repository.

        Args:
            source: where the files are. `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` need
                not be there; which of them counts is as in Hugging Face's library.
            add_prefix_space: instead of what the files say; token classification needs True.
        """
        if path := fetch_file(source, "tokenizer.json"):
            vocab, merges, added = _read_tokenizer_json(path)
            model = _build_bpe(vocab, merges, path, path)
        else:
            path, merges_path = fetch_file(source, "vocab.json"), fetch_file(source, "merges.txt")
            if not path or not merges_path:
                raise InputError(f"{source}: no tokenizer.json, nor vocab.json with merges.txt; a tokenizer is either")
            model = _build_bpe(read_json(path), _read_merges(merges_path), path, merges_path)
            added = {i: {"content": token} for token, i in _read_if_there(source, "added_tokens.json").items()}
        config = _read_if_there(source, "tokenizer_config.json")
        if "added_tokens_decoder" in config:
            added = {int(i): entry for i, entry in config["added_tokens_decoder"].items()}
        else:
            config |= _read_if_there(source, "special_tokens_map.json")
        for side in ("padding_side", "truncation_side"):
            if config.get(side, "right") != "right":
                raise InputError(f"{source}: {side} in tokenizer_config.json is {config[side]!r}; must be 'right'")
        if add_prefix_space is None:
            add_prefix_space = config.get("add_prefix_space", False)
        limit = config.get("model_max_length") or NO_LIMIT
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise InputError(f"{source}: model_max_length in tokenizer_config.json is {limit!r}; must be a number")
        tokens = {i: _read_token(entry, source) for i, entry in sorted(added.items())}
        tokenizer = cls(
            model,
            {name: _read_token(config[name], source) for name in DEFAULT_TOKENS if config.get(name)},
            list(tokens.values()),
            add_prefix_space=add_prefix_space,
            model_max_length=int(limit) if limit < NO_LIMIT else None,
        )
        for i, token in tokens.items():
            if (own := tokenizer.backend.token_to_id(token.content)) != i:
                raise InputError(f"{source}: the added token {token.content!r} has id {i}; must be {own}")
        known = {token.content for token in tokens.values()}  # and so has its own way to stand in a text
        others = [token for token in _read_other_tokens(config, source) if token.content not in known]
        for token in others:
            token.special = True
        tokenizer.backend.add_tokens(others)  # one that the vocabulary lacks has the id after the last
        return tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files of both layouts, with which Hugging Face's `RobertaTokenizer` gives the same tokens."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        entries = json.loads(self.backend.to_str())
        # Older versions of Hugging Face's library would join " ." and " 's" to the word before when they decode.
        config = {"tokenizer_class": "RobertaTokenizer", "clean_up_tokenization_spaces": False}
        config |= self.special_tokens | {"add_prefix_space": self.add_prefix_space}
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        tokens = {token.content: token for token in self.backend.get_added_tokens_decoder().values()}
        write_json(folder / "tokenizer.json", entries)
        write_json(folder / "vocab.json", entries["model"]["vocab"])
        merges = "".join(f"{left} {right}\n" for left, right in entries["model"]["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
        write_json(folder / "tokenizer_config.json", config)
        special = {name: tokens[token] for name, token in self.special_tokens.items()}
        fields = {name: {key: getattr(token, key) for key in TOKEN_FIELDS} for name, token in special.items()}
        write_json(folder / "special_tokens_map.json", fields)


def _check_text(text: Any, name: str) -> str:
    """The text, if it is one that can be written as UTF-8: surrogates without their other half cannot."""
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise InputError(f"{name}: {text!r:.40} must be a string, of whole characters") from error
    return text


def _check_words(words: Any, name: str) -> list[str]:
    """A text's words, if they are a list of strings."""
    if not isinstance(words, (list, tuple)):
        raise InputError(f"{name}: {words!r:.40} must be a list of words")
    return [_check_text(word, f"{name}, word {i}") for i, word in enumerate(words)]


def _read_if_there(source: str | Path, name: str) -> dict[str, Any]:
    """The entries of a JSON file; none if the source has no such file."""
    return read_json(path) if (path := fetch_file(source, name)) else {}


def _read_token(entry: Any, source: str | Path) -> AddedToken:
    """A token of a file, which is a string or has its fields by name."""
    if isinstance(entry, str):
        return AddedToken(entry, special=True)
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise InputError(f"{source}: the token {entry!r:.60} must be a string, or an object with 'content'")
    return AddedToken(**{key: entry[key] for key in TOKEN_FIELDS if key in entry})


def _read_other_tokens(config: dict[str, Any], source: str | Path) -> list[AddedToken]:
    """The special tokens that have no part of their own, of which older files and newer ones have a list or names."""
    found = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        entries = config.get(key) or []
        if not isinstance(entries, list | dict):
            raise InputError(f"{source}: {key} is {entries!r:.60}; must be a list of tokens, or tokens by name")
        found += [_read_token(entry, source) for entry in (entries.values() if isinstance(entries, dict) else entries)]
    return found


def _read_tokenizer_json(path: Path) -> tuple[Any, list, dict[int, dict]]:
    """Vocabulary, merges and added tokens, by id, of a `tokenizer.json`."""
    entries = read_json(path)
    model, pre_tokenizer = (entries.get(key) or {} for key in ("model", "pre_tokenizer"))
    added = entries.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(pre_tokenizer, dict):
        raise InputError(f"{path}: model and pre_tokenizer must be objects with a type")
    numbered = isinstance(added, list) and all(isinstance(each, dict) and type(each.get("id")) is int for each in added)
    if not numbered:
        raise InputError(f"{path}: added_tokens must be a list of objects, each with 'id' and 'content'")
    # Early files do not name the model's type. Everything else of the file is the same for all RoBERTa tokenizers.
    kind = model.get("type", "BPE"), pre_tokenizer.get("type"), entries.get("normalizer")
    if kind != ("BPE", "ByteLevel", None) or not isinstance(model.get("merges"), list):
        raise InputError(f"{path}: must be a byte-level BPE without a normalizer, as RoBERTa's")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return model.get("vocab"), merges, {entry["id"]: entry for entry in added}


def _read_merges(path: Path) -> list[list[str]]:
    """The merges of a `merges.txt`, a line each."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({error})") from error
    return [line.split(" ") for line in lines if line and not line.startswith("#version")]


def _build_bpe(vocab: Any, merges: list, vocab_path: Path, merges_path: Path) -> BPE:
    """The model, its parts checked."""
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    if not ids or any(type(i) is not int for i in ids) or set(ids) != set(range(len(ids))):
        raise InputError(f"{vocab_path}: the vocabulary must map tokens to the numbers from 0, each once")
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - vocab.keys():
        raise InputError(f"{vocab_path}: the vocabulary lacks {len(missing)} of 256 bytes, which texts would lose")
    for number, merge in enumerate(merges, 1):
        if len(merge) != 2 or not all(token in vocab for token in (*merge, merge[0] + merge[1])):
            raise InputError(
                f"{merges_path}, merge {number}: {merge!r:.60} must be two tokens of the vocabulary that make a third"
            )
    return BPE(vocab, [tuple(merge) for merge in merges])
