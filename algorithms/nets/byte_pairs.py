"""Tokenizers of byte pairs for the tiny language models.

Source: Sennrich et al., arXiv 1508.07909, over bytes as in GPT-2, so that every text can be said.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any

from algorithms.nets.language_models import transformers_package

PAD, BOS, EOS, UNK, TASK, ANSWER = "<pad>", "<bos>", "<eos>", "<unk>", "<task>", "<answer>"
SPECIALS = (PAD, BOS, EOS, UNK, TASK, ANSWER)
"""Tokens 0 to 5: padding, begin, end, unknown, and the marks before what is asked and before the answer."""

_NUMBERS = " ".join(f"{number:02}" for number in range(100))
_OFTEN = 5000
"""Times that every pair of digits is seen in training, so that it becomes a token before rarer words do."""


def byte_pair_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> Any:
    """A tokenizer of transformers, trained on texts in their order: the same texts give the same tokenizer.

    Numbers are cut into pairs of digits from their left, and each pair is a token: a number is spelt alike wherever it
    stands, and small models copy tokens well, but mix up their order.

    Args:
        vocabulary: tokens, the specials and the 256 bytes included; fewer where the texts have too few pairs.
        context: tokens that the model takes, which the tokenizer keeps as `model_max_length`.

    Raises:
        NetworkError: without the extra `llm`.
    """
    transformers = transformers_package()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    pairs = Tokenizer(models.BPE(unk_token=UNK))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    numbers = pre_tokenizers.Split(Regex(r"[0-9]{1,2}"), "isolated")
    pairs.pre_tokenizer = pre_tokenizers.Sequence([numbers, bytes_])
    pairs.decoder = decoders.ByteLevel()
    pairs.train_from_iterator(
        chain(texts, repeat(_NUMBERS, _OFTEN)),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(bytes_.alphabet()),
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=[TASK, ANSWER],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
