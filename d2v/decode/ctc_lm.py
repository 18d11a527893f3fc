"""From CTC logits to text by a beam search with an n-gram language model: flashlight's search, KenLM's models.

Shapes: B batch, T frames, C vocabulary.
"""

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.config import at_least, not_blank
from d2v.decode.ctc import NEVER
from d2v.errors import InputError
from d2v.processors.ctc import CTCTokenizer

# The defaults of fairseq's examples/speech_recognition/new/decoders/decoder_config.py; examples/wav2vec/README.md there
# decodes LibriSpeech with the first two. Papers tune them on the validation set.
LM_WEIGHT, WORD_SCORE, BEAM, BEAM_THRESHOLD = 2.0, -1.0, 50, 50.0

Lexicon = list[tuple[str, list[int]]]  # words and their labels, the delimiter at the end


@dataclass
class Decoding:
    """A beam search with an n-gram language model.

    Attributes:
        path: the model, as ARPA text or KenLM's binary; without it there is no search. A model with the word delimiter
            among its words is a character model, and can output any word; all others are word models.
        lexicon: file of the allowed words, one per line with its characters: `the t h e |`. By default all that an
            ARPA file lists.
        weight: weight of the language model's log10 probability beside the frames' natural-log probability.
        word_score: score added for each word; unused with a language model of characters.
        beam: number of hypotheses kept from frame to frame.
    """

    path: str | None = None
    lexicon: str | None = None
    weight: float = LM_WEIGHT
    word_score: float = WORD_SCORE
    beam: int = BEAM

    def __post_init__(self):
        at_least(1, "lm", self, ("beam",))
        not_blank("lm", self)


def beam_search(tokenizer: CTCTokenizer, options: Decoding) -> Callable[[Tensor, Tensor], list[str]]:
    """A decoder. A text is scored by its best alignment, not by their sum, as in fairseq.

    Args:
        tokenizer: of the logits.
        options: the language model and its weight.

    Returns:
        A function of logits (B, T, C) and lengths (B,), the real frames. It returns each row's text, normalised by the
        tokenizer.

    Raises:
        InputError: flashlight is not installed, a file cannot be read, or the language model is unsuitable.
    """
    try:
        from flashlight.lib.text import decoder as flashlight
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError as error:
        raise InputError(f'--lm.path needs flashlight: pip install -e ".[lm]" in the clone of d2v ({error})') from error

    lexicon = find_lexicon(options, tokenizer)
    blank, delimiter = tokenizer.pad_token_id, tokenizer.word_delimiter_token_id
    if lexicon is None:
        entries = sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)
    else:
        entries = list(dict.fromkeys(word for word, _ in lexicon))
    try:
        lm = KenLM(options.path, Dictionary([*entries, "\n"]))  # a line feed is in no model: it scores as unknown
    except RuntimeError as error:
        raise InputError(f"{options.path}: KenLM cannot read it ({str(error).splitlines()[-1]})") from error
    start = lm.start(False)
    *scores, unknown = (lm.score(start, i)[1] for i in range(len(entries) + 1))
    if lexicon is None and scores[delimiter] == unknown:
        raise InputError(f"{options.path}: a binary file does not list its words; --lm.lexicon names a file that does")
    if lexicon is not None and set(scores) == {unknown}:
        raise InputError(f"{options.path}: knows none of the words that may be written: {', '.join(entries[:3])}, ...")

    settings = {
        "beam_size": options.beam,
        "beam_size_token": len(tokenizer),
        "beam_threshold": BEAM_THRESHOLD,
        "lm_weight": options.weight,
        "sil_score": 0.0,
        "log_add": False,
        "criterion_type": flashlight.CriterionType.CTC,
    }
    ending = torch.zeros(0, len(tokenizer))
    if lexicon is None:
        settings = flashlight.LexiconFreeDecoderOptions(**settings)
        decoder = flashlight.LexiconFreeDecoder(settings, lm, delimiter, blank, [])
    else:
        trie, number = flashlight.Trie(len(tokenizer), delimiter), {word: i for i, word in enumerate(entries)}
        for word, labels in lexicon:
            trie.insert(labels, number[word], scores[number[word]])
        trie.smear(flashlight.SmearingMode.MAX)
        settings = flashlight.LexiconDecoderOptions(word_score=options.word_score, unk_score=-math.inf, **settings)
        decoder = flashlight.LexiconDecoder(settings, trie, lm, delimiter, blank, len(entries), [], False)
        # A word ends with its delimiter, but a clip's last word need not: a frame with only a delimiter is added.
        ending = torch.full((1, len(tokenizer)), NEVER).index_fill(1, torch.tensor(delimiter), 0.0)

    def write(best) -> str:
        if lexicon is None:
            return tokenizer.decode(best.tokens[1:-1])  # one token per frame, between two delimiters
        return tokenizer.normalize(" ".join(entries[i] for i in best.words if i >= 0))

    def search(logits: Tensor, lengths: Tensor) -> list[str]:
        log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32).cpu()  # (B, T, C)
        texts = []
        for row, length in zip(log_probs, lengths.tolist(), strict=True):
            frames = torch.cat((row[:length], ending))  # contiguous, since the decoder gets only its address
            found = decoder.decode(frames.data_ptr(), *frames.shape)
            texts.append(write(found[0]) if found else "")
        return texts

    return search


