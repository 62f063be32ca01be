"""Tokenizers of byte pairs for the tiny language models.

Source: Sennrich et al., arXiv 1508.07909, over bytes as in GPT-2, so that every text can be said.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from algorithms.nets.language_models import transformers_package

PAD, BOS, EOS, UNK, TASK, ANSWER = "<pad>", "<bos>", "<eos>", "<unk>", "<task>", "<answer>"
SPECIALS = (PAD, BOS, EOS, UNK, TASK, ANSWER)
"""Tokens 0 to 5: padding, begin, end, unknown, and the marks before what is asked and before the answer."""


def byte_pair_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> Any:
    """A tokenizer of transformers, trained on texts in their order: the same texts give the same tokenizer.

    Each digit is a token of its own, so that a number is spelt alike wherever it stands.

    Args:
        vocabulary: tokens, the specials and the 256 bytes included; fewer where the texts have too few pairs.
        context: tokens that the model takes, which the tokenizer keeps as `model_max_length`.

    Raises:
        NetworkError: without the extra `llm`.
    """
    transformers = transformers_package()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    pairs = Tokenizer(models.BPE(unk_token=UNK))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
    pairs.decoder = decoders.ByteLevel()
    pairs.train_from_iterator(
        texts,
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
