"""Transcripts to CTC labels and back."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from d2v.errors import InputError
from d2v.hub import fetch_file, naming, read_json, write_json
from d2v.models.configuration import check_types

# What Hugging Face's tokenizer assumes where tokenizer_config.json is silent.
DEFAULT_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|"}
DEFAULT_TOKENS |= {"bos_token": "<s>", "eos_token": "</s>"}
CASES: dict[str, Callable[[str], str]] = {"keep": str, "lower": str.lower, "upper": str.upper}
FORMS = ("NFC", "NFKC")
# Characters that nobody sees or says: soft hyphen, zero-width space, marks of direction, word joiner, byte order mark.
# The joiners of Persian and Indic texts are not among them, since they change words.
INVISIBLE = "\u00ad\u061c\u180e\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"


@dataclass
class CTCTokenizer:
    """Characters to label numbers and back, with the text normalisation that the vocabulary was built with.

    Attributes:
        vocab: token to number, 0 to len - 1. Tokens of one character can be written, the others are special.
        pad_token: the CTC blank, and the padding of labels.
        unk_token: stands for characters that are not in the vocabulary, and is written as it is.
        word_delimiter_token: the space between words.
        bos_token, eos_token: in some vocabularies, never written; CTC has no use for them.
        case: "keep", "lower" or "upper".
        remove: the characters to delete from texts.
        replace: texts to replace by others.
        form: Unicode's normalisation form: "NFC" composes accents; "NFKC" also makes of ligatures, raised letters, jamo
            and full-width signs the plain ones.
    """

    vocab: dict[str, int]
    pad_token: str = "<pad>"
    unk_token: str = "<unk>"
    word_delimiter_token: str = "|"
    bos_token: str | None = None
    eos_token: str | None = None
    case: str = "keep"
    remove: str = ""
    replace: dict[str, str] = field(default_factory=dict)
    form: Literal["NFC", "NFKC"] = "NFC"

    def __post_init__(self):
        if self.form not in FORMS:
            raise InputError(f"form is {self.form!r}; must be {', '.join(FORMS)}")
        with naming("tokenizer_config.json"):
            check_types(self)
        if not all(isinstance(new, str) for new in self.replace.values()):
            raise InputError(f"tokenizer_config.json: replace is {self.replace!r:.60}; must be texts by texts")
        for old, new in self.replace.items():
            if any(each in new for each in self.replace) or not old:
                raise InputError(f"replace: {old!r} by {new!r} leaves what is to be replaced; should not")
        if self.case not in CASES:
            raise InputError(f"case is {self.case!r}; must be {', '.join(CASES)}")
        numbers = self.vocab.values()
        if any(type(i) is not int for i in numbers) or set(numbers) != set(range(len(numbers))):
            raise InputError(f"vocab.json: must map {len(numbers)} tokens to the numbers 0 to {len(numbers) - 1}")
        for token in (self.pad_token, self.unk_token, self.word_delimiter_token):
            if token not in self.vocab:
                raise InputError(f"vocab.json: no {token!r}; pad, unk and word delimiter token must be in it")
        self.pad_token_id = self.vocab[self.pad_token]
        self.unk_token_id = self.vocab[self.unk_token]
        self.word_delimiter_token_id = self.vocab[self.word_delimiter_token]
        silent = dict.fromkeys((self.pad_token, self.bos_token, self.eos_token), "")
        written = silent | {self.word_delimiter_token: " "}
        self._text = {i: written.get(token, token) for token, i in self.vocab.items()}
        self._id = {token: i for token, i in self.vocab.items() if token not in written}
        self._id[" "] = self.word_delimiter_token_id
        self._delete = dict.fromkeys(map(ord, self.remove + "".join(c for c in INVISIBLE if c not in self.vocab)))

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def tokens(self) -> list[str]:
        """The tokens in the order of their numbers."""
        return sorted(self.vocab, key=self.vocab.__getitem__)

    @classmethod
    def from_texts(cls, texts: Iterable[str], **options: Any) -> "CTCTokenizer":
        """Build the vocabulary from transcripts; of the training set only, since nothing else is learned.

        Args:
            texts: the transcripts.
            **options: `case`, `remove`, `replace` and `form`.
        """
        vocab = {"<pad>": 0, "<unk>": 1, "|": 2}
        normalize = cls(vocab, **options).normalize
        characters = sorted(set().union(*map(normalize, texts)) - {" "})
        if not characters:
            raise InputError("the training transcripts hold no characters; a vocabulary needs some")
        return cls(vocab | {c: i for i, c in enumerate(characters, len(vocab))}, **options)

    def normalize(self, text: str) -> str:
        """Unicode's form, case, replacement, removal; white space collapsed. A word delimiter in a text is a space.

        Invisible characters are dropped, unless the vocabulary has them.
        """
        # Change before NFKC too, since it turns "…" into three full stops and an acute accent alone into a space with
        # one; and normalise after casing too, since "ΐ" in upper case is three code points, which compose to two.
        text = unicodedata.normalize(self.form, self._change(text))
        text = self._change(unicodedata.normalize(self.form, CASES[self.case](text)))
        return " ".join(text.replace(self.word_delimiter_token, " ").split())

    def _change(self, text: str) -> str:
        """Replace and delete what is to be."""
        for old, new in self.replace.items():
            text = text.replace(old, new)
        return text.translate(self._delete)

    def encode(self, text: str) -> list[int]:
        """The labels of a text, normalised first; no delimiter at the end."""
        return self.labels(self.normalize(text))

    def labels(self, text: str) -> list[int]:
        """The labels of a text that is normalised already."""
        try:
            return list(map(self._id.__getitem__, text))
        except KeyError:  # few texts have such characters
            return [i for c in text for i in self._ids(c) or [self.unk_token_id]]

    def unknown(self, text: str) -> set[str]:
        """The characters of a text, normalised first, that the vocabulary lacks."""
        return {c for c in set(self.normalize(text)) if not self._ids(c)}

    def _ids(self, character: str) -> list[int]:
        """The labels of a character; of one that only the vocabulary's letters and accents together make, theirs."""
        if character in self._id:
            return [self._id[character]]
        parts = unicodedata.normalize("NFD", character)
        return [self._id[part] for part in parts] if self._id.keys() >= set(parts) else []

    def decode(self, ids: Sequence[int] | Tensor, *, group: bool = True) -> str:
        """The text of CTC output (`group`: repeats are one, blanks vanish) or of labels; -100 is padding."""
        ids = [i for i in torch.as_tensor(ids).tolist() if i != -100]
        if group:
            ids = [i for i, _ in groupby(ids)]
        try:
            return " ".join("".join([self._text[i] for i in ids]).split())
        except KeyError as error:
            raise InputError(f"label {error} is not in the vocabulary, which has 0 to {len(self) - 1}") from error

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "CTCTokenizer":
        """From `vocab.json` and `tokenizer_config.json` of a folder or hub repository."""
        if not (path := fetch_file(source, "vocab.json")):
            raise InputError(f"{source}: no vocab.json; a CTC tokenizer is vocab.json and tokenizer_config.json")
        vocab = read_json(path)
        config_path = fetch_file(source, "tokenizer_config.json")
        config = read_json(config_path) if config_path else {}
        tokens = {name: config.get(name, default) for name, default in DEFAULT_TOKENS.items()}
        tokens = {
            name: token.get("content", token) if isinstance(token, dict) else token for name, token in tokens.items()
        }
        for token in (tokens["bos_token"], tokens["eos_token"]):
            if isinstance(token, str):
                vocab.setdefault(token, len(vocab))  # as Hugging Face does on loading; heads were sized by the sum
        # Only our own files say how texts were cased. In a vocabulary of one case the other would come out as <unk>:
        # facebook/data2vec-audio-base-960h has capitals only, most transcripts are in small letters.
        letters = "".join(token for token in vocab if len(token) == 1)
        case = "upper" if letters.isupper() else "lower" if letters.islower() else "keep"
        # Files of ours that name no form are older than the choice.
        form = config.get("form", "NFKC" if "case" in config else "NFC")
        options = {"case": config.get("case", case), "remove": config.get("remove", ""), "form": form}
        with naming(source):
            return cls(vocab, **tokens, **options, replace=config.get("replace", {}))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `vocab.json` and `tokenizer_config.json`; Hugging Face's tokenizer leaves our options alone."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        entries = {key: value for key, value in asdict(self).items() if key != "vocab"}
        # do_lower_case would read texts in capitals but write them in small letters, which is none of our cases;
        # clean_up_tokenization_spaces, on by default in older versions, would join " 's" and " ." to the word before.
        entries |= {"do_lower_case": False, "clean_up_tokenization_spaces": False}
        entries |= {"tokenizer_class": "Wav2Vec2CTCTokenizer", "processor_class": "Wav2Vec2Processor"}
        write_json(Path(folder) / "vocab.json", self.vocab)
        write_json(Path(folder) / "tokenizer_config.json", entries)
