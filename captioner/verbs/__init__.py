"""One module for each verb of the command line; its ``run`` receives the arguments after the verb.

They parse, print and return the exit status. The work is done by functions of other packages, which
are imported when a verb runs.
"""

VERBS: dict[str, str] = {
    "train": "train a model: captioner train experiment=demo",
    "evaluate": "decode a split freely and score the captions",
    "score": "score captions of any system",
    "compare": "compare evaluated runs, with intervals and tests",
    "caption": "caption image files",
    "inspect": "look inside a model while it captions a photograph",
    "states": "collect what the units of a model do, and search it",
    "models": "list models, and export one",
    "average": "average the weights of checkpoints of one run",
    "report": "write one HTML page about an evaluation",
    "data": "draw, describe and check datasets",
    "cache": "list and clear cached features of images",
    "doctor": "say what is installed, and whether a run, model or dataset is intact",
    "completion": "tab completion for bash, zsh and fish",
}
"""Verb -> its description."""
