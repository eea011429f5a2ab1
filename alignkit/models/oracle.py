"""The synthetic oracle: an LSTM with random weights, whose distribution over texts is known exactly.

What a generator is trained on are samples of it, so that the likelihood of what the generator writes can be computed
(Yu et al. 2017, SeqGAN, arXiv:1609.05473, section 5.1).
"""

import re
from collections.abc import Sequence

import numpy as np

from alignkit.errors import ConfigError

HIDDEN_SIZE = 32
_WORD = re.compile(r"w(0|[1-9]\d*)")


class OracleLSTM:
    """An LSTM language model of one layer, all of whose weights and biases are drawn from N(0, 1).

    It reads word 0 first, as SeqGAN's does, and its texts have exactly `length` words. It computes in float64. Weights
    and samples come from numpy's `RandomState`, whose streams are frozen: a seed gives the same weights everywhere. The
    last bit of a sum can differ between machines; a sample changes only where a uniform number falls that close to a
    border between two words.

    Args:
        vocabulary: number of words.
        length: words of a text.
        seed: of the weights.

    Raises:
        ConfigError: a vocabulary of fewer than two words, texts without words, or a negative seed.

    >>> oracle = OracleLSTM(vocabulary=5, length=3)
    >>> oracle.sample(2, seed=1).shape
    (2, 3)
    """

    def __init__(self, vocabulary: int = 200, length: int = 20, seed: int = 0):
        if vocabulary < 2 or length < 1 or seed < 0:
            raise ConfigError(
                f"an oracle has a vocabulary of at least 2, a length of at least 1 and a seed of at least 0; got "
                f"{vocabulary}, {length} and {seed}"
            )
        self.vocabulary, self.length, self.seed = vocabulary, length, seed
        normal = np.random.RandomState(seed).standard_normal
        self.embedding = normal((vocabulary, HIDDEN_SIZE))
        # columns: input gate, forget gate, output gate, candidate
        self.input_weight = normal((HIDDEN_SIZE, 4 * HIDDEN_SIZE))
        self.state_weight = normal((HIDDEN_SIZE, 4 * HIDDEN_SIZE))
        self.bias = normal(4 * HIDDEN_SIZE)
        self.output_weight = normal((HIDDEN_SIZE, vocabulary))
        self.output_bias = normal(vocabulary)

    def sample(self, count: int, seed: int | Sequence[int]) -> np.ndarray:
        """(count, length) words by number. A smaller count gives the first rows of a larger one.

        Args:
            count: texts.
            seed: of the draws, one number or several.
        """
        uniform = np.random.RandomState(seed).random_sample((count, self.length))
        words = np.zeros((count, self.length), dtype=np.int64)
        read, hidden, cell = self._start(count)
        for place in range(self.length):
            log_probs, hidden, cell = self._step(read, hidden, cell)
            cumulative = np.cumsum(np.exp(log_probs), axis=1)
            # the sum is 1 but for rounding, and a uniform number is below 1
            chosen = (cumulative <= uniform[:, place, None] * cumulative[:, -1:]).sum(axis=1)
            words[:, place] = read = np.minimum(chosen, self.vocabulary - 1)
        return words

    def log_probs(self, words: np.ndarray) -> np.ndarray:
        """(N, T) natural logarithm of each word's probability, given the words before it.

        Args:
            words: (N, T) by number, T at most `length`.
        """
        found = np.zeros(words.shape)
        read, hidden, cell = self._start(len(words))
        for place in range(words.shape[1]):
            log_probs, hidden, cell = self._step(read, hidden, cell)
            read = words[:, place]
            found[:, place] = log_probs[np.arange(len(words)), read]
        return found

    def text(self, words: Sequence[int]) -> str:
        """Words by number as a text.

        >>> OracleLSTM(20, 3).text([12, 7, 0])
        'w12 w7 w0'
        """
        return " ".join(f"w{word}" for word in words)

    def words(self, text: str) -> list[int] | None:
        """A text as words by number; None for one that this oracle cannot have written or begun.

        >>> oracle = OracleLSTM(20, 3)
        >>> oracle.words("w12 w7"), oracle.words("w12 w70"), oracle.words("w1 w1 w1 w1"), oracle.words("")
        ([12, 7], None, None, None)
        """
        found = [_WORD.fullmatch(part) for part in text.split()]
        numbers = [int(match[1]) for match in found if match]
        known = 0 < len(numbers) == len(found) <= self.length and max(numbers) < self.vocabulary
        return numbers if known else None

    def _start(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.zeros(count, dtype=np.int64), np.zeros((count, HIDDEN_SIZE)), np.zeros((count, HIDDEN_SIZE))

    def _step(self, read: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, ...]:
        """(N, V) log-probabilities of the next word, and the states (N, H) after reading the words `read` (N,)."""
        gates = self.embedding[read] @ self.input_weight + hidden @ self.state_weight + self.bias
        put, keep, show, candidate = np.split(gates, 4, axis=1)
        cell = _sigmoid(keep) * cell + _sigmoid(put) * np.tanh(candidate)
        hidden = _sigmoid(show) * np.tanh(cell)
        logits = hidden @ self.output_weight + self.output_bias
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), hidden, cell


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * values))
