"""One module for each verb of the command line; its ``run`` takes the arguments after the verb.

Parsing and printing only: what a verb does is a function elsewhere, imported when it is called.
"""

VERBS: dict[str, str] = {
    "train": "train a model: captioner train experiment=demo",
    "evaluate": "decode a split freely and score it",
    "score": "score captions that are already there",
    "compare": "compare evaluated runs, with intervals and tests",
    "caption": "caption image files",
    "models": "list models, and write one to pass on",
    "average": "average the weights of checkpoints of one run",
    "report": "write one HTML page about an evaluation",
    "data": "draw, describe and check data sets",
    "cache": "list and clear the features of images that are kept on disk",
    "completion": "tab completion for bash, zsh and fish",
}
"""Verb -> what it is for."""
