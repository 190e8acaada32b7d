"""Names of the tokenizers that are built in, and of the file that a tokenizer of a user's own is kept in."""

GPT2, CHARACTERS, BYTES = "gpt2", "char", "bytes"
TOKENIZER_FILE = "tokenizer.json"  # as Hugging Face stores one
