"""Forms of the examples that fine-tuning is trained on (data.tokenize --format), and the files that hold
them.
"""

CHAT, PAIRS, PROMPTS = "chat", "pairs", "prompts"
FORMATS = (CHAT, PAIRS, PROMPTS)
INDEX, LINES = "index", "jsonl"  # endings of files: segments of examples; what the tokens do not tell
# format -> endings of the files that a split has beside its bin
BESIDE = {CHAT: (INDEX,), PAIRS: (INDEX,), PROMPTS: (INDEX, LINES)}
