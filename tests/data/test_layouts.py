"""Layouts of public data sets and of people's own folders: each is read, or one line says what was looked for."""

import gzip
import io
import json
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from benchmarks.recipe import load_recipe
from d2v.data.conll import read_words
from d2v.data.files import AUDIO, PICTURES, walk
from d2v.data.folders import place_files
from d2v.data.image import ImageData
from d2v.data.load import choose_splits, load, read
from d2v.data.multiple_choice import read_exams
from d2v.data.pairs import read_pairs
from d2v.data.question_answering import read_questions
from d2v.errors import InputError
from tests.helpers import make_job
from tests.tiny import flac, name_splits, tones


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


SOUND = flac(tones("a"))
buffer = io.BytesIO()
Image.new("L", (2, 2)).save(buffer, "PNG")
PICTURE = buffer.getvalue()

# recipe -> its data, what the model reads, what it learns
KINDS = {
    "asr_ctc": ("SpeechData", ["audio"], "text"),
    "audio_classification": ("ClassificationData", ["audio"], "label"),
    "speaker_verification": ("TrialData", ["audio"], "speaker"),
    "audio_frame_classification": ("SegmentData", ["audio"], None),
    "image_classification": ("ClassificationData", ["image"], "label"),
    "semantic_segmentation": ("SegmentationData", ["image"], "mask"),
    "text_classification": ("ClassificationData", ["text"], "label"),
    "token_classification": ("TokenData", ["tokens"], "tags"),
    "question_answering": ("QuestionData", ["question", "context"], "answers"),
    "multiple_choice": ("ChoiceData", ["prompt"], "label"),
    "causal_lm": ("CausalData", ["text"], None),
}
MACOS = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xff\xfe"
CONLLU = "# text = cats don't run\n1\tcats\tcat\tNOUN\tNNS\t_\t0\troot\t_\t_\n2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n"
CONLLU += "2\trun\trun\tVERB\tVB\t_\t1\tx\t_\t_\n\n1\tcats\tcat\tNOUN\tNNS\t_\t0\troot\t_\t_\n\n"
EXAM = json.dumps(
    {
        "id": "high1.txt",
        "article": "A cat sat.",
        "questions": ["Who sat?", "It _ ."],
        "options": [["a dog", "a cat", "a bird", "no one"], ["sat", "ran", "flew", "left"]],
        "answers": ["B", "A"],
    }
)
READERS = {
    "semantic_segmentation": read_pairs,
    "question_answering": read_questions,
    "token_classification": read_words,
    "multiple_choice": read_exams,
}


def chosen(folder, recipe, mode="train", path="", **options):
    """The splits that a recipe gets of a folder, and the facts of the run."""
    kind, inputs, target = KINDS[recipe]
    data = getattr(load_recipe(recipe), kind)(path=str(folder / path), **options)
    names = {each: getattr(data, f"{each}_column") for each in [*inputs, *([target] if target else [])]}
    job = make_job(data, mode)
    source = READERS.get(recipe, read)(data)
    splits = choose_splits(
        job, source, {each: names[each] for each in inputs}, {target: names[target]} if target else {}
    )
    return splits, job.facts, names


def write(folder, files):
    """Make files; a name that ends in `{}` makes two, with 1 and 2 in its place."""
    for name, content in files.items():
        for i in (1, 2) if "{}" in name else (0,):
            path = folder / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.replace("#", str(i)).encode())


def parquet(folder, name, rows, features=None):
    import datasets

    table = datasets.Dataset.from_list(rows)
    (table.cast(datasets.Features(features)) if features else table).to_parquet(folder / name)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


TSV = 'client_id\tpath\tsentence\tup_votes\nabc\tx1.mp3\tA "lone quote\t2\nabd\tx2.mp3\tNA\t2\n'
ANSWER = {"text": "Ada", "answer_start": 0}
QUESTIONS = [{"id": name, "question": "Who?", "answers": [ANSWER]} for name in "abc"]
SQUAD = json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "Ada wrote.", "qas": QUESTIONS}]}]})
SWAG = ",sent1,sent2,ending0,ending1,ending2,ending3,label\n0,She stands.,She,a,b,c,d,1\n1,NA,He,a,b,c,null,0\n"

CLASSES = ("bullet_train", "test_tube")

