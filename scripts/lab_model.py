"""Makes a Llama of under a million random weights, whole enough for a real server to load it without a network.

Run by scripts/lab_setup.sh inside the laboratory's environment: lab_model.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 512
TEXT = [
    "a queue grows while the cache is full, a worker waits for a peer",
    "tokens in, tokens out, and the scheduler counts the blocks",
]
CHAT_TEMPLATE = "{% for turn in messages %}<{{ turn.role }}> {{ turn.content }}\n{% endfor %}<assistant>"


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE, so that any text has tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT * 300,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>", "</s>", "<unk>"], initial_alphabet=alphabet),
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def write_model(folder: Path) -> None:
    """Four heads over two key-value heads, so that two tensor-parallel ranks divide it and three do not."""
    torch.manual_seed(20)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
    )
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_tokenizer(target)
    write_model(target)
