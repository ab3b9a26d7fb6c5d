"""Models: the tables that components are chosen from, and the glossary of shapes.

The letters mean the same everywhere in the package, and nothing else:

    B images   N captions of an image   K beams           T tokens of a caption   V vocabulary
    D encoder features   E word embedding   H hidden   P image positions   L layers   S image side

    images [B, 3, S, S]     pooled [B, D]     grid [B, P, D]     inputs, targets [B, T]
    logits [B, T, V]        log_probs [B, V]  scores [B, K]
"""