# name -> recipe, files, what the splits' targets (or texts, or files) are, options
READ = {
    "LibriSpeech as unpacked": (
        "asr_ctc",
        {
            "train-clean-100/19/198/19-198-000{}.flac": SOUND,
            "train-clean-100/19/198/19-198.trans.txt": "19-198-0001 ONE TWO\n19-198-0002\tNULL\n",
            "dev-clean/84/121/84-121-000{}.flac": SOUND,
            "dev-clean/84/121/84-121.trans.txt": "84-121-0001 A\u2028C\n84-121-0002 B\n",
            "SPEAKERS.TXT": "; ID | SEX",
        },
        {"train": ["ONE TWO", "NULL"], "validation": ["A\u2028C", "B"]},
        {},
    ),
    "a column that says the split, in a file called train": (
        "text_classification",
        {"train.csv": "text,label,split\na,x,train\nb,y,train\nc,x,val\nd,y,test\n"},
        {"train": ["x", "y"], "validation": ["x"], "test": ["y"]},
        {},
    ),
    "a table and the same one packed": (
        "text_classification",
        {f"{split}.csv": f"text,label\na,{split}\n" for split in ("train", "dev")}
        | {"train.csv.gz": gzip.compress(b"text,label\na,train\n", mtime=0)},
        {"train": ["train"], "validation": ["dev"]},
        {},
    ),
    "partitions as Spark and pandas write them": (
        "text_classification",
        {f"split={split}/part-0.csv": f"text,label\na,{split}\n" for split in ("train", "val", "test")},
        {"train": ["train"], "validation": ["val"], "test": ["test"]},
        {},
    ),
    "shards as the hub once named them": (
        "text_classification",
        {
            f"{split}-0000{i}-of-00002-29aec9150af50f9{i}.csv": f"text,label\na,{split}\n"
            for split in ("train", "validation")
            for i in range(2)
        },
        {"train": ["train"] * 2, "validation": ["validation"] * 2},
        {},
    ),
    "a copy in another folder": (
        "text_classification",
        {
            "train.csv": "text,label\na,x\nb,y\n",
            "backup/train.csv": "text,label\na,x\n",
            "dev.csv": "text,label\na,z\n",
        },
        {"train": ["x", "y"], "validation": ["z"]},
        {},
    ),
    "languages that are joined": (
        "text_classification",
        {f"{each}/{split}.csv": f"text,label\na,{each}\n" for each in ("de", "en") for split in ("train", "dev")},
        {"train": ["de", "en"], "validation": ["de", "en"]},
        {"train_split": "de/train+en/train", "validation_split": "de/dev+en/dev"},
    ),
    "a table of one split that names files of other folders": (
        "image_classification",
        {f"{folder}/{{}}.png": PICTURE for folder in ("train", "extra")}
        | {
            "train.csv": "file_name,label\n"
            + "".join(f"{it}/{i}.png,{it}\n" for it in ("train", "extra") for i in (1, 2))
        }
        | {"validation.csv": "file_name,label\ntrain/1.png,v\n"},
        {"train": ["train", "train", "extra", "extra"], "validation": ["v"]},
        {},
    ),
    "CoNLL's columns, of which one file has nothing but O at first": (
        "token_classification",
        {"train.txt": "EU B-ORG\nx O\n", "dev.txt": "EU B-ORG\n\nx O\n", "test.txt": "x O\ny O\n"},
        {"train": [["B-ORG", "O"]], "validation": [["B-ORG"], ["O"]], "test": [["O", "O"]]},
        {},
    ),
    "SQuAD's JSON, with other JSON beside it": (
        "question_answering",
        {"train-v2.0.json": SQUAD, "dev-v2.0.json": SQUAD, "dataset_info.json": "{}", "notes.json": "[1]"}
        | {"backup/train-v2.0.json": SQUAD, "runs/latin.json": b"\xe9"},
        {"train": 3, "validation": 3},
        {},
    ),
    "Common Voice": (
        "asr_ctc",
        {"clips/x{}.mp3": SOUND, "train.tsv": TSV, "dev.tsv": TSV, "test.tsv": TSV, "validated.tsv": TSV},
        {"train": ['A "lone quote', "NA"], "validation": ['A "lone quote', "NA"], "test": ['A "lone quote', "NA"]},
        {},
    ),
    "AudioFolder": (
        "asr_ctc",
        {
            "train/{}.wav": SOUND,
            "train/metadata.csv": "file_name,transcription\n1.wav,007\n2.wav,x\n",
            "test/{}.wav": SOUND,
            "test/metadata.csv": "file_name,transcription\n1.wav,null\n2.wav,y\n",
        },
        {"train": 1, "validation": 1, "test": ["null", "y"]},
        {"validation_share": 0.5},
    ),
    "one metadata.csv at the root": (
        "asr_ctc",
        {
            "train/{}.wav": SOUND,
            "test/{}.wav": SOUND,
            "metadata.csv": "file_name,text\ntrain/1.wav,a\ntrain/2.wav,b\ntest/1.wav,c\ntest/2.wav,d\n",
        },
        {"train": 1, "validation": 1, "test": ["c", "d"]},
        {"validation_share": 0.5},
    ),
    "metadata.tsv": (
        "asr_ctc",
        {"train/{}.wav": SOUND, "train/metadata.tsv": "file_name\ttext\n1.wav\ta\n2.wav\tb\n"},
        {"train": 1, "validation": 1},
        {"validation_share": 0.5},
    ),
    "metadata.jsonl": (
        "asr_ctc",
        {
            "{}.wav": SOUND,
            "metadata.jsonl": lines({"file_name": "1.wav", "text": "a"}, {"file_name": "2.wav", "text": "b"}),
        },
        {"train": 1, "validation": 1},
        {"validation_share": 0.5},
    ),
    "a text beside each sound": (
        "asr_ctc",
        {"train/{}.wav": SOUND, "train/{}.txt": "text #\n", "val/{}.wav": SOUND, "val/{}.txt": "# text"},
        {"train": ["text 1", "text 2"], "validation": ["1 text", "2 text"]},
        {},
    ),
    "NeMo's manifests": (
        "asr_ctc",
        {
            "wavs/{}.wav": SOUND,
            "train_manifest.json": lines(
                *({"audio_filepath": f"wavs/{i}.wav", "text": f"t{i}", "duration": 0.1} for i in (1, 2))
            ),
            "dev_manifest.json": lines(
                *({"audio_filepath": f"wavs/{i}.wav", "text": f"d{i}", "duration": 0.1} for i in (1, 2))
            ),
        },
        {"train": ["t1", "t2"], "validation": ["d1", "d2"]},
        {},
    ),
    "LJSpeech, its columns named": (
        "asr_ctc",
        {"wavs/LJ-{}.wav": SOUND, "metadata.csv": 'LJ-1|He said "no.|no\nLJ-2|NA|na\n'},
        {"train": 1, "validation": 1},
        {"delimiter": "|", "header": ["file", "text", "normalized"], "validation_share": 0.5},
    ),
    "a table beside clips": (
        "asr_ctc",
        {"clips/{}.wav": SOUND, "rows.csv": "path,sentence\nclips/1.wav,a\nclips/2.wav,b\n"},
        {"train": 1, "validation": 1},
        {"path": "rows.csv", "validation_share": 0.5},
    ),
    "VoxCeleb": (
        "speaker_verification",
        {"wav/id1/v/0000{}.wav": SOUND, "wav/id2/v/0000{}.wav": SOUND},
        {"train": 2, "validation": 2},
        {"validation_share": 0.5},
    ),
    "Speech Commands with its lists": (
        "audio_classification",
        {
            **{f"{word}/{{}}_nohash_0.wav": SOUND for word in ("yes", "no", "train")},
            "yes/3_nohash_0.wav": SOUND,
            "no/3_nohash_0.wav": SOUND,
            "validation_list.txt": "yes/3_nohash_0.wav\n",
            "testing_list.txt": "no/3_nohash_0.wav\n",
            "README.md": "words",
        },
        {"train": ["no", "no", "train", "train", "yes", "yes"], "validation": ["yes"], "test": ["no"]},
        {},
    ),
    "lists of files that are not all there, and of names with spaces": (
        "audio_classification",
        {
            **{f"{word}/take {{}}.wav": SOUND for word in ("yes", "no")},
            "maybe/{}.wav": SOUND,
            "yes/3.wav": SOUND,
            "validation_list.txt": "yes/take 1.wav\nmaybe/2.wav 7\nno/take 9.wav\n\n",
            "testing_list.txt": ".\\yes\\take 2.wav\nno/take 9.wav\n",
        },
        {"train": ["maybe", "no", "no", "yes"], "validation": ["maybe", "yes"], "test": ["yes"]},
        {},
    ),
    "sounds in folders of classes": (
        "audio_classification",
        {f"{split}/{word}/{{}}.wav": SOUND for split in ("train", "Validation", "test") for word in ("a", "b")},
        {"train": ["a", "a", "b", "b"], "validation": ["a", "a", "b", "b"], "test": ["a", "a", "b", "b"]},
        {},
    ),
    "ESC-50": (
        "audio_classification",
        {"audio/1-{}-A.wav": SOUND, "meta/esc50.csv": "filename,fold,category\n1-1-A.wav,1,dog\n1-2-A.wav,2,rain\n"},
        {"train": 1, "validation": 1},
        {"validation_share": 0.5},
    ),
    "UrbanSound8K": (
        "audio_classification",
        {
            "audio/fold1/{}-0.wav": SOUND,
            "metadata/UrbanSound8K.csv": "slice_file_name,fold,class\n1-0.wav,1,dog\n2-0.wav,1,siren\n",
        },
        {"train": 1, "validation": 1},
        {"validation_share": 0.5},
    ),
    "a flat test beside classes": (
        "audio_classification",
        {"train/a/{}.wav": SOUND, "train/b/{}.wav": SOUND, "test/{}.wav": SOUND},
        {"train": 2, "validation": 2},
        {"validation_share": 0.5},
    ),
    "AMI with RTTM": (
        "audio_frame_classification",
        {"train/EN200{}.wav": SOUND, "dev/IS100{}.wav": SOUND, "test/ES200{}.wav": SOUND, "all.rttm": "SPEAKER"},
        {"train": 2, "validation": 2, "test": 2},
        {},
    ),
    "ImageFolder": (
        "image_classification",
        {
            f"{split}/{kind}/{{}}.png": PICTURE
            for split in ("train", "val", "test")
            for kind in ("bullet_train", "test_tube")
        },
        {split: ["bullet_train"] * 2 + ["test_tube"] * 2 for split in ("train", "validation", "test")},
        {},
    ),
    "ImageNet with devkit names": (
        "image_classification",
        {
            "train/n01440764/n01440764_{}.JPEG": PICTURE,
            "train/n01443537/n01443537_{}.JPEG": PICTURE,
            "val/ILSVRC2012_val_0000000{}.JPEG": PICTURE,
            "ILSVRC2012_validation_ground_truth.txt": "490\n361\n",
        },
        {"train": 2, "validation": 2},
        {"validation_share": 0.5},
    ),
    "Kaggle's train.csv and test.csv": (
        "image_classification",
        {
            "train/{}.png": PICTURE,
            "test/{}.png": PICTURE,
            "train.csv": "id,label\n1,cat\n2,dog\n",
            "test.csv": "id\n1\n2\n",
            "sample_submission.csv": "id,label\n1,cat\n2,cat\n",
        },
        {"train": 1, "validation": 1},
        {"validation_share": 0.5},
    ),
    "photos with split words in their names": (
        "image_classification",
        {f"{kind}/{name}.jpg": PICTURE for kind in ("cat", "dog") for name in ("test_1", "train_2", "val", "IMG3")},
        {"train": 4, "validation": 4},
        {"validation_share": 0.5},
    ),
    "CIFAR-100 as parquet": (
        "image_classification",
        "cifar",
        {"train": ["a", "b"], "validation": ["b", "a"], "test": ["b", "a"]},
        {"validation_split": "test"},
    ),
    "ADE20K": (
        "semantic_segmentation",
        {
            f"{part}/{split}/ADE_{{}}.png": PICTURE
            for part in ("images", "annotations")
            for split in ("training", "validation")
        },
        {"train": 2, "validation": 2},
        {},
    ),
    "Cityscapes": (
        "semantic_segmentation",
        {
            f"{part}/{split}/aachen/a_{{}}_{end}.png": PICTURE
            for split in ("train", "val")
            for part, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"), ("gtFine", "gtFine_color"))
        },
        {"train": 2, "validation": 2},
        {},
    ),
    "COCO-Stuff": (
        "semantic_segmentation",
        {f"{part}/{split}2017/{{}}.png": PICTURE for part in ("images", "annotations") for split in ("train", "val")},
        {"train": 2, "validation": 2},
        {},
    ),
    "Pascal VOC": (
        "semantic_segmentation",
        {
            "JPEGImages/200{}.jpg": PICTURE,
            "JPEGImages/3.jpg": PICTURE,
            "SegmentationClass/200{}.png": PICTURE,
            "ImageSets/Segmentation/train.txt": "2001\n",
            "ImageSets/Segmentation/val.txt": "2002\n",
            "ImageSets/Segmentation/trainval.txt": "2001\n2002\n",
        },
        {"train": 1, "validation": 1},
        {},
    ),
    "Pascal VOC as unpacked": (
        "semantic_segmentation",
        {
            "JPEGImages/{}.jpg": PICTURE,
            "JPEGImages/3.jpg": PICTURE,
            "SegmentationClass/{}.png": PICTURE,
            "SegmentationObject/{}.png": PICTURE,
            "ImageSets/Action/jumping_train.txt": "3  1\n",
            "ImageSets/Main/train.txt": "1\n3\n",
            "ImageSets/Main/val.txt": "2\n",
            "ImageSets/Main/cat_train.txt": "1 -1\n3  1\n",
            "ImageSets/Segmentation/train.txt": "1\n",
            "ImageSets/Segmentation/val.txt": "2\n9\n",
        },
        {"train": 1, "validation": 1},
        {},
    ),
    "CamVid as SegNet has it": (
        "semantic_segmentation",
        {f"{split}{end}/{{}}.png": PICTURE for split in ("train", "val", "test") for end in ("", "annot")},
        {"train": 2, "validation": 2, "test": 2},
        {},
    ),
    "masks beside images of each split": (
        "semantic_segmentation",
        {
            **{f"{split}/images/{{}}.jpg": PICTURE for split in ("train", "dev")},
            **{f"{split}/masks/{{}}_mask.png": PICTURE for split in ("train", "dev")},
        },
        {"train": 2, "validation": 2},
        {},
    ),
    "GLUE's TSVs": (
        "text_classification",
        {
            "train.tsv": 'sentence\tlabel\na "lone quote\t1\nnull\t0\n',
            "dev.tsv": "sentence\tlabel\nx\t1\ny\t0\n",
            "test.tsv": "index\tsentence\n0\tz\n1\tw\n",
        },
        {"train": ["1", "0"], "validation": ["1", "0"]},
        {},
    ),
    "CoLA's TSVs without a header": (
        "text_classification",
        {"in_domain_train.tsv": "gj04\t1\t\tA.\ngj04\t0\t*\tB.\n", "in_domain_dev.tsv": "gj04\t1\t\tC.\n"},
        {"train": ["1", "0"], "validation": ["1"]},
        {"header": ["source", "label", "mark", "sentence"]},
    ),
    "IMDB's folders of reviews": (
        "text_classification",
        {f"{split}/{kind}/{{}}_9.txt": "A film\nto see." for split in ("train", "test") for kind in ("neg", "pos")},
        {"train": 2, "validation": 2, "test": ["neg", "neg", "pos", "pos"]},
        {"validation_share": 0.5},
    ),
    "IMDB's reviews without a class, and texts beside the folders": (
        "text_classification",
        {f"{kind}/{{}}_9.txt": "A film." for kind in ("train/neg", "train/pos", "test/neg", "test/pos", "train/unsup")}
        | {"train/urls.txt": "a"},
        {"train": 2, "validation": 2, "test": ["neg", "neg", "pos", "pos"]},
        {"validation_share": 0.5},
    ),
    "a column that says the split": (
        "text_classification",
        {"rows.csv": "text,label,split\na,x,train\nb,y,train\nc,x,val\nd,y,test\n"},
        {"train": ["x", "y"], "validation": ["x"], "test": ["y"]},
        {"path": "rows.csv"},
    ),
    "a column that says the split in its own way": (
        "text_classification",
        {"rows.csv": "text,label,Split\na,x, train\nb,y,Train\nc,x,val\nd,y,test \ne,z,exclude\nf,z,\n"},
        {"train": ["x", "y"], "validation": ["x"], "test": ["y"]},
        {"path": "rows.csv"},
    ),
    "Excel's CSV": (
        "text_classification",
        {"rows.csv": b"\xef\xbb\xbfText;Label\r\n1,5 m;x\r\nb;y\r\n"},
        {"train": 1, "validation": 1},
        {"path": "rows.csv", "delimiter": ";", "validation_share": 0.5},
    ),
    "shards of the hub": (
        "text_classification",
        "shards",
        {"train": ["a", "b"] * 2, "validation": ["a"], "test": ["b"]},
        {},
    ),
    "CoNLL 2003's own files": (
        "token_classification",
        {
            "eng.train": "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nx NN O O\n\ny NN O O\n",
            "eng.testa": "EU NNP I-NP B-ORG\n",
            "eng.testb": "y NN O O\n\n\n",
        },
        {"train": [["B-ORG", "O"], ["O"]], "validation": [["B-ORG"]], "test": [["O"]]},
        {},
    ),
    "columns in text files": (
        "token_classification",
        {f"{split}.txt": "\ufeffEU\tB-ORG\r\nx\tO\r\n\r\nEU\tB-ORG\r\n" for split in ("train", "dev")},
        {split: [["B-ORG", "O"], ["B-ORG"]] for split in ("train", "validation")},
        {},
    ),
    "CoNLL-U": (
        "token_classification",
        {f"en_ewt-ud-{split}.conllu": CONLLU for split in ("train", "dev", "test")},
        {split: [["NOUN", "VERB"], ["NOUN"]] for split in ("train", "validation", "test")},
        {},
    ),
    "RACE's own files": (
        "multiple_choice",
        {f"{split}/{level}/1.txt": EXAM for split in ("train", "dev", "test") for level in ("high", "middle")},
        {split: ["B", "A"] * 2 for split in ("train", "validation", "test")},
        {},
    ),
    "CoNLL 2003 as JSON lines": (
        "token_classification",
        {f"{split}.jsonl": lines({"tokens": ["EU"], "ner_tags": ["B-ORG"]}) for split in ("train", "valid", "test")},
        {split: [["B-ORG"]] for split in ("train", "validation", "test")},
        {},
    ),
    "Universal Dependencies as parquet": (
        "token_classification",
        "ud",
        {"train": [["NOUN"]], "validation": [["NOUN"]]},
        {},
    ),
    "SQuAD's JSON": (
        "question_answering",
        {"train-v1.1.json": SQUAD, "dev-v1.1.json": SQUAD},
        {"train": 3, "validation": 3},
        {},
    ),
    "SQuAD's JSON under other names, and what macOS leaves": (
        "question_answering",
        {
            **{f"{split}.json": SQUAD.encode("utf-8-sig") for split in ("Train", "Val", "Test", "latest")},
            "._Train.json": MACOS,
        },
        {"train": 3, "validation": 3, "test": 3},
        {},
    ),
    "SQuAD's JSON, train and eval": (
        "question_answering",
        {"train.json": SQUAD, "eval.json": SQUAD},
        {"train": 3, "validation": 3, "test": 3},
        {"validation_split": "eval"},
    ),
    "CoNLL's columns under other names": (
        "token_classification",
        {
            **{f"{split}.conll": "EU B-ORG\nx O\n" for split in ("train", "eval")},
            **{f"{name}.conll": "no word\n" for name in ("values", "device")},
            "._train.conll": MACOS,
        },
        {split: [["B-ORG", "O"]] for split in ("train", "validation", "test")},
        {"validation_split": "eval"},
    ),
    "a large treebank in parts": (
        "token_classification",
        {f"de_hdt-ud-{split}.conllu": CONLLU for split in ("train-a-1", "train-b-2", "dev")},
        {"train": [["NOUN", "VERB"], ["NOUN"]] * 2, "validation": [["NOUN", "VERB"], ["NOUN"]]},
        {},
    ),
    "RACE's files, and what macOS leaves": (
        "multiple_choice",
        {f"{split}/high/1.txt": EXAM for split in ("train", "dev")} | {"train/high/._1.txt": MACOS},
        {"train": ["B", "A"], "validation": ["B", "A"]},
        {},
    ),
    "SWAG's CSV": (
        "multiple_choice",
        {"train.csv": SWAG, "val.csv": SWAG},
        {"train": ["1", "0"], "validation": ["1", "0"]},
        {},
    ),
    "plain text": (
        "causal_lm",
        {"input.txt": "".join(f"line {i}\n" for i in range(10))},
        {"train": [f"line {i}" for i in range(8)], "validation": ["line 8", "line 9"]},
        {"path": "input.txt", "separator": "\n", "validation_share": 0.2},
    ),
    "WikiText's files": (
        "causal_lm",
        {"wiki.train.txt": "a\n", "wiki.valid.txt": "b\n", "wiki.test.txt": "c\n", "README.txt": "about"},
        {"train": ["a"], "validation": ["b"], "test": ["c"]},
        {},
    ),
    "books in a folder": (
        "causal_lm",
        {"one.txt": "a\nb\n", "two.txt": "c\nd\n", "LICENSE.txt": "free"},
        {"train": ["a", "b", "c"], "validation": ["d"]},
        {"separator": "\n"},
    ),
    "one sound to predict": (
        "asr_ctc",
        {"a.wav": SOUND, "b.wav": SOUND},
        {"test": 1},
        {"path": "a.wav", "mode": "predict"},
    ),
    "one picture to predict": (
        "image_classification",
        {"a.png": PICTURE},
        {"test": 1},
        {"path": "a.png", "mode": "predict"},
    ),
    "four photos to predict": (
        "semantic_segmentation",
        {"a.png": PICTURE, "b.png": PICTURE, "c.png": PICTURE, "test_1.png": PICTURE},
        {"test": 4},
        {"mode": "predict"},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_layouts_are_read(tmp_path, name):
    recipe, files, expected, options = READ[name]
    if files == "cifar":
        import datasets

        features = {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["a", "b"]),
            "coarse_label": datasets.ClassLabel(names=["c"]),
        }
        rows = [{"img": {"bytes": PICTURE, "path": None}, "fine_label": i, "coarse_label": 0} for i in (0, 1)]
        parquet(tmp_path, "train-00000-of-00001.parquet", rows, features)
        parquet(tmp_path, "test-00000-of-00001.parquet", rows[::-1], features)
    elif files == "shards":
        for name, labels in {
            "train-00000-of-00002": "ab",
            "train-00001-of-00002": "ab",
            "validation-00000-of-00001": "a",
            "test-00000-of-00001": "b",
        }.items():
            parquet(tmp_path, f"{name}.parquet", [{"text": "x", "label": label} for label in labels])
    elif files == "ud":
        for split in ("train", "dev"):
            parquet(
                tmp_path,
                f"en_ewt-ud-{split}.parquet",
                [{"tokens": ["cat"], "lemmas": ["cat"], "upos": ["NOUN"], "xpos": ["NN"]}],
            )
    else:
        write(tmp_path, files)
    splits, facts, names = chosen(tmp_path, recipe, **options)
    target = KINDS[recipe][2]
    column = names[target] if target else names[KINDS[recipe][1][0]]
    found = {}
    for split, rows in splits.items():
        values = rows.column(column) if isinstance(expected.get(split), list) else len(rows)
        feature = rows.table.features.get(column)
        named = isinstance(values, list) and hasattr(feature, "int2str") and isinstance(expected[split][0], str)
        found[split] = feature.int2str(values) if named else values
    assert found == expected
    assert [fact["fact"] for fact in facts].count("splits") == 1


def test_texts_and_files_that_are_not_read_are_said(tmp_path):
    _, files, _, _ = READ["IMDB's reviews without a class, and texts beside the folders"]
    write(tmp_path / "imdb", files)
    data = load_recipe("text_classification").ClassificationData(path=str(tmp_path / "imdb"))
    assert "not read: 3 texts in no folder of a class" in " | ".join(line for _, line, _ in read(data).remarks)
    write(tmp_path / "lists", {"{}/{}.wav".replace("{}", kind, 1): SOUND for kind in "ab"})
    (tmp_path / "lists/train.txt").write_text("a/1.wav\nb/1.wav\n")
    (tmp_path / "lists/test.txt").write_text("a/2.wav\n")
    splits, *_ = chosen(tmp_path, "audio_classification", path="lists")
    assert (sum(len(splits[name]) for name in ("train", "validation")), len(splits["test"])) == (2, 1)
    source = read(load_recipe("audio_classification").ClassificationData(path=str(tmp_path / "lists")))
    assert "not read: " in " | ".join(line for _, line, _ in source.remarks)


def test_what_lists_and_columns_of_splits_leave_out_is_said(tmp_path):
    for name in (
        "lists of files that are not all there, and of names with spaces",
        "a column that says the split in its own way",
    ):
        recipe, files, _, options = READ[name]
        write(tmp_path / recipe, files | {"dev_notes.txt": "about"})
        path = tmp_path / recipe / options.get("path", "")
        said = " | ".join(line for _, line, _ in read(load_recipe(recipe).ClassificationData(path=str(path))).remarks)
        if recipe == "text_classification":
            assert "column 'Split': 2 rows are of no usual split and are left out: exclude (1), none (1)" in said
        else:
            assert "test: the 1 files that testing_list.txt names; 1 others are not there, the first is no/t" in said
            assert "validation: the 2 files that validation_list.txt names; 1 others are not there" in said


def test_a_list_that_names_nothing_is_said(tmp_path):
    write(tmp_path, {"a/{}.wav": SOUND, "b/{}.wav": SOUND, "testing_list.txt": "c/1.wav\n"})
    ((_, line, _),) = read(load_recipe("audio_classification").ClassificationData(path=str(tmp_path))).remarks
    assert "testing_list.txt names none of the files and is no list of a split" in line


@pytest.mark.parametrize("text", ["some words of a text {}", "sömé words {}"])
def test_words_are_soon_known_to_be_no_files(tmp_path, monkeypatch, text):
    calls = []
    write(tmp_path, {f"{i}/1.wav": SOUND for i in range(20)})
    monkeypatch.setattr(Path, "is_file", lambda self: calls.append(self))
    assert place_files([text.format(i) for i in range(20)], tmp_path) is None
    assert len(calls) <= 4 * 22 * (1 + len(AUDIO | PICTURES))


def test_a_link_to_a_folder_that_it_is_in_is_not_followed(tmp_path):
    write(tmp_path, {"data/train/1.wav": SOUND, "pool/2.wav": SOUND})
    for link, target in {"train/latest": ".", "up": "..", "test": "../pool", "validation": "../pool"}.items():
        (tmp_path / "data" / link).symlink_to(target, target_is_directory=True)
    found = ["test/2.wav", "train/1.wav", "validation/2.wav"]
    assert [path.as_posix() for path in walk(tmp_path / "data")] == found


TABLES = {
    "a table called train": {"train.csv": "image,label\n1.png,a\n2.png,b\n"},
    "ids without an ending": {"train.csv": "id,label\n1,a\n2,b\n"},
    "a table of another name, and a sample submission": {
        "labels.csv": "id,breed\n1,a\n2,b\n",
        "sample_submission.csv": "id,breed\n7,a\n8,a\n9,a\n",
    },
}


@pytest.mark.parametrize("name", TABLES)
def test_the_images_of_a_test_that_no_table_names(tmp_path, name):
    """As Kaggle has them: not train's rows are predicted, which have names that differ."""
    folders = {"train/{}.png": PICTURE} | {f"test/{i}.png": PICTURE for i in (7, 8, 9)}
    write(tmp_path, TABLES[name] | folders)
    splits, _, _ = chosen(tmp_path, "image_classification", "predict")
    assert [PurePath(each).name for each in splits["test"].files("image")] == ["7.png", "8.png", "9.png"]
    column = "label" if "train.csv" in TABLES[name] else "breed"
    splits, _, _ = chosen(tmp_path, "image_classification", label_column=column)
    assert {split: len(rows) for split, rows in splits.items() if split != "test"} == {"train": 1, "validation": 1}


TOLD_APART = {
    "by a column of splits": ("filename,split,label\n", "{name}.png,{folder},{i}\n", ("train", "val", "test")),
    "by their class": ("filename,label\n", "{name}.png,{folder}\n", ("cat", "dog")),
    "by another column, without endings": ("name,camera,label\n", "{name},{folder},x{i}\n", ("left", "right")),
}


@pytest.mark.parametrize("name", TOLD_APART)
def test_files_of_one_name_in_several_folders(tmp_path, name):
    """A table of bare names was once looked up in the folder that had most of the first ones, for all rows."""
    head, row, folders = TOLD_APART[name]
    write(tmp_path, {f"{folder}/{{}}.png": PICTURE for folder in folders})
    table = head + "".join(row.format(name=i, folder=each, i=i) for each in folders for i in (1, 2))
    (tmp_path / "labels.csv").write_text(table)
    splits, _, _ = chosen(tmp_path, "image_classification")
    column = "split" if "split" in name else "label" if "class" in name else "camera"
    rows = [
        (path, word)
        for split in splits.values()
        for path, word in zip(split.files("image"), split.column(column), strict=True)
    ]
    assert len({path for path, _ in rows}) == 2 * len(folders) == len(rows)
    assert all(PurePath(path).parent.name == word for path, word in rows)
    ids = [each for split in splits.values() for each in split.ids("image")]
    assert len(set(ids)) == len(ids)


def test_a_picture_beside_folders_of_classes_has_none(tmp_path):
    """It takes no class from the others, and is predicted like them."""
    files = {f"{split}/{kind}/{{}}.png": PICTURE for split in ("train", "val") for kind in "ab"}
    write(tmp_path, files | {"val/x.png": PICTURE})
    splits, _, _ = chosen(tmp_path, "image_classification")
    assert sorted(splits["train"].column("label")) == [0, 0, 1, 1]
    assert splits["validation"].column("label") == [0, 0, 1, 1, None]
    source = read(load_recipe("image_classification").ClassificationData(path=str(tmp_path)))
    assert len(source["val"]) == 5
    assert any(
        "of no class: 1 .png of val, in no folder of one; the first is val/x.png" in it for _, it, _ in source.remarks
    )


FOLDERS = {
    "copies beside the images": ({"images": "", "thumbs": ""}, ["images"]),
    "a folder a speaker, each with its table": ({"one/crops": "one", "two/crops": "two"}, ["one/crops", "two/crops"]),
    "a test of the same names": ({"train": "", "test": ""}, ["train"]),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_files_stay_where_most_of_a_tables_are(tmp_path, name):
    """Whichever other folders have files of these names, and though one of its own is not there."""
    folders, expected = FOLDERS[name]
    write(tmp_path, {f"{folder}/{i}.png": PICTURE for folder in folders for i in range(30)})
    for table in set(folders.values()):
        rows = "".join(f"{i}.png,{i % 2}\n" for i in range(30))
        (tmp_path / table / ("metadata.csv" if table else "train.csv")).write_text(f"file_name,label\n{rows}")
        (tmp_path / (f"{table}/crops" if table else expected[0]) / "25.png").unlink()
    data = load_recipe("image_classification").ClassificationData(path=str(tmp_path))
    paths = read(data)["train"]["image"][:]
    assert {PurePath(path).parent.relative_to(tmp_path).as_posix() for path in paths} == set(expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_names_of_files_as_pandas_and_polars_write_them(tmp_path, streaming):
    """Of a type for longer texts."""
    write(tmp_path, {"clips/{}.png": PICTURE})
    names = pa.array(["clips/1.png", "clips/2.png"], pa.large_string())
    for split in ("train", "validation"):
        pa.parquet.write_table(pa.table({"image": names, "label": ["a", "b"]}), tmp_path / f"{split}.parquet")
    job = make_job(ImageData(path=str(tmp_path), streaming=streaming), max_steps=1)
    splits = load(job, None, inputs={"image": "image"})
    train = splits["train"]
    rows = [train] if train.stream is None else [train.stream.split(0, 0, each) for each in train.stream.tables(0)]
    for split in (*rows, splits["validation"]):
        assert split.files("image") == [str(tmp_path / f"clips/{i}.png") for i in (1, 2)]


def test_empty_and_absolute_names_stay(tmp_path):
    write(tmp_path, {f"{folder}/{i}.png": PICTURE for folder in ("left", "right") for i in range(30)})
    whole = str(tmp_path / "left/3.png")
    rows = "".join(f"{i}.png,{folder}\n" for folder in ("left", "right") for i in range(30))
    (tmp_path / "metadata.csv").write_text(f"file_name,side\n{rows},left\n,left\n{whole},left\n")
    found = read(load_recipe("image_classification").ClassificationData(path=str(tmp_path)))["train"]["image"][:]
    assert found[-3:] == ["", "", whole] and found[30] == str(tmp_path / "right/0.png")


def test_names_of_files_beside_a_table_are_those(tmp_path):
    """Whatever other folders have files of these names."""
    write(tmp_path, {f"{split}/{{}}.png": PICTURE for split in ("train", "val", "thumbs")})
    for split in ("train", "val"):
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n1.png,a\n2.png,b\n")
    splits, _, _ = chosen(tmp_path, "image_classification")
    for name, folder in (("train", "train"), ("validation", "val")):
        assert {PurePath(path).parent.name for path in splits[name].files("image")} == {folder}


@pytest.mark.parametrize("card", [False, True])
@pytest.mark.parametrize("form", ["{}.jsonl", "{}.csv"])
def test_paths_are_those_beside_the_table_and_not_where_the_command_runs(tmp_path, monkeypatch, card, form):
    """Those in `{"path": ...}` too, and in a folder with a card."""
    write(tmp_path, {"set/clips/{}.wav": SOUND, "elsewhere/clips/{}.wav": b"x"})
    for split in ("train", "validation"):
        names = [f"clips/{i}.wav" for i in (1, 2)]
        plain = "audio,text\n" + "".join(f"{name},a\n" for name in names)
        nested = lines(
            *({"audio": {"path": name, "array": None, "sampling_rate": 16000}, "text": "a"} for name in names)
        )
        (tmp_path / "set" / form.format(split)).write_text(plain if "csv" in form else nested)
    if card:
        name_splits(tmp_path / "set", ["train", "validation"], form)
    monkeypatch.chdir(tmp_path / "elsewhere")
    splits, _, _ = chosen(tmp_path, "asr_ctc", path="set")
    assert splits["train"].files("audio") == [str(tmp_path / f"set/clips/{i}.wav") for i in (1, 2)]


def test_what_is_not_read_beside_tables_is_said(tmp_path):
    write(
        tmp_path,
        {"train.csv": "text,label,split\na,b,train\nc,d,test\n", "test.csv": "text,label\na,b\n", "dev.csv.zip": "PK"},
    )
    data = load_recipe("text_classification").ClassificationData(path=str(tmp_path))
    source = read(data)
    assert len(source["train"]) == 2
    said = " | ".join(line for _, line, _ in source.remarks)
    assert "not read: 1 .zip; the first is dev.csv.zip" in said
    assert "train: its rows say that they are of train, test, which is not used, since files say splits too" in said


def test_a_test_folder_that_a_table_names_is_not_read_again(tmp_path):
    names = ["train/1.png", "train/2.png", "test/7.png"]
    rows = "".join(f"{name},{name[-5]}\n" for name in names)
    write(tmp_path, {"all.csv": f"file_name,label\n{rows}", "train/{}.png": PICTURE, "test/7.png": PICTURE})
    splits, _, _ = chosen(tmp_path, "image_classification")
    assert splits["test"].column("label") == ["7"]


# name -> recipe, files, the line
REFUSED = {
    "LJSpeech without its columns": (
        "asr_ctc",
        {"wavs/LJ-{}.wav": SOUND, "metadata.csv": "LJ-1|no|no\nLJ-2|NA|na\n"},
        r"metadata.csv: has one column, 'LJ-1\|no\|no'; --data.delimiter '\|' makes several",
    ),
    "texts with times beside sounds": (
        "asr_ctc",
        {"train/{}.wav": SOUND, "train/0.txt": "0.0\t1.5\thello\n1.5\t2\tyou\n", "train/1.txt": "0 46797 She had\n"},
        r"train/[01].txt: each line begins with two times, as Audacity's, HTK's and TIMIT's do",
    ),
    "RACE's files": ("multiple_choice", {"train/high/1.txt": '{"answers": ["A"]}'}, "no column 'sent1'"),
    "CoNLL's columns, of which a line lacks one": (
        "token_classification",
        {"train.conll": "EU NNP B-ORG\nx O\n"},
        r"train.conll, line 2: has 2 columns, should have 3",
    ),
    "a file of RACE without its options": (
        "multiple_choice",
        {"train/high/1.txt": EXAM, "train/high/2.txt": '{"article": "a", "questions": ["b"]}'},
        r"2.txt: should have article, questions, and options and an answer of each, as in RACE \('options'\)",
    ),
    "folds, each with its own train": (
        "text_classification",
        {f"fold{i}/{split}.csv": "text,label\na,b\n" for i in range(2) for split in ("train", "test")},
        r"fold0/train, fold1/train may be meant by 'train'; name one \(data.train_split\), or fold0/train\+fold1/train",
    ),
    "names of all files of several folders": (
        "image_classification",
        {f"{kind}/{{}}.png": PICTURE for kind in "ab"} | {"labels.csv": "file_name,label\n" + "1.png,c\n2.png,d\n" * 2},
        "row 0 may mean .*/a/1.png or .*/b/1.png; 4 rows name files that are in several folders",
    ),
    "an empty file": ("text_classification", {"train.jsonl": ""}, "train.jsonl: is empty"),
    "spreadsheets": ("text_classification", {"rows.xlsx": b"PK"}, "there are 1 .xlsx; looked for tables"),
    "sounds that are not read": ("asr_ctc", {"a.m4a": b"x", "b.m4a": b"x"}, "there are 2 .m4a; looked for tables"),
    "an empty folder": ("asr_ctc", {"empty/.keep": ""}, "there are no files; looked for tables"),
    "several trains": (
        "asr_ctc",
        {f"{split}/{{}}.wav": SOUND for split in ("train-clean-100", "train-clean-360", "dev-clean")},
        r"train-clean-100, train-clean-360 may be meant by 'train'; name one \(data.train_split\), or train-",
    ),
    "several columns": (
        "asr_ctc",
        {"{}.wav": SOUND, "metadata.csv": "file_name,transcription,normalized_text\n1.wav,a,b\n2.wav,a,b\n"},
        r"no column 'text'; transcription, normalized_text may be meant \(data.text_column\)",
    ),
    "several kinds of tags": (
        "token_classification",
        {"train.jsonl": lines({"tokens": ["a"], "pos_tags": ["N"], "ner_tags": ["O"]})},
        r"no column 'tags'; pos_tags, ner_tags may be meant",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layouts_are_named(tmp_path, name):
    recipe, files, message = REFUSED[name]
    write(tmp_path, files)
    with pytest.raises(InputError, match=message) as caught:
        chosen(tmp_path, recipe)
    assert "\n" not in str(caught.value)


def test_rarer_endings_are_read_or_counted(tmp_path):
    write(tmp_path, {"cat/{}.jfif": PICTURE, "dog/{}.jpe": PICTURE, "dog/3.avif": b"x"})
    source = read(ImageData(path=str(tmp_path)))
    assert len(source["train"]) == 4 and any("not read: 1 .avif" in line for _, line, _ in source.remarks)
    write(tmp_path / "sounds", {"a/{}.wave": SOUND})
    assert sum(map(len, chosen(tmp_path / "sounds", "audio_classification", "predict")[0].values())) == 2
