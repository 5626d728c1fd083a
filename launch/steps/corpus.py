"""The corpus as tokens. Files: those of its tokenizer (`load_tokenizer` reads the folder) and `tokens/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from launch.graph import NOT_MEANING, Context, Step
from tandem.config import Corpus, DataConfig
from tandem.data.corpus import documents, is_heldout, split_group
from tandem.data.packing import pack
from tandem.data.tokenizer import copy_tokenizer, load_tokenizer

TOKENIZER = "tokenizer.model"
# The roles of files: of the texts, and of a tokenizer that is given.
TEXTS, GIVEN_TOKENIZER = "texts", "tokenizer"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenizeCorpus(Step):
    """The corpus tokenised and split; without a file of a tokenizer one is trained on the training documents."""

    kind: ClassVar[str] = "corpus"
    version: ClassVar[int] = 2  # long lines are cut for training a tokenizer, and not left out
    on_devices: ClassVar[bool] = False

    corpus: Corpus
    vocab_size: int
    heldout_fraction: float
    python: str | None = None  # stdlib: whose library it is
    separator: str | None = None  # text
    dataset: str | None = None  # tfds
    text_feature: str | None = None  # tfds
    # Where the texts lie on this machine; what they hold is in `files`.
    path: str | None = field(default=None, metadata=NOT_MEANING)
    data_dir: str | None = field(default=None, metadata=NOT_MEANING)

    def run(self, context: Context) -> None:
        from tandem.data.sentencepiece_tokenizer import train_tokenizer
        from tasks.text import tfds_documents

        data = DataConfig(
            corpus=self.corpus,
            path=self.path,
            separator=self.separator or "",
            dataset=self.dataset,
            data_dir=self.data_dir,
            text_feature=self.text_feature or "",
        )
        group, files = split_group(data), context.files.get(TEXTS)
        if given := context.files.get(GIVEN_TOKENIZER):
            copy_tokenizer([given.named(path) for _, path in given.entries], context.out)
        else:
            training = (
                document
                for document in documents(data, tfds_documents, files)
                if not is_heldout(group(document.name), self.heldout_fraction)
            )
            model = train_tokenizer((document.text for document in training), self.vocab_size)
            (context.out / TOKENIZER).write_bytes(model)
        found, tokenizer = documents(data, tfds_documents, files), load_tokenizer(context.out)
        meta = pack(found, tokenizer, context.out / "tokens", self.heldout_fraction, group)
        context.log(train_tokens=meta["train"]["tokens"], heldout_tokens=meta["heldout"]["tokens"])