def find_lexicon(options: Decoding, tokenizer: CTCTokenizer) -> Lexicon | None:
    """The words that may be output; None for a character model."""
    path = Path(options.path or "")
    if not path.is_file():
        raise InputError(f"{path}: no such file (lm.path); a language model is ARPA text or KenLM's binary")
    words = arpa_words(path)
    if options.lexicon:
        return read_lexicon(Path(options.lexicon), tokenizer)
    if words is None or tokenizer.word_delimiter_token in words:
        return None
    known = sorted(set(words) - {"<s>", "</s>", "<unk>"})
    lexicon = [(word, tokenizer.encode(word)) for word in known if not tokenizer.unknown(word)]
    lexicon = [(word, [*labels, tokenizer.word_delimiter_token_id]) for word, labels in lexicon if labels]
    if not lexicon:
        raise InputError(f"{path}: none of its words can be written with the characters of the vocabulary")
    return lexicon


def arpa_words(path: Path) -> list[str] | None:
    """The words of a language model in ARPA text, gzipped or not; None for KenLM's binary, which does not list them."""
    with path.open("rb") as file:
        head = file.read(7)
    if head == b"mmap lm":
        return None
    unzip = gzip.open if head.startswith(b"\x1f\x8b") else open
    try:
        with unzip(path, "rt", encoding="utf-8", errors="replace") as file:
            lines = dropwhile(lambda line: line.strip() != "\\1-grams:", file)
            next(lines)
            return [line.split()[1] for line in takewhile(lambda line: line.strip(), lines)]
    except (StopIteration, IndexError, OSError, EOFError) as error:
        raise InputError(f"{path}: neither ARPA text with a list of 1-grams nor KenLM's binary") from error


def read_lexicon(path: Path, tokenizer: CTCTokenizer) -> Lexicon:
    """The words of a file with lines like fairseq's: `the t h e |`; the delimiter may be left out."""
    try:
        content = path.read_text("utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a text file that can be read (lm.lexicon)") from error
    lexicon = []
    for i, line in enumerate(content.split("\n") if content else (), 1):
        word, *tokens = line.split() or [""]
        if not tokens or not tokenizer.vocab.keys() >= set(tokens):
            raise InputError(
                f"{path}, line {i}: {line!r} should be a word and its characters, as the vocabulary has them"
            )
        labels = [tokenizer.vocab[token] for token in tokens if token != tokenizer.word_delimiter_token]
        lexicon.append((word, [*labels, tokenizer.word_delimiter_token_id]))
    if not lexicon:
        raise InputError(f"{path}: no words; a lexicon has lines like 'the t h e |'")
    return lexicon
