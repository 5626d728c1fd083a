"""The tokenizer of a llama2.c checkpoint, as the SentencePiece model that it was made from."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tandem.errors import EnvironmentFailure


def llama2c_tokenizer(path: Path) -> bytes:
    """The SentencePiece model of a llama2.c tokenizer file (scores and pieces), with byte fallback.

    The file holds pieces as they are printed; ids 0, 1 and 2 are unknown, start and end. Raises EnvironmentFailure for
    a damaged file.
    """
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2  # its names are made when it is imported, which a type checker cannot see

    try:
        data, offset = path.read_bytes(), 4
    except OSError as error:
        raise EnvironmentFailure(f"{path}: cannot be read: {error.strerror}") from error
    kind = protocol.ModelProto.SentencePiece
    model = protocol.ModelProto()
    try:
        while offset < len(data):
            score, length = struct.unpack_from("<fi", data, offset)
            piece = data[offset + 8 : offset + 8 + length].decode()
            if length < 1 or offset + 8 + length > len(data):
                raise ValueError(f"piece {len(model.pieces)} is cut off")
            offset += 8 + length
            index = len(model.pieces)
            if index < 3:
                special = (("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL))[index]
                model.pieces.add(piece=special[0], type=special[1], score=0.0)
            elif index < 3 + 256:
                model.pieces.add(piece=piece, type=kind.BYTE, score=score)
            else:
                model.pieces.add(piece=piece.replace(" ", "\u2581"), type=kind.NORMAL, score=score)
        if len(model.pieces) < 3 + 256:
            raise ValueError(f"{len(model.pieces)} pieces do not hold the 256 bytes")
    except (struct.error, ValueError) as error:
        raise EnvironmentFailure(f"{path}: not a llama2.c tokenizer: {error}") from error
    model.trainer_spec.model_type = protocol.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()
