"""Flags of the data."""

from __future__ import annotations

from config.curriculum import CURRICULA
from config.mixture import DROP, EPOCHS, ERROR, SAMPLINGS
from config.packing import NONE, PACKINGS
from config.schema import PATH, PATH_OR_NAME, PLACE, Flag, dataset_or_mixture, switch

DATA: tuple[Flag, ...] = (
    Flag(
        "dataset",
        dataset_or_mixture,
        "slimpajama",
        "prepared folder under --data_dir, or a path to one; built in are 'stdlib', and 'lib_code',"
        " 'lib_docs' and 'lib_licenses' in bytes; owt2 = openwebtext2; or a mixture,"
        " NAME=WEIGHT,NAME=WEIGHT,... (or a JSON object) of prepared folders of one tokenizer",
        names=PATH_OR_NAME,
    ),
    Flag(
        "sampling",
        str,
        EPOCHS,
        "of a mixture: epochs (sources take turns, each without replacement) or random (source and window"
        " drawn with replacement)",
        choices=SAMPLINGS,
    ),
    Flag(
        "packing",
        str,
        NONE,
        "of training rows: none (windows of the running text) or best_fit (each row begins with a document;"
        " others fill it, the last one cropped to fit)",
        choices=PACKINGS,
    ),
    Flag(
        "packing_buffer",
        int,
        1000,
        "documents among which --packing best_fit chooses",
        low=1,
        high=100_000,
    ),
    Flag(
        "curriculum",
        str,
        NONE,
        "none, length (training sequences grow to --sequence_length) or difficulty (the share of hard sources"
        " of a mixture grows)",
        choices=CURRICULA,
    ),
    Flag("curriculum_stages", int, 4, "lengths of --curriculum length, evenly spaced", low=1, high=1000),
    Flag("curriculum_min_length", int, 32, "tokens of a sequence in its first stage", low=1),
    Flag("curriculum_hard", str, None, "of --curriculum difficulty: the hard sources", many=True),
    Flag(
        "curriculum_warmup",
        float,
        0.5,
        "share of the steps after which all samples are of hard sources (0: all of them are)",
        low=0,
    ),
    Flag(
        "missing_sources",
        str,
        ERROR,
        "of a mixture, where sources are not prepared: error, or drop (the others' weights are divided by"
        " their sum)",
        choices=(ERROR, DROP),
        scope=PLACE,
    ),
    switch("normalise_weights", "divide the weights of a mixture by their sum, which else is 1", scope=PLACE),
    Flag(
        "data_dir",
        str,
        None,
        "root of the datasets (None: data/datasets in the repository)",
        scope=PLACE,
        names=PATH,
    ),
    switch(
        "data_in_ram",
        "read the token files into memory before training (one copy for all processes of a node)",
        scope=PLACE,
    ),
    Flag(
        "vocab_size",
        int,
        50304,
        "GPT-2's 50257 rounded up to a multiple of 64; must cover every token of the data",
        low=1,
    ),
)
